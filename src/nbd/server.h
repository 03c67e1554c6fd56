/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_SERVER_H
#define REWIND_NBD_SERVER_H

#include <stdbool.h>

#include "base/err.h"
#include "io/io.h"
#include "nbd/export.h"
#include "nbd/stats.h"

/*
 * The server: accepts sessions on listening sockets and gives each a thread.
 * It knows exports and layers, not machines and not the command line.
 */
struct server;

struct server_options {
    const struct export_set *exports; /* borrowed for the server's life */
    enum io_engine_kind engine;
    unsigned session_max; /* sessions at once; 0: LIMIT_SESSIONS_DEFAULT.
                             Further ones wait in the listen queue */
    unsigned handshake_s; /* 0: no limit */
    bool exit_after_last; /* qemu-nbd without -t: server_run returns once a
                             session has come and the last one has gone */
};

struct server *server_new(const struct server_options *options, struct err *e);

/* Takes over a listening socket. Before server_run. */
int server_add_listener(struct server *s, int fd, struct err *e);

/* Serves until server_stop, or the last session with exit_after_last. Then
 * finishes what is in flight, closes all sessions and returns 0, or -errno if
 * a final flush failed. */
int server_run(struct server *s);

/* Serves one session on a pair of descriptors (which may be the same, and
 * need not be sockets: --inetd) and returns when it ends. */
int server_run_pair(struct server *s, int in_fd, int out_fd);

/* Ends server_run: the first call gracefully, a second one at once.
 * Async-signal-safe. */
void server_stop(struct server *s);

/* Counters summed over all sessions, ended ones included. Any thread. */
void server_stats(struct server *s, struct stats *ret);

/* Not running any more. NULL is fine. */
void server_free(struct server *s);

#endif
