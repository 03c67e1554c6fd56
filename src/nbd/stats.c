/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Counters of a session and of the server. Each session's are written by its
 * own thread alone, so a relaxed load and a relaxed store make an increment;
 * a reader in another thread sees each number whole, and no more is promised.
 */
#include "nbd/stats.h"

#include <stddef.h>

/* 2^(1/4), 2^(2/4), 2^(3/4) and 2^(4/4) - less a hair - with the point behind
 * the first bit: where a power of two is cut into four equal ratios. */
static const uint64_t quarter[] = {
    UINT64_C(0x9837f0518db8a970),
    UINT64_C(0xb504f333f9de6485),
    UINT64_C(0xd744fccad69d6af5),
    UINT64_C(0xffffffffffffffff),
};

static void
count_add(uint64_t *counter, uint64_t n)
{
    uint64_t now = __atomic_load_n(counter, __ATOMIC_RELAXED);

    __atomic_store_n(counter, now + n, __ATOMIC_RELAXED);
}

static unsigned
bucket_of(uint64_t ns)
{
    uint64_t mantissa;
    unsigned exponent, idx;

    if (ns == 0) {
        return 0;
    }
    exponent = 63 - (unsigned)__builtin_clzll(ns);
    mantissa = ns << (63 - exponent);
    idx = exponent * 4 + (mantissa >= quarter[0]) + (mantissa >= quarter[1]) +
          (mantissa >= quarter[2]);
    return idx < STATS_BUCKETS ? idx : STATS_BUCKETS - 1;
}

/* The least whole number of nanoseconds above all of a bucket's. */
static uint64_t
bucket_end_ns(unsigned idx)
{
    return (quarter[idx % 4] >> (63 - idx / 4)) + 1;
}

void
stats_count(struct stats *s, enum nbd_command command, uint64_t bytes,
            int wire_error, uint64_t latency_ns)
{
    struct stats_command *c;

    if ((unsigned)command >= NBD_CMD_COUNT) {
        return; /* a client's invention has no row */
    }
    c = &s->command[command];
    count_add(&c->requests, 1);
    count_add(&c->bytes, bytes);
    count_add(&c->errors, wire_error != 0);
    count_add(&c->latency[bucket_of(latency_ns)], 1);
}

void
stats_received(struct stats *s, uint64_t bytes)
{
    count_add(&s->recv_calls, 1);
    count_add(&s->bytes_in, bytes);
}

void
stats_sent(struct stats *s, uint64_t bytes)
{
    count_add(&s->send_calls, 1);
    count_add(&s->bytes_out, bytes);
}

void
stats_add(struct stats *to, const struct stats *from)
{
    uint64_t *sum = (uint64_t *)to;
    const uint64_t *part = (const uint64_t *)from;

    _Static_assert(sizeof(*to) % sizeof(*sum) == 0, "only counters inside");
    for (size_t i = 0; i < sizeof(*to) / sizeof(*sum); i++) {
        sum[i] += __atomic_load_n(&part[i], __ATOMIC_RELAXED);
    }
}

uint64_t
stats_percentile_ns(const struct stats_command *c, double percent)
{
    uint64_t total = 0, below = 0;
    unsigned last = 0;
    double want;

    for (unsigned i = 0; i < STATS_BUCKETS; i++) {
        total += c->latency[i];
    }
    if (total == 0) {
        return 0;
    }
    want = percent / 100 * (double)total;
    for (unsigned i = 0; i < STATS_BUCKETS; i++) {
        if (c->latency[i] == 0) {
            continue;
        }
        below += c->latency[i];
        last = i;
        if ((double)below >= want) {
            break;
        }
    }
    return bucket_end_ns(last);
}
