/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The client that lists exports: against servers that follow a script, good
 * and hostile; against our own handshake over real sockets; and against
 * qemu-nbd and nbdkit where they are installed. Reference: proto.md "Fixed
 * newstyle negotiation"; CVE-2017-2630 and its kind.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "nbd/client.h"
#include "nbd/handshake.h"
#include "nbd_script.h"

#define NS_PER_S UINT64_C(1000000000)

static uint8_t *server_buf, *client_buf, *want_buf;

/* --- servers that follow a script -------------------------------------------
 */

/* Sends its bytes whatever it hears, keeps what it hears, and hangs up. */
struct actor {
    int fd;
    const uint8_t *bytes; /* borrowed */
    size_t len_bytes;
    size_t heard_bytes; /* in client_buf */
    bool stays;         /* does not hang up, until `done` */
    bool done;          /* atomic */
};

static void *
act(void *arg)
{
    struct actor *a = arg;
    size_t sent = 0;
    bool shut = false;

    for (;;) {
        struct pollfd p = {.fd = a->fd, .events = POLLIN};
        ssize_t n = recv(a->fd, client_buf + a->heard_bytes,
                         BUF_BYTES - a->heard_bytes, MSG_DONTWAIT);

        if (n > 0) {
            a->heard_bytes += (size_t)n;
            continue;
        }
        if (n == 0 || __atomic_load_n(&a->done, __ATOMIC_ACQUIRE)) {
            return NULL;
        }
        if (sent < a->len_bytes) {
            n = send(a->fd, a->bytes + sent, a->len_bytes - sent,
                     MSG_DONTWAIT | MSG_NOSIGNAL);
            sent += n > 0 ? (size_t)n : 0;
            p.events |= POLLOUT;
        } else if (!a->stays && !shut) {
            shutdown(a->fd, SHUT_WR);
            shut = true;
        }
        (void)poll(&p, 1, 1);
    }
}

