/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_DISK_IMPL_H
#define REWIND_BLK_DISK_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blk/disk.h"
#include "blk/disk_map.h"

/* What the disk*.c files share, and nobody else sees. */
struct disk {
    uint64_t size_bytes;
    bool has_top;
    bool top_is_overlay;
    int flush_fd;           /* borrowed from the top, or -1 */
    struct disk_source top; /* if has_top */
    struct disk_map map;    /* the immutable layers */

    pthread_mutex_t flush_lock; /* guards all below */
    pthread_cond_t flush_done;
    uint64_t flush_begun;    /* syncs begun so far, */
    uint64_t flush_finished; /* and ended */
    int flush_error;         /* the first failure (S8) */
};

/* Around everything that uses what the top's extents() says. */
static inline unsigned
disk_pin(struct disk *d)
{
    struct layer *top = d->top.layer;

    return d->has_top && top->ops->pin != NULL ? top->ops->pin(top) : 0;
}

static inline void
disk_unpin(struct disk *d, unsigned pin)
{
    struct layer *top = d->top.layer;

    if (d->has_top && top->ops->pin != NULL) {
        top->ops->unpin(top, pin);
    }
}

/*
 * Where to read [off, off + len), len > 0: the beginning of it, at least one
 * byte. The disk is pinned. Without `wait`, -EAGAIN if tables would have to
 * be read. 0 or -errno.
 */
int disk_plan(struct disk *d, uint64_t off, uint64_t len, bool wait,
              struct disk_plan *ret);

/* Reads from the immutable layers only; may wait. `arg` is the disk. It is
 * what a writable overlay copies from. */
int disk_read_below(void *arg, void *buf, uint64_t off, size_t len);

#endif
