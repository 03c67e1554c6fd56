/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of base/file*.c, on a file in $TMPDIR (a real filesystem). What
 * a filesystem need not be able to do may answer -EOPNOTSUPP; the bytes are
 * checked either way. QEMU's side of the locks is in interop/locks.sh. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/slow_guess.h"

static char dir[4000];
static char path[4096];
static char buf[1 << 20];
static char expected[1 << 20];

static int
setup_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof(dir), "%s/rewind-file-XXXXXX",
             tmp != NULL ? tmp : "/var/tmp");
    if (mkdtemp(dir) == NULL) {
        return -1;
    }
    snprintf(path, sizeof(path), "%s/image", dir);
    return 0;
}

static int
teardown_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

/* The image, opened, holding `len` bytes that tell where they lie. */
static int
make_image(size_t len)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_true(len <= sizeof(expected));
    for (size_t i = 0; i < len; i++) {
        expected[i] = (char)(1 + (i * 7 + i / 509) % 255);
    }
    assert_int_equal(file_pwrite(fd, expected, len, 0), 0);
    return fd;
}

static void
check_image(int fd, size_t len)
{
    memset(buf, 0x55, sizeof(buf));
    assert_int_equal(file_pread(fd, buf, len, 0), len);
    assert_memory_equal(buf, expected, len);
}

static void
test_size(void **state)
{
    int fd = make_image(12345);

    (void)state;
    assert_int_equal(file_size(fd), 12345);
    close(fd);
    fd = open(dir, O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_size(fd), -EISDIR);
    close(fd);
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(file_size(fd) < 0);
    close(fd);
    assert_int_equal(file_size(-1), -EBADF);
}

static void
test_read_and_write(void **state)
{
    int fd = make_image(100000);

    (void)state;
    check_image(fd, 100000);
    assert_int_equal(file_pread(fd, buf, 5000, 98000), 2000);
    assert_memory_equal(buf, expected + 98000, 2000);
    assert_int_equal(file_pread(fd, buf, 10, 100000), 0);
    assert_int_equal(file_pread(fd, buf, 10, 1u << 30), 0);
    assert_int_equal(file_pread(fd, buf, 0, 0), 0);
    assert_int_equal(file_pread(-1, buf, 10, 0), -EBADF);
    assert_int_equal(file_pread(fd, buf, 10, UINT64_MAX - 5), -EINVAL);
    assert_int_equal(file_pwrite(-1, buf, 10, 0), -EBADF);
    assert_int_equal(file_pwrite(fd, buf, 0, 0), 0);
    memset(expected + 4000, 'y', 300);
    assert_int_equal(file_pwrite(fd, expected + 4000, 300, 4000), 0);
    check_image(fd, 100000);
    close(fd);
}

static void
test_datasync(void **state)
{
    int fd = make_image(5000);
    int fds[2];

    (void)state;
    assert_int_equal(file_datasync(fd), 0);
    close(fd);
    assert_int_equal(file_datasync(-1), -EBADF);
    assert_int_equal(pipe(fds), 0);
    assert_true(file_datasync(fds[0]) < 0);
    close(fds[0]);
    close(fds[1]);
}

static void
test_cached_read(void **state)
{
    int fd = make_image(200000);
    bool may_wait = false;
    ssize_t n;

    (void)state;
    assert_int_equal(file_pread_cached(fd, buf, 200000, 0, &may_wait), 200000);
    assert_memory_equal(buf, expected, 200000);
    n = file_pread_cached(fd, buf, 5000, 199000, &may_wait);
    assert_int_equal(n, 1000);
    assert_memory_equal(buf, expected + 199000, 1000);
    assert_int_equal(file_pread_cached(fd, buf, 10, 200000, &may_wait), 0);
    assert_int_equal(file_pread_cached(fd, buf, 10, 300000, &may_wait), 0);
    assert_int_equal(file_pread_cached(fd, buf, 0, 0, &may_wait), 0);
    assert_int_equal(file_pread_cached(-1, buf, 1, 0, &may_wait), -EBADF);
    close(fd);
}

