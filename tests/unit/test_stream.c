/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A session's bytes over sockets, pipes and files: exact reads, writes of many
 * pieces, ends, deadlines, signals. The handshake's tests cover the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "nbd/stream.h"

#define NS_PER_MS UINT64_C(1000000)
#define BULK_BYTES (3u << 20)

/* Two streams that face each other, over a socket pair or two pipes. */
struct pair {
    struct stream here, there;
    int fds[4];
};

static void
open_pair(struct pair *p, bool pipes)
{
    *p = (struct pair){.fds = {-1, -1, -1, -1}};
    if (pipes) {
        assert_int_equal(pipe(p->fds), 0);
        assert_int_equal(pipe(p->fds + 2), 0);
        p->here.in_fd = p->fds[0];
        p->there.out_fd = p->fds[1];
        p->there.in_fd = p->fds[2];
        p->here.out_fd = p->fds[3];
    } else {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, p->fds), 0);
        p->here.in_fd = p->here.out_fd = p->fds[0];
        p->there.in_fd = p->there.out_fd = p->fds[1];
        p->here.is_socket = p->there.is_socket = true;
    }
}

static void
close_one(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/* Closes the far end only. */
static void
hang_up(struct pair *p)
{
    close_one(&p->fds[1]);
    close_one(&p->fds[2]);
}

static void
close_pair(struct pair *p)
{
    for (unsigned i = 0; i < 4; i++) {
        close_one(&p->fds[i]);
    }
}

static void
set_deadline(struct stream *s, unsigned ms)
{
    s->deadline_ns = monotonic_ns() + ms * NS_PER_MS;
}

static uint8_t
pattern(size_t i)
{
    return (uint8_t)(i * 7 + i / 251);
}

static void *
read_bulk(void *arg)
{
    uint8_t *got = malloc(BULK_BYTES);
    intptr_t bad = stream_read(arg, got, BULK_BYTES);

    for (size_t i = 0; bad == 0 && i < BULK_BYTES; i++) {
        bad = got[i] != pattern(i);
    }
    free(got);
    return (void *)bad;
}

/* 3 MiB in 3000 pieces, empty ones among them, more than IOV_MAX allows. */
static void
check_bulk(bool pipes, bool deadline)
{
    enum { PIECES = 3000 };
    static struct iovec iov[PIECES];
    uint8_t *bytes = malloc(BULK_BYTES);
    size_t at = 0;
    struct pair p;
    pthread_t thread;
    void *bad;

    for (size_t i = 0; i < BULK_BYTES; i++) {
        bytes[i] = pattern(i);
    }
    for (unsigned i = 0; i < PIECES; i++) {
        size_t len = i % 5 == 0        ? 0
                     : i == PIECES - 1 ? BULK_BYTES - at
                                       : i % 99;

        iov[i] = (struct iovec){.iov_base = bytes + at, .iov_len = len};
        at += len;
    }
    open_pair(&p, pipes);
    if (deadline) {
        set_deadline(&p.here, 30000);
        set_deadline(&p.there, 30000);
    }
    assert_int_equal(pthread_create(&thread, NULL, read_bulk, &p.there), 0);
    assert_int_equal(stream_sendv(&p.here, iov, PIECES, deadline), 0);
    pthread_join(thread, &bad);
    assert_null(bad);
    close_pair(&p);
    free(bytes);
}

static void
test_bulk(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        check_bulk(i % 2 == 1, i / 2 == 1);
    }
}

static void
test_nothing_to_send(void **state)
{
    struct iovec iov[2] = {{0}};
    struct pair p;

    (void)state;
    open_pair(&p, false);
    assert_int_equal(stream_sendv(&p.here, iov, 2, false), 0);
    assert_int_equal(stream_sendv(&p.here, iov, 0, false), 0);
    assert_int_equal(stream_write(&p.here, "", 0), 0);
    assert_int_equal(stream_read(&p.here, iov, 0), 0);
    assert_int_equal(stream_skip(&p.here, 0), 0);
    close_pair(&p);
}

static void
test_recv(void **state)
{
    (void)state;
    for (unsigned pipes = 0; pipes < 2; pipes++) {
        char buf[8];
        struct pair p;

        open_pair(&p, pipes);
        assert_int_equal(stream_recv(&p.here, buf, 8, false), -EAGAIN);
        assert_int_equal(stream_write(&p.there, "abcdef", 6), 0);
        assert_int_equal(stream_recv(&p.here, buf, 2, false), 2);
        assert_int_equal(stream_skip(&p.here, 1), 0);
        assert_int_equal(stream_recv(&p.here, buf, 8, true), 3);
        assert_memory_equal(buf, "def", 3);
        set_deadline(&p.here, 10);
        assert_int_equal(stream_recv(&p.here, buf, 8, false), -EAGAIN);
        assert_int_equal(stream_recv(&p.here, buf, 8, true), -ETIMEDOUT);
        assert_int_equal(stream_write(&p.there, "x", 1), 0);
        assert_int_equal(stream_recv(&p.here, buf, 8, true), -ETIMEDOUT);
        assert_int_equal(stream_write(&p.here, "x", 1), -ETIMEDOUT);
        p.here.deadline_ns = 0;
        assert_int_equal(stream_recv(&p.here, buf, 8, true), 1);
        hang_up(&p);
        assert_int_equal(stream_recv(&p.here, buf, 8, false), 0);
        assert_int_equal(stream_recv(&p.here, buf, 8, true), 0);
        assert_int_equal(stream_read(&p.here, buf, 1), -ECONNRESET);
        assert_int_equal(stream_skip(&p.here, 1), -ECONNRESET);
        assert_int_equal(stream_write(&p.here, buf, 1), -ECONNRESET);
        set_deadline(&p.here, 1000);
        assert_int_equal(stream_write(&p.here, buf, 1), -ECONNRESET);
        close_pair(&p);
    }
}