/* Lists what a server that sends `len` bytes of server_buf has. */
static int
list_from(size_t len, struct export_list *ret, struct err *e, bool stays,
          size_t *ret_heard)
{
    struct stream s = {.is_socket = true};
    struct actor a = {
        .bytes = server_buf,
        .len_bytes = len,
        .stays = stays,
    };
    pthread_t thread;
    int fds[2], rc;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    a.fd = fds[1];
    s.in_fd = s.out_fd = fds[0];
    s.deadline_ns = monotonic_ns() + (stays ? NS_PER_S / 20 : 30 * NS_PER_S);
    assert_int_equal(pthread_create(&thread, NULL, act, &a), 0);
    rc = client_list_stream(&s, ret, e);
    close(fds[0]);
    __atomic_store_n(&a.done, stays, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    close(fds[1]);
    if (ret_heard != NULL) {
        *ret_heard = a.heard_bytes;
    }
    return rc;
}

#define HELLO "g r8:1{} "
#define ONE HELLO "r3:2{n\"a\"} r3:1{} "
#define EXPORT_INFO "r6:3{w0 q0x100000 w0x50f} "
#define INFO ONE EXPORT_INFO "r6:1{} "

static void
test_good_server(void **state)
{
    struct export_list list = {0};
    struct err e = {0};
    size_t heard, want;
    const struct listed_export *x;
    int rc;

    (void)state;
    rc = list_from(
        compile(HELLO
                "r3:2{n\"disk\" \"listed\"} r3:2{l0} r3:1{} "
                "r6:3{w0 q0x800000 w0xded} r6:3{w3 l512 l4096 l0x2000000} "
                "r6:3{w2 \"told\"} r6:3{w1 \"name\"} r6:3{w77 \"new\"} r6:1{} "
                "r9:4{l7 \"base:allocation\"} r9:4{l9 \"x-a:b\"} r9:1{} "
                "r6:0x80000006{\"gone\"} r9:4{l0 \"x:y\"} r9:0x80000001{}",
                server_buf, NULL, 0),
        &list, &e, false, &heard);
    if (rc != 0) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(list.count, 2);
    x = &list.exports[0];
    assert_string_equal(x->name, "disk");
    assert_string_equal(x->description, "told");
    assert_true(x->has_details && x->has_block_size);
    assert_int_equal(x->size_bytes, 8 * MIB);
    assert_int_equal(x->flags, 0xded);
    assert_int_equal(x->min_block_bytes, 512);
    assert_int_equal(x->pref_block_bytes, 4096);
    assert_int_equal(x->max_payload_bytes, 32 * MIB);
    assert_int_equal(x->context_count, 2);
    assert_string_equal(x->contexts[0], "base:allocation");
    assert_string_equal(x->contexts[1], "x-a:b");
    x = &list.exports[1];
    assert_string_equal(x->name, "");
    assert_null(x->description);
    assert_false(x->has_details || x->has_block_size);
    assert_int_equal(x->context_count, 0);
    export_list_free(&list);
    want = compile("f3 o8{} o3{} o6{n\"disk\" w2 w3 w2} o9{n\"disk\" l0} "
                   "o6{l0 w2 w3 w2} o9{l0 l0} o2{}",
                   want_buf, NULL, 0);
    assert_int_equal(heard, want);
    assert_memory_equal(client_buf, want_buf, want);
}

/* No structured replies, no NO_ZEROES, no exports. */
static void
test_plain_server(void **state)
{
    struct export_list list = {0};
    struct err e = {0};
    size_t heard;

    (void)state;
    assert_int_equal(
        list_from(compile("\"NBDMAGICIHAVEOPT\" w1 r8:0x80000001{} r3:1{}",
                          server_buf, NULL, 0),
                  &list, &e, false, &heard),
        0);
    assert_int_equal(list.count, 0);
    export_list_free(&list);
    assert_int_equal(heard, compile("f1 o8{} o3{} o2{}", want_buf, NULL, 0));
    assert_memory_equal(client_buf, want_buf, heard);
}

/* What each hostile, broken or unwilling server is called. */
static const struct bad {
    const char *server;
    const char *says;
} bads[] = {
    {"", "closed the connection"},
    {"\"NBDMAGIC\"", "closed the connection"},
    {"\"HTTP/1.1 400 Bad Request\"", "not an NBD server"},
    {"*18:0xff", "not an NBD server"},
    {"\"NBDMAGIC\" q0x420281861253 q0 l0 *124:0", "oldstyle"},
    {"\"NBDMAGIC\" q0x420281861254 w3", "bad magic in its greeting"},
    {"\"NBDMAGICIHAVEOPT\" w0", "too old"},
    {"\"NBDMAGICIHAVEOPT\" w2", "too old"},
    {"g", "closed the connection"},
    {"g q0x3e889045565a8 l8 l1 l0", "bad magic in an option reply"},
    {"g r3:1{}", "answers an option that was not sent"},
    {"g r8:2{}", "unknown reply to STRUCTURED_REPLY"},
    {"g q0x3e889045565a9 l8 l1 l0xffffffff", "too long"},
    {"g q0x3e889045565a9 l8 l1 l8257 *8257:0", "too long"},
    {HELLO, "closed the connection"},
    {HELLO "r3:0x80000002{\"go away\"}",
     "does not list its exports: its policy forbids that (0x80000002, go "
     "away)"},
    {HELLO "r3:0x80000001{}", "does not support that (0x80000001)"},
    {HELLO "r3:0x80000005{}", "it wants TLS first"},
    {HELLO "r3:0x80000007{}", "it is shutting down"},
    {HELLO "r3:0x80000099{b27 \"[31m%n\"}",
     "it gives an error (0x80000099, \\x1b[31m%n)"},
    {HELLO "r3:0x80000002{*8256:0x25}", "%%%%..."},
    {HELLO "r3:3{}", "unknown reply to LIST"},
    {HELLO "r3:0{}", "unknown reply to LIST"},
    {HELLO "r3:2{}", "longer than the reply"},
    {HELLO "r3:2{b0 b0 b0}", "longer than the reply"},
    {HELLO "r3:2{l5 \"disk\"}", "longer than the reply"},
    {HELLO "r3:2{l0xffffffff \"disk\"}", "longer than the reply"},
    {HELLO "r3:2{l4097 *4097:0x61}", "too long or holds a NUL"},
    {HELLO "r3:2{l1 \"a\" *4097:0x61}", "too long or holds a NUL"},
    {HELLO "r3:2{l5 \"disk\" b0}", "too long or holds a NUL"},
    {HELLO "r3:2{l4 \"disk\" \"text\" b0}", "too long or holds a NUL"},
    {HELLO "r3:2{n\"a\"} r3:2{n\"b\"}", "closed the connection"},
    {ONE "r6:1{}", "INFO told no size"},
    {ONE "r6:3{w3 l1 l4096 l4096} r6:1{}", "INFO told no size"},
    {ONE "r6:3{}", "too short"},
    {ONE "r6:3{b0}", "too short"},
    {ONE "r6:3{w0 q1}", "wrong length"},
    {ONE "r6:3{w0 q1 w1 b0}", "wrong length"},
    {ONE "r6:3{w3 l1 l1}", "wrong length"},
    {ONE "r6:3{w3 l1 l1 l1 l1}", "wrong length"},
    {ONE "r6:3{w2 *4097:0x61}", "too long or holds a NUL"},
    {ONE "r6:3{w2 \"a\" b0}", "too long or holds a NUL"},
    {ONE "r6:4{l0 \"x\"}", "unknown reply to INFO"},
    {ONE EXPORT_INFO, "closed the connection"},
    {INFO "r9:3{w0}", "unknown reply to LIST_META_CONTEXT"},
    {INFO "r9:4{}", "longer than the reply"},
    {INFO "r9:4{b0}", "longer than the reply"},
    {INFO "r9:4{l0 *4097:0x61}", "too long or holds a NUL"},
    {INFO "r9:4{l0 \"a\" b0}", "too long or holds a NUL"},
    {INFO "r9:4{l0 \"base:allocation\"}", "closed the connection"},
};

static void
test_bad_servers(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bads); i++) {
        struct export_list list = {.count = 77};
        struct err e = {0};
        size_t len = compile(bads[i].server, server_buf, NULL, 0);
        int rc = list_from(len, &list, &e, false, NULL);

        if (rc >= 0 || rc != -e.code || strstr(e.text, bads[i].says) == NULL) {
            fail_msg("%s: %d \"%s\", want \"%s\"", bads[i].server, rc, e.text,
                     bads[i].says);
        }
        assert_int_equal(list.count, 77); /* untouched */
    }
}

