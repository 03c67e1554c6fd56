/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What an overlay takes, on disk and in memory, and how it gets it back: slots
 * and their limit, space that had to wait, the map's collapse and its bound.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "blk/overlay.h"
#include "blk/overlay_map.h"
#include "blk/overlay_space.h"
#include "overlay_fixture.h"

/* ---- a file that may not grow ---- */

/* Writes `step` bytes after `step` bytes until one fails, as -ENOSPC. */
static unsigned
writes_until_full(struct layer *l, uint64_t size, uint32_t step)
{
    uint8_t *buf = malloc(step), *back = malloc(step);
    unsigned count = 0;
    int err = 0;

    for (uint64_t off = 0; off < size && err == 0; off += step) {
        memset(buf, (int)(off / step % 255) + 1, step);
        err = write_at(l, off, buf, step);
        count += err == 0;
    }
    assert_int_equal(err, -ENOSPC);
    for (unsigned i = 0; i < count; i++) {
        memset(buf, (int)(i % 255) + 1, step);
        read_at(l, (uint64_t)i * step, back, step);
        assert_memory_equal(back, buf, step);
    }
    free(buf);
    free(back);
    return count;
}

/* A limit on the file's size, not at a grain's end: what is trimmed can be
 * written again, all of it. */
static void
test_file_limit_reuse(void **state)
{
    const uint64_t size = 8 << 20;
    const uint32_t steps[] = {GRAIN, 5 * GRAIN, 300 * GRAIN};
    struct rlimit old, limit;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_IGN);
    limit = old;
    limit.rlim_cur = 600 * GRAIN + 1000;
    for (unsigned i = 0; i < 3; i++) {
        struct layer *l = overlay_make(size, 0);
        unsigned counts[3];

        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        for (unsigned round = 0; round < 3; round++) {
            counts[round] = writes_until_full(l, size, steps[i]);
            assert_int_equal(l->ops->zero(l, 0, size, LAYER_ZERO_TRIM), 0);
        }
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        for (unsigned round = 0; round < 3; round++) {
            assert_int_equal(counts[round], 600 * GRAIN / steps[i]);
        }
        l->ops->close(l);
    }
}

/* Slots beyond a limit are never handed out again, wherever they are when it
 * is found: not yet handed out, in use, given up, or free; those below it are,
 * each once. */
static void
test_space_limit(void **state)
{
    enum { SLOTS = 100, LIMIT = 37 };
    bool had[SLOTS] = {false};
    struct overlay_space s;
    struct overlay_map map;
    struct err e;
    uint32_t first, got, total = 0;
    int fd = file_open_unnamed(scratch_dir(), &e);

    (void)state;
    assert_true(fd >= 0);
    overlay_map_init(&map, SLOTS);
    overlay_space_init(&s, fd, &map, 1000);
    assert_int_equal(overlay_space_take(&s, SLOTS, &first), SLOTS);
    assert_int_equal(first, 0);
    overlay_space_give(&s, 30, 20); /* free, across the limit */
    overlay_space_give(&s, 60, 5);  /* free, beyond it */
    overlay_space_reclaim(&s);

    unsigned pin = overlay_space_pin(&s);

    overlay_space_give(&s, 20, 10); /* given up, below it */
    overlay_space_give(&s, 70, 10); /* given up, beyond it */
    overlay_space_limit(&s, LIMIT);
    overlay_space_unpin(&s, pin);
    overlay_space_give(&s, 0, 20); /* in use until now */
    overlay_space_give(&s, 50, 10);
    overlay_space_give(&s, 65, 5);
    overlay_space_give(&s, 80, 20);
    overlay_space_reclaim(&s);
    while ((got = overlay_space_take(&s, 7, &first)) > 0) {
        for (uint32_t i = first; i < first + got; i++) {
            assert_true(i < LIMIT && !had[i]);
            had[i] = true;
        }
        total += got;
    }
    assert_int_equal(total, LIMIT);
    /* Nothing is counted as held that nobody has. */
    assert_int_equal(atomic_load(&s.held_slots), LIMIT);
    overlay_space_destroy(&s);
    overlay_map_destroy(&map);
    file_close_ptr(&fd);
}

/* ---- the map's memory ---- */

/* A large disk trimmed bit by bit, in an order of its own: what is left of
 * the map is the path to what no piece reached. */
