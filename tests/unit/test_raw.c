/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of blk/raw.c, blk/window.c and blk/probe.c: where a raw file has
 * data, what becomes of a batch of writes, the ways of zeroing, and the guard
 * of the first sector.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/probe.h"
#include "blk/raw.h"
#include "blk/window.h"

#define EXTENTS_MAX 32u

struct list {
    struct extent x[EXTENTS_MAX];
    unsigned count;
};

static int
new_file(uint64_t size)
{
    const char *tmp = getenv("TMPDIR");
    struct err e;
    int fd = file_open_unnamed(tmp != NULL ? tmp : "/var/tmp", &e);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static void
fill(int fd, uint64_t off, uint64_t len, uint8_t byte)
{
    uint8_t *p = malloc(len);

    assert_non_null(p);
    memset(p, byte, len);
    assert_int_equal(file_pwrite(fd, p, len, off), 0);
    free(p);
}

/* All bytes in [off, off + len) are `byte`. */
static void
expect_bytes(int fd, uint64_t off, uint64_t len, uint8_t byte)
{
    uint8_t *p = malloc(len);

    assert_non_null(p);
    assert_int_equal(file_pread(fd, p, len, off), len);
    for (uint64_t i = 0; i < len; i++) {
        assert_int_equal(p[i], byte);
    }
    free(p);
}

static uint64_t
disk_bytes(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* A layer over a duplicate of `fd`, so that the test keeps its own. */
static struct layer *
open_raw(int fd, struct raw_options options)
{
    struct err e = {0};
    struct layer *l;

    options.path = "test";
    l = raw_open(dup(fd), &options, &e);
    if (l == NULL) {
        fail_msg("%s", e.text);
    }
    return l;
}

static int
collect(void *arg, const struct extent *e)
{
    struct list *list = arg;

    assert_true(list->count < EXTENTS_MAX);
    list->x[list->count++] = *e;
    return 0;
}

/* Neighbours of the same kind joined, because a filesystem may cut them. */
static struct list
extents(struct layer *l, uint64_t off, uint64_t len)
{
    struct list all = {0}, joined = {0};
    uint64_t at = off;

    assert_int_equal(l->ops->extents(l, off, len, collect, &all), 0);
    for (unsigned i = 0; i < all.count; i++) {
        struct extent *last =
            &joined.x[joined.count > 0 ? joined.count - 1 : 0];

        assert_int_equal(all.x[i].guest_off, at);
        at += all.x[i].len_bytes;
        if (joined.count > 0 && last->kind == all.x[i].kind) {
            last->len_bytes += all.x[i].len_bytes;
        } else {
            joined.x[joined.count++] = all.x[i];
        }
    }
    assert_int_equal(at, off + len);
    return joined;
}

static void
expect_extent(const struct extent *x, enum extent_kind kind, uint64_t len,
              uint64_t host_off)
{
    assert_int_equal(x->kind, kind);
    assert_int_equal(x->len_bytes, len);
    assert_false(x->zero_past_eof);
    if (kind == EXTENT_DATA) {
        assert_int_equal(x->host_off, host_off);
    }
}

/* ---- where things are ---- */

static void
test_extents(void **state)
{
    int fd = new_file(4 * MIB);
    struct list x;
    struct layer *l;

    (void)state;
    fill(fd, MIB, 64 * KIB, 1);
    fill(fd, 3 * MIB, MIB, 2);
    l = open_raw(fd, (struct raw_options){.size_bytes = 4 * MIB});
    x = extents(l, 0, 4 * MIB);
    if (x.count == 1 && x.x[0].kind == EXTENT_DATA) {
        l->ops->close(l);
        close(fd);
        skip(); /* the filesystem does not know its holes */
    }
    assert_int_equal(x.count, 4);
    expect_extent(&x.x[0], EXTENT_ZERO, MIB, 0);
    expect_extent(&x.x[1], EXTENT_DATA, 64 * KIB, MIB);
    expect_extent(&x.x[2], EXTENT_ZERO, 2 * MIB - 64 * KIB, 0);
    expect_extent(&x.x[3], EXTENT_DATA, MIB, 3 * MIB);
    x = extents(l, MIB + 5, 10);
    assert_int_equal(x.count, 1);
    expect_extent(&x.x[0], EXTENT_DATA, 10, MIB + 5);
    l->ops->close(l);

    /* The same from an offset on, and as one flat file. */
    l = open_raw(fd, (struct raw_options){.offset_bytes = MIB + 512,
                                          .size_bytes = 2 * MIB});
    x = extents(l, 0, 2 * MIB);
    assert_int_equal(x.count, 3);
    expect_extent(&x.x[0], EXTENT_DATA, 64 * KIB - 512, MIB + 512);
    expect_extent(&x.x[2], EXTENT_DATA, 512, 3 * MIB);
    assert_true(l->ops->flat(l, &x.x[0]));
    expect_extent(&x.x[0], EXTENT_DATA, 2 * MIB, MIB + 512);
    l->ops->close(l);
    close(fd);
}

/* Up to a sector past the file's end reads as zeroes; more is refused. */
static void
test_end_within_a_sector(void **state)
{
    int fd = new_file(0), taken;
    struct raw_options o = {.path = "test", .size_bytes = 1536};
    struct err e = {0};
    struct layer *l;
    struct list x;

    (void)state;
    fill(fd, 0, 1025, 1);
    l = open_raw(fd, o);
    x = extents(l, 0, 1536);
    assert_int_equal(x.count, 2);
    expect_extent(&x.x[0], EXTENT_DATA, 1025, 0);
    expect_extent(&x.x[1], EXTENT_ZERO, 511, 0);
    assert_true(l->ops->flat(l, &x.x[0]));
    assert_int_equal(x.x[0].len_bytes, 1025);
    l->ops->close(l);

    o.writable = true;
    assert_null(raw_open(dup(fd), &o, &e));
    o.writable = false;
    o.size_bytes = 1537;
    taken = dup(fd);
    assert_null(raw_open(taken, &o, &e));
    assert_int_equal(e.code, EINVAL);
    assert_int_equal(fcntl(taken, F_GETFD), -1);
    close(fd);
}

/* What a file has lost since it was opened is data, whose read fails; what it
 * has gained does not show. */
static void
test_file_that_shrinks_or_grows(void **state)
{
    int fd = new_file(4 * MIB);
    struct layer *l = open_raw(fd, (struct raw_options){.size_bytes = 4 * MIB});
    struct list x;

    (void)state;
    assert_int_equal(ftruncate(fd, (off_t)MIB), 0);
    x = extents(l, 2 * MIB, MIB);
    assert_int_equal(x.count, 1);
    expect_extent(&x.x[0], EXTENT_DATA, MIB, 2 * MIB);
    x = extents(l, 0, 4 * MIB);
    expect_extent(&x.x[x.count - 1], EXTENT_DATA,
                  x.count == 1 ? 4 * MIB : 3 * MIB, x.count == 1 ? 0 : MIB);
    assert_int_equal(ftruncate(fd, (off_t)(8 * MIB)), 0);
    extents(l, 0, 4 * MIB);
    l->ops->close(l);
    close(fd);
}

static void
test_window(void **state)
{
    int fd = new_file(MIB);
    struct layer_info info;
    struct err e;
    struct layer *l;
    struct list x;

    (void)state;
    fill(fd, 0, MIB, 1);
    l = window_open(open_raw(fd, (struct raw_options){.size_bytes = MIB}), 1000,
                    &e);
    l->ops->info(l, &info);
    assert_int_equal(info.size_bytes, MIB - 1000);
    assert_string_equal(info.path, "test");
    x = extents(l, 24, 100);
    expect_extent(&x.x[0], EXTENT_DATA, 100, 1024);
    l->ops->close(l);
    l = window_open(open_raw(fd, (struct raw_options){.size_bytes = MIB}),
                    MIB + 1, &e);
    l->ops->info(l, &info);
    assert_int_equal(info.size_bytes, 0);
    l->ops->close(l);
    close(fd);
}

/* ---- writing ---- */

static struct layer *
open_writable(int fd, uint64_t size)
{
    return open_raw(fd,
                    (struct raw_options){.size_bytes = size, .writable = true});
}

static void
test_write_batches(void **state)
{
    enum { COUNT = 300, PIECE = 700 };
    static uint8_t bytes[COUNT][PIECE];
    struct layer_write w[COUNT];
    int fd = new_file(MIB);
    struct layer *l = open_writable(fd, MIB);

    (void)state;
    /* Runs of neighbours longer than one system call takes, a gap, a piece
     * of nothing, and an order that goes back. */
    for (unsigned i = 0; i < COUNT; i++) {
        memset(bytes[i], (int)(i % 251 + 1), PIECE);
        w[i] = (struct layer_write){.off = i * PIECE + (i >= 200) * 4096,
                                    .len_bytes = PIECE,
                                    .result = -1,
                                    .buf = bytes[i]};
    }
    w[150].len_bytes = 0;
    w[299].off = 500000;
    w[298].off = 600000;
    l->ops->write(l, w, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(w[i].result, 0);
        if (w[i].len_bytes > 0) {
            expect_bytes(fd, w[i].off, PIECE, (uint8_t)(i % 251 + 1));
        }
    }
    expect_bytes(fd, 150 * PIECE, PIECE, 0);
    expect_bytes(fd, 200 * PIECE, 4096, 0);
    l->ops->close(l);
    close(fd);
}

/* Each piece tells its own fate, whatever became of its neighbours. */
static void
test_write_that_fails_in_the_middle(void **state)
{
    struct rlimit limit = {.rlim_cur = 6000, .rlim_max = RLIM_INFINITY}, old;
    static uint8_t bytes[4096];
    struct layer_write w[4];
    int fd = new_file(MIB);
    struct layer *l = open_writable(fd, MIB);

    (void)state;
    memset(bytes, 7, sizeof(bytes));
    for (unsigned i = 0; i < 4; i++) {
        w[i] = (struct layer_write){
            .off = i * 4096, .len_bytes = 4096, .result = -1, .buf = bytes};
    }
    w[3].off = 0; /* after the failed ones, a good one */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit.rlim_max = old.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    l->ops->write(l, w, 4);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(w[0].result, 0);
    assert_int_equal(w[1].result, -EFBIG);
    assert_int_equal(w[2].result, -EFBIG);
    assert_int_equal(w[3].result, 0);
    expect_bytes(fd, 0, 4096, 7);
    l->ops->close(l);
    close(fd);
}

static void
test_info(void **state)
{
    int fd = new_file(MIB);
    struct layer *l = open_writable(fd, MIB);
    struct layer_info info;

    (void)state;
    fill(fd, 0, 64 * KIB, 1);
    l->ops->info(l, &info);
    assert_string_equal(info.format, "raw");
    assert_int_equal(info.size_bytes, MIB);
    assert_int_equal(info.allocated_bytes, disk_bytes(fd));
    assert_true(info.writable);
    assert_true(info.flush_fd >= 0);
    l->ops->close(l);
    l = open_raw(fd, (struct raw_options){.size_bytes = MIB});
    l->ops->info(l, &info);
    assert_false(info.writable);
    assert_int_equal(info.flush_fd, -1);
    l->ops->close(l);
    close(fd);
}

/* ---- zeroes ---- */

/* Can the file system of `fd` give space back? */
static bool
punches(int fd)
{
    return file_punch_hole(fd, 0, 4096) == 0;
}

static void
test_zero(void **state)
{
    static const unsigned flags[] = {0, LAYER_ZERO_NO_HOLE, LAYER_ZERO_FAST,
                                     LAYER_ZERO_FAST | LAYER_ZERO_NO_HOLE};
    int fd = new_file(MIB);
    struct layer *l = open_raw(fd, (struct raw_options){.offset_bytes = 512,
                                                        .size_bytes = MIB - 512,
                                                        .writable = true});

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
        int err;

        fill(fd, 0, MIB, 9);
        err = l->ops->zero(l, 1000, 700001, flags[i]);
        if (err == -ENOTSUP && (flags[i] & LAYER_ZERO_FAST) != 0) {
            expect_bytes(fd, 0, MIB, 9);
            continue;
        }
        assert_int_equal(err, 0);
        expect_bytes(fd, 0, 1512, 9);
        expect_bytes(fd, 1512, 700001, 0);
        expect_bytes(fd, 701513, MIB - 701513, 9);
        if ((flags[i] & LAYER_ZERO_NO_HOLE) != 0) {
            assert_true(disk_bytes(fd) >= MIB);
        } else if (punches(fd)) {
            assert_true(disk_bytes(fd) < MIB / 2);
        }
    }
    l->ops->close(l);
    close(fd);
}

static void
test_trim(void **state)
{
    int fd = new_file(MIB);
    struct layer *l = open_writable(fd, MIB);

    (void)state;
    fill(fd, 0, MIB, 9);
    /* Only what is whole goes; a range without a whole block stays. */
    assert_int_equal(l->ops->zero(l, 5000, 3000, LAYER_ZERO_TRIM), 0);
    expect_bytes(fd, 0, MIB, 9);
    assert_int_equal(l->ops->zero(l, 5000, MIB - 10000, LAYER_ZERO_TRIM), 0);
    expect_bytes(fd, 0, 5000, 9);
    expect_bytes(fd, MIB - 5000, 5000, 9);
    if (punches(fd)) {
        assert_true(disk_bytes(fd) < 64 * KIB);
    }
    l->ops->close(l);

    l = open_raw(fd, (struct raw_options){.size_bytes = MIB,
                                          .writable = true,
                                          .ignore_trim = true});
    fill(fd, 0, MIB, 9);
    assert_int_equal(l->ops->zero(l, 0, MIB, LAYER_ZERO_TRIM), 0);
    expect_bytes(fd, 0, MIB, 9);
    assert_int_equal(l->ops->zero(l, 0, MIB, 0), 0);
    expect_bytes(fd, 0, MIB, 0);
    l->ops->close(l);
    close(fd);
}

#ifdef __linux__
/* From now on, fallocate says that the filesystem has no such thing. */
static bool
forbid_fallocate(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = ARRAY_LEN(code), .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static bool
all_are(const uint8_t *p, size_t len, uint8_t byte)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i] != byte) {
            return false;
        }
    }
    return true;
}

