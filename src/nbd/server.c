/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server (server.h): the thread in server_run accepts, and each session
 * has a thread of its own, which closes what belongs to it and leaves. A pipe
 * wakes the accepting thread when a session has ended or when it should stop.
 *
 * Stopping: no further session; each session's receiving side is shut, so that
 * it answers what has reached it and then ends as if its peer had left. A peer
 * that does not take its replies is cut off after a while.
 */
#include "nbd/server.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "nbd/accept.h"
#include "nbd/limits.h"
#include "nbd/session.h"

#define LISTENERS_MAX 64u

/* The deepest call chain needs about 40 KiB; sanitizers several times that. */
#define STACK_BYTES (UINT32_C(512) << 10)

/* What the kernel may hold of our replies: one large read, so that we can go
 * on while the peer takes it. The default would stop us every 200 KiB. */
#define SEND_BUFFER_BYTES (1 << 20)

/* How long a stopping server waits for peers to take their replies. */
#define STOP_PATIENCE_MS 2000

/* And for threads to end once their sockets are gone. */
#define STOP_LAST_MS 3000

/* Pause after an accept failed for want of descriptors or memory. */
#define ACCEPT_PAUSE_MS 100

struct server_session {
    struct session session;
    struct server *server;               /* borrowed */
    struct server_session *next, **link; /* in server->open; under its lock */
    int fd;                              /* owned; -1 when --inetd's */
};

struct server {
    struct server_options options;
    struct handshake_options handshake;
    int listener[LISTENERS_MAX]; /* owned */
    unsigned listener_count;
    int wake_fd[2]; /* owned: non-blocking pipe */
    _Atomic int stops;
    bool stopping; /* set atomically; the handshakes look at it */
    _Atomic uint64_t pending_bytes_all;

    pthread_mutex_t lock; /* guards all below */
    struct server_session *open;
    unsigned open_count;
    bool had_session;
    struct stats ended; /* summed over sessions that are gone */
};

struct server *
server_new(const struct server_options *options, struct err *e)
{
    struct server *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        err_set(e, ENOMEM, "out of memory");
        return NULL;
    }
    s->options = *options;
    if (s->options.session_max == 0) {
        s->options.session_max = LIMIT_SESSIONS_DEFAULT;
    }
    s->handshake.exports = options->exports;
    s->handshake.stopping = &s->stopping;
    pthread_mutex_init(&s->lock, NULL);
    if (pipe(s->wake_fd) != 0) {
        err_set(e, errno, "cannot make a pipe: %s", strerror(errno));
        pthread_mutex_destroy(&s->lock);
        free(s);
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        (void)fcntl(s->wake_fd[i], F_SETFD, FD_CLOEXEC);
        (void)fcntl(s->wake_fd[i], F_SETFL, O_NONBLOCK);
    }
    return s;
}

int
server_add_listener(struct server *s, int fd, struct err *e)
{
    if (s->listener_count == LISTENERS_MAX) {
        close(fd);
        return err_set(e, E2BIG, "more than %u listening sockets",
                       LISTENERS_MAX);
    }
    /* A connection may vanish between poll and accept: do not wait then. */
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    s->listener[s->listener_count++] = fd;
    return 0;
}

/* Async-signal-safe. */
static void
wake(struct server *s)
{
    int saved = errno;
    ssize_t n = write(s->wake_fd[1], "", 1);

    (void)n; /* a full pipe wakes as well */
    errno = saved;
}

void
server_stop(struct server *s)
{
    atomic_fetch_add(&s->stops, 1);
    __atomic_store_n(&s->stopping, true, __ATOMIC_RELAXED);
    wake(s);
}

/* ---- sessions ---- */

static void
link_locked(struct server *s, struct server_session *x)
{
    x->next = s->open;
    x->link = &s->open;
    if (s->open != NULL) {
        s->open->link = &x->next;
    }
    s->open = x;
    s->open_count++;
}

