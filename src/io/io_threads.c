/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The portable engine: every operation goes to the worker pool and comes back
 * through the context's inbox. No state of its own.
 */
#include "io/engine.h"
#include "io/pool.h"

static void
threads_kick(struct io_ctx *ctx)
{
    struct io_list list;
    struct io_op *op;

    io_list_init(&list);
    while ((op = io_next_waiting(ctx)) != NULL) {
        io_list_push(&list, op);
    }
    pool_run(&list);
}

static const struct io_engine threads_engine = {
    .kick = threads_kick,
};

int
io_threads_start(struct io_ctx *ctx, struct err *e)
{
    (void)e;
    ctx->engine = &threads_engine;
    return 0;
}
