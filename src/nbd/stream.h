/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_STREAM_H
#define REWIND_NBD_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * The bytes of one session, in both directions. The only place that touches a
 * session's sockets, so that TLS can come in underneath. One thread at a time.
 * No call raises SIGPIPE.
 */
struct stream {
    int in_fd;  /* borrowed */
    int out_fd; /* borrowed; the same as in_fd but for --inetd */
    bool is_socket;
    bool has_idle_tick; /* the socket has a receive timeout: a waiting
                           stream_recv returns -EAGAIN when it has passed */
    /* Called instead of waiting when a socket takes no more: returns 0 once
     * it may again, or -errno to give up. NULL: just wait. */
    int (*stall)(void *arg);
    void *stall_arg;      /* borrowed */
    uint64_t deadline_ns; /* on the monotonic clock; 0: none */
};

uint64_t monotonic_ns(void);

/*
 * Reads exactly `len` bytes. 0; -ECONNRESET at end of file or if the peer has
 * gone; -ETIMEDOUT past the deadline; another -errno.
 */
int stream_read(struct stream *s, void *buf, size_t len);

/* Reads and forgets `len` bytes; as stream_read. */
int stream_skip(struct stream *s, uint64_t len);

/* Writes all of it; as stream_read. */
int stream_write(struct stream *s, const void *buf, size_t len);

/*
 * The fast path's primitives. stream_recv returns what is there (> 0), 0 at
 * end of file, or -errno; with `wait` false, -EAGAIN if nothing is.
 * stream_sendv waits until all of `iov` (which it changes) is sent; `more`
 * says that further bytes follow at once.
 */
ssize_t stream_recv(struct stream *s, void *buf, size_t cap, bool wait);
int stream_sendv(struct stream *s, struct iovec *iov, unsigned count,
                 bool more);

#endif
