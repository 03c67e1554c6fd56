/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_LAYER_H
#define REWIND_BLK_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/*
 * A layer is one image file in a disk's stack. This is the whole contract
 * between a format and the rest of the program; a format implements the table
 * below and knows nothing of the layers above or below it.
 *
 * Threads: after open, every operation may be called from any thread at any
 * time, unless it says otherwise. Errors: 0 or -errno.
 */
struct layer;

enum extent_kind {
    EXTENT_BACKING, /* this layer says nothing: look at the layer below */
    EXTENT_ZERO,    /* reads as zeroes, nothing stored */
    EXTENT_DATA,    /* bytes at host_off of fd */
    EXTENT_PACKED,  /* needs the layer's read_packed: compressed */
};

/* A run of guest bytes that one answer describes. */
struct extent {
    uint64_t guest_off;
    uint64_t len_bytes;
    enum extent_kind kind;
    unsigned depth; /* 1 = the disk's top layer; 0 = no layer has it */
    /* ZERO and DATA: space is set aside for it in the file (not a hole). */
    bool allocated;
    /* DATA: a read past the file's end is zeroes, not an error (qcow2). */
    bool zero_past_eof;
    int fd;              /* DATA: borrowed from the layer */
    uint64_t host_off;   /* DATA: where in fd */
    struct layer *layer; /* PACKED: whom to ask; borrowed */
    uint64_t packed;     /* PACKED: the layer's own descriptor of the cluster */
    uint64_t packed_off; /* PACKED: offset of guest_off in the unpacked unit */
};

/* What one call of layer_ops.extents always answers whole. */
#define LAYER_EXTENTS_WHOLE (UINT64_C(64) << 20)

/* Receives extents in ascending order. Nonzero stops and is handed back. */
typedef int extent_fn(void *arg, const struct extent *extent);

/* One write of a batch. */
struct layer_write {
    uint64_t off;
    uint32_t len_bytes;
    int result;      /* out: 0 or -errno */
    const void *buf; /* borrowed until the call returns */
};

enum {
    LAYER_ZERO_TRIM = 1 << 0,    /* a hint: may round inwards, may do nothing */
    LAYER_ZERO_NO_HOLE = 1 << 1, /* afterwards the space is set aside */
    LAYER_ZERO_FAST = 1 << 2,    /* -ENOTSUP at once rather than slowly */
};

struct layer_info {
    const char *format;       /* "raw", "qcow2", "overlay" */
    const char *path;         /* for messages; borrowed from the layer */
    uint64_t size_bytes;      /* what the guest sees of this layer */
    uint64_t allocated_bytes; /* what it takes on disk now */
    bool writable;
    int flush_fd; /* what a flush must sync, or -1 if nothing (volatile) */
};

struct layer_ops {
    const char *format;

    void (*info)(struct layer *l, struct layer_info *ret);

    /*
     * Describes [off, off + len), within the layer's size, by calling
     * `fn` for one extent after the other without gap. Sets everything but
     * `depth`. `fn` must not call back into the layer. A layer has at most
     * two descriptors, and packed_off stays below 8 MiB. May end early, to
     * bound its work, but not within the first LAYER_EXTENTS_WHOLE bytes.
     */
    int (*extents)(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
                   void *arg);

    /* Reads [e->packed_off, + len) of the unpacked cluster `e` describes. NULL
     * if the format never reports PACKED. */
    int (*read_packed)(struct layer *l, const struct extent *e, void *buf,
                       size_t len);

    /*
     * True if the layer's bytes are those of one file, holes and all (raw):
     * then describes it as one DATA extent from guest offset 0 on. A read of
     * [0, ret->len_bytes) that hits the file's end is an error; from there to
     * the layer's size it is zeroes. What it says stays true, so reads need
     * not ask extents(). NULL: false.
     */
    bool (*flat)(struct layer *l, struct extent *ret);

    /* --- below: NULL in a layer that is never a writable top --- */

    /*
     * What extents() says stays true for DATA until unpin: storage that a
     * concurrent zero or trim gives up is not reused before. NULL if it is
     * always so.
     */
    unsigned (*pin)(struct layer *l);
    void (*unpin)(struct layer *l, unsigned pin);

    /*
     * Writes `count` pieces, in any order, in as few system calls as it can.
     * Each piece's result tells its own fate. Pieces that overlap end up in
     * one order or another, as NBD allows. All lie within the size.
     */
    void (*write)(struct layer *l, struct layer_write *w, unsigned count);

    /* [off, off + len) reads as zeroes afterwards, unless LAYER_ZERO_TRIM. */
    int (*zero)(struct layer *l, uint64_t off, uint64_t len, unsigned flags);

    /* ----------------------------------------------------------- */

    /* Closes and frees. Nobody else uses the layer any more. */
    void (*close)(struct layer *l);
};

/* Every format's own struct begins with this. */
struct layer {
    const struct layer_ops *ops;
};

#endif
