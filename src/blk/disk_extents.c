/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The extents of a disk as block status shows them (disk.h). Unlike a read it
 * asks every layer anew, the holes of raw files included, and for as long runs
 * as the layer knows, so that an empty disk of any size is a matter of a few
 * questions. What a layer said is kept while the walk is within it: each layer
 * is asked once for each of its own runs, not once for each merged one.
 *
 * No state outside the call; any thread.
 */
#include <errno.h>
#include <stdlib.h>

#include "blk/disk_impl.h"

/* The first question to a layer covers this much. It doubles while one answer
 * covers it all, since a layer that joins its extents may work through all it
 * is asked about before it answers. */
#define ASK_BYTES (UINT64_C(32) << 20)
#define ASK_BYTES_MAX (UINT64_C(1) << 62)

/* A call ends after about this many steps, each well below a microsecond. */
#define WORK_MAX (1u << 16)
#define WORK_PER_QUESTION 16u

/* A layer that has ended its answer early has done this much. */
#define WORK_PER_STOP (WORK_MAX / 16)

/* One layer's run around the current offset. */
struct level {
    struct disk_source *source; /* borrowed */
    uint64_t until;             /* where the run ends; 0: not asked yet */
    uint64_t ask_bytes;
    enum extent_kind kind;
    bool allocated;
};

struct walk {
    struct level *levels; /* owned, top first */
    unsigned level_count;
    uint64_t end;
    unsigned work;
    struct level *asked; /* the one that is answering */
};

/* Collects the first run of what the layer says. */
static int
walk_extent(void *arg, const struct extent *e)
{
    struct walk *w = arg;
    struct level *level = w->asked;

    w->work++;
    if (level->until == 0) {
        level->until = e->guest_off + e->len_bytes;
        level->kind = e->kind;
        level->allocated = e->allocated;
        return e->len_bytes > 0 ? 0 : -EIO;
    }
    if (e->kind != level->kind || e->allocated != level->allocated) {
        return 1;
    }
    level->until = e->guest_off + e->len_bytes;
    return w->work > WORK_MAX ? 1 : 0;
}

static int
walk_ask(struct walk *w, struct level *level, uint64_t off)
{
    struct layer *l = level->source->layer;
    uint64_t size = level->source->size_bytes;
    uint64_t len;
    int err;

    if (off >= size) {
        /* Hidden from here on: zeroes that are this layer's. */
        level->until = w->end;
        level->kind = EXTENT_ZERO;
        level->allocated = false;
        return 0;
    }
    len = min_u64(level->ask_bytes, min_u64(size, w->end) - off);
    level->until = 0;
    w->asked = level;
    w->work += WORK_PER_QUESTION;
    err = l->ops->extents(l, off, len, walk_extent, w);
    if (level->until <= off) {
        return err < 0 ? err : -EIO;
    }
    /* An error further on is for those who ask for it there. */
    if (level->until < off + len) {
        if (level->until - off >= LAYER_EXTENTS_WHOLE) {
            w->work += WORK_PER_STOP;
        }
        level->ask_bytes = ASK_BYTES;
    } else {
        level->until = off + len;
        level->ask_bytes = min_u64(level->ask_bytes * 2, ASK_BYTES_MAX);
    }
    return 0;
}

/* The merged extent at `off`. */
static int
walk_at(struct walk *w, uint64_t off, struct extent *ret)
{
    uint64_t until = w->end;

    *ret = (struct extent){.guest_off = off, .kind = EXTENT_ZERO, .fd = -1};
    for (unsigned i = 0; i < w->level_count; i++) {
        struct level *level = &w->levels[i];

        if (level->until <= off) {
            int err = walk_ask(w, level, off);

            if (err != 0) {
                return err;
            }
        }
        until = min_u64(until, level->until);
        if (level->kind != EXTENT_BACKING) {
            ret->kind = level->kind;
            ret->allocated = level->allocated;
            ret->depth = i + 1;
            break;
        }
    }
    ret->len_bytes = until - off;
    w->work += 1 + w->level_count / 8;
    return 0;
}

static bool
walk_joins(const struct extent *a, const struct extent *b)
{
    return a->kind == b->kind && a->depth == b->depth &&
           a->allocated == b->allocated;
}

/* An error after the first extent ends the answer; whoever asks for the rest
 * meets it. */
static int
walk_run(struct walk *w, uint64_t off, struct extent *ret, unsigned max,
         unsigned *ret_count)
{
    unsigned count = 0;
    struct extent e;

    while (off < w->end && (count == 0 || w->work < WORK_MAX)) {
        int err = walk_at(w, off, &e);

        if (err != 0) {
            if (count == 0) {
                return err;
            }
            break;
        }
        if (count > 0 && walk_joins(&ret[count - 1], &e)) {
            ret[count - 1].len_bytes += e.len_bytes;
        } else if (count < max) {
            ret[count++] = e;
        } else {
            break;
        }
        off += e.len_bytes;
    }
    *ret_count = count;
    return 0;
}

int
disk_extents(struct disk *d, uint64_t off, uint64_t len, struct extent *ret,
             unsigned max, unsigned *ret_count)
{
    struct walk w = {.end = off + len};
    unsigned pin;
    int err;

    w.levels = calloc(1 + d->map.source_count, sizeof(w.levels[0]));
    if (w.levels == NULL) {
        return -ENOMEM;
    }
    if (d->has_top) {
        w.levels[w.level_count++].source = &d->top;
    }
    for (unsigned i = 0; i < d->map.source_count; i++) {
        w.levels[w.level_count++].source = &d->map.sources[i];
    }
    for (unsigned i = 0; i < w.level_count; i++) {
        w.levels[i].ask_bytes = ASK_BYTES;
    }
    pin = disk_pin(d);
    err = walk_run(&w, off, ret, max, ret_count);
    disk_unpin(d, pin);
    free(w.levels);
    return err;
}
