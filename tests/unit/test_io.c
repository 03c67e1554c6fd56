/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of src/io: one table of tests, run on each engine that this host
 * has, between tests of the probe and of what happens where a system call is
 * refused (Linux: seccomp filters in child processes, forked before this
 * process uses the pool) and a last one of the pool's threads leaving.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"
#include "io/io.h"
#include "io/pool.h"

#define IMAGE_BYTES (3 * MIB + 1234)
/* A test that waits longer has failed: a minute, for slow machines. */
#define PATIENCE_S 60

static char *content; /* what the image holds */
static int image_fd;
static enum io_engine_kind engine; /* of the tests that run now */

/* An operation that remembers its result. */
struct probe_op {
    struct io_op op;
    int64_t result;
    unsigned calls; /* of done() */
    char *buf;
    size_t len;
    uint64_t off;
};

static void
note_result(struct io_op *op, int64_t result)
{
    struct probe_op *p = container_of(op, struct probe_op, op);

    p->result = result;
    p->calls++;
}

static struct io_ctx *
make_ctx(unsigned depth)
{
    struct err e = {0};
    struct io_ctx *ctx = io_ctx_new(engine, depth, &e);

    if (ctx == NULL) {
        print_error("%s\n", e.text);
    }
    assert_non_null(ctx);
    return ctx;
}

static void
reap_all(struct io_ctx *ctx)
{
    while (io_pending(ctx) > 0) {
        assert_true(io_reap(ctx, true) > 0);
    }
}

/* One read from start to end. */
static int64_t
read_once(struct io_ctx *ctx, int fd, void *buf, size_t len, uint64_t off)
{
    struct probe_op p = {.op = {.done = note_result}};

    io_submit_read(ctx, &p.op, fd, buf, len, off);
    reap_all(ctx);
    assert_int_equal(p.calls, 1);
    return p.result;
}

static bool
readable(struct io_ctx *ctx, int timeout_ms)
{
    struct pollfd p = {.fd = io_ctx_fd(ctx), .events = POLLIN};

    return poll(&p, 1, timeout_ms) == 1;
}

/* --- the table, for each engine ------------------------------------------ */

static uint32_t
next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void
test_reads(void **state)
{
    enum { COUNT = 300 };
    static const unsigned depths[] = {1, 8, 4096};
    static struct probe_op ops[COUNT];
    uint32_t seed = 7;

    (void)state;
    for (size_t d = 0; d < ARRAY_LEN(depths); d++) {
        struct io_ctx *ctx = make_ctx(depths[d]);

        for (unsigned i = 0; i < COUNT; i++) {
            struct probe_op *p = &ops[i];

            p->op.done = note_result;
            p->calls = 0;
            p->off = next_random(&seed) % (IMAGE_BYTES - 20000);
            p->len = 1 + next_random(&seed) % 20000;
            p->buf = malloc(p->len);
            assert_non_null(p->buf);
            io_submit_read(ctx, &p->op, image_fd, p->buf, p->len, p->off);
        }
        assert_int_equal(io_pending(ctx), COUNT);
        reap_all(ctx);
        for (unsigned i = 0; i < COUNT; i++) {
            assert_int_equal(ops[i].calls, 1);
            assert_int_equal(ops[i].result, ops[i].len);
            assert_memory_equal(ops[i].buf, content + ops[i].off, ops[i].len);
            free(ops[i].buf);
        }
        io_ctx_free(ctx);
    }
}

/* Out of the page cache, as far as the system lets go of it. */
static void
test_uncached_reads(void **state)
{
    struct io_ctx *ctx = make_ctx(16);
    char *buf = malloc(IMAGE_BYTES);

    (void)state;
    assert_non_null(buf);
#ifdef POSIX_FADV_DONTNEED
    assert_int_equal(file_datasync(image_fd), 0);
    assert_int_equal(posix_fadvise(image_fd, 0, 0, POSIX_FADV_DONTNEED), 0);
#endif
    assert_int_equal(read_once(ctx, image_fd, buf, 4096, 2 * MIB), 4096);
    assert_memory_equal(buf, content + 2 * MIB, 4096);
    assert_int_equal(read_once(ctx, image_fd, buf, IMAGE_BYTES, 0),
                     IMAGE_BYTES);
    assert_memory_equal(buf, content, IMAGE_BYTES);
    free(buf);
    io_ctx_free(ctx);
}