static void
test_server_that_ends_at_every_byte(void **state)
{
    size_t len = compile(INFO "r9:4{l0 \"base:allocation\"} r9:1{}", server_buf,
                         NULL, 0);
    struct export_list list = {0};

    (void)state;
    for (size_t cut = 0; cut < len; cut++) {
        struct err e = {0};

        assert_int_equal(list_from(cut, &list, &e, false, NULL), -ECONNRESET);
    }
    assert_int_equal(list_from(len, &list, NULL, false, NULL), 0);
    export_list_free(&list);
}

static void
test_silent_servers(void **state)
{
    static const char *const servers[] = {"", "g", HELLO, ONE, INFO};
    struct export_list list = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(servers); i++) {
        struct err e = {0};
        size_t len = compile(servers[i], server_buf, NULL, 0);

        assert_int_equal(list_from(len, &list, &e, true, NULL), -ETIMEDOUT);
        assert_non_null(strstr(e.text, "in time"));
    }
}

/* `head`, `count` times `again`, `tail`. */
static size_t
compile_many(const char *head, const char *again, unsigned count,
             const char *tail)
{
    size_t len = compile(head, server_buf, NULL, 0);
    size_t one = compile(again, want_buf, NULL, 0);

    for (unsigned i = 0; i < count; i++, len += one) {
        assert_true(len + one < BUF_BYTES);
        memcpy(server_buf + len, want_buf, one);
    }
    return len + compile(tail, server_buf + len, NULL, 0);
}

/* Lists without end, of each kind, and more text than one may keep. */
static void
test_endless_servers(void **state)
{
    static const struct {
        const char *head, *again;
        unsigned count;
        const char *says;
    } cases[] = {
        {HELLO, "r3:2{n\"a\"}", 4097, "more than 4096 exports"},
        {HELLO, "r3:2{l4096 *4096:0x61 *4096:0x62}", 2049, "too long"},
        {ONE, EXPORT_INFO, 65, "INFO has no end"},
        {INFO, "r9:4{l0 \"x:y\"}", 257, "more than 256 metadata contexts"},
    };
    struct export_list list = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = {0};
        size_t len = compile_many(cases[i].head, cases[i].again, cases[i].count,
                                  "");

        assert_true(list_from(len, &list, &e, false, NULL) < 0);
        if (strstr(e.text, cases[i].says) == NULL) {
            fail_msg("\"%s\", want \"%s\"", e.text, cases[i].says);
        }
    }
}

