/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The overlay's map; see overlay_map.h. The tree has `levels` levels of nodes
 * and leaves below them; level 0 is the leaves. Publishing an entry is a
 * release, reading one an acquire: whoever sees a slot also sees the data that
 * was written to it before.
 *
 * A branch that has become all zero is cut off. A writer may just then be about
 * to put a slot into it, which must not be lost. So the branch is frozen first:
 * each entry is turned from zero to frozen, which reads as zero but can't be
 * replaced. If all of them could be, nobody can write into the branch any more,
 * and it may go; a writer who meets a frozen entry starts again at the root. If
 * one could not, the others are thawed. Nothing but thawing replaces a frozen
 * entry.
 */
#include "blk/overlay_map.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "base/checked.h"

/* A branch in which everything reads as zeroes. Never dereferenced. */
static char zero_branch;
#define MAP_BRANCH_ZERO ((void *)&zero_branch)

/* Zero, and not to be replaced: see above. */
static char frozen_branch;
#define MAP_BRANCH_FROZEN ((void *)&frozen_branch)
#define MAP_FROZEN UINT32_C(2)
_Static_assert(MAP_ZERO < MAP_FROZEN && MAP_FROZEN < MAP_SLOT,
               "a value of its own");

static bool
is_branch(const void *p)
{
    return p != NULL && p != MAP_BRANCH_ZERO && p != MAP_BRANCH_FROZEN;
}

static bool
is_zero(const void *p)
{
    return p == MAP_BRANCH_ZERO || p == MAP_BRANCH_FROZEN;
}

static uint32_t
leaf_entry(struct map_leaf *leaf, unsigned i)
{
    uint32_t entry = atomic_load_explicit(&leaf->entry[i],
                                          memory_order_acquire);

    return entry == MAP_FROZEN ? MAP_ZERO : entry;
}

/* Grains below one child of a node at `level`. */
static uint64_t
child_grains(unsigned level)
{
    return UINT64_C(1) << (MAP_FANOUT_BITS * level);
}

static unsigned
child_idx(uint64_t grain, unsigned level)
{
    return (unsigned)(grain >> (MAP_FANOUT_BITS * level)) & (MAP_FANOUT - 1);
}

void
overlay_map_init(struct overlay_map *m, uint64_t grain_count)
{
    atomic_init(&m->root, NULL);
    atomic_init(&m->memory_bytes, 0);
    m->grain_count = grain_count;
    m->levels = 1;
    while (child_grains(m->levels + 1) < grain_count) {
        m->levels++;
    }
}

static size_t
branch_bytes(unsigned level)
{
    return level == 0 ? sizeof(struct map_leaf) : sizeof(struct map_node);
}

/* A new branch in which everything is as in `like` (NULL or zero). */
static void *
branch_new(struct overlay_map *m, unsigned level, void *like)
{
    void *p = calloc(1, branch_bytes(level));

    if (p == NULL) {
        return NULL;
    }
    if (like == MAP_BRANCH_ZERO) {
        for (unsigned i = 0; i < MAP_FANOUT; i++) {
            if (level == 0) {
                atomic_init(&((struct map_leaf *)p)->entry[i], MAP_ZERO);
            } else {
                atomic_init(&((struct map_node *)p)->child[i], MAP_BRANCH_ZERO);
            }
        }
    }
    atomic_fetch_add_explicit(&m->memory_bytes, branch_bytes(level),
                              memory_order_relaxed);
    return p;
}

static void
branch_free(struct overlay_map *m, void *branch, unsigned level)
{
    atomic_fetch_sub_explicit(&m->memory_bytes, branch_bytes(level),
                              memory_order_relaxed);
    free(branch);
}

/* The branch at *place, made if there is none. NULL: out of memory;
 * MAP_BRANCH_FROZEN: begin again at the root. */
static void *
branch_get(struct overlay_map *m, _Atomic(void *) *place, unsigned level)
{
    void *now = atomic_load_explicit(place, memory_order_acquire);

    while (!is_branch(now)) {
        if (now == MAP_BRANCH_FROZEN) {
            return now;
        }
        void *fresh = branch_new(m, level, now);

        if (fresh == NULL) {
            return NULL;
        }
        if (atomic_compare_exchange_strong_explicit(place, &now, fresh,
                                                    memory_order_acq_rel,
                                                    memory_order_acquire)) {
            return fresh;
        }
        branch_free(m, fresh, level);
    }
    return now;
}