static void
unlink_locked(struct server *s, struct server_session *x)
{
    *x->link = x->next;
    if (x->next != NULL) {
        x->next->link = x->link;
    }
    s->open_count--;
}

static struct server_session *
session_new(struct server *s, int in_fd, int out_fd)
{
    struct server_session *x = calloc(1, sizeof(*x));
    struct stat st;

    if (x == NULL) {
        return NULL;
    }
    x->server = s;
    x->fd = -1;
    x->session.stream = (struct stream){
        .in_fd = in_fd,
        .out_fd = out_fd,
        .is_socket = fstat(in_fd, &st) == 0 && S_ISSOCK(st.st_mode),
    };
    x->session.handshake = &s->handshake;
    x->session.handshake_s = s->options.handshake_s;
    x->session.engine = s->options.engine;
    x->session.pending_bytes_all = &s->pending_bytes_all;
    x->session.stats.sessions = 1;
    pthread_mutex_lock(&s->lock);
    link_locked(s, x);
    pthread_mutex_unlock(&s->lock);
    return x;
}

static int
session_serve(struct server_session *x)
{
    struct server *s = x->server;
    int err = session_run(&x->session);

    if (err != 0) {
        log_debug("a session ended: %s", strerror(-err));
        __atomic_store_n(&x->session.stats.sessions_failed, 1,
                         __ATOMIC_RELAXED);
    }
    pthread_mutex_lock(&s->lock);
    unlink_locked(s, x);
    stats_add(&s->ended, &x->session.stats);
    if (x->session.disk != NULL) {
        s->had_session = true; /* it came as far as an export */
    }
    if (x->fd >= 0) {
        close(x->fd); /* under the lock: stop_sessions must not shut a number
                         that is somebody else's by now */
    }
    /* The server may be freed as soon as the lock is released and nobody is
     * left, so waking it comes before. */
    wake(s);
    pthread_mutex_unlock(&s->lock);
    free(x);
    return err;
}

static void *
session_thread(void *arg)
{
    (void)session_serve(arg);
    return NULL;
}

static void
start_session(struct server *s, int fd)
{
    int on = 1, size = SEND_BUFFER_BYTES;
    pthread_attr_t attr;
    pthread_t thread;

    /* Batches are ours to form; on other than TCP this fails, rightly. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));

    struct server_session *x = session_new(s, fd, fd);

    if (x == NULL) {
        close(fd);
        return;
    }
    x->fd = fd;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    int err = pthread_create(&thread, &attr, session_thread, x);

    pthread_attr_destroy(&attr);
    if (err != 0) {
        log_warn("cannot start a thread for a session: %s", strerror(err));
        pthread_mutex_lock(&s->lock);
        unlink_locked(s, x);
        pthread_mutex_unlock(&s->lock);
        close(fd);
        free(x);
    }
}

/* Accepts all that wait on one listener, as far as there is room. */
static void
accept_all(struct server *s, int listener)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        bool room = s->open_count < s->options.session_max;

        pthread_mutex_unlock(&s->lock);
        if (!room || atomic_load(&s->stops) > 0) {
            return;
        }
        int fd = accept_session(listener);

        if (fd == -EAGAIN || fd == -EWOULDBLOCK) {
            return;
        }
        if (fd < 0) {
            log_warn("cannot accept a connection: %s", strerror(-fd));
            poll(NULL, 0, ACCEPT_PAUSE_MS);
            return;
        }
        start_session(s, fd);
    }
}

/* ---- run and stop ---- */

static void
drain_wake(struct server *s)
{
    char bytes[64];

    while (read(s->wake_fd[0], bytes, sizeof(bytes)) > 0) {
    }
}

