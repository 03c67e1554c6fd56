/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_RAW_H
#define REWIND_BLK_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/layer.h"

/*
 * A raw image: the file's bytes are the disk's, from `offset` on. Holes are
 * found with SEEK_DATA and SEEK_HOLE.
 */
struct raw_options {
    const char *path;      /* for messages; copied */
    uint64_t offset_bytes; /* first byte shown */
    uint64_t size_bytes;   /* bytes shown; may reach past the file's end by
                              less than a sector, which reads as zeroes */
    bool writable;
    bool ignore_trim;        /* LAYER_ZERO_TRIM does nothing */
    bool guard_first_sector; /* refuse writes that would make the file probe as
                                another format (-EPERM) */
};

/* Takes over `fd`, also on failure. NULL and `e` set on failure. */
struct layer *raw_open(int fd, const struct raw_options *options,
                       struct err *e);

#endif
