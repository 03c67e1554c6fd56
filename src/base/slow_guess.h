/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_SLOW_GUESS_H
#define REWIND_BASE_SLOW_GUESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A guess, where the system does not say, whether the next read would wait for
 * a device: it will if the last one did. After a slow read the next few are
 * declared slow untried, and after each further slow try twice as many, up to
 * a bound, so that a cached file is noticed again soon and a cold one costs
 * its thread little. One per thread; all zeroes to start with.
 */
struct slow_guess {
    unsigned skip_left; /* reads still to be declared slow */
    unsigned skip_next; /* how many after the next slow one */
};

/* A read from the page cache takes a few microseconds and the time to copy;
 * the fastest disks take about 100 microseconds beyond the system call. */
#define SLOW_GUESS_NS 150000u
#define SLOW_GUESS_COPY_BYTES_PER_NS 2u
#define SLOW_GUESS_SKIP_FIRST 4u
#define SLOW_GUESS_SKIP_MAX 64u

/* True if the next read should not be tried here. */
static inline bool
slow_guess_skip(struct slow_guess *g)
{
    if (g->skip_left == 0) {
        return false;
    }
    g->skip_left--;
    return true;
}

/* A read of `len` bytes was tried and took `took_ns`. */
static inline void
slow_guess_note(struct slow_guess *g, uint64_t took_ns, size_t len)
{
    if (took_ns <= SLOW_GUESS_NS + len / SLOW_GUESS_COPY_BYTES_PER_NS) {
        g->skip_next = 0;
        return;
    }
    if (g->skip_next == 0) {
        g->skip_next = SLOW_GUESS_SKIP_FIRST;
    } else if (g->skip_next < SLOW_GUESS_SKIP_MAX) {
        g->skip_next *= 2;
    }
    g->skip_left = g->skip_next;
}

#endif
