/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SERVE_LIST_H
#define REWIND_CLI_SERVE_LIST_H

#include "cli/serve_options.h"

/* `serve --list`: asks another server what it exports and prints it. Returns
 * enum cli_status. */
int serve_list(const struct serve_options *o);

#endif