static void
test_end_of_file(void **state)
{
    struct io_ctx *ctx = make_ctx(4);
    char buf[1000];

    (void)state;
    assert_int_equal(
        read_once(ctx, image_fd, buf, sizeof(buf), IMAGE_BYTES - 10), 10);
    assert_memory_equal(buf, content + IMAGE_BYTES - 10, 10);
    assert_int_equal(read_once(ctx, image_fd, buf, sizeof(buf), IMAGE_BYTES),
                     0);
    assert_int_equal(read_once(ctx, image_fd, buf, sizeof(buf), TIB), 0);
    assert_int_equal(read_once(ctx, image_fd, buf, 0, 0), 0);
    io_ctx_free(ctx);
}

static void
test_errors(void **state)
{
    struct io_ctx *ctx = make_ctx(4);
    int dir_fd = open("/", O_RDONLY | O_CLOEXEC);
    int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    char buf[10];

    (void)state;
    assert_int_equal(read_once(ctx, -1, buf, sizeof(buf), 0), -EBADF);
    assert_int_equal(read_once(ctx, 9999, buf, sizeof(buf), 0), -EBADF);
    assert_int_equal(read_once(ctx, null_fd, buf, sizeof(buf), 0), -EBADF);
    assert_int_equal(read_once(ctx, dir_fd, buf, sizeof(buf), 0), -EISDIR);
    close(dir_fd);
    close(null_fd);
    io_ctx_free(ctx);
}

/* A file whose reads end after a page at most, so that each has to go on. */
static void
test_short_reads_go_on(void **state)
{
    enum { LEN = 50000 };
    struct io_ctx *ctx = make_ctx(4);
    int fd = open("/proc/kallsyms", O_RDONLY | O_CLOEXEC);
    char *wanted = malloc(LEN);
    char *buf = malloc(LEN);

    (void)state;
    assert_non_null(wanted);
    assert_non_null(buf);
    if (fd >= 0 && pread(fd, wanted, LEN, 100) < LEN &&
        file_pread(fd, wanted, LEN, 100) == LEN) {
        assert_int_equal(read_once(ctx, fd, buf, LEN, 100), LEN);
        assert_memory_equal(buf, wanted, LEN);
    } else {
        print_message("no file here gives short reads\n");
    }
    if (fd >= 0) {
        close(fd);
    }
    free(buf);
    free(wanted);
    io_ctx_free(ctx);
}

static void
test_datasync(void **state)
{
    struct io_ctx *ctx = make_ctx(4);
    struct probe_op good = {.op = {.done = note_result}, .result = 1};
    struct probe_op bad = {.op = {.done = note_result}};

    (void)state;
    io_submit_datasync(ctx, &good.op, image_fd);
    io_submit_datasync(ctx, &bad.op, -1);
    reap_all(ctx);
    assert_int_equal(good.result, 0);
    assert_int_equal(good.calls, 1);
    assert_int_equal(bad.result, -EBADF);
    io_ctx_free(ctx);
}

static void
test_pending_and_waiting(void **state)
{
    struct io_ctx *ctx = make_ctx(4);
    struct probe_op ops[10];
    char buf[10][100];

    (void)state;
    assert_int_equal(io_pending(ctx), 0);
    assert_int_equal(io_reap(ctx, false), 0);
    assert_int_equal(io_reap(ctx, true), 0); /* nothing to wait for */
    for (unsigned i = 0; i < 10; i++) {
        ops[i] = (struct probe_op){.op = {.done = note_result}};
        io_submit_read(ctx, &ops[i].op, image_fd, buf[i], 100, i);
        assert_int_equal(io_pending(ctx), i + 1);
    }
    /* Nothing happens before a kick. */
    assert_false(readable(ctx, 20));
    assert_int_equal(io_pending(ctx), 10);
    while (io_pending(ctx) > 0) {
        unsigned before = io_pending(ctx);
        unsigned n = io_reap(ctx, true);

        assert_true(n > 0);
        assert_int_equal(io_pending(ctx), before - n);
    }
    io_ctx_free(ctx);
}

static int
sleep_a_little(void *arg)
{
    (void)arg;
    usleep(10000);
    return -ENOSPC;
}

/* The descriptor alone tells when to reap; without it nothing is lost, and
 * with nothing to reap it falls silent. */
