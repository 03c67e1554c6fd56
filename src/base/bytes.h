/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_BYTES_H
#define REWIND_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * The one way in which bytes from the wire or from an image header become
 * numbers (H1). Big endian, as NBD and qcow2 both are. A reader that runs past
 * its end turns `bad`, answers zeroes from then on, and never touches memory
 * outside; so a parser may read a whole structure and check `bad` once.
 */
struct reader {
    const uint8_t *at; /* borrowed */
    size_t left_bytes;
    bool bad;
};

static inline struct reader
reader_of(const void *bytes, size_t len_bytes)
{
    return (struct reader){.at = bytes, .left_bytes = len_bytes};
}

/* `len_bytes` bytes, borrowed from the reader's buffer, or NULL and bad. */
static inline const uint8_t *
reader_take(struct reader *r, size_t len_bytes)
{
    const uint8_t *p = r->at;

    if (r->bad || len_bytes > r->left_bytes) {
        r->bad = true;
        return NULL;
    }
    r->at += len_bytes;
    r->left_bytes -= len_bytes;
    return p;
}

static inline uint64_t
load_be(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

static inline uint16_t
load_be16(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return __builtin_bswap16(v);
}

static inline uint32_t
load_be32(const void *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return __builtin_bswap32(v);
}

static inline uint64_t
load_be64(const void *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return __builtin_bswap64(v);
}

static inline uint8_t
reader_u8(struct reader *r)
{
    const uint8_t *p = reader_take(r, 1);

    return p != NULL ? *p : 0;
}

static inline uint16_t
reader_u16(struct reader *r)
{
    const uint8_t *p = reader_take(r, 2);

    return p != NULL ? load_be16(p) : 0;
}

static inline uint32_t
reader_u32(struct reader *r)
{
    const uint8_t *p = reader_take(r, 4);

    return p != NULL ? load_be32(p) : 0;
}

static inline uint64_t
reader_u64(struct reader *r)
{
    const uint8_t *p = reader_take(r, 8);

    return p != NULL ? load_be64(p) : 0;
}

/*
 * The mirror image: bytes put into a buffer of fixed size. A builder that
 * would overflow turns `full`, keeps what it has and ignores the rest.
 */
struct builder {
    uint8_t *buf; /* borrowed */
    size_t cap_bytes;
    size_t len_bytes;
    bool full;
};

static inline struct builder
builder_of(void *buf, size_t cap_bytes)
{
    return (struct builder){.buf = buf, .cap_bytes = cap_bytes};
}

/* Room for `len_bytes` bytes at the end, or NULL and full. */
static inline uint8_t *
builder_room(struct builder *b, size_t len_bytes)
{
    uint8_t *p = b->buf + b->len_bytes;

    if (b->full || len_bytes > b->cap_bytes - b->len_bytes) {
        b->full = true;
        return NULL;
    }
    b->len_bytes += len_bytes;
    return p;
}

static inline void
builder_bytes(struct builder *b, const void *bytes, size_t len_bytes)
{
    uint8_t *p = builder_room(b, len_bytes);

    if (p != NULL && len_bytes > 0) {
        memcpy(p, bytes, len_bytes);
    }
}

static inline void
store_be16(void *p, uint16_t v)
{
    v = __builtin_bswap16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void
store_be32(void *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void
store_be64(void *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, sizeof(v));
}

static inline void
builder_u16(struct builder *b, uint16_t v)
{
    uint8_t *p = builder_room(b, 2);

    if (p != NULL) {
        store_be16(p, v);
    }
}

static inline void
builder_u32(struct builder *b, uint32_t v)
{
    uint8_t *p = builder_room(b, 4);

    if (p != NULL) {
        store_be32(p, v);
    }
}

static inline void
builder_u64(struct builder *b, uint64_t v)
{
    uint8_t *p = builder_room(b, 8);

    if (p != NULL) {
        store_be64(p, v);
    }
}

/* All supported systems are little endian; say so where it matters. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "load_be and store_be swap");

#endif