static void
test_many_exports(void **state)
{
    struct export_list list = {0};
    struct err e = {0};
    size_t len = compile_many("g r8:0x80000001{} ", "r3:2{n\"a\"}", 4096,
                              "r3:1{}");
    size_t one = compile(EXPORT_INFO "r6:1{}", want_buf, NULL, 0);

    (void)state;
    for (unsigned i = 0; i < 4096; i++, len += one) {
        memcpy(server_buf + len, want_buf, one);
    }
    assert_int_equal(list_from(len, &list, &e, false, NULL), 0);
    assert_int_equal(list.count, 4096);
    assert_true(list.exports[4095].has_details);
    export_list_free(&list);
}

/* --- our own server over real sockets ----------------------------------------
 */

struct host {
    int listener;
    const struct export_set *set;
    int rc;
};

static void *
host_run(void *arg)
{
    static const bool stopping;
    struct host *h = arg;
    struct handshake_options options = {
        .exports = h->set,
        .stopping = &stopping,
    };
    struct stream s = {.is_socket = true};
    struct negotiated settled;

    s.in_fd = s.out_fd = accept(h->listener, NULL, NULL);
    s.deadline_ns = monotonic_ns() + 30 * NS_PER_S;
    h->rc = handshake_run(&s, &options, &settled);
    close(s.in_fd);
    return NULL;
}

static void
check_own_server(int listener, const struct uri *u)
{
    struct export_set set = {0};
    struct host h = {.listener = listener, .set = &set};
    struct export_list list = {0};
    struct err e = {0};
    pthread_t thread;

    export_set_add(&set, "one", "the first", NULL, NULL)->size_bytes = MIB;
    export_set_add(&set, "two", NULL, NULL, NULL)->contexts = 3;
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, host_run, &h), 0);
    if (client_list(u, 30, &list, &e) != 0) {
        fail_msg("%s", e.text);
    }
    pthread_join(thread, NULL);
    close(listener);
    assert_int_equal(h.rc, 1);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.exports[0].description, "the first");
    assert_int_equal(list.exports[0].size_bytes, MIB);
    assert_int_equal(list.exports[0].max_payload_bytes, 64 * MIB);
    assert_int_equal(list.exports[0].context_count, 1);
    assert_int_equal(list.exports[1].context_count, 2);
    assert_string_equal(list.exports[1].contexts[1], "qemu:allocation-depth");
    export_list_free(&list);
    export_set_free(&set);
}

/* A TCP listener on a free port of 127.0.0.1. */
static int
listen_tcp(uint16_t *ret_port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    *ret_port = ntohs(addr.sin_port);
    return fd;
}

static void
test_own_server(void **state)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct uri u = {.scheme = URI_TCP, .host = "127.0.0.1"};
    char dir[] = "/tmp/rewind-client-XXXXXX";
    int fd;

    (void)state;
    fd = listen_tcp(&u.port);
    check_own_server(fd, &u);

    assert_non_null(mkdtemp(dir));
    u = (struct uri){.scheme = URI_UNIX};
    snprintf(u.socket, sizeof(u.socket), "%s/s", dir);
    strcpy(addr.sun_path, u.socket);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    check_own_server(fd, &u);
    unlink(u.socket);
    rmdir(dir);
}

static void
expect_no_list(const struct uri *u, int want, const char *says)
{
    struct export_list list = {0};
    struct err e = {0};
    uint64_t begin_ns = monotonic_ns();

    assert_int_equal(client_list(u, 1, &list, &e), want);
    if (strstr(e.text, says) == NULL) {
        fail_msg("\"%s\", want \"%s\"", e.text, says);
    }
    assert_true(monotonic_ns() - begin_ns < 20 * NS_PER_S);
}

