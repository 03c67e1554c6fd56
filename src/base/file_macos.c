/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * File helpers in macOS's own way: see file.h and file_os.h for the contracts.
 * No state. Reference: fcntl(2) (F_FULLFSYNC, F_PUNCHHOLE, F_RDADVISE) and the
 * disk ioctls of <sys/disk.h>.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/file_os.h"

/* The disk ioctls, as <sys/disk.h> has them; part of the kernel's interface,
 * and not in every set of headers. */
#define DISK_SYNC_CACHE _IO('d', 22)
#define DISK_GET_BLOCK_SIZE _IOR('d', 24, uint32_t)
#define DISK_GET_BLOCK_COUNT _IOR('d', 25, uint64_t)

/* F_PUNCHHOLE takes whole blocks of the filesystem; larger ones than this are
 * not written around. */
#define HOLE_BLOCK_MAX_BYTES 65536u

int64_t
file_device_size(int fd)
{
    uint32_t block_bytes;
    uint64_t count;

    if (ioctl(fd, DISK_GET_BLOCK_SIZE, &block_bytes) != 0 ||
        ioctl(fd, DISK_GET_BLOCK_COUNT, &count) != 0) {
        return errno == ENOTTY ? -EINVAL : -errno;
    }
    if (block_bytes == 0 || count > INT64_MAX / block_bytes) {
        return -EINVAL;
    }
    return (int64_t)(count * block_bytes);
}

int
file_open_tmpfile(const char *dir)
{
    (void)dir;
    return -EOPNOTSUPP;
}

ssize_t
file_pread_nowait(int fd, void *buf, size_t len, uint64_t off)
{
    (void)fd;
    (void)buf;
    (void)len;
    (void)off;
    return -EOPNOTSUPP;
}

/*
 * fsync alone leaves the data in the drive's cache. Only what has no
 * F_FULLFSYNC at all (a disk device, a network share) is asked otherwise: a
 * failure of F_FULLFSYNC is a failure.
 */
int
file_datasync(int fd)
{
    if (fcntl(fd, F_FULLFSYNC) != -1) {
        return 0;
    }
    if (errno != ENOTSUP && errno != EOPNOTSUPP && errno != ENOTTY &&
        errno != EINVAL && errno != ENODEV) {
        return -errno;
    }
    if (fsync(fd) != 0) {
        return -errno;
    }
    if (ioctl(fd, DISK_SYNC_CACHE) != 0 && errno != ENOTTY &&
        errno != ENOTSUP && errno != EOPNOTSUPP && errno != EINVAL &&
        errno != ENODEV) {
        return -errno;
    }
    return 0;
}

static int
write_zeroes(int fd, uint64_t off, uint64_t end)
{
    static const char zeroes[4096];

    while (off < end) {
        size_t piece = min_u64(end - off, sizeof(zeroes));
        int r = file_pwrite(fd, zeroes, piece, off);

        if (r < 0) {
            return r;
        }
        off += piece;
    }
    return 0;
}

static int
punch_blocks(int fd, uint64_t off, uint64_t end)
{
    fpunchhole_t hole = {.fp_offset = (off_t)off,
                         .fp_length = (off_t)(end - off)};

    if (off >= end || fcntl(fd, F_PUNCHHOLE, &hole) != -1) {
        return 0;
    }
    return errno == ENOTTY || errno == EINVAL || errno == ENODEV ? -EOPNOTSUPP
                                                                 : -errno;
}

/* Whole blocks are punched first, so that nothing has changed if that cannot
 * be done; then zeroes are written to what remains at both ends. */
int
file_punch_hole(int fd, uint64_t off, uint64_t len)
{
    struct statfs fs;
    struct stat st;
    uint64_t end;
    uint64_t first;
    uint64_t last;
    int r;

    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode) || fs.f_bsize == 0 ||
        fs.f_bsize > HOLE_BLOCK_MAX_BYTES ||
        (fs.f_bsize & (fs.f_bsize - 1)) != 0) {
        return -EOPNOTSUPP;
    }
    if (off >= (uint64_t)st.st_size) {
        return 0; /* nothing is there */
    }
    end = off + min_u64(len, (uint64_t)st.st_size - off);
    first = round_up(off, fs.f_bsize);
    last = round_down(end, fs.f_bsize);
    if (first >= last) {
        return write_zeroes(fd, off, end);
    }
    r = punch_blocks(fd, first, last);
    if (r == 0) {
        r = write_zeroes(fd, off, first);
    }
    if (r == 0) {
        r = write_zeroes(fd, last, end);
    }
    return r;
}

/* There is no way to zero a range and keep its space but to write it. */
int
file_zero_range(int fd, uint64_t off, uint64_t len, bool keep)
{
    return keep ? -EOPNOTSUPP : file_punch_hole(fd, off, len);
}

void
file_will_need(int fd, uint64_t off, uint64_t len)
{
    struct radvisory advice = {
        .ra_offset = (off_t)off,
        .ra_count = (int)min_u64(len, INT_MAX),
    };

    (void)fcntl(fd, F_RDADVISE, &advice);
}

int
file_path_of(int fd, char *buf, size_t cap)
{
    char path[MAXPATHLEN]; /* what F_GETPATH demands */
    size_t len;

    if (fcntl(fd, F_GETPATH, path) != 0) {
        return -ENOTSUP;
    }
    len = strlen(path) + 1;
    if (len > cap) {
        return -ERANGE;
    }
    memcpy(buf, path, len);
    return 0;
}
