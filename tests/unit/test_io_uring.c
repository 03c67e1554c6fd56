/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of what io_uring.c makes of a ring's answers, those included that
 * the kernel here never gives: the file is compiled into this program, and its
 * finish() is called with them. The ring at work is in test_io.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#if REWIND_HAVE_URING
/* NOLINTNEXTLINE(bugprone-suspicious-include) */
#include "io/io_uring.c"

static struct io_ctx *ctx;
static int image_fd;
static unsigned dones;
static int64_t last_result;

static void
note_result(struct io_op *op, int64_t result)
{
    (void)op;
    dones++;
    last_result = result;
}

static int
setup_ctx(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    image_fd = file_open_unnamed(tmp != NULL ? tmp : "/var/tmp", NULL);
    /* What goes on does so in the pool, so that no ring is needed. */
    ctx = io_ctx_new(IO_ENGINE_THREADS, 8, NULL);
    if (image_fd < 0 || ctx == NULL) {
        return -1;
    }
    return file_pwrite(image_fd, "0123456789", 10, 0);
}

static int
teardown_ctx(void **state)
{
    (void)state;
    io_ctx_free(ctx);
    close(image_fd);
    return 0;
}

/* What an operation ends with after a ring has said `res`, and whether it ran
 * again to get there. */
static void
check(struct io_op *op, int res, int64_t result, bool again)
{
    struct io_list pool;
    unsigned n;

    io_list_init(&pool);
    dones = 0;
    assert_ptr_equal(io_next_waiting(ctx), op);
    n = finish(ctx, op, res, &pool);
    assert_int_equal(n, again ? 0 : 1);
    assert_int_equal(dones, n);
    pool_run(&pool);
    while (io_pending(ctx) > 0) {
        (void)io_reap(ctx, true);
    }
    assert_int_equal(dones, 1);
    assert_int_equal(last_result, result);
}

static void
test_read_answers(void **state)
{
    static const struct {
        int res;
        int result;
        bool again;
    } cases[] = {
        {6, 6, false},           {0, 0, false},     {-EIO, -EIO, false},
        {-EAGAIN, 6, true},      {-EINTR, 6, true}, {-ECANCELED, 6, true},
        {-EBADF, -EBADF, false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct io_op op = {.done = note_result};
        char buf[6] = {0};

        io_submit_read(ctx, &op, image_fd, buf, 6, 2);
        check(&op, cases[i].res, cases[i].result, cases[i].again);
        if (cases[i].again) {
            assert_memory_equal(buf, "234567", 6);
        }
    }
}

/* Halfway, and then each of the ways to go on or end. */
static void
test_read_goes_on(void **state)
{
    static const int answers[] = {1, -EAGAIN, -EINTR, -ECANCELED};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
        struct io_op op = {.done = note_result};
        char buf[6] = {'a', 'b'};

        io_submit_read(ctx, &op, image_fd, buf, 6, 0);
        op.done_bytes = 2;
        check(&op, answers[i], 6, true);
        assert_memory_equal(buf, "ab", 2);
        if (answers[i] < 0) {
            assert_memory_equal(buf, "ab2345", 6);
        } else {
            assert_memory_equal(buf + 3, "345", 3);
        }
    }
}

/* A datasync that may have run is not repeated, whatever its error (S8). */
static void
test_datasync_answers(void **state)
{
    static const struct {
        int res;
        int result;
        bool again;
    } cases[] = {
        {0, 0, false},           {-EIO, -EIO, false},
        {-EINTR, -EINTR, false}, {-ENOSPC, -ENOSPC, false},
        {-ECANCELED, 0, true},   {-EAGAIN, 0, true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct io_op op = {.done = note_result};

        io_submit_datasync(ctx, &op, image_fd);
        check(&op, cases[i].res, cases[i].result, cases[i].again);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_answers),
        cmocka_unit_test(test_read_goes_on),
        cmocka_unit_test(test_datasync_answers),
    };

    return cmocka_run_group_tests(tests, setup_ctx, teardown_ctx);
}
#else
int
main(void)
{
    puts("SKIP: this build has no io_uring");
    return 77;
}
#endif
