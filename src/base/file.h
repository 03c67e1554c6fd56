/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_FILE_H
#define REWIND_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/*
 * File helpers with each system's own way of doing the durable and the sparse
 * things. file.c is portable; file_linux.c and file_macos.c hold what differs
 * and are chosen by the build. All functions may be called from any thread.
 * Data-path functions return 0 or -errno.
 */

/* Size of a regular file or a block device in bytes, or -errno. */
int64_t file_size(int fd);

/* Reads exactly `len` bytes, continuing after short reads. Returns the number
 * of bytes read (less than `len` only at end of file) or -errno. */
ssize_t file_pread(int fd, void *buf, size_t len, uint64_t off);

/* Writes all of it, continuing after short writes. 0 or -errno. */
int file_pwrite(int fd, const void *buf, size_t len, uint64_t off);

/*
 * Reads only what is in the page cache, without waiting for a device.
 * Returns bytes read (maybe fewer than asked), 0 at end of file, -EAGAIN if
 * it would wait, or another -errno. Where the system or the filesystem cannot
 * tell, it reads as pread does, and waits; *may_wait (in and out, one per
 * file, starts false) remembers that.
 */
ssize_t file_pread_cached(int fd, void *buf, size_t len, uint64_t off,
                          bool *may_wait);

/* Puts data that was written before this call on stable storage: fdatasync on
 * Linux, F_FULLFSYNC on macOS (S1). 0 or -errno; never retried (S8). */
int file_datasync(int fd);

/* Deallocates [off, off + len): it reads as zeroes after that. Returns
 * -EOPNOTSUPP where the filesystem cannot. */
int file_punch_hole(int fd, uint64_t off, uint64_t len);

/*
 * Makes [off, off + len) read as zeroes. With `keep` the space stays (or
 * becomes) allocated, without `keep` it may be given back. -EOPNOTSUPP where
 * there is no quick way; then nothing has changed.
 */
int file_zero_range(int fd, uint64_t off, uint64_t len, bool keep);

/*
 * The run of data or hole at `off`, `off` below the file's size `end`. Sets
 * *ret_data and *ret_len (>= 1, clipped to `end`). Filesystems that do not
 * know report data. 0 or -errno.
 */
int file_extent_at(int fd, uint64_t off, uint64_t end, bool *ret_data,
                   uint64_t *ret_len);

/* Tells the kernel that [off, off + len) will be read soon. Never fails. */
void file_will_need(int fd, uint64_t off, uint64_t len);

/* A fresh file in `dir` that has no name, opened read-write, mode 0600: what
 * it holds is gone with its last descriptor, however the process ends.
 * Returns the descriptor (CLOEXEC, owned by the caller) or -errno. */
int file_open_unnamed(const char *dir, struct err *e);

/*
 * QEMU's own image locks (util of QEMU's block/file-posix.c: byte 100 + p says
 * "I use permission p", byte 200 + p says "nobody else may"; p is 0 consistent
 * read, 1 write, 2 write unchanged, 3 resize), as open-file-description
 * locks, so that we and QEMU exclude each other on the same file.
 */
enum file_lock {
    FILE_LOCK_BASE,  /* we read; nobody may write or resize (S6) */
    FILE_LOCK_WRITE, /* we read and write; nobody else may write or resize */
};

/* Takes the lock on `fd` for the life of the open file description. -EBUSY
 * with a message that names `path` if another process excludes us. Where the
 * system or filesystem has no such locks it returns 0. */
int file_lock_image(int fd, const char *path, enum file_lock lock,
                    struct err *e);

/* Where the open file is now, without symbolic links. 0; -ERANGE if it does
 * not fit; -ENOTSUP where the system can't tell (Linux without /proc). */
int file_path_of(int fd, char *buf, size_t cap);

/* Closes *fd if it is not negative; for __attribute__((cleanup)). */
void file_close_ptr(int *fd);
#define cleanup_fd __attribute__((cleanup(file_close_ptr)))

#endif
