/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_OVERLAY_DIR_H
#define REWIND_BLK_OVERLAY_DIR_H

#include <stdbool.h>

/*
 * The directory of a volatile overlay's file: `asked`, or if that is NULL
 * $TMPDIR, or if that is not set /var/tmp. Warns, once, if its files live in
 * memory, because then what a guest writes eats the host's RAM. The string is
 * `asked`, the environment's or a constant.
 */
const char *overlay_dir_choose(const char *asked);

/* True if files in `dir` take memory rather than disk space. Each system's
 * own. */
bool overlay_dir_in_memory(const char *dir);

#endif
