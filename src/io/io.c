/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What both I/O engines share: names, the probe, the queue in front of the
 * engine and the inbox behind the pool. See io.h for the contract and engine.h
 * for the way of an operation. A context is its thread's alone, but for its
 * inbox (a lock) and its bell (any thread). The probe runs once per process.
 */
#include "io/io.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "io/engine.h"

#define DEPTH_MAX 4096u

static const char *const engine_names[] = {
    [IO_ENGINE_AUTO] = "auto",
    [IO_ENGINE_URING] = "io_uring",
    [IO_ENGINE_THREADS] = "threads",
};

bool
io_engine_parse(const char *name, enum io_engine_kind *ret_kind)
{
    for (size_t i = 0; i < ARRAY_LEN(engine_names); i++) {
        if (strcmp(name, engine_names[i]) == 0) {
            *ret_kind = (enum io_engine_kind)i;
            return true;
        }
    }
    return false;
}

const char *
io_engine_name(enum io_engine_kind kind)
{
    return engine_names[kind];
}

static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
static enum io_engine_kind probe_kind;
static struct err probe_why;

static void
probe_run(void)
{
    probe_kind = io_uring_try(&probe_why) == 0 ? IO_ENGINE_URING
                                               : IO_ENGINE_THREADS;
}

enum io_engine_kind
io_engine_probe(struct err *why)
{
    pthread_once(&probe_once, probe_run);
    if (why != NULL) {
        *why = probe_why;
    }
    return probe_kind;
}

static int
start_uring(struct io_ctx *ctx, struct err *e)
{
    struct err why;

    if (io_engine_probe(&why) != IO_ENGINE_URING) {
        return err_set(e, why.code, "%s", why.text);
    }
    return io_uring_start(ctx, e);
}

static int
start_auto(struct io_ctx *ctx, struct err *e)
{
    /* One ring more may be one too many (locked memory, descriptors). */
    if (io_engine_probe(NULL) == IO_ENGINE_URING &&
        io_uring_start(ctx, NULL) == 0) {
        return 0;
    }
    return io_threads_start(ctx, e);
}

static int (*const start_kind[])(struct io_ctx *ctx, struct err *e) = {
    [IO_ENGINE_AUTO] = start_auto,
    [IO_ENGINE_URING] = start_uring,
    [IO_ENGINE_THREADS] = io_threads_start,
};

struct io_ctx *
io_ctx_new(enum io_engine_kind kind, unsigned depth, struct err *e)
{
    struct io_ctx *ctx;
    int r;

    if (depth < 1 || depth > DEPTH_MAX) {
        err_set(e, EINVAL, "I/O depth %u is not between 1 and %u", depth,
                DEPTH_MAX);
        return NULL;
    }
    ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL) {
        err_set(e, ENOMEM, "no memory for an I/O context");
        return NULL;
    }
    r = wake_open(&ctx->wake);
    if (r != 0) {
        err_set(e, -r, "cannot open a descriptor for an I/O context: %s",
                strerror(-r));
        goto fail_wake;
    }
    r = pthread_mutex_init(&ctx->inbox_lock, NULL);
    if (r != 0) {
        err_set(e, r, "cannot make a lock: %s", strerror(r));
        goto fail_lock;
    }
    ctx->depth = depth;
    io_list_init(&ctx->waiting);
    io_list_init(&ctx->inbox);
    if (start_kind[kind](ctx, e) != 0) {
        goto fail_start;
    }
    return ctx;

fail_start:
    pthread_mutex_destroy(&ctx->inbox_lock);
fail_lock:
    wake_close(&ctx->wake);
fail_wake:
    free(ctx);
    return NULL;
}

void
io_ctx_free(struct io_ctx *ctx)
{
    if (ctx == NULL) {
        return;
    }
    assert(ctx->pending == 0);
    if (ctx->engine->release != NULL) {
        ctx->engine->release(ctx);
    }
    pthread_mutex_destroy(&ctx->inbox_lock);
    wake_close(&ctx->wake);
    free(ctx);
}

