/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * File helpers that are the same on every system: see file.h for the contract.
 * No state but one guess per thread about the speed of reads. What differs
 * between systems is in file_linux.c and file_macos.c.
 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file_os.h"
#include "base/slow_guess.h"

/* More in one call is refused on macOS (INT_MAX) and cut short on Linux. */
#define PIECE_MAX_BYTES ((size_t)1 << 30)

int64_t
file_size(int fd)
{
    struct stat st;

    if (fstat(fd, &st) != 0) {
        return -errno;
    }
    if (S_ISREG(st.st_mode)) {
        return st.st_size;
    }
    if (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)) {
        return file_device_size(fd);
    }
    return S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
}

ssize_t
file_pread(int fd, void *buf, size_t len, uint64_t off)
{
    size_t done = 0;

    while (done < len) {
        size_t piece = min_u64(len - done, PIECE_MAX_BYTES);
        ssize_t n = pread(fd, (char *)buf + done, piece, (off_t)(off + done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int
file_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
    const char *from = buf;

    while (len > 0) {
        size_t piece = min_u64(len, PIECE_MAX_BYTES);
        ssize_t n = pwrite(fd, from, piece, (off_t)off);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) { /* POSIX allows it for no regular file; do not spin */
            return -EIO;
        }
        from += n;
        len -= (size_t)n;
        off += (uint64_t)n;
    }
    return 0;
}

static uint64_t
now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Where nobody can tell whether a read would wait, the speed of the last ones
 * on this thread has to. */
static ssize_t
pread_guessed(int fd, void *buf, size_t len, uint64_t off)
{
    static _Thread_local struct slow_guess guess;
    uint64_t start_ns;
    ssize_t n;

    if (slow_guess_skip(&guess)) {
        return -EAGAIN;
    }
    start_ns = now_ns();
    n = file_pread(fd, buf, len, off);
    slow_guess_note(&guess, now_ns() - start_ns, len);
    return n;
}

ssize_t
file_pread_cached(int fd, void *buf, size_t len, uint64_t off, bool *may_wait)
{
    /* Threads share *may_wait; it only ever turns true. */
    if (!__atomic_load_n(may_wait, __ATOMIC_RELAXED)) {
        ssize_t n = file_pread_nowait(fd, buf, len, off);

        if (n != -EOPNOTSUPP) {
            return n;
        }
        __atomic_store_n(may_wait, true, __ATOMIC_RELAXED);
    }
    return pread_guessed(fd, buf, len, off);
}

/* The filesystem does not know its holes. */
static bool
holes_unknown(int code)
{
    return code == EINVAL || code == ENOTSUP || code == EOPNOTSUPP ||
           code == ENOTTY;
}

/* No data from `off` on: a hole to the end of the file. If the file has
 * shrunk below `off`, that is called data, so that whoever reads it meets the
 * error. */
static int
last_hole(int fd, uint64_t off, uint64_t end, bool *ret_data, uint64_t *ret_len)
{
    int64_t size = file_size(fd);

    if (size < 0) {
        return (int)size;
    }
    *ret_data = (uint64_t)size <= off;
    *ret_len = (*ret_data ? end : min_u64((uint64_t)size, end)) - off;
    return 0;
}

/*
 * lseek moves the file position, which threads share and nobody uses: all
 * reads and writes name their offset.
 */
int
file_extent_at(int fd, uint64_t off, uint64_t end, bool *ret_data,
               uint64_t *ret_len)
{
    off_t data = lseek(fd, (off_t)off, SEEK_DATA);
    off_t next;

    if (data < 0 && errno == ENXIO) {
        return last_hole(fd, off, end, ret_data, ret_len);
    }
    if (data < 0 && !holes_unknown(errno)) {
        return -errno;
    }
    next = data > (off_t)off ? data : lseek(fd, (off_t)off, SEEK_HOLE);
    /* Nothing beyond `off`: holes unknown, or somebody punches here right
     * now. Data is always a safe answer. */
    *ret_data = data <= (off_t)off;
    *ret_len = (next > (off_t)off ? min_u64((uint64_t)next, end) : end) - off;
    return 0;
}

/* A file with a name that is taken away at once. Killed in between, we leave
 * an empty file behind. */
static int
open_and_unlink(const char *dir)
{
    char path[PATH_MAX];
    int fd;
    int n = snprintf(path, sizeof(path), "%s/.rewind-XXXXXX", dir);

    if (n < 0 || (size_t)n >= sizeof(path)) {
        return -ENAMETOOLONG;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    if (unlink(path) != 0) {
        int code = errno;

        close(fd);
        return -code;
    }
    return fd;
}

int
file_open_unnamed(const char *dir, struct err *e)
{
    int fd = file_open_tmpfile(dir);

    if (fd == -EOPNOTSUPP) {
        fd = open_and_unlink(dir);
    }
    if (fd < 0) {
        return err_set(e, -fd,
                       "%s: cannot make a temporary file there: %s; choose "
                       "another directory",
                       dir, strerror(-fd));
    }
    return fd;
}

void
file_close_ptr(int *fd)
{
    int errno_before = errno;

    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    errno = errno_before;
}
