/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Slots of an overlay's file; see overlay_space.h.
 *
 * The grace period: a pin counts itself under the parity of the current epoch.
 * To wait for everybody who might see a piece of garbage, the epoch is
 * advanced after the garbage became unreachable; those who began before
 * count under the old parity, and when that count is zero they have all ended.
 * The epoch advances again only after that, so the parity that comes into use
 * is always empty. A thread that reads the epoch, sleeps, and counts itself
 * under a parity no longer current notices it (it reads the epoch again) and
 * tries anew; until then it only delays, never frees.
 */
#include "blk/overlay_space.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "blk/overlay.h"

/* Runs punched between two looks at the lock. */
#define PUNCHES_AT_ONCE 64u

/* How often the collector looks whether those it waits for have ended. */
#define COLLECT_PAUSE_MS 10

static bool
runs_add(struct slot_runs *r, uint32_t first, uint32_t count)
{
    if (r->count > 0) {
        struct slot_run *last = &r->run[r->count - 1];

        if (last->first + last->count == first) {
            last->count += count;
            return true;
        }
    }
    if (r->count == r->cap) {
        size_t cap = r->cap == 0 ? 64 : r->cap * 2;
        struct slot_run *run = realloc(r->run, cap * sizeof(*run));

        if (run == NULL) {
            return false;
        }
        r->run = run;
        r->cap = cap;
    }
    r->run[r->count++] = (struct slot_run){first, count};
    return true;
}

static int
run_compare(const void *a, const void *b)
{
    const struct slot_run *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts, and joins what touches. */
static void
runs_tidy(struct slot_runs *r)
{
    size_t kept = 0;

    if (r->count < 2) {
        return;
    }
    qsort(r->run, r->count, sizeof(*r->run), run_compare);
    for (size_t i = 1; i < r->count; i++) {
        struct slot_run *last = &r->run[kept];

        if (last->first + last->count == r->run[i].first) {
            last->count += r->run[i].count;
        } else {
            r->run[++kept] = r->run[i];
        }
    }
    r->count = kept + 1;
}

static void
runs_free(struct slot_runs *r)
{
    free(r->run);
    *r = (struct slot_runs){0};
}

static bool
garbage_is_empty(const struct garbage *g)
{
    return g->slots.count == 0 && g->branch_count == 0;
}

static void
garbage_free(struct overlay_map *map, struct garbage *g)
{
    for (size_t i = 0; i < g->branch_count; i++) {
        overlay_map_drain(map, g->branch[i].branch, g->branch[i].level, NULL,
                          NULL);
    }
    /* The analyzer confuses one round's garbage with the next one's. */
    free(g->branch); /* NOLINT(clang-analyzer-unix.Malloc) */
    runs_free(&g->slots);
    *g = (struct garbage){0};
}

void
overlay_space_init(struct overlay_space *s, int fd, struct overlay_map *map,
                   uint32_t slot_limit)
{
    memset(s, 0, sizeof(*s));
    s->fd = fd;
    s->map = map;
    s->slot_limit = slot_limit;
    atomic_init(&s->punches, true);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
}

void
overlay_space_destroy(struct overlay_space *s)
{
    if (s->has_collector) {
        pthread_mutex_lock(&s->lock);
        s->closing = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->collector, NULL);
    }
    garbage_free(s->map, &s->pending);
    garbage_free(s->map, &s->waiting);
    runs_free(&s->unused);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
}

unsigned
overlay_space_pin(struct overlay_space *s)
{
    for (;;) {
        unsigned epoch = atomic_load(&s->epoch);

        atomic_fetch_add(&s->pinned[epoch & 1], 1);
        if (atomic_load(&s->epoch) == epoch) {
            return epoch & 1;
        }
        atomic_fetch_sub(&s->pinned[epoch & 1], 1);
    }
}

void
overlay_space_unpin(struct overlay_space *s, unsigned pin)
{
    atomic_fetch_sub(&s->pinned[pin], 1);
}

/* ---- collecting ---- */

static void
slot_to_ready(void *arg, uint32_t slot)
{
    /* Without memory the slot is leaked until close: never reused early. */
    runs_add(arg, slot, 1);
}