static void
test_bad_descriptor(void **state)
{
    struct stream s = {.in_fd = -1, .out_fd = -1, .is_socket = true};
    char buf[1] = "";

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        s.is_socket = i % 2 == 0;
        s.deadline_ns = i / 2 == 0 ? 0 : monotonic_ns() + 20 * NS_PER_MS;
        assert_true(stream_read(&s, buf, 1) < 0);
        assert_true(stream_write(&s, buf, 1) < 0);
    }
}

/* A file in and a file out, as with --inetd in a test. */
static void
test_files(void **state)
{
    char name[] = "/tmp/rewind-stream-XXXXXX";
    char buf[8];
    struct stream s = {0};

    (void)state;
    s.in_fd = s.out_fd = mkstemp(name);
    unlink(name);
    assert_int_equal(stream_write(&s, "hello", 5), 0);
    set_deadline(&s, 30000);
    assert_int_equal(stream_write(&s, " you", 4), 0);
    assert_int_equal(lseek(s.in_fd, 1, SEEK_SET), 1);
    assert_int_equal(stream_read(&s, buf, 8), 0);
    assert_memory_equal(buf, "ello you", 8);
    assert_int_equal(stream_read(&s, buf, 1), -ECONNRESET);
    close(s.in_fd);
}

static void
test_full_peer(void **state)
{
    (void)state;
    for (unsigned pipes = 0; pipes < 2; pipes++) {
        void *bulk = calloc(1, BULK_BYTES);
        uint64_t begin_ns = monotonic_ns();
        struct pair p;

        open_pair(&p, pipes);
        set_deadline(&p.here, 50);
        assert_int_equal(stream_write(&p.here, bulk, BULK_BYTES), -ETIMEDOUT);
        assert_true(monotonic_ns() - begin_ns >= 50 * NS_PER_MS);
        close_pair(&p);
        free(bulk);
    }
}

static void
on_signal(int number)
{
    (void)number;
}

struct kicker {
    pthread_t whom;
    struct stream *there;
};

static void *
kick(void *arg)
{
    struct kicker *k = arg;
    struct timespec pause = {.tv_nsec = 5000000};

    for (unsigned i = 0; i < 5; i++) {
        nanosleep(&pause, NULL);
        pthread_kill(k->whom, SIGUSR1);
    }
    assert_int_equal(stream_write(k->there, "late", 4), 0);
    return NULL;
}

/* A signal in a wait, with and without a deadline, does not end it. */
static void
test_signals(void **state)
{
    struct sigaction action = {.sa_handler = on_signal};

    (void)state;
    sigaction(SIGUSR1, &action, NULL);
    for (unsigned i = 0; i < 4; i++) {
        struct kicker k = {.whom = pthread_self()};
        struct pair p;
        pthread_t thread;
        char buf[4];

        open_pair(&p, i % 2 == 1);
        if (i / 2 == 1) {
            set_deadline(&p.here, 30000);
        }
        k.there = &p.there;
        assert_int_equal(pthread_create(&thread, NULL, kick, &k), 0);
        assert_int_equal(stream_read(&p.here, buf, 4), 0);
        assert_memory_equal(buf, "late", 4);
        pthread_join(thread, NULL);
        close_pair(&p);
    }
}

static uint64_t
cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000 * NS_PER_MS + (uint64_t)ts.tv_nsec;
}

static void *
drain_late(void *arg)
{
    struct timespec pause = {.tv_nsec = 200000000};

    nanosleep(&pause, NULL);
    assert_int_equal(stream_skip(arg, BULK_BYTES), 0);
    assert_int_equal(stream_write(arg, "late", 4), 0);
    return NULL;
}

/* A descriptor that others have made non-blocking is waited for all the same,
 * and without spinning. */
static void
test_nonblocking(void **state)
{
    void *bulk = calloc(1, BULK_BYTES);

    (void)state;
    for (unsigned pipes = 0; pipes < 2; pipes++) {
        uint64_t used_ns = cpu_ns();
        struct pair p;
        pthread_t thread;
        char buf[4];

        open_pair(&p, pipes);
        assert_int_equal(fcntl(p.here.in_fd, F_SETFL, O_NONBLOCK), 0);
        assert_int_equal(fcntl(p.here.out_fd, F_SETFL, O_NONBLOCK), 0);
        assert_int_equal(pthread_create(&thread, NULL, drain_late, &p.there),
                         0);
        assert_int_equal(stream_write(&p.here, bulk, BULK_BYTES), 0);
        assert_int_equal(stream_read(&p.here, buf, 4), 0);
        assert_memory_equal(buf, "late", 4);
        pthread_join(thread, NULL);
        assert_true(cpu_ns() - used_ns < 20 * NS_PER_MS);
        close_pair(&p);
    }
    free(bulk);
}

static void
test_clock(void **state)
{
    uint64_t a = monotonic_ns(), b = monotonic_ns();

    (void)state;
    assert_true(a > 0 && b >= a);
}

static int
set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN); /* for the pipes, as the program does */
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bulk),    cmocka_unit_test(test_nothing_to_send),
        cmocka_unit_test(test_recv),    cmocka_unit_test(test_bad_descriptor),
        cmocka_unit_test(test_files),   cmocka_unit_test(test_full_peer),
        cmocka_unit_test(test_signals), cmocka_unit_test(test_nonblocking),
        cmocka_unit_test(test_clock),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