uint64_t
overlay_map_run(struct overlay_map *m, uint64_t grain, uint64_t max,
                uint32_t *ret_entry)
{
    uint64_t count = 0;
    uint32_t first = 0;

    max = min_u64(max, m->grain_count - grain);
    while (count < max) {
        unsigned level = m->levels;
        void *p = atomic_load_explicit(&m->root, memory_order_acquire);

        /* Root is a branch at `levels`; walk down to a leaf or to a branch
         * of which all grains are alike. */
        while (is_branch(p) && level > 0) {
            struct map_node *node = p;

            p = atomic_load_explicit(&node->child[child_idx(grain, level)],
                                     memory_order_acquire);
            level--;
        }
        if (!is_branch(p)) {
            uint32_t entry = p == NULL ? MAP_BELOW : MAP_ZERO;
            uint64_t span = child_grains(level + 1);

            if (count > 0 && entry != first) {
                break;
            }
            first = entry;
            span -= grain & (span - 1);
            count += span;
            grain += span;
            continue;
        }
        struct map_leaf *leaf = p;
        unsigned i = child_idx(grain, 0);

        for (; i < MAP_FANOUT && count < max; i++, count++, grain++) {
            uint32_t entry = leaf_entry(leaf, i);

            if (count == 0) {
                first = entry;
            } else if (first < MAP_SLOT ? entry != first
                                        : entry != first + count) {
                goto end;
            }
        }
    }
end:
    *ret_entry = first;
    return min_u64(count, max);
}

/* The leaf of `grain`, made if need be; as branch_get. */
static void *
leaf_get(struct overlay_map *m, uint64_t grain)
{
    unsigned level = m->levels;
    void *p = branch_get(m, &m->root, level);

    while (is_branch(p) && level > 0) {
        struct map_node *node = p;
        unsigned i = child_idx(grain, level);

        p = branch_get(m, &node->child[i], --level);
    }
    return p;
}

int
overlay_map_swap(struct overlay_map *m, uint64_t grain, uint32_t *expected,
                 uint32_t desired)
{
    uint32_t wanted = *expected;

    for (;;) {
        struct map_leaf *leaf = leaf_get(m, grain);

        if (leaf == NULL) {
            return -ENOMEM;
        }
        if (leaf != MAP_BRANCH_FROZEN) {
            *expected = wanted;
            if (atomic_compare_exchange_strong_explicit(
                    &leaf->entry[child_idx(grain, 0)], expected, desired,
                    memory_order_acq_rel, memory_order_acquire)) {
                return 0;
            }
            if (*expected != MAP_FROZEN) {
                return -EAGAIN;
            }
        }
        sched_yield(); /* whoever froze it will be done at once */
    }
}

static void
zero_in_leaf(struct map_leaf *leaf, uint64_t first, uint64_t count,
             const struct map_cut *cut)
{
    unsigned i = child_idx(first, 0);

    for (; count > 0; count--, i++) {
        uint32_t old = leaf_entry(leaf, i);

        while (old != MAP_ZERO &&
               !atomic_compare_exchange_strong_explicit(
                   &leaf->entry[i], &old, MAP_ZERO, memory_order_acq_rel,
                   memory_order_acquire)) {
            old = old == MAP_FROZEN ? MAP_ZERO : old;
        }
        if (old >= MAP_SLOT) {
            cut->slot(cut->arg, old - MAP_SLOT);
        }
    }
}

/* ---- cutting off what has become zero ---- */

static bool
freeze_one(void *branch, unsigned level, unsigned i)
{
    if (level == 0) {
        uint32_t zero = MAP_ZERO;

        return atomic_compare_exchange_strong(
            &((struct map_leaf *)branch)->entry[i], &zero, MAP_FROZEN);
    }
    void *zero = MAP_BRANCH_ZERO;

    return atomic_compare_exchange_strong(
        &((struct map_node *)branch)->child[i], &zero, MAP_BRANCH_FROZEN);
}

static void
thaw_one(void *branch, unsigned level, unsigned i)
{
    if (level == 0) {
        atomic_store(&((struct map_leaf *)branch)->entry[i], MAP_ZERO);
    } else {
        atomic_store(&((struct map_node *)branch)->child[i], MAP_BRANCH_ZERO);
    }
}

/* A look without promise, so that a branch in use is not frozen in vain. */
static bool
looks_zero(void *branch, unsigned level)
{
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        if (level == 0 ? leaf_entry(branch, i) != MAP_ZERO
                       : !is_zero(atomic_load_explicit(
                             &((struct map_node *)branch)->child[i],
                             memory_order_relaxed))) {
            return false;
        }
    }
    return true;
}