static void
test_trim_bit_by_bit(void **state)
{
    enum { PIECES = 4096 };
    const uint64_t size = UINT64_C(64) << 30, grains = size / GRAIN;
    static uint64_t edge[PIECES + 1];
    struct layer *l = overlay_make(size, 0);
    uint64_t random = 7;
    uint8_t buf[GRAIN];

    (void)state;
    memset(buf, 3, sizeof(buf));
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t at = random_next(&random) % grains;

        assert_int_equal(write_at(l, at * GRAIN, buf, GRAIN), 0);
    }
    for (unsigned i = 0; i < PIECES; i++) { /* odd everywhere but at the ends */
        edge[i] = i * (grains / PIECES);
        edge[i] += i > 0 ? 1 + random_next(&random) % (grains / PIECES / 2) : 0;
    }
    edge[PIECES] = grains;
    for (unsigned i = 0; i < PIECES; i++) {
        unsigned k = i * 1237 % PIECES; /* each once */

        assert_int_equal(l->ops->zero(l, edge[k] * GRAIN,
                                      (edge[k + 1] - edge[k]) * GRAIN,
                                      i % 2 ? LAYER_ZERO_TRIM : 0),
                         0);
    }
    assert_true(overlay_map_bytes(l) <= 2 * sizeof(struct map_node));
    assert_true(allocated(l) <= 1 << 20);
    for (unsigned i = 0; i < 3000; i++) {
        read_at(l, random_next(&random) % grains * GRAIN, buf, GRAIN);
        assert_int_equal(buf[0] | buf[GRAIN - 1], 0);
    }
    l->ops->close(l);
}

/* Many small trims and zeroes far apart take a bounded part of memory; then
 * trims do nothing, and zeroes are refused, since they would have to do
 * something. What is written is not refused. */
static void
test_map_memory_bound(void **state)
{
    const uint64_t step = UINT64_C(2) << 20, size = UINT64_C(1) << 40;
    const uint64_t bound = UINT64_C(65) << 20;
    struct layer *l = overlay_make(size, 0);
    uint8_t buf[GRAIN];
    unsigned refused = 0;

    (void)state;
    for (uint64_t i = 0; i < 50000; i++) {
        assert_int_equal(l->ops->zero(l, i * step, GRAIN, LAYER_ZERO_TRIM), 0);
    }
    assert_true(overlay_map_bytes(l) <= bound);
    for (uint64_t i = 60000; i < 61000; i++) {
        int err = l->ops->zero(l, i * step, GRAIN, 0);

        assert_true(err == 0 || err == -ENOSPC);
        refused += err != 0;
    }
    assert_int_equal(refused, 1000);
    assert_true(overlay_map_bytes(l) <= bound);
    /* Refused means not done, and what was trimmed before stays so. */
    read_at(l, 60000 * step, buf, GRAIN);
    assert_int_equal(buf[9], below_byte(60000 * step + 9));
    read_at(l, 5 * step, buf, GRAIN);
    assert_int_equal(buf[9], 0);
    /* Where there is a map already zeroes cost nothing. */
    assert_int_equal(l->ops->zero(l, 5 * step + GRAIN, 3 * GRAIN, 0), 0);
    memset(buf, 4, sizeof(buf));
    for (uint64_t i = 60000; i < 60100; i++) {
        assert_int_equal(write_at(l, i * step, buf, GRAIN), 0);
        assert_int_equal(l->ops->zero(l, i * step, GRAIN, 0), 0);
    }
    assert_int_equal(l->ops->zero(l, 0, size, LAYER_ZERO_TRIM), 0);
    assert_int_equal(overlay_map_bytes(l), 0);
    assert_int_equal(l->ops->zero(l, 60000 * step, GRAIN, 0), 0);
    l->ops->close(l);
}

/* ---- S4: space that had to wait ---- */

/* Space that had to wait for a reader comes back once he is done, although
 * nobody calls the overlay any more. */
static void
test_space_returns_by_itself(void **state)
{
    struct layer *l = overlay_make(16 << 20, 0);
    uint8_t *buf = calloc(1, 8 << 20);

    (void)state;
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(write_at(l, 0, buf, 8 << 20), 0);

        unsigned pin = l->ops->pin(l);

        assert_int_equal(l->ops->zero(l, 0, 8 << 20, LAYER_ZERO_TRIM), 0);
        usleep(30000);
        assert_true(allocated(l) >= 8 << 20);
        l->ops->unpin(l, pin);
        for (unsigned i = 0; allocated(l) > 1 << 20; i++) {
            assert_true(i < 60000);
            usleep(1000);
        }
    }
    free(buf);
    l->ops->close(l);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_limit_reuse),
        cmocka_unit_test(test_space_limit),
        cmocka_unit_test(test_trim_bit_by_bit),
        cmocka_unit_test(test_map_memory_bound),
        cmocka_unit_test(test_space_returns_by_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
