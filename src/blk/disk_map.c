/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The merged map (disk_map.h): a hash of windows, each the merged extents of
 * one aligned stretch of guest space, in shards with a lock each. A lookup
 * copies what it needs out under its shard's lock, so a window may be evicted
 * at any other moment. Building runs outside the locks; when two threads build
 * the same window, the first to insert wins and the other throws its own away.
 * Immutable layers never change, so both are right.
 *
 * Eviction is by second chance: a sweep clears a window's mark, the next one
 * that finds it still cleared drops it.
 */
#include "blk/disk_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk/disk_build.h"

/* What a window costs beside itself: its share of buckets, and malloc's. */
#define WINDOW_EXTRA_BYTES 32u

/* A window may take this part of the whole budget; larger ones are built
 * anew for each use, for just the bytes that are asked for. */
#define WINDOW_BUDGET_PART 4u

/* Most that is built for one use only. At 512 bytes a cluster it holds 2048
 * extents. */
#define NARROW_BYTES (UINT64_C(1) << 20)

#define BUCKETS_MIN 16u

struct map_window {
    struct map_window *next;
    uint64_t idx; /* guest_off / DISK_WINDOW_BYTES */
    uint32_t count;
    bool used;   /* looked at since the last sweep */
    bool narrow; /* too large to keep: a tombstone without entries */
    struct map_entry entries[];
};

/* ---- sources ---- */

void
disk_source_init(struct disk_source *s, struct layer *layer)
{
    struct layer_info info;

    memset(s, 0, sizeof(*s));
    layer->ops->info(layer, &info);
    s->layer = layer;
    s->size_bytes = info.size_bytes;
    for (unsigned i = 0; i < DISK_SOURCE_FILES; i++) {
        s->files[i].layer = layer;
        atomic_init(&s->files[i].fd, -1);
    }
    s->flat = layer->ops->flat != NULL && layer->ops->flat(layer, &s->whole);
}

/* The entry for `fd`, made if it is new; NULL if there are too many. */
static struct disk_file *
source_file(struct disk_source *s, int fd)
{
    for (unsigned i = 0; i < DISK_SOURCE_FILES; i++) {
        struct disk_file *f = &s->files[i];
        int seen = atomic_load_explicit(&f->fd, memory_order_relaxed);

        if (seen == fd) {
            return f;
        }
        if (seen < 0) {
            if (atomic_compare_exchange_strong_explicit(&f->fd, &seen, fd,
                                                        memory_order_relaxed,
                                                        memory_order_relaxed) ||
                seen == fd) {
                return f;
            }
        }
    }
    return NULL;
}

int
disk_source_piece(struct disk_source *s, const struct extent *e,
                  struct disk_piece *ret)
{
    struct disk_piece piece = {.len_bytes = e->len_bytes,
                               .kind = (uint8_t)e->kind};

    if (e->kind == EXTENT_DATA) {
        piece.file = e->fd >= 0 ? source_file(s, e->fd) : NULL;
        piece.host_off = e->host_off;
        piece.zero_past_eof = e->zero_past_eof;
    } else if (e->kind == EXTENT_PACKED) {
        if (!range_within(e->packed_off, e->len_bytes, DISK_PACKED_MAX)) {
            return -EIO;
        }
        piece.file = &s->files[0];
        piece.host_off = e->packed;
        piece.packed_off = (uint32_t)e->packed_off;
    }
    if (piece.file == NULL &&
        (e->kind == EXTENT_DATA || e->kind == EXTENT_PACKED)) {
        return -EIO;
    }
    *ret = piece;
    return 0;
}

bool
disk_source_plan(struct disk_source *s, uint64_t off, uint64_t len,
                 struct disk_plan *plan)
{
    const struct extent *whole = &s->whole;
    struct disk_piece piece = {
        .host_off = whole->host_off + off,
        .file = source_file(s, whole->fd),
        .kind = EXTENT_DATA,
    };

    if (off < whole->len_bytes) {
        piece.len_bytes = min_u64(len, whole->len_bytes - off);
        if (!disk_plan_add(plan, &piece)) {
            return false;
        }
        len -= piece.len_bytes;
        piece.host_off += piece.len_bytes;
    }
    piece.len_bytes = len;
    piece.zero_past_eof = true;
    return len == 0 || disk_plan_add(plan, &piece);
}