/* Cuts off the branch at *place if it is all zero. */
static void
collapse(_Atomic(void *) *place, void *branch, unsigned level,
         const struct map_cut *cut)
{
    void *expected = branch;

    if (!looks_zero(branch, level)) {
        return;
    }
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        if (!freeze_one(branch, level, i)) {
            while (i > 0) {
                thaw_one(branch, level, --i);
            }
            return;
        }
    }
    /* If it is no longer there somebody else has cut it off, and owns it. */
    if (atomic_compare_exchange_strong(place, &expected, MAP_BRANCH_ZERO)) {
        cut->branch(cut->arg, branch, level);
    }
}

/* What a call of overlay_map_zero carries down the tree. */
struct zeroing {
    struct overlay_map *map;
    const struct map_cut *cut;
    bool may_grow;
};

/* Zeroes all below *place, whose branch is at `level`. */
static void
zero_whole(const struct zeroing *z, _Atomic(void *) *place, unsigned level)
{
    void *old = atomic_load_explicit(place, memory_order_acquire);

    while (!is_zero(old)) {
        if (atomic_compare_exchange_strong_explicit(
                place, &old, MAP_BRANCH_ZERO, memory_order_acq_rel,
                memory_order_acquire)) {
            if (is_branch(old)) {
                z->cut->branch(z->cut->arg, old, level);
            }
            return;
        }
    }
}

/* Zeroes grains [first, first + count), all below *place, whose branch is at
 * `level` and begins at grain `begin`. Depth is bounded by the levels. */
static int
zero_below(const struct zeroing *z, _Atomic(void *) *place, unsigned level,
           uint64_t begin, uint64_t first, uint64_t count)
{
    uint64_t end = min_u64(begin + child_grains(level + 1),
                           z->map->grain_count);
    void *branch = atomic_load_explicit(place, memory_order_acquire);

    if (first == begin && first + count == end) {
        zero_whole(z, place, level);
        return 0;
    }
    if (branch == NULL && !z->may_grow) {
        return -ENOSPC;
    }
    if (!is_zero(branch)) {
        branch = branch_get(z->map, place, level);
    }
    if (!is_branch(branch)) {
        return branch == NULL ? -ENOMEM : 0; /* or it is zero already */
    }
    if (level == 0) {
        zero_in_leaf(branch, first, count, z->cut);
        collapse(place, branch, level, z->cut);
        return 0;
    }
    uint64_t step = child_grains(level);
    int result = 0;

    while (count > 0) {
        struct map_node *node = branch;
        uint64_t child_begin = round_down(first, step);
        uint64_t n = min_u64(count, child_begin + step - first);
        int err = zero_below(z, &node->child[child_idx(first, level)],
                             level - 1, child_begin, first, n);

        if (err != 0) {
            result = err;
        }
        first += n;
        count -= n;
    }
    collapse(place, branch, level, z->cut);
    return result;
}

int
overlay_map_zero(struct overlay_map *m, uint64_t first, uint64_t count,
                 bool may_grow, const struct map_cut *cut)
{
    struct zeroing z = {m, cut, may_grow};

    if (count == 0) {
        return 0;
    }
    return zero_below(&z, &m->root, m->levels, 0, first, count);
}

void
overlay_map_drain(struct overlay_map *m, void *branch, unsigned level,
                  void (*slot)(void *arg, uint32_t slot), void *arg)
{
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        if (level == 0) {
            struct map_leaf *leaf = branch;
            uint32_t entry = atomic_load_explicit(&leaf->entry[i],
                                                  memory_order_acquire);

            if (entry >= MAP_SLOT && slot != NULL) {
                slot(arg, entry - MAP_SLOT);
            }
        } else {
            struct map_node *node = branch;
            void *p = atomic_load_explicit(&node->child[i],
                                           memory_order_acquire);

            if (is_branch(p)) {
                overlay_map_drain(m, p, level - 1, slot, arg);
            }
        }
    }
    branch_free(m, branch, level);
}

void
overlay_map_destroy(struct overlay_map *m)
{
    void *root = atomic_load_explicit(&m->root, memory_order_acquire);

    if (is_branch(root)) {
        overlay_map_drain(m, root, m->levels, NULL, NULL);
    }
    atomic_store_explicit(&m->root, NULL, memory_order_release);
}