/* What a filesystem that can do nothing quickly gets: 0 if all is well, 77 if
 * that can't be had here, else the number of what went wrong. */
static int
zero_slowly(int fd, struct layer *l, uint8_t *p, size_t size)
{
    if (!forbid_fallocate()) {
        return 77;
    }
    if (l->ops->zero(l, 0, size, LAYER_ZERO_TRIM) != 0) {
        return 1;
    }
    if (l->ops->zero(l, 100, size - 200, LAYER_ZERO_FAST) != -ENOTSUP) {
        return 2;
    }
    if (file_pread(fd, p, size, 0) != (ssize_t)size || !all_are(p, size, 9)) {
        return 3;
    }
    if (l->ops->zero(l, 100, size - 200, 0) != 0) {
        return 4;
    }
    if (file_pread(fd, p, size, 0) != (ssize_t)size || !all_are(p, 100, 9) ||
        !all_are(p + 100, size - 200, 0) || !all_are(p + size - 100, 100, 9)) {
        return 5;
    }
    return 0;
}

static void
test_zero_without_a_quick_way(void **state)
{
    size_t size = 9 * MIB; /* more than two system calls' worth */
    int fd = new_file(size), status = 0;
    struct layer *l = open_writable(fd, size);
    uint8_t *p = malloc(size);
    pid_t child;

    (void)state;
    assert_non_null(p);
    fill(fd, 0, size, 9);
    child = fork();
    if (child == 0) {
        _exit(zero_slowly(fd, l, p, size));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    free(p);
    l->ops->close(l);
    close(fd);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}
#endif

/* ---- probing, and the guard against it ---- */

static void
test_probe(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        bool known;
    } rows[] = {
        {"QFI\xfb\0\0\0\3", 8, true},
        {"QFI\xfb", 4, true}, /* whatever the version */
        {"QFI", 3, false},
        {"QED\0", 4, true},
        {"QEDx", 4, false},
        {"KDMV", 4, true},
        {"vhdxfile", 8, true},
        {"vhdxfil", 7, false},
        {"# comment\n\n  \nversion=2\n", 24, true},
        {"# comment\nversion=4\n", 20, false},
        {"# comment\n# more", 16, false},
        {"#", 1, false},
        {"version=1\n", 10, false},
        {"#!/bin/sh\necho\n", 15, false},
        {"\xeb\x63\x90", 3, false},
        {"", 0, false},
    };
    uint8_t vdi[512] = {[64] = 0x7f, [65] = 0x10, [66] = 0xda, [67] = 0xbe};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct probe_format *f = probe_format_of(rows[i].bytes,
                                                       rows[i].len);

        assert_int_equal(f != NULL, rows[i].known);
    }
    assert_true(probe_format_of("QFI\xfb\0\0\0\3", 8)->qcow2);
    assert_false(probe_format_of("QFI\xfb\0\0\0\1", 8)->qcow2);
    assert_non_null(probe_format_of(vdi, sizeof(vdi)));
    assert_null(probe_format_of(vdi, 67));
}

