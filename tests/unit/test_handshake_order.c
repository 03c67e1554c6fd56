/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server's handshake beyond single conversations: clients that leave at
 * any byte, that are silent, that never stop or never read, options in every
 * order, the text and the number of replies.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "handshake_talk.h"

/* CVE-2011-1925, CVE-2017-9524: a client that goes away at any byte. */
static void
test_closing_at_every_byte(void **state)
{
    static const char good[] = "f3 o3{} " STRUCTURED
                               "o9{n\"disk\" l0} " SET_BASE
                               "o6{n\"disk\" w1 w3} o7{n\"disk\" w2 w3 w1}";
    struct talk t = {.set = &standard, .bytes = client_buf};
    size_t len = compile(good, client_buf, NULL, 0);
    size_t ends = 0;
    struct end end;

    (void)state;
    for (t.len_bytes = 0; t.len_bytes < len; t.len_bytes++) {
        talk(&t, &end, NULL);
        ends += end.rc == 1;
        assert_true(end.rc == 1 || end.rc == -ECONNRESET);
    }
    assert_int_equal(ends, 5); /* after each option but the last */
    talk(&t, &end, NULL);
    assert_int_equal(end.rc, 0);
}

/* The same with both directions closed, so that replies fail, too. */
static void
test_vanishing_at_every_byte(void **state)
{
    size_t len = compile("f3 o3{} o6{n\"disk\" w0} o99{\"abc\"} o2{}",
                         client_buf, NULL, 0);

    (void)state;
    for (size_t cut = 0; cut <= len; cut++) {
        struct end end = {
            .options = {.exports = &standard, .stopping = &stopping},
        };
        int in_fd, out_fd;

        open_ends(cut % 2 == 1, &end, &in_fd, &out_fd);
        assert_int_equal(write(out_fd, client_buf, cut), cut);
        close_pair(in_fd, out_fd);
        end_run(&end);
        assert_int_equal(end.rc, -ECONNRESET);
        close_pair(end.stream.in_fd, end.stream.out_fd);
    }
}

static void
test_names_are_quoted_and_cut(void **state)
{
    struct talk t = {.set = &standard, .bytes = client_buf};
    struct end end;
    size_t got;
    char *text = (char *)server_buf + 18 + NBD_OPTION_REPLY_BYTES;

    (void)state;
    t.len_bytes = compile("f3 o7{n\"a%sb\" w0}", client_buf, NULL, 0);
    got = talk(&t, &end, NULL);
    server_buf[got] = '\0';
    assert_string_equal(text, "no export \"a%sb\" here");
    t.len_bytes = compile("f3 o7{l4 b1 b0xff b10 b65 w0}", client_buf, NULL, 0);
    got = talk(&t, &end, NULL);
    server_buf[got] = '\0';
    assert_string_equal(text, "no export \"\\x01\\xff\\x0aA\" here");
    t.len_bytes = compile("f3 o7{l4096 *4096:0x41 w0}", client_buf, NULL, 0);
    got = talk(&t, &end, NULL);
    server_buf[got] = '\0';
    assert_in_range(strlen(text), 50, 200);
    assert_non_null(strstr(text, "AAA..."));
}

/* All replies to one option leave in one write: seen on a socket that keeps
 * writes apart. */
static void
test_one_write_per_option(void **state)
{
    static const struct {
        const char *client, *server;
    } packets[] = {
        {NULL, "g"},
        {"f3", NULL},
        {"o3{}", NULL},
        {NULL, LIST_REPLIES},
        {"o7=12", NULL},
        {"n\"disk\" w1 w3", "r7:3{w0 q0x800000 " PLAIN "} " BLOCKS(7) ACK(7)},
    };
    struct end end = {
        .options = {.exports = &standard, .stopping = &stopping},
    };
    int fds[2];
    pthread_t thread;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    end.stream =
        (struct stream){.in_fd = fds[0], .out_fd = fds[0], .is_socket = true};
    assert_int_equal(pthread_create(&thread, NULL, end_run, &end), 0);
    for (size_t i = 0; i < ARRAY_LEN(packets); i++) {
        size_t len;

        if (packets[i].client != NULL) {
            len = compile(packets[i].client, client_buf, NULL, 0);
            assert_int_equal(write(fds[1], client_buf, len), len);
        }
        if (packets[i].server != NULL) {
            len = compile(packets[i].server, want_buf, NULL, 0);
            assert_int_equal(read(fds[1], server_buf, BUF_BYTES), len);
            assert_memory_equal(server_buf, want_buf, len);
        }
    }
    pthread_join(thread, NULL);
    close_pair(fds[0], fds[1]);
    assert_int_equal(end.rc, 0);
}