static void
submit(struct io_ctx *ctx, struct io_op *op, enum io_op_kind kind)
{
    op->ctx = ctx;
    op->kind = (int)kind;
    op->done_bytes = 0;
    ctx->pending++;
    io_list_push(&ctx->waiting, op);
}

void
io_submit_read(struct io_ctx *ctx, struct io_op *op, int fd, void *buf,
               size_t len, uint64_t off)
{
    op->fd = fd;
    op->buf = buf;
    op->len_bytes = len;
    op->off = off;
    submit(ctx, op, IO_OP_READ);
}

void
io_submit_datasync(struct io_ctx *ctx, struct io_op *op, int fd)
{
    op->fd = fd;
    submit(ctx, op, IO_OP_DATASYNC);
}

void
io_submit_call(struct io_ctx *ctx, struct io_op *op, int (*fn)(void *),
               void *arg)
{
    op->call = fn;
    op->arg = arg;
    submit(ctx, op, IO_OP_CALL);
}

struct io_op *
io_next_waiting(struct io_ctx *ctx)
{
    struct io_op *op;

    if (ctx->in_flight == ctx->depth) {
        return NULL;
    }
    op = io_list_pop(&ctx->waiting);
    if (op != NULL) {
        ctx->in_flight++;
    }
    return op;
}

void
io_continue(struct io_ctx *ctx, struct io_op *op)
{
    ctx->in_flight--;
    io_list_push(&ctx->waiting, op);
}

void
io_complete(struct io_ctx *ctx, struct io_op *op, int64_t result)
{
    ctx->in_flight--;
    ctx->pending--;
    op->done(op, result); /* `op` may be gone now */
}

/* The bell rings under the lock: once the context has seen the operation, and
 * may be freed, nobody touches it from here. */
void
io_inbox_post(struct io_op *op)
{
    struct io_ctx *ctx = op->ctx;

    pthread_mutex_lock(&ctx->inbox_lock);
    if (ctx->inbox.head == NULL) {
        wake_signal(&ctx->wake);
    }
    io_list_push(&ctx->inbox, op);
    pthread_mutex_unlock(&ctx->inbox_lock);
}

static unsigned
drain_inbox(struct io_ctx *ctx)
{
    struct io_list list;
    struct io_op *op;
    unsigned n = 0;

    io_list_init(&list);
    pthread_mutex_lock(&ctx->inbox_lock);
    io_list_take_all(&list, &ctx->inbox);
    pthread_mutex_unlock(&ctx->inbox_lock);
    while ((op = io_list_pop(&list)) != NULL) {
        io_complete(ctx, op, op->result);
        n++;
    }
    return n;
}

void
io_kick(struct io_ctx *ctx)
{
    ctx->engine->kick(ctx);
}

unsigned
io_pending(const struct io_ctx *ctx)
{
    return ctx->pending;
}

int
io_ctx_fd(const struct io_ctx *ctx)
{
    return ctx->wake.fd;
}

/*
 * The bell is silenced before the queues are looked at: what completes after
 * the look rings again. What done() submitted, and what waited for room, is
 * handed over before we return, so that the caller may go and poll.
 */
unsigned
io_reap(struct io_ctx *ctx, bool wait)
{
    unsigned n = 0;

    io_kick(ctx);
    for (;;) {
        struct pollfd bell = {.fd = ctx->wake.fd, .events = POLLIN};

        wake_clear(&ctx->wake);
        if (ctx->engine->drain != NULL) {
            n += ctx->engine->drain(ctx);
        }
        n += drain_inbox(ctx);
        io_kick(ctx);
        if (n > 0 || !wait || ctx->pending == 0) {
            return n;
        }
        (void)poll(&bell, 1, -1);
    }
}
