/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_PARENT_H
#define REWIND_CLI_PARENT_H

#include "base/err.h"

/*
 * Sends this process SIGTERM when the process that started it ends, also if
 * that has happened already. For --exit-with-parent. Each system's own. Call
 * it on the main thread. 0 or -errno and `e`.
 */
int parent_watch(struct err *e);

#endif