static void
test_pollable(void **state)
{
    struct io_ctx *ctx = make_ctx(4);
    struct probe_op read_op = {.op = {.done = note_result}};
    struct probe_op call_op = {.op = {.done = note_result}};
    char buf[512];

    (void)state;
    assert_false(readable(ctx, 0));
    for (int round = 0; round < 20; round++) {
        read_op.calls = 0;
        call_op.calls = 0;
        io_submit_read(ctx, &read_op.op, image_fd, buf, sizeof(buf), 0);
        io_submit_call(ctx, &call_op.op, sleep_a_little, NULL);
        io_kick(ctx);
        while (io_pending(ctx) > 0) {
            assert_true(readable(ctx, PATIENCE_S * 1000));
            (void)io_reap(ctx, false);
        }
        assert_int_equal(read_op.calls, 1);
        assert_int_equal(call_op.calls, 1);
        assert_int_equal(call_op.result, -ENOSPC);
        for (int tries = 0; readable(ctx, 0); tries++) {
            assert_true(tries < 3);
            assert_int_equal(io_reap(ctx, false), 0);
        }
    }
    /* It stays readable until somebody reaps. */
    io_submit_read(ctx, &read_op.op, image_fd, buf, sizeof(buf), 0);
    io_kick(ctx);
    assert_true(readable(ctx, PATIENCE_S * 1000));
    assert_true(readable(ctx, 0));
    reap_all(ctx);
    io_ctx_free(ctx);
}

/* Calls that end only when all of them run. */
struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t change;
    unsigned wanted;
    unsigned here;
    unsigned here_max;
    bool open; /* all may go */
};

static void
meeting_open(struct meeting *m, unsigned wanted)
{
    memset(m, 0, sizeof(*m));
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->change, NULL);
    m->wanted = wanted;
}

static void
meeting_close(struct meeting *m)
{
    pthread_cond_destroy(&m->change);
    pthread_mutex_destroy(&m->lock);
}

static struct timespec
from_now(int seconds)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += seconds;
    return t;
}

static int
meet(void *arg)
{
    struct meeting *m = arg;
    struct timespec until = from_now(PATIENCE_S);
    int r = 0;

    pthread_mutex_lock(&m->lock);
    m->here++;
    if (m->here > m->here_max) {
        m->here_max = m->here;
    }
    if (m->here_max >= m->wanted) {
        m->open = true;
    }
    pthread_cond_broadcast(&m->change);
    while (!m->open && r == 0) {
        r = pthread_cond_timedwait(&m->change, &m->lock, &until);
    }
    m->here--;
    pthread_mutex_unlock(&m->lock);
    return -r;
}

static void
test_calls_run_side_by_side(void **state)
{
    enum { COUNT = 8 };
    struct io_ctx *ctx = make_ctx(COUNT);
    struct probe_op ops[COUNT];
    struct meeting m;

    (void)state;
    meeting_open(&m, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        ops[i] = (struct probe_op){.op = {.done = note_result}, .result = 1};
        io_submit_call(ctx, &ops[i].op, meet, &m);
    }
    reap_all(ctx);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(ops[i].result, 0);
    }
    meeting_close(&m);
    io_ctx_free(ctx);
}

/* However many calls there are: never more than `depth` at once of one
 * context, and a bounded number in all; and reads go past them. */
static void
test_calls_are_bounded(void **state)
{
    enum { COUNT = 60 };
    struct io_ctx *few = make_ctx(3);
    struct io_ctx *many = make_ctx(100);
    struct io_ctx *reader = make_ctx(4);
    static struct probe_op ops[2][COUNT];
    struct meeting m[2];
    char buf[100];

    (void)state;
    meeting_open(&m[0], COUNT + 1);
    meeting_open(&m[1], COUNT + 1);
    for (unsigned i = 0; i < COUNT; i++) {
        ops[0][i] = (struct probe_op){.op = {.done = note_result}};
        ops[1][i] = ops[0][i];
        io_submit_call(few, &ops[0][i].op, meet, &m[0]);
        io_submit_call(many, &ops[1][i].op, meet, &m[1]);
    }
    io_kick(few);
    io_kick(many);
    usleep(50000);
    /* Nobody leaves; a read still comes through. */
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(read_once(reader, image_fd, buf, 100, i), 100);
    }
    assert_true(pool_thread_count() <= 16);
    for (unsigned i = 0; i < 2; i++) {
        pthread_mutex_lock(&m[i].lock);
        m[i].open = true;
        pthread_cond_broadcast(&m[i].change);
        pthread_mutex_unlock(&m[i].lock);
    }
    reap_all(few);
    reap_all(many);
    assert_in_range(m[0].here_max, 1, 3);
    assert_in_range(m[1].here_max, 3, 16);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(ops[0][i].calls, 1);
        assert_int_equal(ops[1][i].calls, 1);
    }
    meeting_close(&m[0]);
    meeting_close(&m[1]);
    io_ctx_free(few);
    io_ctx_free(many);
    io_ctx_free(reader);
}

