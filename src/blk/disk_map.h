/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_DISK_MAP_H
#define REWIND_BLK_DISK_MAP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/err.h"
#include "blk/layer.h"

/*
 * The merged map of a disk's immutable layers: for each guest byte, the one
 * place that holds it, at the same price for any number of layers. It is
 * built lazily, a window of guest space at a time, and bounded in memory.
 * Private to disk*.c. Any thread may call at any time after init.
 */

/* One 4 KiB slice of an L2 table covers this much at the usual cluster size
 * of 64 KiB, so a layer costs about one small read a window. */
#define DISK_WINDOW_BYTES (UINT64_C(32) << 20)

/* Limited by the width of map_entry.file; far beyond IMAGE_DEPTH_MAX. */
#define DISK_LAYERS_MAX 4095u

/* Pieces found in one step; a longer read takes several. */
#define DISK_PLAN_PIECES 64u

/* Unpacked units are at most a cluster of 2 MiB; map_entry has this much. */
#define DISK_PACKED_MAX ((UINT64_C(1) << 23) - 1)

/* A descriptor that a layer's data lies in. */
struct disk_file {
    struct layer *layer; /* borrowed */
    atomic_int fd;       /* borrowed from the layer, -1 until it is seen */
    bool may_wait;       /* file_pread_cached's own, atomically */
};

static inline int
disk_file_fd(const struct disk_file *f)
{
    return atomic_load_explicit(&f->fd, memory_order_relaxed);
}

/* What we keep of each layer. */
#define DISK_SOURCE_FILES 2u /* the image and its external data file */
struct disk_source {
    struct layer *layer; /* owned by the disk */
    uint64_t size_bytes;
    bool flat;           /* `whole` describes all of it, without extents() */
    struct extent whole; /* see layer_ops.flat */
    struct disk_file files[DISK_SOURCE_FILES];
};

void disk_source_init(struct disk_source *s, struct layer *layer);

/* A run of guest bytes and where to read them. Pieces follow each other in
 * guest space without gap, so none carries a guest offset. */
struct disk_piece {
    uint64_t len_bytes;
    uint64_t host_off;      /* DATA: in file; PACKED: the descriptor */
    struct disk_file *file; /* DATA and PACKED; borrowed from the source */
    uint32_t packed_off;    /* PACKED: first byte in the unpacked unit */
    uint8_t kind;           /* enum extent_kind */
    bool zero_past_eof;
};

struct disk_plan {
    uint64_t covered_bytes; /* sum of the pieces */
    unsigned count;
    struct disk_piece pieces[DISK_PLAN_PIECES];
};

static inline void
disk_plan_init(struct disk_plan *p)
{
    p->covered_bytes = 0;
    p->count = 0;
}

/* True if `b` only continues `a`. */
static inline bool
disk_piece_joins(const struct disk_piece *a, const struct disk_piece *b)
{
    if (a->kind != b->kind) {
        return false;
    }
    if (a->kind == EXTENT_DATA) {
        return a->file == b->file && a->zero_past_eof == b->zero_past_eof &&
               a->host_off + a->len_bytes == b->host_off;
    }
    if (a->kind == EXTENT_PACKED) {
        return a->file == b->file && a->host_off == b->host_off &&
               a->packed_off + a->len_bytes == b->packed_off;
    }
    return true;
}

/* Appends; false if there is no room. */
static inline bool
disk_plan_add(struct disk_plan *p, const struct disk_piece *piece)
{
    struct disk_piece *last = &p->pieces[p->count];

    if (p->count > 0 && disk_piece_joins(last - 1, piece)) {
        last[-1].len_bytes += piece->len_bytes;
    } else if (p->count < DISK_PLAN_PIECES) {
        *last = *piece;
        p->count++;
    } else {
        return false;
    }
    p->covered_bytes += piece->len_bytes;
    return true;
}

/* The piece that describes an extent of `s`. 0 or -EIO. */
int disk_source_piece(struct disk_source *s, const struct extent *e,
                      struct disk_piece *ret);

/* Adds [off, off + len) of a flat source, within its size, to the plan. False
 * if there was no room for all of it. */
bool disk_source_plan(struct disk_source *s, uint64_t off, uint64_t len,
                      struct disk_plan *plan);

#define DISK_MAP_SHARDS 16u

struct map_window;

struct map_shard {
    pthread_mutex_t lock; /* guards what follows; never two at once */
    struct map_window **buckets;
    unsigned bucket_count; /* power of two, or 0 */
    unsigned window_count;
    unsigned hand; /* the bucket that the eviction looks at next */
};

struct disk_map {
    uint64_t size_bytes;
    unsigned source_count;
    struct disk_source *sources; /* owned, top first */
    uint64_t limit_bytes;
    atomic_uint_fast64_t used_bytes;
    atomic_uint evict_shard; /* where the next eviction begins */
    unsigned shard_count;    /* locks that are initialised */
    struct map_shard shards[DISK_MAP_SHARDS];
};

/* Borrows the layers. On failure the map may only be destroyed. */
int disk_map_init(struct disk_map *m, struct layer **layers, unsigned count,
                  uint64_t size_bytes, uint64_t limit_bytes, struct err *e);

/* All zeroes is fine. */
void disk_map_destroy(struct disk_map *m);

/*
 * Adds [off, off + len), within the disk, to the plan, until that is full.
 * Without `wait` it answers only from memory: -EAGAIN when the layers' own
 * tables would have to be read. On failure the plan keeps what was found
 * before the trouble.
 */
int disk_map_plan(struct disk_map *m, uint64_t off, uint64_t len, bool wait,
                  struct disk_plan *plan);

/* Bytes of memory the windows take now. */
uint64_t disk_map_bytes(struct disk_map *m);

#endif
