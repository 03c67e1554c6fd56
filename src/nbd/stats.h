/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_STATS_H
#define REWIND_NBD_STATS_H

#include <stdint.h>

#include "nbd/proto.h"

/* Latency buckets: four to a power of two of nanoseconds, so a percentile is
 * told within 19 %. Covers 1 ns to over an hour. */
#define STATS_BUCKETS 168u

struct stats_command {
    uint64_t requests;
    uint64_t bytes;
    uint64_t errors;
    uint64_t latency[STATS_BUCKETS]; /* from parsed to reply queued */
};

/* One session's, written by its thread alone with relaxed atomics, or a sum. */
struct stats {
    struct stats_command command[NBD_CMD_COUNT];
    uint64_t sessions;        /* begun */
    uint64_t sessions_failed; /* ended by an error or in the handshake */
    uint64_t sessions_open;   /* only in a sum */
    uint64_t bytes_in, bytes_out;
    uint64_t recv_calls, send_calls;
};

void stats_count(struct stats *s, enum nbd_command command, uint64_t bytes,
                 int wire_error, uint64_t latency_ns);

/* One system call that received, or sent, `bytes`. */
void stats_received(struct stats *s, uint64_t bytes);
void stats_sent(struct stats *s, uint64_t bytes);

/* Adds `from` (which another thread may be writing) to `to`. */
void stats_add(struct stats *to, const struct stats *from);

/* The latency in nanoseconds below which `percent` (0 to 100) of a command's
 * requests stayed; 0 if there were none. */
uint64_t stats_percentile_ns(const struct stats_command *c, double percent);

#endif