/* Each done() frees its operation and submits the next. */
struct link {
    struct io_op op;
    struct io_ctx *ctx;
    unsigned left;
    char buf[64];
};

static unsigned links_done;

static void submit_link(struct io_ctx *ctx, unsigned left);

static void
link_done(struct io_op *op, int64_t result)
{
    struct link *l = container_of(op, struct link, op);
    struct io_ctx *ctx = l->ctx;
    unsigned left = l->left;

    assert_int_equal(result, left % 3 == 0 ? 0 : 64);
    links_done++;
    free(l);
    if (left > 0) {
        submit_link(ctx, left - 1);
    }
}

static int
call_nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void
submit_link(struct io_ctx *ctx, unsigned left)
{
    struct link *l = calloc(1, sizeof(*l));

    assert_non_null(l);
    l->op.done = link_done;
    l->ctx = ctx;
    l->left = left;
    if (left % 3 == 0) {
        io_submit_call(ctx, &l->op, call_nothing, NULL);
    } else {
        io_submit_read(ctx, &l->op, image_fd, l->buf, sizeof(l->buf), left);
    }
}

/* The caller polls between reaps: what done() submits needs no further kick. */
static void
test_done_submits_more(void **state)
{
    struct io_ctx *ctx = make_ctx(2);

    (void)state;
    links_done = 0;
    for (unsigned chain = 0; chain < 5; chain++) {
        submit_link(ctx, 199);
    }
    io_kick(ctx);
    while (io_pending(ctx) > 0) {
        assert_true(readable(ctx, PATIENCE_S * 1000));
        (void)io_reap(ctx, false);
    }
    assert_int_equal(links_done, 1000);
    io_ctx_free(ctx);
}

/* A context is made by one thread and used by another; several at once. */
static void *
use_ctx(void *arg)
{
    struct io_ctx *ctx = arg;
    struct probe_op ops[64];
    char buf[64][256];
    uintptr_t wrong = 0;

    for (unsigned round = 0; round < 15; round++) {
        for (unsigned i = 0; i < 64; i++) {
            ops[i] = (struct probe_op){.op = {.done = note_result},
                                       .off = round * 1000 + i * 10};
            if (i % 16 == 3) {
                io_submit_call(ctx, &ops[i].op, call_nothing, NULL);
            } else if (i == 5 && round % 8 == 0) {
                io_submit_datasync(ctx, &ops[i].op, image_fd);
            } else {
                io_submit_read(ctx, &ops[i].op, image_fd, buf[i], 256,
                               ops[i].off);
            }
        }
        while (io_pending(ctx) > 0) {
            (void)io_reap(ctx, true);
        }
        for (unsigned i = 0; i < 64; i++) {
            bool read_op = ops[i].op.kind == 0;

            wrong += ops[i].result != (read_op ? 256 : 0);
            wrong += read_op && memcmp(buf[i], content + ops[i].off, 256) != 0;
        }
    }
    return (void *)wrong;
}

