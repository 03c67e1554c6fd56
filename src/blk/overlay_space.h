/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_OVERLAY_SPACE_H
#define REWIND_BLK_OVERLAY_SPACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk/overlay_map.h"

/*
 * The slots of an overlay's file: who gets which, and when a slot that was
 * given up may lose its data and be used again (S4).
 *
 * Slots are handed out in ascending order, so that first writes are appended.
 * A slot that is given up is first kept as it is until every request that
 * might still be reading or writing it has ended (a grace period, known from
 * pins), then its data is dropped by punching a hole, and only then may it be
 * handed out again, which happens when ascending order has come to its end or
 * the filesystem can't punch. Whoever gave it up does this on the spot if it
 * can be; what must wait is left to a thread, which exists once there was
 * something to wait for.
 */
struct slot_run {
    uint32_t first, count;
};

struct slot_runs {
    struct slot_run *run; /* owned */
    size_t count, cap;
};

struct cut_branch {
    void *branch; /* owned */
    unsigned level;
};

/* Things given up together. */
struct garbage {
    struct slot_runs slots;
    struct cut_branch *branch; /* owned */
    size_t branch_count, branch_cap;
};

struct overlay_space {
    int fd;                  /* borrowed from the overlay */
    struct overlay_map *map; /* borrowed from the overlay */
    _Atomic bool punches;    /* false once the filesystem has refused */

    /* Pins: requests in progress, by the parity of the epoch in which they
     * began. */
    _Atomic unsigned epoch;
    _Atomic unsigned pinned[2];
    _Atomic bool has_garbage;
    _Atomic uint64_t held_slots; /* handed out and not yet to be had again */

    pthread_mutex_t lock; /* guards all below */
    uint32_t slot_limit;
    uint64_t next_slot;
    struct garbage pending;  /* given up since the last change of epoch */
    struct garbage waiting;  /* before it; wait for the old parity's pins */
    struct slot_runs unused; /* punched; may be handed out again */
    bool collecting;         /* one thread at a time, outside the lock */
    bool has_collector, closing;
    pthread_t collector; /* if has_collector; joined at the end */
    pthread_cond_t wake; /* of the collector */
};

void overlay_space_init(struct overlay_space *s, int fd,
                        struct overlay_map *map, uint32_t slot_limit);
void overlay_space_destroy(struct overlay_space *s);

/* Storage seen between pin and unpin is not reused before the unpin. */
unsigned overlay_space_pin(struct overlay_space *s);
void overlay_space_unpin(struct overlay_space *s, unsigned pin);

/*
 * Up to `want` slots in a row; returns how many (at least 1) from *ret_first
 * on, or 0 if all slots are taken.
 */
uint32_t overlay_space_take(struct overlay_space *s, uint32_t want,
                            uint32_t *ret_first);

/* The file can't hold slots from `first` on: hand out none of them again. */
void overlay_space_limit(struct overlay_space *s, uint32_t first);

/* Gives up slots, or a branch of the map, that new requests can no longer
 * reach. If there is no memory to remember them they are leaked until the
 * overlay is closed, never reused early. */
void overlay_space_give(struct overlay_space *s, uint32_t first,
                        uint32_t count);
void overlay_space_give_branch(struct overlay_space *s, void *branch,
                               unsigned level);

/* Drops the data of what nobody uses any more, and sees to it that the rest
 * follows. The caller holds no pin. */
void overlay_space_reclaim(struct overlay_space *s);

/* The same, by the collector: for whoever must not wait for it. */
void overlay_space_reclaim_later(struct overlay_space *s);

#endif