static int
write_one(struct layer *l, uint64_t off, const char *bytes, size_t len)
{
    struct layer_write w = {
        .off = off, .len_bytes = (uint32_t)len, .result = -1, .buf = bytes};

    l->ops->write(l, &w, 1);
    return w.result;
}

static void
test_guard(void **state)
{
    int fd = new_file(MIB);
    struct layer *l = open_raw(fd, (struct raw_options){
                                       .size_bytes = MIB,
                                       .writable = true,
                                       .guard_first_sector = true,
                                   });
    static char big[8192] = "QFI\xfb\0\0\0\3";
    static const char harmless[] = "ab";
    struct layer_write w[3] = {
        {.off = 4096, .len_bytes = 2, .result = -1, .buf = harmless},
        {.off = 0, .len_bytes = sizeof(big), .result = -1, .buf = big},
        {.off = 8192, .len_bytes = 2, .result = -1, .buf = harmless},
    };

    (void)state;
    assert_int_equal(write_one(l, 0, "QFI\xfb\0\0\0\3", 8), -EPERM);
    assert_int_equal(write_one(l, 0, "hello", 5), 0);
    /* Byte by byte: whichever would complete it is refused. */
    assert_int_equal(write_one(l, 1, "FI\xfb", 3), 0);
    assert_int_equal(write_one(l, 0, "Q", 1), -EPERM);
    assert_int_equal(write_one(l, 64, "\x7f\x10\xda\xbe", 4), -EPERM);
    assert_int_equal(write_one(l, 512, "QFI\xfb\0\0\0\3", 8), 0);
    /* A zero can complete one, too. */
    assert_int_equal(write_one(l, 0, "QEDx", 4), 0);
    assert_int_equal(l->ops->zero(l, 3, MIB - 3, 0), -EPERM);
    assert_int_equal(l->ops->zero(l, 0, MIB, LAYER_ZERO_TRIM), 0);
    assert_int_equal(l->ops->zero(l, 0, MIB, 0), 0);
    /* In a batch it hurts only itself. */
    l->ops->write(l, w, 3);
    assert_int_equal(w[0].result, 0);
    assert_int_equal(w[1].result, -EPERM);
    assert_int_equal(w[2].result, 0);
    expect_bytes(fd, 0, 4096, 0);
    l->ops->close(l);

    /* Not asked for, or out of a probe's reach: anything goes. */
    l = open_writable(fd, MIB);
    assert_int_equal(write_one(l, 0, "QFI\xfb\0\0\0\3", 8), 0);
    l->ops->close(l);
    l = open_raw(fd, (struct raw_options){.offset_bytes = 512,
                                          .size_bytes = MIB - 512,
                                          .writable = true,
                                          .guard_first_sector = true});
    assert_int_equal(write_one(l, 0, "QFI\xfb\0\0\0\3", 8), 0);
    l->ops->close(l);
    close(fd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_end_within_a_sector),
        cmocka_unit_test(test_file_that_shrinks_or_grows),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_write_batches),
        cmocka_unit_test(test_write_that_fails_in_the_middle),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_trim),
#ifdef __linux__
        cmocka_unit_test(test_zero_without_a_quick_way),
#endif
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_guard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