static void
test_no_server(void **state)
{
    struct uri u = {.scheme = URI_UNIX};
    int fd;

    (void)state;
    expect_no_list(&u, -EINVAL, "names no socket");
    memset(u.socket, 'x', 200);
    expect_no_list(&u, -ENAMETOOLONG, "limited to");
    strcpy(u.socket, "/nonexistent/socket");
    expect_no_list(&u, -ENOENT, "cannot connect to /nonexistent/socket");
    u = (struct uri){.scheme = URI_TCP, .host = "127.0.0.1"};
    fd = listen_tcp(&u.port);
    assert_int_equal(listen(fd, 1), 0);
    expect_no_list(&u, -ETIMEDOUT, "did not answer in time"); /* no accept */
    close(fd);
    expect_no_list(&u, -ECONNREFUSED, "cannot connect to 127.0.0.1 port");
    u.tls = true;
    expect_no_list(&u, -EOPNOTSUPP, "TLS");
}

/* --- servers of others
 * --------------------------------------------------------- */

/* Starts `argv`, asks the server on `dir`/s, ends it. Skips the test if the
 * program is not installed. */
static void
list_foreign(const char *const argv[], const char *dir, struct export_list *ret)
{
    struct uri u = {.scheme = URI_UNIX};
    struct err e = {0};
    int status = 0, rc = -ENOENT;
    pid_t pid = fork();

    if (pid == 0) {
        execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    assert_true(pid > 0);
    snprintf(u.socket, sizeof(u.socket), "%s/s", dir);
    for (unsigned i = 0; rc < 0 && i < 1000; i++) {
        struct timespec pause = {.tv_nsec = 20000000};

        if (waitpid(pid, &status, WNOHANG) == pid) {
            pid = 0;
            break;
        }
        rc = client_list(&u, 10, ret, &e);
        if (rc < 0) {
            nanosleep(&pause, NULL);
        }
    }
    if (pid > 0) {
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
    }
    unlink(u.socket);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        snprintf(u.socket, sizeof(u.socket), "%s/i", dir);
        unlink(u.socket);
        rmdir(dir);
        skip();
    }
    if (rc < 0) {
        fail_msg("%s: %s", argv[0], e.text);
    }
}

static void
test_qemu_nbd(void **state)
{
    char dir[] = "/tmp/rewind-client-XXXXXX";
    char socket_path[64], image[64];
    struct export_list list = {0};
    int fd;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/s", dir);
    snprintf(image, sizeof(image), "%s/i", dir);
    fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)(3 * MIB)), 0);
    close(fd);
    list_foreign((const char *[]){"qemu-nbd", "-t", "-A", "-f", "raw", "-k",
                                  socket_path, "-x", "caf\xc3\xa9", "-D",
                                  "its text", image, NULL},
                 dir, &list);
    unlink(image);
    rmdir(dir);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.exports[0].name, "caf\xc3\xa9");
    assert_string_equal(list.exports[0].description, "its text");
    assert_int_equal(list.exports[0].size_bytes, 3 * MIB);
    assert_true(list.exports[0].has_block_size);
    assert_int_equal(list.exports[0].context_count, 2);
    export_list_free(&list);
}

static void
test_nbdkit(void **state)
{
    char dir[] = "/tmp/rewind-client-XXXXXX";
    char socket_path[64];
    struct export_list list = {0};

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/s", dir);
    list_foreign((const char *[]){"nbdkit", "-f", "-r", "-U", socket_path,
                                  "memory", "5M", NULL},
                 dir, &list);
    rmdir(dir);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.exports[0].name, "");
    assert_int_equal(list.exports[0].size_bytes, 5 * MIB);
    assert_true(list.exports[0].flags & NBD_FLAG_READ_ONLY);
    assert_int_equal(list.exports[0].context_count, 1);
    export_list_free(&list);
}

static int
set_up(void **state)
{
    (void)state;
    server_buf = malloc(BUF_BYTES);
    client_buf = malloc(BUF_BYTES);
    want_buf = malloc(BUF_BYTES);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    free(server_buf);
    free(client_buf);
    free(want_buf);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_server),
        cmocka_unit_test(test_plain_server),
        cmocka_unit_test(test_bad_servers),
        cmocka_unit_test(test_server_that_ends_at_every_byte),
        cmocka_unit_test(test_silent_servers),
        cmocka_unit_test(test_endless_servers),
        cmocka_unit_test(test_many_exports),
        cmocka_unit_test(test_own_server),
        cmocka_unit_test(test_no_server),
        cmocka_unit_test(test_qemu_nbd),
        cmocka_unit_test(test_nbdkit),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
