/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Merging layers (disk_build.h). The list of ranges that no layer has answered
 * for yet goes down the stack, each layer takes from it what it has, and the
 * walk ends when nothing is left. A range past a layer's end is answered by
 * that layer with zeroes: what lies below it there is hidden for good.
 *
 * No state outside the call; any thread.
 */
#include "blk/disk_build.h"

#include <errno.h>
#include <stdlib.h>

/* Offsets here are relative to the stretch's base. */
struct span {
    uint32_t start;
    uint32_t end;
};

struct spans {
    struct span *items; /* owned */
    unsigned count;
    unsigned cap;
};

struct build {
    struct disk_map *map;
    uint64_t base;
    unsigned source_idx;

    const struct spans *todo; /* what the current layer is asked about */
    unsigned cursor;          /* first of todo that may still be touched */
    struct spans *next;       /* what it leaves to the layers below */
    uint32_t at;              /* where its next extent must begin */
    uint32_t end;             /* and where the last must end */

    struct map_entry *out; /* owned, unsorted */
    unsigned out_count;
    unsigned out_cap;
};

/* Room for one more of `item_bytes` in an array. NULL: *ret_err says why. */
static void *
grown(void *items, unsigned count, unsigned *cap, size_t item_bytes,
      int *ret_err)
{
    if (count < *cap) {
        return items;
    }
    if (count >= DISK_BUILD_ENTRIES_MAX) {
        *ret_err = -E2BIG;
        return NULL;
    }
    unsigned want = count == 0 ? 64 : count * 2;
    void *bigger = realloc(items, want * item_bytes);

    if (bigger == NULL) {
        *ret_err = -ENOMEM;
        return NULL;
    }
    *cap = want;
    return bigger;
}

static int
spans_add(struct spans *s, uint32_t start, uint32_t end)
{
    int err = 0;

    if (s->count > 0 && s->items[s->count - 1].end == start) {
        s->items[s->count - 1].end = end;
        return 0;
    }
    struct span *items = grown(s->items, s->count, &s->cap, sizeof(*items),
                               &err);

    if (items == NULL) {
        return err;
    }
    s->items = items;
    s->items[s->count++] = (struct span){start, end};
    return 0;
}

static int
out_add(struct build *b, uint32_t start, const struct disk_piece *piece)
{
    struct disk_source *s = &b->map->sources[b->source_idx];
    struct map_entry entry = {.start = start, .kind = piece->kind};
    int err = 0;
    struct map_entry *out = grown(b->out, b->out_count, &b->out_cap,
                                  sizeof(*out), &err);

    if (out == NULL) {
        return err;
    }
    if (piece->kind != EXTENT_ZERO) {
        entry.file = b->source_idx * DISK_SOURCE_FILES +
                     (unsigned)(piece->file - s->files);
        entry.host_off = piece->host_off;
        entry.packed_off = piece->packed_off;
        entry.zero_past_eof = piece->zero_past_eof;
    }
    b->out = out;
    b->out[b->out_count++] = entry;
    return 0;
}

/* The part [lo, hi) of what `piece`, which begins at `start`, describes. */
static int
take(struct build *b, uint32_t lo, uint32_t hi, uint32_t start,
     const struct disk_piece *piece)
{
    struct disk_piece part = *piece;

    if (part.kind == EXTENT_BACKING) {
        return spans_add(b->next, lo, hi);
    }
    if (part.kind == EXTENT_DATA) {
        part.host_off += lo - start;
    } else if (part.kind == EXTENT_PACKED) {
        part.packed_off += lo - start;
    }
    return out_add(b, lo, &part);
}

/* One extent of the current layer, [b->at, end). */
static int
take_all(struct build *b, uint32_t end, const struct disk_piece *piece)
{
    uint32_t start = b->at;
    int err = 0;

    while (err == 0 && b->cursor < b->todo->count) {
        const struct span *s = &b->todo->items[b->cursor];

        if (s->start >= end) {
            break;
        }
        err = take(b, s->start > start ? s->start : start,
                   s->end < end ? s->end : end, start, piece);
        if (s->end > end) {
            break;
        }
        b->cursor++;
    }
    b->at = end;
    return err;
}

static int
build_extent(void *arg, const struct extent *e)
{
    struct build *b = arg;
    struct disk_piece piece;
    uint64_t left = b->end - b->at;
    int err;

    if (e->guest_off != b->base + b->at || e->len_bytes == 0) {
        return -EIO;
    }
    err = disk_source_piece(&b->map->sources[b->source_idx], e, &piece);
    if (err != 0) {
        return err;
    }
    return take_all(b, b->at + (uint32_t)min_u64(e->len_bytes, left), &piece);
}