/* ---- the hash ---- */

static uint64_t
hash_of(uint64_t window_idx)
{
    /* Fibonacci hashing: strides of windows do not pile up. */
    return window_idx * UINT64_C(0x9e3779b97f4a7c15);
}

static struct map_shard *
shard_of(struct disk_map *m, uint64_t window_idx)
{
    return &m->shards[hash_of(window_idx) >> 60];
}
_Static_assert(DISK_MAP_SHARDS == 16, "shard_of takes four bits");

static struct map_window **
bucket_of(struct map_shard *s, uint64_t window_idx)
{
    return &s->buckets[hash_of(window_idx) >> 28 & (s->bucket_count - 1)];
}

static struct map_window *
find_locked(struct map_shard *s, uint64_t window_idx)
{
    struct map_window *w = s->bucket_count > 0 ? *bucket_of(s, window_idx)
                                               : NULL;

    while (w != NULL && w->idx != window_idx) {
        w = w->next;
    }
    return w;
}

/* Makes room for one more. On failure the chains only grow longer, except
 * that without any bucket there is nowhere to go. */
static bool
grow_locked(struct map_shard *s)
{
    unsigned want = s->bucket_count == 0 ? BUCKETS_MIN : s->bucket_count * 2;
    struct map_shard bigger = {.bucket_count = want};

    if (s->window_count < s->bucket_count * 2) {
        return true;
    }
    bigger.buckets = calloc(want, sizeof(struct map_window *));
    if (bigger.buckets == NULL) {
        return s->bucket_count > 0;
    }
    for (unsigned i = 0; i < s->bucket_count; i++) {
        for (struct map_window *w = s->buckets[i]; w != NULL;) {
            struct map_window *next = w->next;
            struct map_window **bucket = bucket_of(&bigger, w->idx);

            w->next = *bucket;
            *bucket = w;
            w = next;
        }
    }
    free(s->buckets);
    s->buckets = bigger.buckets;
    s->bucket_count = want;
    return true;
}

static uint64_t
window_bytes(const struct map_window *w)
{
    return sizeof(*w) + w->count * sizeof(w->entries[0]) + WINDOW_EXTRA_BYTES;
}

