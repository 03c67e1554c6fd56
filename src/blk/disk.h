/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_DISK_H
#define REWIND_BLK_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/layer.h"
#include "io/io.h"

/*
 * A disk is what a guest sees: a size and bytes, held by a stack of layers.
 * The immutable layers are seen through one merged map, so that a read costs
 * the same at any depth; a writable top, if there is one, is asked first.
 *
 * Threads: any, at any time, unless a function says otherwise. Bounds: `off`
 * and `len` lie within the disk's size; the caller has checked (H1).
 * Data-path functions return 0 or -errno.
 */
struct disk;

/* Bytes of merged map a disk may keep, unless told otherwise. */
#define DISK_MAP_BYTES_DEFAULT (UINT64_C(32) << 20)

/*
 * A disk of `layer_count` immutable layers, top first, below the writable
 * `top` (NULL: a read-only disk). `size_bytes` is what the guest sees. Takes
 * over all layers, also when it fails.
 */
struct disk *disk_new(struct layer *top, struct layer **layers,
                      unsigned layer_count, uint64_t size_bytes,
                      uint64_t map_bytes, struct err *e);

/* No request may be in progress. NULL is fine. */
void disk_free(struct disk *d);

uint64_t disk_size(const struct disk *d);
bool disk_writable(const struct disk *d);

/* The layers, 0 = top (writable or not); NULL past the last. Borrowed. */
struct layer *disk_layer(const struct disk *d, unsigned idx);

/*
 * Reads what can be had without waiting for a device. 0 when all of it is in
 * `buf`; -EAGAIN when some of it must be waited for (`buf` is then
 * undefined, and disk_read is the way); else -errno.
 */
int disk_read_cached(struct disk *d, void *buf, uint64_t off, size_t len);

/* Reads, waiting as long as it takes. */
int disk_read(struct disk *d, void *buf, uint64_t off, size_t len);

/*
 * The same without waiting: the parts that miss the page cache go through
 * `io`, all at once. `r` belongs to the disk from start until done() is
 * entered, on io's thread, from io_reap. Never calls done() from within
 * disk_read_start.
 */
struct disk_read {
    void (*done)(struct disk_read *r, int result); /* set by the caller */

    /* private */
    struct disk *disk;
    struct io_ctx *io;
    char *buf; /* what is still to be started: where to, */
    uint64_t off;
    size_t len; /* which part of the guest */
    unsigned pin;
    unsigned left; /* pieces still under way */
    int result;
    struct disk_plan *plan; /* of the next step, while the pool makes it */
    struct disk_read_piece *pieces; /* of this step */
    struct io_op self;
};

void disk_read_start(struct disk_read *r, struct disk *d, struct io_ctx *io,
                     void *buf, uint64_t off, size_t len);

/* Writes a batch; see layer_ops.write. Read-only disks answer -EPERM. */
void disk_write(struct disk *d, struct layer_write *w, unsigned count);

/* Zero or trim; flags are LAYER_ZERO_*. May take long over a large range. */
int disk_zero(struct disk *d, uint64_t off, uint64_t len, unsigned flags);

/* The descriptor a flush must sync (S1), or -1 if there is nothing to do:
 * what a volatile overlay holds is lost with the process by its nature. */
int disk_flush_fd(const struct disk *d);

/*
 * Syncs disk_flush_fd, and waits for it. Calls at the same time share one sync
 * that began after each of them. A failure is sticky, and is seen by every call
 * that returns after it (S8): the kernel reports it to one sync only.
 */
int disk_flush(struct disk *d);

/*
 * Extents of [off, off + len) as block status wants them: kinds ZERO, DATA and
 * PACKED, `depth` set (0: no layer has it), neighbours of the same kind and
 * depth joined even where their host offsets are apart; fd, host_off and the
 * like are not set. Stops after `max` extents (>= 1), or earlier when it has
 * taken long. Sets *ret_count >= 1. `len` is not 0. It may wait for the
 * layers' tables.
 */
int disk_extents(struct disk *d, uint64_t off, uint64_t len, struct extent *ret,
                 unsigned max, unsigned *ret_count);

/*
 * The one immutable file range that backs all of [off, off + len), if it is
 * one: then sets *ret_fd (borrowed) and *ret_host_off and returns true. Such
 * a range may be handed to the kernel by reference; the writable layer's
 * bytes never (a later write would tear a reply in the queue).
 */
bool disk_immutable_range(struct disk *d, uint64_t off, uint64_t len,
                          int *ret_fd, uint64_t *ret_host_off);

/* A hint that [off, off + len) will be read soon. Looks at DISK_HINT_BYTES at
 * most. May wait for the layers' tables, never for their data. */
#define DISK_HINT_BYTES (UINT64_C(256) << 20)
void disk_will_need(struct disk *d, uint64_t off, uint64_t len);

/* Bytes the writable top takes on disk now (0 without one), and bytes of
 * memory its map and the merged map take. */
struct disk_usage {
    uint64_t top_bytes;
    uint64_t top_map_bytes;
    uint64_t merged_map_bytes;
};
void disk_usage(struct disk *d, struct disk_usage *ret);

#endif
