/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_TESTS_UNIT_FAKE_LAYER_H
#define REWIND_TESTS_UNIT_FAKE_LAYER_H

/*
 * Layers made for the tests of blk/disk*.c, and reads through the I/O engines.
 * What a layer holds is a function of its number and the offset, so a model
 * needs no bytes, only who owns which sector. REWIND_SEED replays a random run.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/disk.h"

#define SECTOR 512u
#define WINDOW (32 * MIB)
#define RUNS_MAX 64u

static uint64_t rng;

static uint64_t
rnd(uint64_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng % below;
}

static inline const char *
tmp_dir(void)
{
    const char *tmp = getenv("TMPDIR");

    return tmp != NULL ? tmp : "/var/tmp";
}

/* ---- layers ---- */

struct run {
    uint64_t off, len;
    enum extent_kind kind;
    bool zero_past_eof;
    uint64_t host_off;
};

struct fake {
    struct layer layer;
    uint64_t size_bytes;
    unsigned number;           /* salt of its contents */
    int fd;                    /* owned */
    struct run runs[RUNS_MAX]; /* ascending; BACKING between them */
    unsigned run_count;
    uint64_t host_end;
    bool flat;
    uint64_t stripe; /* not 0: DATA and ZERO in turns, by this much */
    uint64_t fail_off, fail_end; /* extents() fails there with EIO */
    atomic_uint told;            /* extents handed out */
    atomic_uint asked;           /* calls of extents() */
    atomic_int pinned;
    atomic_uint pins;
    bool want_pin; /* extents() must only come while pinned */
};

static atomic_int layers_open;

/* The byte at guest offset `off` of layer `number`. */
static uint8_t
content(unsigned number, uint64_t off)
{
    uint64_t h = (off / 8 + 1) * UINT64_C(0x9e3779b97f4a7c15);

    h ^= (number + 1) * UINT64_C(0xbf58476d1ce4e5b9);
    h *= UINT64_C(0x94d049bb133111eb);
    return (uint8_t)(h >> (8 * (off % 8)));
}

static inline void
content_fill(unsigned number, uint64_t off, uint8_t *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = content(number, off + i);
    }
}

static inline struct fake *
fake_of(struct layer *l)
{
    return container_of(l, struct fake, layer);
}

static inline void
fake_info(struct layer *l, struct layer_info *ret)
{
    struct fake *f = fake_of(l);

    *ret = (struct layer_info){.format = "fake",
                               .path = "fake",
                               .size_bytes = f->size_bytes,
                               .allocated_bytes = 12345,
                               .flush_fd = f->fd};
}

/* What the layer has at `off`: sets all but guest_off, up to `len`. */
static inline struct extent
fake_at(struct fake *f, uint64_t off, uint64_t len)
{
    struct extent e = {
        .guest_off = off, .len_bytes = len, .kind = EXTENT_BACKING, .fd = -1};

    if (f->stripe != 0) {
        uint64_t nth = off / f->stripe;

        e.len_bytes = min_u64(len, (nth + 1) * f->stripe - off);
        e.kind = nth % 2 == 0 ? EXTENT_DATA : EXTENT_ZERO;
        e.fd = f->fd;
        e.host_off = off % (64 * KIB);
        return e;
    }
    for (unsigned i = 0; i < f->run_count; i++) {
        const struct run *r = &f->runs[i];

        if (r->off > off) {
            e.len_bytes = min_u64(len, r->off - off);
            break;
        }
        if (off - r->off < r->len) {
            e.len_bytes = min_u64(len, r->off + r->len - off);
            e.kind = r->kind;
            e.allocated = r->kind == EXTENT_DATA;
            e.zero_past_eof = r->zero_past_eof;
            e.fd = f->fd;
            e.host_off = r->host_off + (off - r->off);
            e.layer = &f->layer;
            /* A unit of 64 KiB, as a cluster would be. */
            e.packed = off / (64 * KIB);
            e.packed_off = off % (64 * KIB);
            if (e.kind == EXTENT_PACKED) {
                e.len_bytes = min_u64(e.len_bytes, 64 * KIB - e.packed_off);
            }
            break;
        }
    }
    return e;
}

static inline int
fake_extents(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
             void *arg)
{
    struct fake *f = fake_of(l);

    atomic_fetch_add(&f->asked, 1);
    if (f->want_pin && atomic_load(&f->pinned) == 0) {
        fprintf(stderr, "extents without pin\n");
        abort();
    }
    if (!range_within(off, len, f->size_bytes)) {
        fprintf(stderr, "extents past the layer's size\n");
        abort();
    }
    while (len > 0) {
        struct extent e = fake_at(f, off, len);
        int err;

        if (off < f->fail_off) {
            e.len_bytes = min_u64(e.len_bytes, f->fail_off - off);
        } else if (off < f->fail_end) {
            return -EIO;
        }
        atomic_fetch_add(&f->told, 1);
        err = fn(arg, &e);
        if (err != 0) {
            return err;
        }
        off += e.len_bytes;
        len -= e.len_bytes;
    }
    return 0;
}

static inline int
fake_read_packed(struct layer *l, const struct extent *e, void *buf, size_t len)
{
    struct fake *f = fake_of(l);

    if (e->kind != EXTENT_PACKED || e->layer != l ||
        e->packed_off + len > 64 * KIB || e->packed == 666) {
        return -EIO;
    }
    content_fill(f->number, e->packed * 64 * KIB + e->packed_off, buf, len);
    return 0;
}

static inline bool
fake_flat(struct layer *l, struct extent *ret)
{
    struct fake *f = fake_of(l);

    *ret = (struct extent){
        .len_bytes = f->runs[0].len, .kind = EXTENT_DATA, .fd = f->fd};
    return f->flat;
}