/* Asks the current layer about [start, end), within its size. */
static int
ask(struct build *b, uint32_t start, uint32_t end)
{
    struct disk_source *s = &b->map->sources[b->source_idx];
    int err = 0;

    b->at = start;
    b->end = end;
    if (s->flat) {
        struct disk_plan plan;

        disk_plan_init(&plan);
        disk_source_plan(s, b->base + start, end - start, &plan);
        for (unsigned i = 0; i < plan.count && err == 0; i++) {
            uint32_t len = (uint32_t)plan.pieces[i].len_bytes;

            err = take_all(b, b->at + len, &plan.pieces[i]);
        }
    } else {
        err = s->layer->ops->extents(s->layer, b->base + start, end - start,
                                     build_extent, b);
    }
    return err == 0 && b->at != end ? -EIO : err;
}

/* Of [start, end), the layer answers the part within its size, and zeroes
 * stand for the rest. */
static int
ask_or_zero(struct build *b, uint32_t start, uint32_t end)
{
    uint64_t size = b->map->sources[b->source_idx].size_bytes;
    uint64_t left = size > b->base ? size - b->base : 0;
    uint32_t mid = (uint32_t)max_u64(start, min_u64(left, end));
    static const struct disk_piece zero = {.kind = EXTENT_ZERO};

    if (mid > start) {
        int err = ask(b, start, mid);

        if (err != 0) {
            return err;
        }
    }
    b->at = mid;
    return mid < end ? take_all(b, end, &zero) : 0;
}

/*
 * One layer answers for all of todo. One question for the whole stretch is
 * the quick way, since a layer reads its tables in slices. But it also asks
 * about what the layers above hide, so if it fails, each range is asked for
 * by itself: a damaged table must hurt only those who need it.
 */
static int
build_layer(struct build *b)
{
    const struct span *items = b->todo->items;
    unsigned count = b->todo->count;
    unsigned out_count = b->out_count;
    int err = ask_or_zero(b, items[0].start, items[count - 1].end);

    if (err == 0 || err == -E2BIG || err == -ENOMEM || count == 1) {
        return err;
    }
    b->out_count = out_count;
    b->next->count = 0;
    b->cursor = 0;
    err = 0;
    for (unsigned i = 0; i < count && err == 0; i++) {
        err = ask_or_zero(b, items[i].start, items[i].end);
    }
    return err;
}

static int
entry_compare(const void *a, const void *b)
{
    const struct map_entry *x = a, *y = b;

    return x->start < y->start ? -1 : x->start > y->start;
}

static bool
entry_joins(const struct map_entry *a, const struct map_entry *b)
{
    uint64_t len = b->start - a->start;

    if (a->kind != b->kind || a->file != b->file ||
        a->zero_past_eof != b->zero_past_eof) {
        return false;
    }
    if (a->kind == EXTENT_DATA) {
        return a->host_off + len == b->host_off;
    }
    return a->kind == EXTENT_ZERO ||
           (a->host_off == b->host_off && a->packed_off + len == b->packed_off);
}

/* Into guest order, neighbours joined. */
static void
build_finish(struct build *b)
{
    unsigned kept = 0;

    for (unsigned i = 1; i < b->out_count; i++) {
        if (b->out[i].start < b->out[i - 1].start) {
            qsort(b->out, b->out_count, sizeof(b->out[0]), entry_compare);
            break;
        }
    }
    for (unsigned i = 1; i < b->out_count; i++) {
        /* Entries tile the stretch, so this is where kept's run ends. */
        struct map_entry *last = &b->out[kept];

        if (!entry_joins(last, &b->out[i])) {
            b->out[++kept] = b->out[i];
        }
    }
    b->out_count = kept + 1;
}

int
disk_build(struct disk_map *m, uint64_t base, uint64_t len,
           struct map_entry **ret, unsigned *ret_count)
{
    struct spans lists[2] = {{0}};
    struct build b = {.map = m, .base = base};
    static const struct disk_piece zero = {.kind = EXTENT_ZERO};
    unsigned now = 0;
    int err = spans_add(&lists[0], 0, (uint32_t)len);

    for (; err == 0 && b.source_idx < m->source_count; b.source_idx++) {
        b.todo = &lists[now];
        b.next = &lists[!now];
        b.next->count = 0;
        b.cursor = 0;
        if (b.todo->count == 0) {
            break;
        }
        err = build_layer(&b);
        now = !now;
    }
    /* What no layer has. The source does not matter to a zero. */
    b.source_idx = 0;
    for (unsigned i = 0; err == 0 && i < lists[now].count; i++) {
        err = out_add(&b, lists[now].items[i].start, &zero);
    }
    free(lists[0].items);
    free(lists[1].items);
    if (err != 0) {
        free(b.out);
        return err;
    }
    build_finish(&b);
    *ret = b.out;
    *ret_count = b.out_count;
    return 0;
}
