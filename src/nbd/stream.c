/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The bytes of one session: sockets and pairs of pipes, with a deadline. It
 * works on blocking descriptors and leaves their flags alone, because others
 * may share them (--inetd). One thread at a time per stream.
 *
 * SIGPIPE: MSG_NOSIGNAL where the system has it; elsewhere whoever accepts a
 * socket sets SO_NOSIGPIPE. For pipes the process ignores the signal.
 */
#include "nbd/stream.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS before 15 */
#endif
#ifndef MSG_MORE
#define MSG_MORE 0 /* Linux only, and a hint */
#endif

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

/* IOV_MAX of Linux and macOS. */
#define IOV_BATCH 1024u

/* What stream_skip reads at once: large enough that the system call does not
 * count, small enough for any stack. */
#define SKIP_BYTES (16u << 10)

uint64_t
monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Checked before every transfer and not only while waiting: a peer that always
 * has one more byte ready must not outlive its deadline. */
static bool
deadline_passed(const struct stream *s)
{
    return s->deadline_ns != 0 && monotonic_ns() >= s->deadline_ns;
}

/* Waits for `events` until the deadline. 0 also means "an error is pending":
 * the transfer that follows tells which. */
static int
stream_wait(const struct stream *s, int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        int timeout_ms = -1;
        int n;

        if (s->deadline_ns != 0) {
            uint64_t now_ns = monotonic_ns();
            uint64_t left_ns;

            if (now_ns >= s->deadline_ns) {
                return -ETIMEDOUT;
            }
            left_ns = s->deadline_ns - now_ns;
            timeout_ms = (int)min_u64(left_ns / NS_PER_MS + 1, INT_MAX);
        }
        n = poll(&p, 1, timeout_ms);
        if (n > 0) {
            return (p.revents & POLLNVAL) != 0 ? -EBADF : 0;
        }
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
    }
}

/* One read that does not wait: -EAGAIN if nothing is there. */
static ssize_t
recv_now(const struct stream *s, void *buf, size_t cap)
{
    if (s->is_socket) {
        return recv(s->in_fd, buf, cap, MSG_DONTWAIT);
    } else {
        struct pollfd p = {.fd = s->in_fd, .events = POLLIN};
        int n = poll(&p, 1, 0);

        if (n > 0) {
            return read(s->in_fd, buf, cap);
        }
        if (n == 0) {
            errno = EAGAIN;
        }
        return -1;
    }
}

ssize_t
stream_recv(struct stream *s, void *buf, size_t cap, bool wait)
{
    bool may_block = wait && s->deadline_ns == 0;

    for (;;) {
        ssize_t n;

        if (deadline_passed(s)) {
            return -ETIMEDOUT;
        }
        if (!may_block) {
            n = recv_now(s, buf, cap);
        } else if (s->is_socket) {
            n = recv(s->in_fd, buf, cap, 0);
        } else {
            n = read(s->in_fd, buf, cap);
        }
        if (n >= 0) {
            return n;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            bool tick = may_block && s->has_idle_tick;
            int rc = wait && !tick ? stream_wait(s, s->in_fd, POLLIN) : -EAGAIN;

            if (rc < 0) {
                return rc;
            }
        } else if (errno != EINTR) {
            return -errno;
        }
    }
}

int
stream_read(struct stream *s, void *buf, size_t len)
{
    uint8_t *at = buf;

    while (len > 0) {
        ssize_t n = stream_recv(s, at, len, true);

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

int
stream_skip(struct stream *s, uint64_t len)
{
    uint8_t sink[SKIP_BYTES];

    while (len > 0) {
        ssize_t n = stream_recv(s, sink, (size_t)min_u64(len, sizeof(sink)),
                                true);

        if (n <= 0) {
            return n < 0 ? (int)n : -ECONNRESET;
        }
        len -= (uint64_t)n;
    }
    return 0;
}

/*
 * One write of some of `iov`. With a deadline it must not block: a socket is
 * told so; a pipe that polls writable takes PIPE_BUF bytes without blocking
 * (POSIX), and no more are offered.
 */
static ssize_t
send_some(struct stream *s, struct iovec *iov, unsigned count, bool more)
{
    bool may_block = s->deadline_ns == 0;

    if (s->is_socket) {
        struct msghdr msg = {.msg_iov = iov};
        int flags = MSG_NOSIGNAL;

        msg.msg_iovlen = (__typeof__(msg.msg_iovlen))count;
        flags |= more ? MSG_MORE : 0;
        flags |= may_block && s->stall == NULL ? 0 : MSG_DONTWAIT;
        return sendmsg(s->out_fd, &msg, flags);
    }
    if (may_block) {
        return writev(s->out_fd, iov, (int)count);
    } else {
        struct pollfd p = {.fd = s->out_fd, .events = POLLOUT};
        int n = poll(&p, 1, 0);

        if (n > 0) {
            return write(s->out_fd, iov->iov_base,
                         min_u64(iov->iov_len, PIPE_BUF));
        }
        if (n == 0) {
            errno = EAGAIN;
        }
        return -1;
    }
}

/* Takes `len` sent bytes off the front. Returns how many elements are done. */
static unsigned
iov_advance(struct iovec *iov, unsigned count, size_t len)
{
    unsigned done = 0;

    while (done < count && len >= iov[done].iov_len) {
        len -= iov[done].iov_len;
        done++;
    }
    if (done < count) {
        iov[done].iov_base = (uint8_t *)iov[done].iov_base + len;
        iov[done].iov_len -= len;
    }
    return done;
}

int
stream_sendv(struct stream *s, struct iovec *iov, unsigned count, bool more)
{
    unsigned done = iov_advance(iov, count, 0); /* leading empty elements */

    while (iov += done, count -= done, count > 0) {
        unsigned batch = count < IOV_BATCH ? count : IOV_BATCH;
        ssize_t n;

        if (deadline_passed(s)) {
            return -ETIMEDOUT;
        }
        done = 0;
        n = send_some(s, iov, batch, more || batch < count);
        if (n >= 0) {
            done = iov_advance(iov, count, (size_t)n);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            int rc = s->stall != NULL ? s->stall(s->stall_arg)
                                      : stream_wait(s, s->out_fd, POLLOUT);

            if (rc < 0) {
                return rc;
            }
        } else if (errno == EPIPE) {
            return -ECONNRESET;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int
stream_write(struct stream *s, const void *buf, size_t len)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = len};

    return stream_sendv(s, &iov, 1, false);
}