static void
test_too_many_options(void **state)
{
    struct talk t = {.set = &none, .bytes = client_buf};
    struct end end;
    size_t one = compile("o8{} ", client_buf + 4, NULL, 0);

    (void)state;
    store_be32(client_buf, 3);
    for (unsigned i = 1; i <= LIMIT_OPTIONS; i++) {
        memcpy(client_buf + 4 + i * one, client_buf + 4, one);
    }
    t.len_bytes = 4 + one * LIMIT_OPTIONS;
    assert_int_equal(talk(&t, &end, NULL), 18 + 20 * LIMIT_OPTIONS);
    assert_int_equal(end.rc, -EPROTO);
    t.len_bytes -= one;
    talk(&t, &end, NULL);
    assert_int_equal(end.rc, 1);
}

/* --- time -------------------------------------------------------------------
 */

static void
test_silent_client(void **state)
{
    struct talk t = {
        .set = &standard,
        .bytes = client_buf,
        .leave = STAY,
        .deadline_ms = 50,
    };
    struct end end;
    size_t len = compile("f3 o3{} o7=10 l4", client_buf, NULL, 0);

    (void)state;
    for (t.len_bytes = 0; t.len_bytes <= len; t.len_bytes += 9) {
        t.pipes = !t.pipes;
        talk(&t, &end, NULL);
        assert_int_equal(end.rc, -ETIMEDOUT);
    }
}

struct pusher {
    int fd;
    const uint8_t *bytes;
    size_t len_bytes;
    bool stop;
};

/* Sends the bytes again and again. */
static void *
push(void *arg)
{
    struct pusher *p = arg;

    for (size_t at = 0; !__atomic_load_n(&p->stop, __ATOMIC_RELAXED);) {
        struct pollfd wait = {.fd = p->fd, .events = POLLOUT};
        ssize_t n = write(p->fd, p->bytes + at, p->len_bytes - at);

        if (n < 0) {
            (void)poll(&wait, 1, 5);
            continue;
        }
        at = (at + (size_t)n) % p->len_bytes;
    }
    return NULL;
}

/* A client that always has one more byte, and one that never reads, both end
 * at the deadline. */