/* True, and the garbage in *ret, if some has served its grace period. */
static bool
grace_over_locked(struct overlay_space *s, struct garbage *ret)
{
    if (garbage_is_empty(&s->waiting)) {
        if (garbage_is_empty(&s->pending)) {
            return false;
        }
        struct garbage spent = s->waiting; /* its arrays are used again */

        s->waiting = s->pending;
        s->pending = spent;
        atomic_fetch_add(&s->epoch, 1);
    }
    if (atomic_load(&s->pinned[(atomic_load(&s->epoch) - 1) & 1]) != 0) {
        return false;
    }
    *ret = s->waiting;
    s->waiting = (struct garbage){0};
    return true;
}

/* Its slots, in order; frees the rest. */
static struct slot_runs
flatten(struct overlay_space *s, struct garbage *g)
{
    struct slot_runs runs = g->slots;

    g->slots = (struct slot_runs){0};
    for (size_t i = 0; i < g->branch_count; i++) {
        overlay_map_drain(s->map, g->branch[i].branch, g->branch[i].level,
                          slot_to_ready, &runs);
    }
    g->branch_count = 0;
    garbage_free(s->map, g);
    runs_tidy(&runs);
    return runs;
}

static void
punch(struct overlay_space *s, const struct slot_run *run)
{
    int err = 0;

    if (atomic_load_explicit(&s->punches, memory_order_relaxed)) {
        err = file_punch_hole(s->fd, (uint64_t)run->first * OVERLAY_GRAIN_BYTES,
                              (uint64_t)run->count * OVERLAY_GRAIN_BYTES);
    }
    if (err == -EOPNOTSUPP || err == -ENOSYS) {
        log_warn("overlay: this filesystem takes no space back; it is used "
                 "again for later writes");
        atomic_store_explicit(&s->punches, false, memory_order_relaxed);
    } else if (err != 0) {
        log_debug("overlay: some space was not given back: %s", strerror(-err));
    }
}

static void
add_unused_locked(struct overlay_space *s, const struct slot_run *run)
{
    struct slot_runs *u = &s->unused;

    if (u->count == u->cap && u->count > 0) {
        runs_tidy(u);
        if (u->count > u->cap / 2) {
            /* It would soon be tidied again in vain: let it grow. */
            size_t bytes = u->cap * 2 * sizeof(*u->run);
            struct slot_run *bigger = realloc(u->run, bytes);

            if (bigger != NULL) {
                u->run = bigger;
                u->cap *= 2;
            }
        }
    }
    if (run->first < s->slot_limit) {
        runs_add(u, run->first,
                 (uint32_t)min_u64(run->count, s->slot_limit - run->first));
    }
    atomic_fetch_sub_explicit(&s->held_slots, run->count, memory_order_relaxed);
}

enum collected {
    COLLECTED_ALL,
    COLLECTED_PART, /* the rest must be waited for */
    COLLECTED_BUSY, /* another thread is at it, and looks again before it
                       ends */
};

/* Collects all that can be now. */
static enum collected
collect(struct overlay_space *s)
{
    struct garbage garbage;

    pthread_mutex_lock(&s->lock);
    if (s->collecting) {
        pthread_mutex_unlock(&s->lock);
        return COLLECTED_BUSY;
    }
    s->collecting = true;
    while (grace_over_locked(s, &garbage)) {
        pthread_mutex_unlock(&s->lock);
        struct slot_runs runs = flatten(s, &garbage);

        for (size_t i = 0; i < runs.count;) {
            size_t end = min_u64(runs.count, i + PUNCHES_AT_ONCE);

            for (size_t at = i; at < end; at++) {
                punch(s, &runs.run[at]);
            }
            pthread_mutex_lock(&s->lock);
            for (; i < end; i++) {
                add_unused_locked(s, &runs.run[i]);
            }
            pthread_mutex_unlock(&s->lock);
        }
        runs_free(&runs);
        pthread_mutex_lock(&s->lock);
    }
    bool left = !garbage_is_empty(&s->waiting) ||
                !garbage_is_empty(&s->pending);

    s->collecting = false;
    atomic_store(&s->has_garbage, left);
    pthread_mutex_unlock(&s->lock);
    return left ? COLLECTED_PART : COLLECTED_ALL;
}

