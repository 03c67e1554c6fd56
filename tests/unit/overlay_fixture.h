/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_TESTS_UNIT_OVERLAY_FIXTURE_H
#define REWIND_TESTS_UNIT_OVERLAY_FIXTURE_H

/*
 * An overlay to test: over layers whose every byte is known, written and read
 * as a session would.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "blk/overlay.h"

#define GRAIN OVERLAY_GRAIN_BYTES

static inline uint64_t
random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* What lies below: each byte a function of its offset. */
static inline uint8_t
below_byte(uint64_t off)
{
    return (uint8_t)(off * 7 + (off >> 8) * 13 + 1);
}

static inline int
read_below(void *arg, void *buf, uint64_t off, size_t len)
{
    uint8_t *p = buf;

    (void)arg;
    for (size_t i = 0; i < len; i++) {
        p[i] = below_byte(off + i);
    }
    return 0;
}

static inline const char *
scratch_dir(void)
{
    const char *dir = getenv("TMPDIR");

    return dir != NULL && dir[0] != '\0' ? dir : "/var/tmp";
}

static inline struct layer *
overlay_make(uint64_t size, uint64_t slot_limit)
{
    struct overlay_options options = {
        .dir = scratch_dir(),
        .size_bytes = size,
        .slot_limit = slot_limit,
    };
    struct err e = {0};
    struct layer *l = overlay_new(&options, &e);

    assert_non_null(l);
    overlay_set_below(l, read_below, NULL);
    return l;
}

static inline int
write_at(struct layer *l, uint64_t off, const void *buf, uint32_t len)
{
    struct layer_write w = {.off = off, .len_bytes = len, .buf = buf};

    l->ops->write(l, &w, 1);
    return w.result;
}

struct reading {
    uint8_t *buf;
    uint64_t off, expect;
};

static inline int
read_extent(void *arg, const struct extent *e)
{
    struct reading *r = arg;
    uint8_t *p = r->buf + (e->guest_off - r->off);

    assert_true(e->guest_off == r->expect && e->len_bytes > 0);
    r->expect += e->len_bytes;
    switch (e->kind) {
    case EXTENT_BACKING:
        return read_below(NULL, p, e->guest_off, e->len_bytes);
    case EXTENT_ZERO:
        memset(p, 0, e->len_bytes);
        return 0;
    case EXTENT_DATA:
        return file_pread(e->fd, p, e->len_bytes, e->host_off) ==
                       (ssize_t)e->len_bytes
                   ? 0
                   : -EIO;
    default:
        return -EIO;
    }
}

static inline void
read_at(struct layer *l, uint64_t off, void *buf, uint64_t len)
{
    struct reading r = {buf, off, off};
    unsigned pin = l->ops->pin(l);

    assert_int_equal(l->ops->extents(l, off, len, read_extent, &r), 0);
    assert_true(r.expect == off + len);
    l->ops->unpin(l, pin);
}

static inline uint64_t
allocated(struct layer *l)
{
    struct layer_info info;

    l->ops->info(l, &info);
    return info.allocated_bytes;
}

#endif
