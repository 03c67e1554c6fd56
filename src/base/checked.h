/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_CHECKED_H
#define REWIND_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* The struct that holds `member`, from a pointer to that member. */
#define container_of(ptr, type, member)                                        \
    ((type *)((char *)(ptr)-offsetof(type, member)))

/* True if [off, off + len) lies within [0, size): a difference, so that no
 * sum can wrap (H1). */
static inline bool
range_within(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* `align` is a power of two. round_up wraps for values near 2^64: the caller
 * has bounded them. */
static inline uint64_t
round_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

static inline uint64_t
round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

#endif
