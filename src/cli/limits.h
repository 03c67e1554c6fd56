/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_LIMITS_H
#define REWIND_CLI_LIMITS_H

#include <stdint.h>

/* Raises the limit of open files as far as we may. Never fails. */
void limits_raise_files(void);

/* How many files we may have open after that. */
uint64_t limits_files(void);

#endif
