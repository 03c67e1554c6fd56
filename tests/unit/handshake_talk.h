/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_TESTS_UNIT_HANDSHAKE_TALK_H
#define REWIND_TESTS_UNIT_HANDSHAKE_TALK_H

/*
 * Talks with the server's handshake: the two ends of a session, with the
 * handshake in a thread of its own on one, and the exports that the tests of
 * the handshake share.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "nbd/handshake.h"
#include "nbd/limits.h"
#include "nbd_script.h"

#define NS_PER_S UINT64_C(1000000000)

/* Transmission flags of "disk" in its various states, and of "ro". */
#define PLAIN "w0xd6d"
#define WITH_DF "w0xded"
#define READ_ONLY "w0x50f"

/* --- the two ends ----------------------------------------------------------
 */

static struct export_set standard, none, named_default;
static bool stopping;
static uint8_t *client_buf, *server_buf, *want_buf;

struct end {
    struct stream stream;
    struct handshake_options options;
    struct negotiated result;
    int rc;
    bool ended; /* atomic */
};

static void *
end_run(void *arg)
{
    struct end *end = arg;

    end->rc = handshake_run(&end->stream, &end->options, &end->result);
    __atomic_store_n(&end->ended, true, __ATOMIC_RELEASE);
    return NULL;
}

/* What the client does once it has sent everything. */
enum leave { SHUT, STAY };

struct talk {
    const struct export_set *set;
    const uint8_t *bytes; /* borrowed */
    size_t len_bytes;
    bool pipes;
    enum leave leave;
    uint64_t deadline_ms;
};

static void
nonblocking(int fd)
{
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
}

static void
open_ends(bool pipes, struct end *end, int *ret_in, int *ret_out)
{
    int a[2], b[2];

    if (pipes) {
        assert_int_equal(pipe(a), 0);
        assert_int_equal(pipe(b), 0);
        end->stream.in_fd = a[0];
        end->stream.out_fd = b[1];
        *ret_out = a[1];
        *ret_in = b[0];
    } else {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
        end->stream.in_fd = end->stream.out_fd = a[0];
        end->stream.is_socket = true;
        *ret_in = *ret_out = a[1];
    }
    nonblocking(*ret_in);
    nonblocking(*ret_out);
}

static void
close_pair(int a, int b)
{
    close(a);
    if (b != a) {
        close(b);
    }
}

static void
stop_sending(int in_fd, int *out_fd)
{
    if (*out_fd == in_fd) {
        shutdown(*out_fd, SHUT_WR);
    } else {
        close(*out_fd);
    }
    *out_fd = -1;
}

/* Moves bytes both ways until the handshake has ended; returns how many came
 * back, into server_buf. */
static size_t
exchange(struct end *end, const struct talk *t, int in_fd, int *out_fd)
{
    size_t sent = 0, got = 0;

    for (;;) {
        bool ended = __atomic_load_n(&end->ended, __ATOMIC_ACQUIRE);
        struct pollfd p[2] = {
            {.fd = in_fd, .events = POLLIN},
            {.fd = sent < t->len_bytes ? *out_fd : -1, .events = POLLOUT},
        };
        ssize_t n = read(in_fd, server_buf + got, BUF_BYTES - got);

        if (n > 0) {
            got += (size_t)n;
            continue;
        }
        if (ended) {
            return got;
        }
        if (sent < t->len_bytes) {
            n = write(*out_fd, t->bytes + sent, t->len_bytes - sent);
            sent = n > 0             ? sent + (size_t)n
                   : errno == EAGAIN ? sent
                                     : t->len_bytes;
        }
        if (sent == t->len_bytes && t->leave == SHUT && *out_fd >= 0) {
            stop_sending(in_fd, out_fd);
        }
        (void)poll(p, 2, 1);
    }
}

/* A whole handshake. Returns the bytes that came back (in server_buf) and, in
 * *ret_left, how many of the client's the handshake has not read. */
