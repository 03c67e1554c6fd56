/* SPDX-License-Identifier: BSD-2-Clause */
/* Stands in for io_uring.c where the build has no ring. No state. */
#include <errno.h>

#include "io/engine.h"

int
io_uring_try(struct err *why)
{
    return err_set(why, ENOSYS,
                   "this build has no io_uring (it needs Linux and liburing)");
}

int
io_uring_start(struct io_ctx *ctx, struct err *e)
{
    (void)ctx;
    return io_uring_try(e);
}
