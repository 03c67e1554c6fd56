/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_OVERLAY_MAP_H
#define REWIND_BLK_OVERLAY_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Where each grain of an overlay lies: a radix tree that exists only where the
 * guest has written. An entry is one word; a branch of which all grains are
 * alike has no nodes at all, so trimming a disk of any size is a few stores,
 * and trimming it bit by bit leaves nothing behind either.
 *
 * Threads: any. Entries and branches change by atomic operations; a branch
 * that is cut off goes to the caller, who frees it once nobody can be in it
 * any more (overlay_space.h).
 */

/* An entry: not in the overlay, reads as zeroes, or slot + MAP_SLOT. The value
 * between is the map's own (overlay_map.c) and never leaves it. */
#define MAP_BELOW UINT32_C(0)
#define MAP_ZERO UINT32_C(1)
#define MAP_SLOT UINT32_C(3)

#define MAP_FANOUT_BITS 9u
#define MAP_FANOUT (1u << MAP_FANOUT_BITS)

struct map_leaf {
    _Atomic uint32_t entry[MAP_FANOUT];
};

struct map_node {
    /* NULL: all below; MAP_BRANCH_ZERO: all zero; else a node or leaf. */
    _Atomic(void *) child[MAP_FANOUT];
};

struct overlay_map {
    _Atomic(void *) root;
    unsigned levels; /* of nodes above the leaves, >= 1 */
    uint64_t grain_count;
    _Atomic uint64_t memory_bytes;
};

/* What overlay_map_zero cuts off is handed over through these. */
struct map_cut {
    void (*slot)(void *arg, uint32_t slot); /* one grain's storage */
    /* A branch; give it to overlay_map_drain when it is safe. -ENOMEM is
     * not an answer it can give. */
    void (*branch)(void *arg, void *branch, unsigned level);
    void *arg;
};

void overlay_map_init(struct overlay_map *m, uint64_t grain_count);

/* Frees all nodes. Nobody uses the map any more. */
void overlay_map_destroy(struct overlay_map *m);

/*
 * The entry of `grain` in *ret_entry, and how many grains from there on (at
 * most `max`, at least 1) continue it: equal MAP_BELOW or MAP_ZERO, or slots
 * that follow one another.
 */
uint64_t overlay_map_run(struct overlay_map *m, uint64_t grain, uint64_t max,
                         uint32_t *ret_entry);

/*
 * Sets the entry of `grain` to `desired` if it is *expected, and returns 0;
 * else puts what it is into *expected and returns -EAGAIN. -ENOMEM if a node
 * could not be made.
 */
int overlay_map_swap(struct overlay_map *m, uint64_t grain, uint32_t *expected,
                     uint32_t desired);

/*
 * Makes [first, first + count) read as zeroes and hands over what lay there.
 * Without `may_grow` no node is made: -ENOSPC if one is needed. 0, -ENOSPC or
 * -ENOMEM; then a part may be done, and it is safe to repeat.
 */
int overlay_map_zero(struct overlay_map *m, uint64_t first, uint64_t count,
                     bool may_grow, const struct map_cut *cut);

/* Calls cut->slot for each slot of a branch that was cut off, and frees the
 * branch. */
void overlay_map_drain(struct overlay_map *m, void *branch, unsigned level,
                       void (*slot)(void *arg, uint32_t slot), void *arg);

#endif
