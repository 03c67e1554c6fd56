/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SERVE_STATS_H
#define REWIND_CLI_SERVE_STATS_H

#include <stdbool.h>
#include <stdio.h>

#include "nbd/export.h"
#include "nbd/stats.h"

/* What a server has done, for --stats and SIGUSR1: a table for people, or one
 * line of JSON. Any thread while the exports live. */
void serve_stats_print(FILE *out, bool json, const struct stats *stats,
                       const struct export_set *exports);

#endif