static size_t
talk(const struct talk *t, struct end *ret_end, size_t *ret_left)
{
    struct end end = {
        .options = {.exports = t->set, .stopping = &stopping},
    };
    uint64_t ms = t->deadline_ms != 0 ? t->deadline_ms : 30000;
    int in_fd, out_fd;
    pthread_t thread;
    char sink[4096];
    size_t got;

    open_ends(t->pipes, &end, &in_fd, &out_fd);
    end.stream.deadline_ns = monotonic_ns() + ms * (NS_PER_S / 1000);
    assert_int_equal(pthread_create(&thread, NULL, end_run, &end), 0);
    got = exchange(&end, t, in_fd, &out_fd);
    pthread_join(thread, NULL);
    if (ret_left != NULL) {
        nonblocking(end.stream.in_fd);
        *ret_left = 0;
        for (ssize_t n; (n = read(end.stream.in_fd, sink, sizeof(sink))) > 0;) {
            *ret_left += (size_t)n;
        }
    }
    close_pair(end.stream.in_fd, end.stream.out_fd);
    if (out_fd >= 0) {
        close_pair(in_fd, out_fd);
    } else {
        close(in_fd);
    }
    *ret_end = end;
    return got;
}

/* --- words of the language --------------------------------------------------
 */

#define GO_DISK "o7{n\"disk\" w0}"
#define INFO_EXPORT(opt, flags) "r" #opt ":3{w0 q0x800000 " flags "} "
#define GONE_DISK INFO_EXPORT(7, PLAIN) "r7:1{}"
#define ACK(opt) "r" #opt ":1{} "
#define STRUCTURED "o8{} "
#define EXTENDED "o11{} "
#define ABORT "o2{} "
#define QUERIES_4 "n\"x:\" n\"x:\" n\"x:\" n\"x:\" "
#define QUERIES_16 QUERIES_4 QUERIES_4 QUERIES_4 QUERIES_4
#define QUERIES_64 QUERIES_16 QUERIES_16 QUERIES_16 QUERIES_16
#define SET_BASE "o10{n\"disk\" l1 n\"base:allocation\"} "
#define SET_BASE_OK "r10:4{l1 \"base:allocation\"} r10:1{} "
#define BOTH(opt, a, b)                                                        \
    "r" #opt ":4{l" #a " \"base:allocation\"} "                                \
    "r" #opt ":4{l" #b " \"qemu:allocation-depth\"} " ACK(opt)
#define BLOCKS(opt) "r" #opt ":3{w3 l1 l4096 l0x4000000} "
#define SETTLED "disk 0xd6d 0"
#define LONG "*4096:0x6e"
#define LIST_REPLIES                                                           \
    "r3:2{n\"disk\" \"a disk\"} r3:2{n\"ro\"} r3:2{n\"sectors\"} "             \
    "r3:2{l4096 " LONG " *4096:0x64} " ACK(3)

/* --- set up ------------------------------------------------------------------
 */

static struct export *
add(struct export_set *set, const char *name, const char *description,
    uint64_t size_bytes)
{
    struct err e = {0};
    struct export *x = export_set_add(set, name, description, NULL, &e);

    assert_non_null(x);
    x->size_bytes = size_bytes;
    x->read_only = false;
    return x;
}

static int
set_up(void **state)
{
    char name[NBD_STRING_MAX + 1], description[NBD_STRING_MAX + 1];

    (void)state;
    signal(SIGPIPE, SIG_IGN); /* for the pipes, as the program does */
    client_buf = malloc(BUF_BYTES);
    server_buf = malloc(BUF_BYTES);
    want_buf = malloc(BUF_BYTES);
    memset(name, 'n', NBD_STRING_MAX);
    memset(description, 'd', NBD_STRING_MAX);
    name[NBD_STRING_MAX] = description[NBD_STRING_MAX] = '\0';
    add(&standard, "disk", "a disk", 8 * MIB)->contexts = 3;
    add(&standard, "ro", NULL, 16 * MIB)->read_only = true;
    add(&standard, "sectors", "", MIB)->min_block_bytes = 512;
    add(&standard, name, description, 32 * MIB);
    add(&named_default, "other", NULL, MIB);
    add(&named_default, "", NULL, 4 * MIB);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    export_set_free(&standard);
    export_set_free(&named_default);
    free(client_buf);
    free(server_buf);
    free(want_buf);
    return 0;
}

#endif