static void *
collector_thread(void *arg)
{
    struct overlay_space *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->closing) {
        if (!atomic_load(&s->has_garbage)) {
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        enum collected done = collect(s);

        pthread_mutex_lock(&s->lock);
        if (done != COLLECTED_ALL && !s->closing) {
            struct timespec until;

            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += COLLECT_PAUSE_MS * 1000000L;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            (void)pthread_cond_timedwait(&s->wake, &s->lock, &until);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void
overlay_space_reclaim(struct overlay_space *s)
{
    if (atomic_load(&s->has_garbage) && collect(s) == COLLECTED_PART) {
        overlay_space_reclaim_later(s);
    }
}

void
overlay_space_reclaim_later(struct overlay_space *s)
{
    pthread_mutex_lock(&s->lock);
    if (!s->has_collector) {
        /* If it can't be had the next one to give something up tries. */
        s->has_collector = pthread_create(&s->collector, NULL, collector_thread,
                                          s) == 0;
    }
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* ---- handing out ---- */

static uint32_t
take_locked(struct overlay_space *s, uint32_t want, uint32_t *ret_first)
{
    bool reuse = s->next_slot >= s->slot_limit ||
                 !atomic_load_explicit(&s->punches, memory_order_relaxed);
    uint32_t got = 0;

    if (reuse && s->unused.count > 0) {
        struct slot_run *run = &s->unused.run[s->unused.count - 1];

        got = (uint32_t)min_u64(want, run->count);
        *ret_first = run->first;
        run->first += got;
        run->count -= got;
        if (run->count == 0) {
            s->unused.count--;
        }
    } else if (s->next_slot < s->slot_limit) {
        got = (uint32_t)min_u64(want, s->slot_limit - s->next_slot);
        *ret_first = (uint32_t)s->next_slot;
        s->next_slot += got;
    }
    atomic_fetch_add_explicit(&s->held_slots, got, memory_order_relaxed);
    return got;
}

uint32_t
overlay_space_take(struct overlay_space *s, uint32_t want, uint32_t *ret_first)
{
    pthread_mutex_lock(&s->lock);
    uint32_t got = take_locked(s, want, ret_first);

    pthread_mutex_unlock(&s->lock);
    if (got == 0 && atomic_load(&s->has_garbage)) {
        overlay_space_reclaim(s);
        pthread_mutex_lock(&s->lock);
        got = take_locked(s, want, ret_first);
        pthread_mutex_unlock(&s->lock);
    }
    return got;
}

void
overlay_space_limit(struct overlay_space *s, uint32_t first)
{
    struct slot_runs *u = &s->unused;

    pthread_mutex_lock(&s->lock);
    s->slot_limit = (uint32_t)min_u64(s->slot_limit, first);
    for (size_t i = 0; i < u->count; i++) {
        uint64_t end = (uint64_t)u->run[i].first + u->run[i].count;

        if (u->run[i].first >= s->slot_limit) {
            u->run[i--] = u->run[--u->count];
        } else if (end > s->slot_limit) {
            u->run[i].count = s->slot_limit - u->run[i].first;
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- giving up ---- */

void
overlay_space_give(struct overlay_space *s, uint32_t first, uint32_t count)
{
    pthread_mutex_lock(&s->lock);
    runs_add(&s->pending.slots, first, count);
    atomic_store(&s->has_garbage, true);
    pthread_mutex_unlock(&s->lock);
}

void
overlay_space_give_branch(struct overlay_space *s, void *branch, unsigned level)
{
    struct garbage *g = &s->pending;

    pthread_mutex_lock(&s->lock);
    if (g->branch_count == g->branch_cap) {
        size_t cap = g->branch_cap == 0 ? 16 : g->branch_cap * 2;
        struct cut_branch *b = realloc(g->branch, cap * sizeof(*b));

        if (b != NULL) {
            g->branch = b;
            g->branch_cap = cap;
        }
    }
    if (g->branch_count < g->branch_cap) {
        g->branch[g->branch_count++] = (struct cut_branch){branch, level};
        atomic_store(&s->has_garbage, true);
    }
    pthread_mutex_unlock(&s->lock);
}