/* Out of the cache it says -EAGAIN (or reads what is still there), never a
 * false end of file; asked for, it comes back. */
static void
test_uncached_read(void **state)
{
    int fd = make_image(sizeof(expected));
    bool may_wait = false;
    ssize_t n = 0;

    (void)state;
#ifdef POSIX_FADV_DONTNEED
    assert_int_equal(file_datasync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
#endif
    n = file_pread_cached(fd, buf, sizeof(buf), 0, &may_wait);
    assert_true(n > 0 || n == -EAGAIN);
    file_will_need(fd, 0, sizeof(buf));
    for (int tries = 0; tries < 5000; tries++) {
        n = file_pread_cached(fd, buf, sizeof(buf), 0, &may_wait);
        assert_true(n > 0 || n == -EAGAIN);
        if (n == (ssize_t)sizeof(buf)) {
            break;
        }
        usleep(1000);
    }
    assert_int_equal(n, sizeof(buf));
    assert_memory_equal(buf, expected, sizeof(buf));
    close(fd);
}

/* A file of which the kernel cannot tell is read, and remembered. */
static void
test_cached_read_cannot_tell(void **state)
{
    int fd = open("/proc/self/limits", O_RDONLY | O_CLOEXEC);
    bool may_wait = false;
    ssize_t n;

    (void)state;
    if (fd < 0) {
        skip();
    }
    n = file_pread_cached(fd, buf, 5, 0, &may_wait);
    assert_int_equal(n, 5);
    assert_memory_equal(buf, "Limit", 5);
    assert_true(may_wait);
    n = file_pread_cached(fd, buf, 5, 0, &may_wait);
    assert_true(n == 5 || n == -EAGAIN);
    close(fd);
}

static void
test_slow_guess(void **state)
{
    struct slow_guess g = {0};
    unsigned skipped = 0;

    (void)state;
    assert_false(slow_guess_skip(&g));
    slow_guess_note(&g, 20000, 4096);
    assert_false(slow_guess_skip(&g));
    /* A large copy is not a slow disk. */
    slow_guess_note(&g, 2000000, 4 << 20);
    assert_false(slow_guess_skip(&g));

    slow_guess_note(&g, 1000000, 4096);
    while (slow_guess_skip(&g)) {
        skipped++;
    }
    assert_int_equal(skipped, SLOW_GUESS_SKIP_FIRST);
    /* It backs off, but never for long. */
    for (int i = 0; i < 20; i++) {
        slow_guess_note(&g, 1000000, 4096);
        for (skipped = 0; slow_guess_skip(&g); skipped++) {
        }
    }
    assert_int_equal(skipped, SLOW_GUESS_SKIP_MAX);
    /* One fast read, and it trusts again. */
    slow_guess_note(&g, 5000, 4096);
    assert_false(slow_guess_skip(&g));
    slow_guess_note(&g, 1000000, 4096);
    assert_int_equal(g.skip_left, SLOW_GUESS_SKIP_FIRST);
}

static uint64_t
allocated_bytes(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void
test_punch_hole(void **state)
{
    int fd = make_image(512 * KIB);
    uint64_t before;
    int r;

    (void)state;
    assert_int_equal(file_datasync(fd), 0);
    before = allocated_bytes(fd);
    r = file_punch_hole(fd, 64 * KIB, 256 * KIB);
    if (r != -EOPNOTSUPP) {
        assert_int_equal(r, 0);
        memset(expected + 64 * KIB, 0, 256 * KIB);
        assert_true(allocated_bytes(fd) <= before - 192 * KIB);
    }
    check_image(fd, 512 * KIB);
    /* Any offset and length will do; the size stays. */
    r = file_punch_hole(fd, 1000, 10000);
    if (r != -EOPNOTSUPP) {
        assert_int_equal(r, 0);
        memset(expected + 1000, 0, 10000);
    }
    r = file_punch_hole(fd, 512 * KIB - 700, 5000);
    if (r != -EOPNOTSUPP) {
        assert_int_equal(r, 0);
        memset(expected + 512 * KIB - 700, 0, 700);
    }
    check_image(fd, 512 * KIB);
    assert_int_equal(file_size(fd), 512 * KIB);
    assert_int_equal(file_punch_hole(fd, 5, 0), 0);
    check_image(fd, 512 * KIB);
    assert_int_equal(file_punch_hole(-1, 0, 4096), -EBADF);
    close(fd);
}

static void
zero_and_check(int fd, uint64_t off, uint64_t len, bool keep)
{
    int r = file_zero_range(fd, off, len, keep);

    if (r != -EOPNOTSUPP) {
        assert_int_equal(r, 0);
        memset(expected + off, 0, len);
    }
    check_image(fd, 512 * KIB);
    assert_int_equal(file_size(fd), 512 * KIB);
}

static void
test_zero_range(void **state)
{
    int fd = make_image(512 * KIB);
    uint64_t before;

    (void)state;
    assert_int_equal(file_datasync(fd), 0);
    before = allocated_bytes(fd);
    zero_and_check(fd, 64 * KIB, 64 * KIB, true);
    assert_true(allocated_bytes(fd) >= before);
    zero_and_check(fd, 1000, 33, true);
    zero_and_check(fd, 5000, 0, true);
    zero_and_check(fd, 256 * KIB, 64 * KIB, false);
    zero_and_check(fd, 2000, 9999, false);
    close(fd);
}

static void
expect_extent(int fd, uint64_t off, uint64_t end, bool data, uint64_t len)
{
    bool is_data = !data;
    uint64_t found = 0;

    assert_int_equal(file_extent_at(fd, off, end, &is_data, &found), 0);
    assert_int_equal(is_data, data);
    assert_int_equal(found, len);
}

static void
test_extents(void **state)
{
    int fd = make_image(0);
    bool is_data;
    uint64_t len;

    (void)state;
    /* 1 MiB hole, 64 KiB data, hole up to 4 MiB. */
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    memset(buf, 'd', 64 * KIB);
    assert_int_equal(file_pwrite(fd, buf, 64 * KIB, MIB), 0);
    assert_int_equal(file_extent_at(fd, 0, 4 * MIB, &is_data, &len), 0);
    if (is_data) {
        close(fd);
        skip(); /* a filesystem without holes */
    }
    expect_extent(fd, 0, 4 * MIB, false, MIB);
    expect_extent(fd, 0, 4096, false, 4096);
    expect_extent(fd, MIB - 1, 4 * MIB, false, 1);
    expect_extent(fd, MIB, 4 * MIB, true, 64 * KIB);
    expect_extent(fd, MIB + 100, MIB + 200, true, 100);
    expect_extent(fd, MIB + 64 * KIB, 4 * MIB, false, 3 * MIB - 64 * KIB);
    expect_extent(fd, 4 * MIB - 1, 4 * MIB, false, 1);
    /* Shrunk behind our back: no hole is invented. */
    assert_int_equal(ftruncate(fd, 2 * MIB), 0);
    expect_extent(fd, MIB + 64 * KIB, 4 * MIB, false, MIB - 64 * KIB);
    expect_extent(fd, 2 * MIB, 4 * MIB, true, 2 * MIB);
    expect_extent(fd, 3 * MIB, 4 * MIB, true, MIB);
    close(fd);
    assert_int_equal(file_extent_at(-1, 0, 1, &is_data, &len), -EBADF);
}

static void
test_open_unnamed(void **state)
{
    struct err e = {0};
    struct stat st;
    int fd = file_open_unnamed(dir, &e);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_nlink, 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_int_equal(file_pwrite(fd, "abc", 3, 0), 0);
    assert_int_equal(file_pread(fd, buf, 10, 0), 3);
    file_close_ptr(&fd);
    assert_int_equal(fd, -1);
    file_close_ptr(&fd);

    assert_int_equal(file_open_unnamed("/nonexistent/dir", &e), -ENOENT);
    assert_int_equal(e.code, ENOENT);
    assert_non_null(strstr(e.text, "/nonexistent/dir: "));
    assert_int_equal(file_open_unnamed("/nonexistent/dir", NULL), -ENOENT);
    /* Where O_TMPFILE is unknown a name is made and taken away. */
    fd = make_image(10);
    assert_int_equal(file_open_unnamed(path, &e), -ENOTDIR);
    close(fd);
}

/* What taking `lock` answers while another open file description of this same
 * process holds `held`: each description stands for a process. */
static int
lock_while(enum file_lock held, enum file_lock lock, struct err *e)
{
    int fd = make_image(100);
    int other = open(path, O_RDWR | O_CLOEXEC);
    int r;

    assert_int_equal(file_lock_image(other, path, held, NULL), 0);
    r = file_lock_image(fd, path, lock, e);
    /* A refusal leaves no bytes locked behind. */
    close(other);
    other = open(path, O_RDWR | O_CLOEXEC);
    if (r != 0) {
        assert_int_equal(file_lock_image(other, path, FILE_LOCK_WRITE, NULL),
                         0);
    }
    close(other);
    close(fd);
    return r;
}

static void
test_locks(void **state)
{
    struct err e = {0};
    int fd;

    (void)state;
    assert_int_equal(lock_while(FILE_LOCK_BASE, FILE_LOCK_BASE, &e), 0);
    assert_int_equal(e.code, 0);
    assert_int_equal(lock_while(FILE_LOCK_WRITE, FILE_LOCK_BASE, &e), -EBUSY);
    assert_int_equal(e.code, EBUSY);
    assert_non_null(strstr(e.text, path));
    assert_non_null(strstr(e.text, "open for writing"));
    assert_int_equal(lock_while(FILE_LOCK_BASE, FILE_LOCK_WRITE, &e), -EBUSY);
    assert_non_null(strstr(e.text, path));
    assert_non_null(strstr(e.text, "relies on it"));
    assert_int_equal(lock_while(FILE_LOCK_WRITE, FILE_LOCK_WRITE, &e), -EBUSY);
    assert_int_equal(lock_while(FILE_LOCK_WRITE, FILE_LOCK_WRITE, NULL),
                     -EBUSY);

    /* A base is opened read-only, and that is enough. */
    fd = make_image(100);
    close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_lock_image(fd, path, FILE_LOCK_BASE, &e), 0);
    close(fd);
    assert_int_equal(file_lock_image(-1, "gone", FILE_LOCK_BASE, &e), -EBADF);
    assert_non_null(strstr(e.text, "gone"));
}

/* The lock lives as long as the description, also in a child. */
static void
test_lock_life(void **state)
{
    int fd = make_image(100);
    int other = open(path, O_RDWR | O_CLOEXEC);
    int go[2];
    pid_t child;

    (void)state;
    assert_int_equal(pipe(go), 0);
    assert_int_equal(file_lock_image(fd, path, FILE_LOCK_WRITE, NULL), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char byte;

        close(go[1]);
        _exit(read(go[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(go[0]);
    close(fd);
    assert_int_equal(file_lock_image(other, path, FILE_LOCK_BASE, NULL),
                     -EBUSY);
    close(go[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(file_lock_image(other, path, FILE_LOCK_BASE, NULL), 0);
    close(other);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size),
        cmocka_unit_test(test_read_and_write),
        cmocka_unit_test(test_datasync),
        cmocka_unit_test(test_cached_read),
        cmocka_unit_test(test_uncached_read),
        cmocka_unit_test(test_cached_read_cannot_tell),
        cmocka_unit_test(test_slow_guess),
        cmocka_unit_test(test_punch_hole),
        cmocka_unit_test(test_zero_range),
        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_open_unnamed),
        cmocka_unit_test(test_locks),
        cmocka_unit_test(test_lock_life),
    };

    return cmocka_run_group_tests(tests, setup_dir, teardown_dir);
}