static void
shut_sessions(struct server *s, int how)
{
    pthread_mutex_lock(&s->lock);
    for (struct server_session *x = s->open; x != NULL; x = x->next) {
        if (x->fd >= 0) {
            (void)shutdown(x->fd, how);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

static unsigned
count_open(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    unsigned n = s->open_count;

    pthread_mutex_unlock(&s->lock);
    return n;
}

/* Waits until no session is left; false after `patience_ms` or if a second
 * stop came. */
static bool
wait_for_sessions(struct server *s, int patience_ms)
{
    uint64_t end = monotonic_ns() + (uint64_t)patience_ms * 1000000;
    struct pollfd p = {.fd = s->wake_fd[0], .events = POLLIN};

    while (count_open(s) > 0) {
        uint64_t now = monotonic_ns();

        if (now >= end || atomic_load(&s->stops) > 1) {
            return false;
        }
        (void)poll(&p, 1, (int)((end - now) / 1000000) + 1);
        drain_wake(s);
    }
    return true;
}

static int
flush_exports(struct server *s)
{
    const struct export_set *set = s->options.exports;
    int result = 0;

    for (unsigned i = 0; i < set->count; i++) {
        const struct export *x = &set->exports[i];

        if (!x->read_only && !x->ignore_flush && x->disk != NULL) {
            int err = disk_flush(x->disk);

            if (err != 0) {
                log_error("export \"%s\": the last flush failed: %s", x->name,
                          strerror(-err));
                result = err;
            }
        }
    }
    return result;
}

/* Ends all sessions in good order if they let it. */
static int
finish(struct server *s)
{
    for (unsigned i = 0; i < s->listener_count; i++) {
        close(s->listener[i]);
    }
    s->listener_count = 0;
    __atomic_store_n(&s->stopping, true, __ATOMIC_RELAXED);
    shut_sessions(s, SHUT_RD);
    if (!wait_for_sessions(s, STOP_PATIENCE_MS)) {
        shut_sessions(s, SHUT_RDWR);
        if (!wait_for_sessions(s, STOP_LAST_MS)) {
            return -EINTR;
        }
    }
    return flush_exports(s);
}

/* True once there is nothing more to run for. */
static bool
is_over(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    bool last_gone = s->options.exit_after_last && s->had_session &&
                     s->open_count == 0;

    pthread_mutex_unlock(&s->lock);
    return last_gone || atomic_load(&s->stops) > 0;
}

int
server_run(struct server *s)
{
    struct pollfd p[LISTENERS_MAX + 1];

    while (!is_over(s)) {
        bool room = count_open(s) < s->options.session_max;
        nfds_t n = 0;

        p[n++] = (struct pollfd){.fd = s->wake_fd[0], .events = POLLIN};
        for (unsigned i = 0; room && i < s->listener_count; i++) {
            p[n++] = (struct pollfd){.fd = s->listener[i], .events = POLLIN};
        }
        if (poll(p, n, -1) < 0 && errno != EINTR) {
            log_error("cannot wait for connections: %s", strerror(errno));
            break;
        }
        drain_wake(s);
        for (nfds_t i = 1; i < n; i++) {
            if (p[i].revents != 0) {
                accept_all(s, p[i].fd);
            }
        }
    }
    return finish(s);
}

int
server_run_pair(struct server *s, int in_fd, int out_fd)
{
    struct server_session *x = session_new(s, in_fd, out_fd);

    if (x == NULL) {
        return -ENOMEM;
    }
    int err = session_serve(x);
    int flushed = flush_exports(s);

    return err != 0 ? err : flushed;
}

void
server_stats(struct server *s, struct stats *ret)
{
    memset(ret, 0, sizeof(*ret));
    pthread_mutex_lock(&s->lock);
    stats_add(ret, &s->ended);
    for (struct server_session *x = s->open; x != NULL; x = x->next) {
        stats_add(ret, &x->session.stats);
    }
    ret->sessions_open = s->open_count;
    pthread_mutex_unlock(&s->lock);
}

void
server_free(struct server *s)
{
    if (s == NULL) {
        return;
    }
    for (unsigned i = 0; i < s->listener_count; i++) {
        close(s->listener[i]);
    }
    close(s->wake_fd[0]);
    close(s->wake_fd[1]);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
