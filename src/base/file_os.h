/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_FILE_OS_H
#define REWIND_BASE_FILE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Between file.c and the one of file_linux.c and file_macos.c that is built;
 * nobody else includes this.
 */

/* Size of the disk device behind `fd` in bytes, or -errno. */
int64_t file_device_size(int fd);

/* A file without a name in `dir`, or -EOPNOTSUPP where only a named one that
 * is unlinked at once can be had. */
int file_open_tmpfile(const char *dir);

/* pread that never waits. -EAGAIN: it would wait; -EOPNOTSUPP: cannot tell for
 * this file, ask pread. 0 only at end of file. */
ssize_t file_pread_nowait(int fd, void *buf, size_t len, uint64_t off);

#endif
