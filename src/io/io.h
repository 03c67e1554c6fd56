/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_IO_IO_H
#define REWIND_IO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/*
 * The I/O engine: what the page cache cannot answer at once is submitted here
 * and completes later, so that one slow request holds nobody up.
 *
 * A context belongs to one thread: that thread submits, kicks and reaps, and
 * every completion callback runs on it, inside io_reap. Work itself runs
 * elsewhere: in the kernel's ring (io_uring.c) or on the process-wide bounded
 * pool (io_threads.c). Both engines keep the same contract and pass the same
 * tests.
 *
 * Lifetime: an io_op is embedded in the caller's own request, and belongs to
 * the engine from submit until its done() has been entered.
 *
 * fork(): a child may use what its parent had not used yet. A context and the
 * pool's threads do not come along, so a program goes to the background first
 * and makes its contexts then; the probe may run before.
 */
struct io_ctx;

struct io_op {
    /* Runs on the context's thread, from io_reap. `result` is bytes read (for
     * reads; may be short only at end of file), or 0, or -errno; a read never
     * ends in -EAGAIN. It may submit further operations and may free the op.
     * It must not call io_reap or io_ctx_free. */
    void (*done)(struct io_op *op, int64_t result);

    /* Private to the engine from submit to done. */
    struct io_ctx *ctx;
    int (*call)(void *arg);
    void *arg;
    int fd;
    int kind;
    void *buf;
    size_t len_bytes;
    size_t done_bytes;
    uint64_t off;
    int64_t result;
    struct io_op *next;
};

enum io_engine_kind {
    IO_ENGINE_AUTO,    /* the ring where the kernel allows one, else threads */
    IO_ENGINE_URING,   /* Linux only */
    IO_ENGINE_THREADS, /* anywhere */
};

/* "auto", "io_uring", "threads"; false if `name` is none of them. */
bool io_engine_parse(const char *name, enum io_engine_kind *ret_kind);
const char *io_engine_name(enum io_engine_kind kind);

/*
 * What AUTO means on this host, tried for real once per process. `why`
 * (may be NULL) receives why the ring can't be used, or "" if it can.
 */
enum io_engine_kind io_engine_probe(struct err *why);

/*
 * A context that can hold `depth` operations in flight (1 to 4096); a submit
 * beyond that waits in the context's own queue, never fails and never blocks.
 * Returns NULL and sets `e` if the engine can't be had.
 */
struct io_ctx *io_ctx_new(enum io_engine_kind kind, unsigned depth,
                          struct err *e);

/* No operation may be pending. NULL is fine. */
void io_ctx_free(struct io_ctx *ctx);

/* Reads `len` bytes at `off` into `buf`; short reads are continued. */
void io_submit_read(struct io_ctx *ctx, struct io_op *op, int fd, void *buf,
                    size_t len, uint64_t off);

/* file_datasync(fd) (S1). */
void io_submit_datasync(struct io_ctx *ctx, struct io_op *op, int fd);

/* Runs fn(arg) on a pool thread; its return value (0 or -errno) is the
 * result. For work no ring knows: decompression, punching, long scans. */
void io_submit_call(struct io_ctx *ctx, struct io_op *op, int (*fn)(void *),
                    void *arg);

/* Hands everything submitted so far to the kernel, in one system call where
 * it can. io_reap does it too. */
void io_kick(struct io_ctx *ctx);

/* Submitted and not yet done. */
unsigned io_pending(const struct io_ctx *ctx);

/* A descriptor that polls readable while a completion waits to be reaped, and
 * sometimes once more for nothing: io_reap silences it, so call that whenever
 * it is readable. It belongs to the context; nobody else reads from it. */
int io_ctx_fd(const struct io_ctx *ctx);

/* Kicks, then runs done() for everything that has completed; with `wait` it
 * first waits until at least one has (if any is pending). What the callbacks
 * submitted is kicked before it returns. Returns how many callbacks ran. */
unsigned io_reap(struct io_ctx *ctx, bool wait);

#endif