static void
check_pushed(const char *again, bool pipes)
{
    struct end end = {
        .options = {.exports = &standard, .stopping = &stopping},
    };
    struct pusher p = {.bytes = client_buf};
    int in_fd;
    pthread_t thread;

    p.len_bytes = compile(again, client_buf, NULL, 0);
    open_ends(pipes, &end, &in_fd, &p.fd);
    assert_int_equal(write(p.fd, "\0\0\0\3", 4), 4);
    end.stream.deadline_ns = monotonic_ns() + NS_PER_S / 20;
    assert_int_equal(pthread_create(&thread, NULL, push, &p), 0);
    end_run(&end);
    __atomic_store_n(&p.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    close_pair(in_fd, p.fd);
    close_pair(end.stream.in_fd, end.stream.out_fd);
    assert_int_equal(end.rc, -ETIMEDOUT);
}

static void
test_endless_data(void **state)
{
    (void)state;
    check_pushed("o77{*33554432:0}", false);
    check_pushed("o77{*33554432:0}", true);
}

static void
test_client_that_never_reads(void **state)
{
    (void)state;
    check_pushed("o3{}", false);
    check_pushed("o3{}", true);
}

/* --- orders (CVE-2019-14851) -------------------------------------------------
 */

/* What a client may do in any order, and the state that it leads to. */
struct model {
    bool structured, extended;
    bool selected; /* base:allocation, for "disk" */
};

static const char *const moves[] = {
    "o6{n\"disk\" w1 w3}",
    "o7{n\"nope\" w0}",
    "o3{}",
    SET_BASE,
    STRUCTURED,
    EXTENDED,
    "o9{n\"ro\" l0}",
    "o10{n\"ro\" l1 n\"base:allocation\"}",
};
#define MOVES ARRAY_LEN(moves)

/* Writes what the server must answer to `move`, and makes the move. */
static void
expect_move(struct model *m, unsigned move, char *text)
{
    bool rich = m->structured || m->extended;
    const char *flags = m->extended && m->selected ? "w0x1ded"
                        : rich                     ? WITH_DF
                                                   : PLAIN;

    switch (move) {
    case 0:
        sprintf(text, "r6:3{w0 q0x800000 %s} " BLOCKS(6) ACK(6), flags);
        break;
    case 1:
        strcpy(text, "e7:6 ");
        break;
    case 2:
        strcpy(text, LIST_REPLIES);
        break;
    case 3:
        strcpy(text, rich ? SET_BASE_OK : "e10:3 ");
        m->selected = rich;
        break;
    case 4:
        strcpy(text, m->extended ? "e8:10 " : ACK(8));
        m->structured = m->structured || !m->extended;
        break;
    case 5:
        strcpy(text, ACK(11));
        m->extended = true;
        break;
    case 6:
        strcpy(text, rich ? "r9:4{l0 \"base:allocation\"} " ACK(9) : "e9:3 ");
        break;
    default:
        strcpy(text, rich ? SET_BASE_OK : "e10:3 ");
        m->selected = false;
    }
}

static void
check_order(const unsigned *order, unsigned count)
{
    struct talk t = {.set = &standard, .bytes = client_buf};
    struct model m = {0};
    char client[4096] = "f3 ", server[8192] = "g ";
    struct end end;
    size_t got, want;

    for (unsigned i = 0; i < count; i++) {
        strcat(client, moves[order[i]]);
        expect_move(&m, order[i], server + strlen(server));
    }
    strcat(client, GO_DISK);
    sprintf(server + strlen(server), "r7:3{w0 q0x800000 %s} r7:1{}",
            m.extended && m.selected     ? "w0x1ded"
            : m.structured || m.extended ? WITH_DF
                                         : PLAIN);
    t.len_bytes = compile(client, client_buf, NULL, 0);
    got = talk(&t, &end, NULL);
    want = compile(server, want_buf, server_buf, got);
    if (end.rc != 0 || got != want || memcmp(want_buf, server_buf, got) != 0 ||
        end.result.contexts != m.selected ||
        end.result.extended != m.extended ||
        end.result.structured != (m.structured || m.extended)) {
        fail_msg("order %s: result %d", client, end.rc);
    }
}

static void
test_orders(void **state)
{
    unsigned order[12];
    uint32_t seed = 1;

    (void)state;
    for (unsigned a = 0; a < MOVES; a++) { /* all pairs, each move twice */
        for (unsigned b = 0; b < MOVES; b++) {
            const unsigned pair[] = {a, b, b, a};

            check_order(pair, ARRAY_LEN(pair));
        }
    }
    for (unsigned round = 0; round < 300; round++) {
        for (unsigned i = 0; i < ARRAY_LEN(order); i++) {
            seed = seed * 1664525 + 1013904223;
            order[i] = seed >> 16 & (MOVES - 1);
        }
        check_order(order, ARRAY_LEN(order));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closing_at_every_byte),
        cmocka_unit_test(test_vanishing_at_every_byte),
        cmocka_unit_test(test_names_are_quoted_and_cut),
        cmocka_unit_test(test_one_write_per_option),
        cmocka_unit_test(test_too_many_options),
        cmocka_unit_test(test_silent_client),
        cmocka_unit_test(test_endless_data),
        cmocka_unit_test(test_client_that_never_reads),
        cmocka_unit_test(test_orders),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
