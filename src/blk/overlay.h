/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_OVERLAY_H
#define REWIND_BLK_OVERLAY_H

#include <stdint.h>

#include "base/err.h"
#include "blk/layer.h"

/*
 * The volatile overlay: a writable layer that is gone with the process. Its
 * data lies in a file without a name, in the order in which grains were first
 * written; a map in memory says where. Nothing is ever written twice for
 * bookkeeping, and nothing needs a flush.
 */

/* The unit of copy-on-write: a first write to less than this copies the rest
 * of the grain from below. 4 KiB is the page size and every guest's usual
 * block, so in practice nothing is copied. */
#define OVERLAY_GRAIN_BYTES 4096u

/* Reads [off, off + len) from the layers below; may wait. */
typedef int overlay_below_fn(void *arg, void *buf, uint64_t off, size_t len);

struct overlay_options {
    const char *dir;     /* where the file goes, must exist */
    uint64_t size_bytes; /* of the disk; at most OVERLAY_SIZE_MAX */
    uint64_t slot_limit; /* 0: the default; tests lower it to see reuse */
};

/* Largest disk, bytes: 8 EiB less one would do for the map; guests stop long
 * before. */
#define OVERLAY_SIZE_MAX (UINT64_C(1) << 60)

/* NULL and `e` set if the file can't be made. The caller owns the layer and
 * must call overlay_set_below before the first write. */
struct layer *overlay_new(const struct overlay_options *options, struct err *e);

void overlay_set_below(struct layer *l, overlay_below_fn *fn, void *arg);

/* Bytes of memory its map takes now. */
uint64_t overlay_map_bytes(struct layer *l);

#endif