static void
test_many_threads(void **state)
{
    enum { THREADS = 5 };
    struct io_ctx *ctx[THREADS];
    pthread_t threads[THREADS];

    (void)state;
    for (unsigned i = 0; i < THREADS; i++) {
        ctx[i] = make_ctx(i == 0 ? 2 : 32);
        assert_int_equal(pthread_create(&threads[i], NULL, use_ctx, ctx[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        void *wrong;

        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
        io_ctx_free(ctx[i]);
    }
}

static int
open_fds(void)
{
    int n = 0;

    for (int fd = 0; fd < 1024; fd++) {
        n += fcntl(fd, F_GETFD) >= 0;
    }
    return n;
}

static void
test_contexts_leave_nothing(void **state)
{
    int before = open_fds();

    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        struct io_ctx *ctx = make_ctx(1 + i * 80);
        char buf[10];

        assert_true((fcntl(io_ctx_fd(ctx), F_GETFD) & FD_CLOEXEC) != 0);
        assert_int_equal(read_once(ctx, image_fd, buf, 10, i), 10);
        io_ctx_free(ctx);
    }
    io_ctx_free(NULL);
    /* The kernel may close a ring's file a moment later. */
    for (int tries = 0; open_fds() > before && tries < 1000; tries++) {
        usleep(1000);
    }
    assert_int_equal(open_fds(), before);
}

/* --- names, probe, refusals ---------------------------------------------- */

static void
test_names(void **state)
{
    static const char *const names[] = {"auto", "io_uring", "threads"};
    enum io_engine_kind kind;
    struct err e = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        assert_true(io_engine_parse(names[i], &kind));
        assert_string_equal(io_engine_name(kind), names[i]);
    }
    assert_true(io_engine_parse("threads", &kind));
    assert_int_equal(kind, IO_ENGINE_THREADS);
    assert_false(io_engine_parse("native", &kind));
    assert_false(io_engine_parse("", &kind));
    assert_null(io_ctx_new(IO_ENGINE_THREADS, 0, &e));
    assert_int_equal(e.code, EINVAL);
    assert_null(io_ctx_new(IO_ENGINE_THREADS, 4097, NULL));
}

static void
test_probe(void **state)
{
    struct err why = {.code = 1, .text = "?"};
    enum io_engine_kind kind = io_engine_probe(&why);

    (void)state;
    if (kind == IO_ENGINE_URING) {
        assert_int_equal(why.code, 0);
        assert_string_equal(why.text, "");
    } else {
        assert_int_equal(kind, IO_ENGINE_THREADS);
        assert_true(why.code > 0);
        assert_true(strlen(why.text) > 10);
        print_message("%s\n", why.text);
    }
    assert_int_equal(io_engine_probe(NULL), kind);
}

#ifdef __linux__
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* From now on these two system calls of this process fail with `code`. */
static void
refuse_calls(long first, long second, int code)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)first, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)second, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {ARRAY_LEN(filter), filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        _exit(77);
    }
}

/* Assertions of a child, which must not run cmocka's. */
#define expect(condition)                                                      \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "child, line %d: %s\n", __LINE__, #condition);     \
            _exit(1);                                                          \
        }                                                                      \
    } while (0)

