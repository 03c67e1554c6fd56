/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One handler per command of the transmission phase; the longer ones have
 * files of their own (read.c, write.c, status.c). Requests arrive checked
 * (request.c): ranges lie within the export, flags are ones that were offered.
 * DISC does not come here: the loop in session.c ends at it.
 */
#include "nbd/session.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"

/* A zero or trim up to this is done in place; a larger one may take long
 * enough to be noticed, and goes to the engine. */
#define ZERO_INLINE_BYTES (UINT64_C(1) << 20)

/* ---- trim and write-zeroes ---- */

/* Zeroes that must stay allocated are written out: this much at a time, so
 * that other calls get their turn in the pool. The others are quick at any
 * length. */
#define ZERO_SLICE_BYTES (UINT64_C(16) << 20)

struct zero_call {
    struct io_op op;
    struct completion completion;
    struct session *session; /* borrowed */
    struct request request;
    unsigned flags;
    uint64_t done_bytes, slice_bytes;
    int result;
};

static unsigned
zero_flags(const struct request *r)
{
    unsigned flags = 0;

    if (r->type == NBD_CMD_TRIM) {
        flags |= LAYER_ZERO_TRIM;
    }
    if (r->flags & NBD_CMD_FLAG_NO_HOLE) {
        flags |= LAYER_ZERO_NO_HOLE;
    }
    if (r->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= LAYER_ZERO_FAST;
    }
    return flags;
}

static void
zero_answer(struct session *s, const struct request *r, int result)
{
    if (result == 0 && write_must_sync(s, r)) {
        session_answer_synced(s, r);
    } else {
        session_answer(s, r, result);
    }
}

/* On the pool. */
static int
zero_call_run(void *arg)
{
    struct zero_call *z = arg;

    return disk_zero(z->session->disk, z->request.off + z->done_bytes,
                     z->slice_bytes, z->flags);
}

static void
zero_call_submit(struct zero_call *z)
{
    uint64_t left = z->request.len_bytes - z->done_bytes;

    z->slice_bytes = z->flags & LAYER_ZERO_NO_HOLE
                         ? min_u64(left, ZERO_SLICE_BYTES)
                         : left;
    io_submit_call(z->session->io, &z->op, zero_call_run, z);
}

static void
zero_call_finish(struct session *s, struct completion *c)
{
    struct zero_call *z = container_of(c, struct zero_call, completion);

    z->done_bytes += z->slice_bytes;
    if (z->result == 0 && z->done_bytes < z->request.len_bytes) {
        if (!session_stopping(s) && s->out.error == 0) {
            zero_call_submit(z);
            return;
        }
        z->result = -ESHUTDOWN;
    }
    s->zero_count--;
    session_pending_end(s, 0);
    zero_answer(s, &z->request, z->result);
    free(z);
}

static void
zero_call_done(struct io_op *op, int64_t result)
{
    struct zero_call *z = container_of(op, struct zero_call, op);

    z->result = (int)result;
    session_completed(z->session, &z->completion);
}

/* Hands it to the pool; false if that can't be. */
static bool
zero_call_start(struct session *s, const struct request *r)
{
    if (session_io(s) == NULL) {
        return false;
    }
    while (s->zero_count >= SESSION_ZEROES) {
        session_wait_one(s);
    }
    if (session_stopping(s) || s->out.error != 0) {
        session_answer(s, r, -ESHUTDOWN);
        return true;
    }
    struct zero_call *z = calloc(1, sizeof(*z));

    if (z == NULL || !session_pending_begin(s, 0)) {
        free(z);
        return false;
    }
    s->zero_count++;
    z->op.done = zero_call_done;
    z->completion.finish = zero_call_finish;
    z->session = s;
    z->request = *r;
    z->flags = zero_flags(r);
    zero_call_submit(z);
    return true;
}

static void
run_zero(struct session *s, const struct request *r, const uint8_t *payload)
{
    (void)payload;
    if (r->len_bytes == 0) {
        session_answer(s, r, 0);
    } else if (r->len_bytes <= ZERO_INLINE_BYTES || !zero_call_start(s, r)) {
        zero_answer(s, r,
                    disk_zero(s->disk, r->off, r->len_bytes, zero_flags(r)));
    }
}

/* ---- the short ones ---- */

static void
run_read(struct session *s, const struct request *r, const uint8_t *payload)
{
    (void)payload;
    read_run(s, r);
}

static void
run_flush(struct session *s, const struct request *r, const uint8_t *payload)
{
    (void)payload;
    write_commit(s);
    if (s->neg.export->ignore_flush) {
        session_answer(s, r, 0);
    } else {
        session_answer_synced(s, r);
    }
}

static void
run_cache(struct session *s, const struct request *r, const uint8_t *payload)
{
    (void)payload;
    if (r->len_bytes > 0) {
        disk_will_need(s->disk, r->off, r->len_bytes);
    }
    session_answer(s, r, 0);
}

typedef void command_fn(struct session *s, const struct request *r,
                        const uint8_t *payload);

static command_fn *const handlers[NBD_CMD_COUNT] = {
    [NBD_CMD_READ] = run_read,           [NBD_CMD_WRITE] = write_add,
    [NBD_CMD_FLUSH] = run_flush,         [NBD_CMD_TRIM] = run_zero,
    [NBD_CMD_CACHE] = run_cache,         [NBD_CMD_WRITE_ZEROES] = run_zero,
    [NBD_CMD_BLOCK_STATUS] = status_run,
};

void
command_run(struct session *s, const struct request *r, const uint8_t *payload)
{
    if (r->error != 0) {
        reply_status(&s->out, r, r->error, r->why);
        session_count(s, r, r->error);
        return;
    }
    handlers[r->type](s, r, payload);
}
