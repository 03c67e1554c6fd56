/* SPDX-License-Identifier: BSD-2-Clause */
/* Counters: each lands where it should, percentiles are near the truth, and a
 * sum may be taken while a session counts. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nbd/stats.h"

static void
test_count(void **state)
{
    struct stats s = {0};
    struct stats_command *read = &s.command[NBD_CMD_READ];

    (void)state;
    stats_count(&s, NBD_CMD_READ, 4096, NBD_SUCCESS, 1000);
    stats_count(&s, NBD_CMD_READ, 512, NBD_EIO, 2000);
    stats_count(&s, NBD_CMD_RESIZE, 0, NBD_EINVAL, 0);
    assert_int_equal(read->requests, 2);
    assert_int_equal(read->bytes, 4608);
    assert_int_equal(read->errors, 1);
    assert_int_equal(s.command[NBD_CMD_RESIZE].requests, 1);
    assert_int_equal(s.command[NBD_CMD_RESIZE].latency[0], 1);
    assert_int_equal(s.command[NBD_CMD_WRITE].requests, 0);
}

/* H2: the command is the client's word. */
static void
test_unknown_command(void **state)
{
    struct stats s = {0}, zero = {0};

    (void)state;
    stats_count(&s, NBD_CMD_COUNT, 1, 0, 1);
    stats_count(&s, (enum nbd_command)65535, 1, 0, 1);
    assert_memory_equal(&s, &zero, sizeof(s));
}

static void
test_one_value_is_told_within_19_percent(void **state)
{
    (void)state;
    for (uint64_t ns = 1; ns < UINT64_C(3600) * 1000000000; ns += ns / 7 + 1) {
        struct stats s = {0};
        uint64_t told;

        stats_count(&s, NBD_CMD_READ, 0, 0, ns);
        told = stats_percentile_ns(&s.command[NBD_CMD_READ], 50);
        assert_true(told > ns);
        assert_true((double)told <= (double)ns * 1.1893 + 1);
    }
}

static void
test_extremes(void **state)
{
    struct stats s = {0};
    const struct stats_command *c = &s.command[NBD_CMD_READ];

    (void)state;
    assert_int_equal(stats_percentile_ns(c, 99), 0);
    stats_count(&s, NBD_CMD_READ, 0, 0, UINT64_MAX);
    assert_int_equal(c->latency[STATS_BUCKETS - 1], 1);
    assert_true(stats_percentile_ns(c, 50) > UINT64_C(3600) * 1000000000);
    stats_count(&s, NBD_CMD_READ, 0, 0, 0);
    assert_int_equal(stats_percentile_ns(c, 0), 2);
    assert_int_equal(stats_percentile_ns(c, -5), 2);
    assert_int_equal(stats_percentile_ns(c, 50), 2);
    assert_true(stats_percentile_ns(c, 51) > 2);
    assert_true(stats_percentile_ns(c, 1000) > 2);
}

static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void
test_percentiles_against_sorting(void **state)
{
    static uint64_t all[10000];
    struct stats s = {0};
    uint64_t seed = 7;

    (void)state;
    for (unsigned i = 0; i < 10000; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1;
        all[i] = 1000 + (seed >> 40) % (1u << (10 + i % 14));
        stats_count(&s, NBD_CMD_WRITE, 1, 0, all[i]);
    }
    qsort(all, 10000, sizeof(all[0]), compare);
    for (unsigned percent = 1; percent <= 100; percent++) {
        double truth = (double)all[percent * 100 - 1];
        double told = (double)stats_percentile_ns(&s.command[NBD_CMD_WRITE],
                                                  percent);

        assert_true(told > truth);
        assert_true(told <= truth * 1.1893 + 1);
    }
}

static void
test_add(void **state)
{
    struct stats a = {.sessions = 1, .bytes_in = 10, .send_calls = 3};
    struct stats b = {.sessions = 2, .sessions_failed = 1, .recv_calls = 4};

    (void)state;
    stats_count(&a, NBD_CMD_TRIM, 100, 0, 5000);
    stats_count(&b, NBD_CMD_TRIM, 50, NBD_EIO, 5000);
    stats_add(&a, &b);
    assert_int_equal(a.sessions, 3);
    assert_int_equal(a.sessions_failed, 1);
    assert_int_equal(a.bytes_in, 10);
    assert_int_equal(a.send_calls, 3);
    assert_int_equal(a.recv_calls, 4);
    assert_int_equal(a.command[NBD_CMD_TRIM].requests, 2);
    assert_int_equal(a.command[NBD_CMD_TRIM].bytes, 150);
    assert_int_equal(a.command[NBD_CMD_TRIM].errors, 1);
    assert_true(stats_percentile_ns(&a.command[NBD_CMD_TRIM], 100) > 5000);
    assert_int_equal(b.command[NBD_CMD_TRIM].requests, 1);
}

#define COUNTED 20000u

static void *
count_many(void *arg)
{
    for (unsigned i = 0; i < COUNTED; i++) {
        stats_count(arg, NBD_CMD_READ, 1, 0, i);
    }
    return NULL;
}

/* TSan looks on. */
static void
test_sum_beside_a_writer(void **state)
{
    struct stats s = {0};
    uint64_t before = 0;
    pthread_t thread;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, count_many, &s), 0);
    for (unsigned i = 0; i < 100; i++) {
        struct stats sum = {0};

        stats_add(&sum, &s);
        assert_true(sum.command[NBD_CMD_READ].requests >= before);
        before = sum.command[NBD_CMD_READ].requests;
    }
    pthread_join(thread, NULL);
    assert_int_equal(s.command[NBD_CMD_READ].requests, COUNTED);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count),
        cmocka_unit_test(test_unknown_command),
        cmocka_unit_test(test_one_value_is_told_within_19_percent),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_percentiles_against_sorting),
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_sum_beside_a_writer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
