/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_WINDOW_H
#define REWIND_BLK_WINDOW_H

#include <stdint.h>

#include "base/err.h"
#include "blk/layer.h"

/*
 * A window on a read-only layer: shows it from `offset_bytes` on, or as an
 * empty layer if it ends before. Takes over `inner`, also on failure. NULL and
 * `e` set on failure.
 */
struct layer *window_open(struct layer *inner, uint64_t offset_bytes,
                          struct err *e);

#endif
