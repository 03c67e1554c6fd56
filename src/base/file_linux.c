/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * File helpers in Linux's own way: see file.h and file_os.h for the contracts.
 * No state. Reference: fallocate(2), preadv2(2), open(2), posix_fadvise(2).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/file.h"
#include "base/file_os.h"

int64_t
file_device_size(int fd)
{
    uint64_t bytes;

    if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) {
        return errno == ENOTTY ? -EINVAL : -errno;
    }
    return (int64_t)bytes;
}

int
file_open_tmpfile(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0) {
        return fd;
    }
    /* EISDIR: a kernel without O_TMPFILE sees only its O_DIRECTORY part;
     * EINVAL: some filesystems instead of EOPNOTSUPP. */
    if (errno == EISDIR || errno == EINVAL) {
        return -EOPNOTSUPP;
    }
    return -errno;
}

ssize_t
file_pread_nowait(int fd, void *buf, size_t len, uint64_t off)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    ssize_t n;
    int64_t size;

    do {
        n = preadv2(fd, &iov, 1, (off_t)off, RWF_NOWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0 || len == 0) {
        return n < 0 ? -errno : n;
    }
    if (n < 0) {
        /* ENOSYS: before Linux 4.6, or a seccomp filter. */
        return errno == ENOSYS ? -EOPNOTSUPP : -errno;
    }
    /* Some kernels answer 0 where they should say EAGAIN. Only a true end of
     * file may look like one. */
    size = file_size(fd);
    if (size < 0) {
        return (ssize_t)size;
    }
    return (uint64_t)size > off ? -EAGAIN : 0;
}

int
file_datasync(int fd)
{
    return fdatasync(fd) == 0 ? 0 : -errno;
}

static int
allocate(int fd, int mode, uint64_t off, uint64_t len)
{
    struct stat st;
    int code;

    do {
        code = fallocate(fd, mode, (off_t)off, (off_t)len) == 0 ? 0 : errno;
    } while (code == EINTR);
    switch (code) {
    case ENOSYS:
    case ENODEV:
    case ENOTTY:
        return -EOPNOTSUPP;
    case EINVAL:
        /* A block device cannot do parts of its sectors. */
        if (fstat(fd, &st) == 0 && S_ISBLK(st.st_mode)) {
            return -EOPNOTSUPP;
        }
    }
    return -code;
}

int
file_punch_hole(int fd, uint64_t off, uint64_t len)
{
    if (len == 0) {
        return 0;
    }
    return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
}

int
file_zero_range(int fd, uint64_t off, uint64_t len, bool keep)
{
    int r;

    if (len == 0 || !keep) {
        return file_punch_hole(fd, off, len);
    }
    r = allocate(fd, FALLOC_FL_ZERO_RANGE, off, len);
    if (r != -EOPNOTSUPP) {
        return r;
    }
    /* tmpfs and others: a hole, filled again. The first call changes no byte
     * and tells whether the last one is known at all. */
    r = allocate(fd, 0, off, len);
    if (r == 0) {
        r = file_punch_hole(fd, off, len);
    }
    if (r == 0) {
        r = allocate(fd, 0, off, len);
    }
    return r;
}

void
file_will_need(int fd, uint64_t off, uint64_t len)
{
    (void)posix_fadvise(fd, (off_t)off, (off_t)len, POSIX_FADV_WILLNEED);
}

int
file_path_of(int fd, char *buf, size_t cap)
{
    char link[64];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, buf, cap);
    if (n < 0) {
        return -ENOTSUP;
    }
    if ((size_t)n >= cap) {
        return -ERANGE;
    }
    buf[n] = '\0';
    return 0;
}