/* Runs `body` in a child, and takes over its verdict. */
static void
in_child(void (*body)(void))
{
    pid_t child = fork();
    int status;

    assert_true(child >= 0);
    if (child == 0) {
        alarm(PATIENCE_S);
        body();
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* 40 reads and a datasync go right on this context. */
static void
expect_works(struct io_ctx *ctx)
{
    static struct probe_op ops[40];
    static char buf[40][100];
    struct probe_op sync = {.op = {.done = note_result}, .result = 1};

    for (unsigned i = 0; i < 40; i++) {
        ops[i] = (struct probe_op){.op = {.done = note_result}};
        io_submit_read(ctx, &ops[i].op, image_fd, buf[i], 100, i);
    }
    io_submit_datasync(ctx, &sync.op, image_fd);
    while (io_pending(ctx) > 0) {
        expect(io_reap(ctx, true) > 0);
    }
    for (unsigned i = 0; i < 40; i++) {
        expect(ops[i].calls == 1 && ops[i].result == 100);
        expect(memcmp(buf[i], content + i, 100) == 0);
    }
    expect(sync.calls == 1 && sync.result == 0);
}

static void
expect_threads_for(int code, const char *word)
{
    struct err why = {0};
    struct err e = {0};
    struct io_ctx *ctx;

    expect(io_engine_probe(&why) == IO_ENGINE_THREADS);
    fprintf(stderr, "%s\n", why.text);
    expect(why.code == code);
    expect(strstr(why.text, word) != NULL);
    expect(io_ctx_new(IO_ENGINE_URING, 8, &e) == NULL);
    expect(strcmp(e.text, why.text) == 0);
    ctx = io_ctx_new(IO_ENGINE_AUTO, 8, &e);
    expect(ctx != NULL);
    expect_works(ctx);
    io_ctx_free(ctx);
}

static void
no_ring_eperm(void)
{
    refuse_calls(SYS_io_uring_setup, SYS_io_uring_setup, EPERM);
    expect_threads_for(EPERM, "io_uring");
}

static void
no_ring_enosys(void)
{
    refuse_calls(SYS_io_uring_setup, SYS_io_uring_setup, ENOSYS);
    expect_threads_for(ENOSYS, "kernel has no io_uring");
}

static void
no_use_of_ring(void)
{
    refuse_calls(SYS_io_uring_enter, SYS_io_uring_enter, EACCES);
    expect_threads_for(EACCES, "io_uring");
}

/* The rings of contexts that exist stop working: no operation is lost. */
static void
ring_fails_later(void)
{
    struct io_ctx *ctx;

    if (io_engine_probe(NULL) != IO_ENGINE_URING) {
        _exit(77);
    }
    ctx = io_ctx_new(IO_ENGINE_URING, 16, NULL);
    expect(ctx != NULL);
    expect_works(ctx);
    refuse_calls(SYS_io_uring_enter, SYS_io_uring_enter, EAGAIN);
    expect_works(ctx);
    expect_works(ctx);
    io_ctx_free(ctx);
}

/* The probe was content, and then no further ring can be had. */
static void
no_further_ring(void)
{
    struct err e = {0};
    struct io_ctx *ctx;

    if (io_engine_probe(NULL) != IO_ENGINE_URING) {
        _exit(77);
    }
    refuse_calls(SYS_io_uring_setup, SYS_io_uring_setup, ENOMEM);
    expect(io_ctx_new(IO_ENGINE_URING, 8, &e) == NULL);
    expect(e.code == ENOMEM && strstr(e.text, "ulimit -l") != NULL);
    ctx = io_ctx_new(IO_ENGINE_AUTO, 8, &e);
    expect(ctx != NULL);
    expect_works(ctx);
    io_ctx_free(ctx);
}

/* Without a single thread the work is done all the same. */
static void
no_threads(void)
{
    struct io_ctx *ctx;

    refuse_calls(SYS_clone, SYS_clone3, EAGAIN);
    ctx = io_ctx_new(IO_ENGINE_THREADS, 8, NULL);
    expect(ctx != NULL);
    expect_works(ctx);
    expect(pool_thread_count() == 0);
    io_ctx_free(ctx);
}

static void
test_refusals(void **state)
{
    static void (*const bodies[])(void) = {
        no_ring_eperm,    no_ring_enosys,  no_use_of_ring,
        ring_fails_later, no_further_ring, no_threads,
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++) {
        in_child(bodies[i]);
    }
}
#else
static void
test_refusals(void **state)
{
    (void)state;
    skip();
}
#endif

/* Threads that have nothing to do leave. Last: it waits for them. */
static void
test_pool_empties(void **state)
{
    (void)state;
    for (int tries = 0; pool_thread_count() > 0; tries++) {
        assert_true(tries < PATIENCE_S * 20);
        usleep(50000);
    }
    engine = IO_ENGINE_THREADS;
    test_end_of_file(state);
    assert_in_range(pool_thread_count(), 1, 4);
}

/* --- the program ---------------------------------------------------------- */

static int
setup_image(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    content = malloc(IMAGE_BYTES);
    image_fd = file_open_unnamed(tmp != NULL ? tmp : "/var/tmp", NULL);
    if (content == NULL || image_fd < 0) {
        return -1;
    }
    for (size_t i = 0; i < IMAGE_BYTES; i++) {
        content[i] = (char)(i * 31 + i / 251);
    }
    return file_pwrite(image_fd, content, IMAGE_BYTES, 0);
}

static int
teardown_image(void **state)
{
    (void)state;
    free(content);
    close(image_fd);
    return 0;
}

static int
run_on_engine(const char *name, enum io_engine_kind kind)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_uncached_reads),
        cmocka_unit_test(test_end_of_file),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_short_reads_go_on),
        cmocka_unit_test(test_datasync),
        cmocka_unit_test(test_pending_and_waiting),
        cmocka_unit_test(test_pollable),
        cmocka_unit_test(test_calls_run_side_by_side),
        cmocka_unit_test(test_calls_are_bounded),
        cmocka_unit_test(test_done_submits_more),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_contexts_leave_nothing),
    };

    engine = kind;
    return cmocka_run_group_tests_name(name, tests, setup_image,
                                       teardown_image);
}

int
main(void)
{
    const struct CMUnitTest first[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_probe),
    };
    const struct CMUnitTest last[] = {
        cmocka_unit_test(test_pool_empties),
    };
    int failed = cmocka_run_group_tests_name("probe", first, setup_image,
                                             teardown_image);

    failed += run_on_engine("threads", IO_ENGINE_THREADS);
    if (io_engine_probe(NULL) == IO_ENGINE_URING) {
        failed += run_on_engine("io_uring", IO_ENGINE_URING);
    } else {
        print_message("SKIPPED: io_uring cannot be used here\n");
    }
    failed += cmocka_run_group_tests_name("pool", last, setup_image,
                                          teardown_image);
    return failed;
}