/* One sweep over a shard; ends when the map is within its budget again. */
static void
sweep(struct disk_map *m, struct map_shard *s, bool force)
{
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->bucket_count; i++) {
        struct map_window **at = &s->buckets[s->hand++ % s->bucket_count];

        if (atomic_load(&m->used_bytes) <= m->limit_bytes) {
            break;
        }
        while (*at != NULL) {
            struct map_window *w = *at;

            if (w->used && !force) {
                w->used = false;
                at = &w->next;
                continue;
            }
            *at = w->next;
            s->window_count--;
            atomic_fetch_sub(&m->used_bytes, window_bytes(w));
            free(w);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* Two rounds give each window its second chance; the third is for windows
 * that are in use everywhere. */
static void
evict(struct disk_map *m)
{
    for (unsigned i = 0; i < 3 * DISK_MAP_SHARDS; i++) {
        if (atomic_load(&m->used_bytes) <= m->limit_bytes) {
            return;
        }
        unsigned idx = atomic_fetch_add(&m->evict_shard, 1);

        sweep(m, &m->shards[idx % DISK_MAP_SHARDS], i >= 2 * DISK_MAP_SHARDS);
    }
}

/* Keeps a copy of the entries; if there is no memory for it, does not. */
static void
insert(struct disk_map *m, uint64_t window_idx, const struct map_entry *entries,
       unsigned count)
{
    struct map_shard *s = shard_of(m, window_idx);
    size_t bytes = count * sizeof(entries[0]);
    struct map_window *w = malloc(sizeof(*w) + bytes);

    if (w == NULL) {
        return;
    }
    w->idx = window_idx;
    w->count = count;
    w->used = true;
    w->narrow = count == 0;
    if (bytes > 0) {
        memcpy(w->entries, entries, bytes);
    }
    pthread_mutex_lock(&s->lock);
    if (find_locked(s, window_idx) == NULL && grow_locked(s)) {
        struct map_window **bucket = bucket_of(s, window_idx);

        w->next = *bucket;
        *bucket = w;
        s->window_count++;
        atomic_fetch_add(&m->used_bytes, window_bytes(w));
        w = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    free(w);
    evict(m);
}

/* ---- lookup ---- */

/* A run of entries and the guest range that they describe. */
struct stretch {
    const struct map_entry *entries;
    unsigned count;
    uint64_t base;
    uint64_t len_bytes;
};

/* The entry that holds `at`, relative to the stretch's base. */
static unsigned
stretch_find(const struct stretch *t, uint64_t at)
{
    unsigned lo = 0, n = t->count;

    while (n > 1) {
        unsigned half = n / 2;

        lo += t->entries[lo + half].start <= at ? half : 0;
        n -= half;
    }
    return lo;
}

/* Adds [off, off + len), or as much of it as fits. */
static void
stretch_plan(struct disk_map *m, const struct stretch *t, uint64_t off,
             uint64_t len, struct disk_plan *plan)
{
    uint64_t at = off - t->base, stop = at + len;

    for (unsigned i = stretch_find(t, at); at < stop; i++) {
        const struct map_entry *e = &t->entries[i];
        uint64_t end = i + 1 < t->count ? e[1].start : t->len_bytes;
        struct disk_source *s = &m->sources[e->file / DISK_SOURCE_FILES];
        struct disk_piece piece = {
            .len_bytes = min_u64(end, stop) - at,
            .kind = (uint8_t)e->kind,
        };

        if (e->kind != EXTENT_ZERO) {
            piece.file = &s->files[e->file % DISK_SOURCE_FILES];
            piece.host_off = e->host_off;
            piece.zero_past_eof = e->zero_past_eof;
            if (e->kind == EXTENT_DATA) {
                piece.host_off += at - e->start;
            } else {
                piece.packed_off = (uint32_t)(e->packed_off + at - e->start);
            }
        }
        if (!disk_plan_add(plan, &piece)) {
            return;
        }
        at += piece.len_bytes;
    }
}

static uint64_t
window_len(const struct disk_map *m, uint64_t window_idx)
{
    return min_u64(DISK_WINDOW_BYTES,
                   m->size_bytes - window_idx * DISK_WINDOW_BYTES);
}

/* From memory. False if the window is not there; then *ret_narrow tells if it
 * is one that is never kept. */
static bool
plan_cached(struct disk_map *m, uint64_t off, uint64_t len,
            struct disk_plan *plan, bool *ret_narrow)
{
    uint64_t idx = off / DISK_WINDOW_BYTES;
    struct map_shard *s = shard_of(m, idx);
    bool found = false;
    struct map_window *w;

    pthread_mutex_lock(&s->lock);
    w = find_locked(s, idx);
    if (w != NULL) {
        w->used = true;
        *ret_narrow = w->narrow;
        if (!w->narrow) {
            struct stretch t = {w->entries, w->count, idx * DISK_WINDOW_BYTES,
                                window_len(m, idx)};

            stretch_plan(m, &t, off, len, plan);
            found = true;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

/* Builds just what is asked for, or its beginning, and keeps nothing. */
static int
plan_narrow(struct disk_map *m, uint64_t off, uint64_t len,
            struct disk_plan *plan)
{
    struct map_entry *entries;
    unsigned count;
    int err;

    len = min_u64(len, NARROW_BYTES);
    err = disk_build(m, off, len, &entries, &count);
    while (err == -E2BIG && len > 1) {
        len /= 2;
        err = disk_build(m, off, len, &entries, &count);
    }
    if (err != 0) {
        return err;
    }
    struct stretch t = {entries, count, off, len};

    stretch_plan(m, &t, off, len, plan);
    free(entries);
    return 0;
}

/*
 * Builds the whole window. Where that fails, the bytes asked for may still be
 * had: the trouble may be with others.
 */
static int
plan_built(struct disk_map *m, uint64_t off, uint64_t len,
           struct disk_plan *plan)
{
    uint64_t idx = off / DISK_WINDOW_BYTES;
    struct stretch t = {.base = idx * DISK_WINDOW_BYTES,
                        .len_bytes = window_len(m, idx)};
    struct map_entry *entries = NULL;
    uint64_t max = m->limit_bytes / WINDOW_BUDGET_PART / sizeof(*entries);
    int err = disk_build(m, t.base, t.len_bytes, &entries, &t.count);

    if (err != 0) {
        if (err == -E2BIG) {
            insert(m, idx, NULL, 0);
        }
        return plan_narrow(m, off, len, plan);
    }
    t.entries = entries;
    stretch_plan(m, &t, off, len, plan);
    insert(m, idx, entries, t.count <= max ? t.count : 0);
    free(entries);
    return 0;
}

/* [off, off + len) lies within one window. */
static int
plan_window(struct disk_map *m, uint64_t off, uint64_t len, bool wait,
            struct disk_plan *plan)
{
    bool narrow = false;

    if (plan_cached(m, off, len, plan, &narrow)) {
        return 0;
    }
    if (!wait) {
        return -EAGAIN;
    }
    return narrow ? plan_narrow(m, off, len, plan)
                  : plan_built(m, off, len, plan);
}

/* Answers that need no window: no layers at all, or a flat one on top. */
static void
plan_flat(struct disk_map *m, uint64_t off, uint64_t len,
          struct disk_plan *plan)
{
    uint64_t size = m->source_count > 0 ? m->sources[0].size_bytes : 0;
    struct disk_piece zero = {.kind = EXTENT_ZERO};

    if (off < size) {
        uint64_t part = min_u64(len, size - off);

        if (!disk_source_plan(&m->sources[0], off, part, plan)) {
            return;
        }
        len -= part;
    }
    if (len > 0) {
        zero.len_bytes = len;
        disk_plan_add(plan, &zero);
    }
}

int
disk_map_plan(struct disk_map *m, uint64_t off, uint64_t len, bool wait,
              struct disk_plan *plan)
{
    if (m->source_count == 0 || m->sources[0].flat) {
        plan_flat(m, off, len, plan);
        return 0;
    }
    while (len > 0 && plan->count < DISK_PLAN_PIECES) {
        uint64_t before = plan->covered_bytes, got;
        uint64_t left = DISK_WINDOW_BYTES - off % DISK_WINDOW_BYTES;
        int err = plan_window(m, off, min_u64(len, left), wait, plan);

        if (err != 0) {
            return err;
        }
        got = plan->covered_bytes - before;
        off += got;
        len -= got;
    }
    return 0;
}

/* ---- life ---- */

int
disk_map_init(struct disk_map *m, struct layer **layers, unsigned count,
              uint64_t size_bytes, uint64_t limit_bytes, struct err *e)
{
    memset(m, 0, sizeof(*m));
    m->size_bytes = size_bytes;
    m->limit_bytes = limit_bytes;
    atomic_init(&m->used_bytes, 0);
    atomic_init(&m->evict_shard, 0);
    for (; m->shard_count < DISK_MAP_SHARDS; m->shard_count++) {
        int err = pthread_mutex_init(&m->shards[m->shard_count].lock, NULL);

        if (err != 0) {
            return err_set(e, err, "can't make a lock: %s", strerror(err));
        }
    }
    if (count == 0) {
        return 0;
    }
    m->sources = calloc(count, sizeof(m->sources[0]));
    if (m->sources == NULL) {
        return err_set(e, ENOMEM, "out of memory");
    }
    m->source_count = count;
    for (unsigned i = 0; i < count; i++) {
        disk_source_init(&m->sources[i], layers[i]);
    }
    return 0;
}

void
disk_map_destroy(struct disk_map *m)
{
    for (unsigned i = 0; i < m->shard_count; i++) {
        struct map_shard *s = &m->shards[i];

        for (unsigned k = 0; k < s->bucket_count; k++) {
            while (s->buckets[k] != NULL) {
                struct map_window *w = s->buckets[k];

                s->buckets[k] = w->next;
                free(w);
            }
        }
        free(s->buckets);
        pthread_mutex_destroy(&s->lock);
    }
    free(m->sources);
    memset(m, 0, sizeof(*m));
}

uint64_t
disk_map_bytes(struct disk_map *m)
{
    return atomic_load(&m->used_bytes);
}
