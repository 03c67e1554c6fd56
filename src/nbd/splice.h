/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_SPLICE_H
#define REWIND_NBD_SPLICE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * File pages on their way to a socket without being copied by us: loaded into
 * a pipe first, so that an I/O error is known before the reply's header has
 * gone out, then moved on. Only for immutable files: the pages are shared, and
 * a later write would show in a reply still in the queue. One thread.
 * splice_linux.c does it, splice_none.c says that it can't.
 */
struct splicer {
    int pipe_fd[2]; /* owned; -1 until first used */
    size_t capacity_bytes;
    int refused; /* -errno once the system has said no */
};

void splicer_init(struct splicer *sp);
void splicer_free(struct splicer *sp);

/* The most that one load can hold, or 0 if there is no splicing here. */
size_t splicer_capacity(struct splicer *sp);

/* Loads [off, off + len) of `fd`; returns how much of it (maybe less than
 * asked, when the pipe is full), or -errno with nothing loaded. */
ssize_t splicer_load(struct splicer *sp, int fd, uint64_t off, size_t len);

/* Sends all `len` bytes that were loaded to `out_fd`. -errno: the session's
 * stream is broken. */
int splicer_send(struct splicer *sp, int out_fd, size_t len);

/* Throws away what was loaded. */
void splicer_drop(struct splicer *sp);

#endif
