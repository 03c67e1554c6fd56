/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_PROGRAM_H
#define REWIND_CLI_PROGRAM_H

#include <stddef.h>

/*
 * Runs `name --version`, found on $PATH, and puts the first line of what it
 * prints into `buf`. 0; -ENOENT if there is no such program; -ETIMEDOUT if it
 * does not end within a few seconds (it is killed); or another -errno.
 */
int program_version(const char *name, char *buf, size_t cap);

#endif