static inline unsigned
fake_pin(struct layer *l)
{
    struct fake *f = fake_of(l);

    atomic_fetch_add(&f->pinned, 1);
    return atomic_fetch_add(&f->pins, 1);
}

static inline void
fake_unpin(struct layer *l, unsigned pin)
{
    struct fake *f = fake_of(l);

    assert_true(pin < atomic_load(&f->pins));
    atomic_fetch_sub(&f->pinned, 1);
}

static inline void
fake_write(struct layer *l, struct layer_write *w, unsigned count)
{
    (void)l;
    for (unsigned i = 0; i < count; i++) {
        w[i].result = -ENOSPC;
    }
}

static inline int
fake_zero(struct layer *l, uint64_t off, uint64_t len, unsigned flags)
{
    (void)l;
    (void)off;
    (void)len;
    return flags == LAYER_ZERO_FAST ? -ENOTSUP : 0;
}

static inline void
fake_close(struct layer *l)
{
    struct fake *f = fake_of(l);

    assert_int_equal(atomic_load(&f->pinned), 0);
    file_close_ptr(&f->fd);
    free(f);
    atomic_fetch_sub(&layers_open, 1);
}

static const struct layer_ops fake_ops = {
    .format = "fake",
    .info = fake_info,
    .extents = fake_extents,
    .read_packed = fake_read_packed,
    .flat = fake_flat,
    .pin = fake_pin,
    .unpin = fake_unpin,
    .write = fake_write,
    .zero = fake_zero,
    .close = fake_close,
};

static inline struct fake *
fake_new(unsigned number, uint64_t size_bytes)
{
    struct fake *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->layer.ops = &fake_ops;
    f->number = number;
    f->size_bytes = size_bytes;
    f->fd = file_open_unnamed(tmp_dir(), NULL);
    assert_true(f->fd >= 0);
    atomic_fetch_add(&layers_open, 1);
    return f;
}

/* Puts a run's bytes into the file. */
static inline void
fake_store(struct fake *f, uint64_t off, uint64_t len, uint64_t host_off)
{
    static uint8_t buf[256 * 1024];

    while (len > 0) {
        size_t step = min_u64(len, sizeof(buf));

        content_fill(f->number, off, buf, step);
        assert_int_equal(file_pwrite(f->fd, buf, step, host_off), 0);
        off += step;
        host_off += step;
        len -= step;
    }
}

/* Appends a run behind the last one. */
static inline void
fake_run(struct fake *f, uint64_t off, uint64_t len, enum extent_kind kind)
{
    struct run *r = &f->runs[f->run_count++];

    assert_true(f->run_count <= RUNS_MAX);
    *r = (struct run){.off = off, .len = len, .kind = kind};
    if (kind == EXTENT_DATA) {
        /* Sometimes next to the run before, so that the two join. */
        f->host_end += rnd(2) * 8 * SECTOR;
        r->host_off = f->host_end;
        fake_store(f, off, len, r->host_off);
        f->host_end += len;
    }
}

static inline struct disk *
disk_of(struct fake *top, struct fake **layers, unsigned count, uint64_t size,
        uint64_t map_bytes)
{
    struct layer *list[8];
    struct err e = {0};
    struct disk *d;

    for (unsigned i = 0; i < count; i++) {
        list[i] = &layers[i]->layer;
    }
    d = disk_new(top != NULL ? &top->layer : NULL, list, count, size, map_bytes,
                 &e);
    assert_non_null(d);
    return d;
}

/* ---- asynchronous reads ---- */

struct job {
    struct disk_read read;
    uint64_t off;
    size_t len;
    uint8_t *buf;
    int result;
    bool entered;
};

static inline void
job_done(struct disk_read *r, int result)
{
    struct job *job = container_of(r, struct job, read);

    assert_false(job->entered);
    job->entered = true;
    job->result = result;
}

static inline void
job_start(struct job *job, struct disk *d, struct io_ctx *io, uint64_t off,
          size_t len)
{
    job->read.done = job_done;
    job->off = off;
    job->len = len;
    job->entered = false;
    job->buf = malloc(len);
    assert_non_null(job->buf);
    memset(job->buf, 0xaa, len);
    disk_read_start(&job->read, d, io, job->buf, off, len);
    assert_false(job->entered);
}

static inline int
read_async(struct disk *d, struct io_ctx *io, uint8_t *buf, uint64_t off,
           size_t len)
{
    struct job job;

    job_start(&job, d, io, off, len);
    while (!job.entered) {
        assert_true(io_pending(io) > 0);
        io_reap(io, true);
    }
    memcpy(buf, job.buf, len);
    free(job.buf);
    return job.result;
}

/* Runs `fn` once for each engine that this host has. */
static inline void
each_engine(void (*fn)(struct io_ctx *io))
{
    static const enum io_engine_kind kinds[] = {IO_ENGINE_THREADS,
                                                IO_ENGINE_URING};

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct err e = {0};
        struct io_ctx *io = io_ctx_new(kinds[i], 16, &e);

        if (io == NULL) {
            assert_int_equal(kinds[i], IO_ENGINE_URING);
            print_message("no ring here: %s\n", e.text);
            continue;
        }
        fn(io);
        assert_int_equal(io_pending(io), 0);
        io_ctx_free(io);
    }
}

static inline int
setup(void **state)
{
    const char *seed = getenv("REWIND_SEED");

    (void)state;
    rng = seed != NULL ? strtoull(seed, NULL, 0) | 1 : 20251122;
    return 0;
}

#endif
