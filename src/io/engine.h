/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_IO_ENGINE_H
#define REWIND_IO_ENGINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "io/io.h"
#include "io/wake.h"

/*
 * Inside src/io only: what io.c and the engines share. An operation goes
 *
 *   io_submit_*  -> ctx->waiting            no system call
 *   io_kick      -> the ring, or the pool   at most `depth` at a time
 *   worker       -> ctx->inbox              the only step on another thread
 *   io_reap      -> done()
 */

enum io_op_kind { IO_OP_READ, IO_OP_DATASYNC, IO_OP_CALL };

/* Operations in the order in which they came, linked by io_op.next. */
struct io_list {
    struct io_op *head;
    struct io_op **tail; /* NULL while never used */
};

static inline void
io_list_init(struct io_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static inline void
io_list_push(struct io_list *list, struct io_op *op)
{
    op->next = NULL;
    *list->tail = op;
    list->tail = &op->next;
}

/* The first, or NULL. */
static inline struct io_op *
io_list_pop(struct io_list *list)
{
    struct io_op *op = list->head;

    if (op != NULL) {
        list->head = op->next;
        if (list->head == NULL) {
            list->tail = &list->head;
        }
    }
    return op;
}

/* Moves all of `from` to the end of `to`. */
static inline void
io_list_take_all(struct io_list *to, struct io_list *from)
{
    if (from->head != NULL) {
        *to->tail = from->head;
        to->tail = from->tail;
        io_list_init(from);
    }
}

struct io_engine {
    /* Hands ctx->waiting over, as long as io_next_waiting gives something. */
    void (*kick)(struct io_ctx *ctx);
    /* Calls io_complete for what has come back; NULL if all completions come
     * through the inbox. Returns how many callbacks ran. */
    unsigned (*drain)(struct io_ctx *ctx);
    /* Frees the context's engine part; may be NULL. */
    void (*release)(struct io_ctx *ctx);
};

struct io_ctx {
    /* The context's thread only. */
    const struct io_engine *engine;
    void *ring; /* owned by io_uring.c */
    unsigned depth;
    unsigned pending;   /* submitted, done() not entered */
    unsigned in_flight; /* of these, in the kernel or in the pool */
    struct io_list waiting;

    struct wake wake; /* signalled by anyone, cleared by io_reap */

    pthread_mutex_t inbox_lock;
    struct io_list inbox; /* done by the pool; under inbox_lock */
};

/* The next operation to hand over, or NULL if none waits or `depth` are in
 * flight; it counts as in flight from now on. */
struct io_op *io_next_waiting(struct io_ctx *ctx);

/* Puts an operation in flight back, to go on where it stopped. */
void io_continue(struct io_ctx *ctx, struct io_op *op);

/* On the context's thread, for an operation in flight: runs its done(). */
void io_complete(struct io_ctx *ctx, struct io_op *op, int64_t result);

/* On any thread: op->result stands; its context will complete it. */
void io_inbox_post(struct io_op *op);

/* What the engines provide: they set ctx->engine (and ctx->ring). 0 or -errno.
 * A ring is started only where io_uring_try() has been content. */
int io_uring_start(struct io_ctx *ctx, struct err *e);
int io_threads_start(struct io_ctx *ctx, struct err *e);

/* Tries a ring for real: 0, or -errno and why not. */
int io_uring_try(struct err *why);

#endif
