/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The life of a session: handshake, then the loop
 *
 *     take requests -> carry them out -> send the replies -> wait
 *
 * where each step handles everything there is. The thread waits in one place
 * only (wait_for_more), for its peer and for the engine. A peer that does not
 * read its replies stops this thread in a send, with bounded memory, and
 * nobody else.
 */
#include "nbd/session.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/mem.h"
#include "nbd/limits.h"

/* Operations in the ring; more wait in the context's own queue. */
#define IO_DEPTH 64u

/* A payload at least this long that has not all come yet is taken in pieces;
 * a shorter one is waited for. */
#define STREAM_MIN_BYTES (UINT32_C(128) << 10)

/* Free room at the buffer's end below which what is in it moves to the front
 * before more is received. */
#define IN_ROOM_MIN_BYTES (UINT32_C(256) << 10)

/* An idle session gives its buffers' memory back after this. */
#define IDLE_S 1

/* ---- the engine ---- */

struct io_ctx *
session_io(struct session *s)
{
    struct err e = {0};

    if (s->io == NULL) {
        s->io = io_ctx_new(s->engine, IO_DEPTH, &e);
        if (s->io == NULL) {
            log_debug("session without I/O engine: %s", e.text);
        }
    }
    return s->io;
}

void
session_completed(struct session *s, struct completion *c)
{
    c->next = NULL;
    *s->completed_end = c;
    s->completed_end = &c->next;
}

/* Answers what has completed. Each of them may submit or wait anew. */
static void
finish_completed(struct session *s)
{
    struct completion *c;

    while ((c = s->completed) != NULL) {
        s->completed = c->next;
        if (s->completed == NULL) {
            s->completed_end = &s->completed;
        }
        c->finish(s, c);
    }
}

void
session_wait_one(struct session *s)
{
    if (s->completed == NULL) {
        reply_flush(&s->out, false); /* others do not wait for this one */
    }
    if (s->completed == NULL) {
        io_reap(s->io, true);
    }
    finish_completed(s);
}

bool
session_stopping(const struct session *s)
{
    return __atomic_load_n(s->handshake->stopping, __ATOMIC_RELAXED);
}

bool
session_pending_begin(struct session *s, uint64_t bytes)
{
    while (s->pending_count > 0 &&
           (s->pending_count >= SESSION_PENDING_MAX ||
            s->pending_bytes + bytes > SESSION_PENDING_BYTES)) {
        session_wait_one(s);
    }
    uint64_t all = atomic_fetch_add_explicit(s->pending_bytes_all, bytes,
                                             memory_order_relaxed);

    if (all + bytes > SESSION_PENDING_BYTES_ALL) {
        atomic_fetch_sub_explicit(s->pending_bytes_all, bytes,
                                  memory_order_relaxed);
        return false;
    }
    s->pending_count++;
    s->pending_bytes += bytes;
    return true;
}

void
session_pending_end(struct session *s, uint64_t bytes)
{
    s->pending_count--;
    s->pending_bytes -= bytes;
    atomic_fetch_sub_explicit(s->pending_bytes_all, bytes,
                              memory_order_relaxed);
}

/* ---- answers ---- */

void
session_count(struct session *s, const struct request *r, uint32_t wire_error)
{
    if (r->type < NBD_CMD_COUNT) {
        stats_count(&s->stats, r->type, r->len_bytes, (int)wire_error,
                    monotonic_ns() - r->start_ns);
    }
}

void
session_answer(struct session *s, const struct request *r, int result)
{
    bool fast = (r->flags & NBD_CMD_FLAG_FAST_ZERO) != 0;
    uint32_t error = request_wire_error(result, fast);

    reply_status(&s->out, r, error, result != 0 ? strerror(-result) : NULL);
    session_count(s, r, error);
}

/* ---- syncs ---- */

static void
sync_finish(struct session *s, struct completion *c)
{
    struct sync_group *g = container_of(c, struct sync_group, completion);

    session_pending_end(s, 0);
    for (unsigned i = 0; i < g->count; i++) {
        session_answer(s, &g->request[i], g->result);
    }
    free(g);
}

static void
sync_done(struct io_op *op, int64_t result)
{
    struct sync_group *g = container_of(op, struct sync_group, op);

    g->result = (int)result;
    session_completed(g->session, &g->completion);
}

/* On the pool. A failure is on record before any later sync can succeed
 * (S8), whichever session asks. */
static int
sync_run(void *arg)
{
    return disk_flush(arg);
}

void
session_submit_sync(struct session *s)
{
    struct sync_group *g = s->sync;

    if (g == NULL) {
        return;
    }
    s->sync = NULL;
    g->op.done = sync_done;
    g->completion.finish = sync_finish;
    if (session_io(s) != NULL && session_pending_begin(s, 0)) {
        io_submit_call(s->io, &g->op, sync_run, s->disk);
        return;
    }
    int err = disk_flush(s->disk);

    for (unsigned i = 0; i < g->count; i++) {
        session_answer(s, &g->request[i], err);
    }
    free(g);
}

void
session_answer_synced(struct session *s, const struct request *r)
{
    if (disk_flush_fd(s->disk) < 0) {
        session_answer(s, r, 0);
        return;
    }
    if (s->sync == NULL) {
        s->sync = malloc(sizeof(*s->sync));
        if (s->sync == NULL) {
            session_answer(s, r, disk_flush(s->disk));
            return;
        }
        s->sync->session = s;
        s->sync->count = 0;
    }
    s->sync->request[s->sync->count++] = *r;
    if (s->sync->count == SESSION_SYNCS) {
        session_submit_sync(s);
    }
}

/* ---- input ---- */

/* Receives into the buffer's free end. Sets `ended` at end of file or on an
 * error. Returns -EAGAIN if there was nothing (or the session is idle). */
static int
receive(struct session *s, bool wait)
{
    ssize_t n = stream_recv(&s->stream, s->in + s->in_end,
                            SESSION_IN_BYTES - s->in_end, wait);

    if (n == -EAGAIN) {
        return -EAGAIN;
    }
    if (n <= 0) {
        s->ended = true;
        s->error = (int)n;
        return 0;
    }
    s->in_end += (size_t)n;
    s->in_used = true;
    stats_received(&s->stats, (uint64_t)n);
    s->now_ns = monotonic_ns();
    return 0;
}

/* Moves what is in the buffer to its front if that makes needed room. */
static void
make_room(struct session *s, size_t room)
{
    if (s->in_begin == s->in_end) {
        s->in_begin = s->in_end = 0;
    } else if (SESSION_IN_BYTES - s->in_end < room) {
        memmove(s->in, s->in + s->in_begin, s->in_end - s->in_begin);
        s->in_end -= s->in_begin;
        s->in_begin = 0;
    }
}

/* Answers and submits all there is, and sends the replies. */
static void
settle(struct session *s)
{
    finish_completed(s);
    session_submit_sync(s);
    if (s->io != NULL) {
        io_kick(s->io);
    }
    reply_flush(&s->out, false);
}

static void
give_memory_back(struct session *s)
{
    if (s->in_used && s->in_begin == s->in_end) {
        mem_forget(s->in, SESSION_IN_BYTES);
        reply_queue_trim(&s->out);
        s->in_used = false;
    }
}

/* Until the peer has sent something or an operation has completed. */
static void
wait_for_more(struct session *s)
{
    if (s->completed != NULL) {
        return; /* it came while the last replies were sent */
    }
    if (s->pending_count == 0) {
        if (receive(s, true) == -EAGAIN) {
            give_memory_back(s);
        }
        return;
    }
    struct pollfd p[2] = {
        {.fd = s->stream.in_fd, .events = POLLIN},
        {.fd = io_ctx_fd(s->io), .events = POLLIN},
    };

    if (poll(p, 2, -1) < 0 && errno != EINTR) {
        s->error = -errno;
        s->ended = true;
        return;
    }
    if (p[1].revents != 0) {
        io_reap(s->io, false);
    }
    if (p[0].revents != 0) {
        receive(s, false);
    }
}

/*
 * The peer takes no more for now. What the engine has done is noted down
 * meanwhile: a finished read that nobody looks at would keep its pin, and with
 * it everybody's trimmed space.
 */
static int
wait_for_peer(void *arg)
{
    struct session *s = arg;
    struct pollfd p[2] = {
        {.fd = s->stream.out_fd, .events = POLLOUT},
        {.fd = s->io != NULL ? io_ctx_fd(s->io) : -1, .events = POLLIN},
    };

    for (;;) {
        if (poll(p, 2, -1) < 0 && errno != EINTR) {
            return -errno;
        }
        if (p[1].revents != 0) {
            io_reap(s->io, false);
        }
        if (p[0].revents != 0) {
            return 0;
        }
    }
}

/* ---- payloads taken piece by piece ---- */

/* Bytes of the payload, of which `have` are in the buffer and `left` are still
 * to be taken, that make a piece ending on a grain of the export. */
static size_t
piece_bytes(uint64_t off, size_t have, uint64_t left)
{
    if (have >= left) {
        return (size_t)left;
    }
    uint64_t end = round_down(off + have, 4096);

    return end > off ? (size_t)(end - off) : 0;
}

/*
 * Takes a payload that the buffer need not hold: writes it as it comes, or
 * drains it if the request is refused. If a piece fails the rest is drained
 * and the error answered in band.
 */
static void
take_payload(struct session *s, const struct request *r)
{
    uint64_t done = 0, total = r->payload_bytes;
    int result = 0;

    while (done < total) {
        size_t have = s->in_end - s->in_begin;
        size_t n = r->error != 0 || result != 0
                       ? (size_t)min_u64(have, total - done)
                       : piece_bytes(r->off + done, have, total - done);

        if (n == 0) {
            settle(s);
            make_room(s, IN_ROOM_MIN_BYTES);
            wait_for_more(s);
            if (s->ended || s->out.error != 0) {
                return;
            }
            continue;
        }
        if (r->error == 0 && result == 0) {
            struct layer_write w = {
                .off = r->off + done,
                .len_bytes = (uint32_t)n,
                .buf = s->in + s->in_begin,
            };

            disk_write(s->disk, &w, 1);
            result = w.result;
        }
        s->in_begin += n;
        done += n;
    }
    if (r->error != 0) {
        reply_status(&s->out, r, r->error, r->why);
        session_count(s, r, r->error);
    } else if (result == 0 && write_must_sync(s, r)) {
        session_answer_synced(s, r);
    } else {
        session_answer(s, r, result);
    }
}

/* ---- the loop ---- */

/* What take_one found. */
enum taken {
    TAKEN,      /* a request; look for the next */
    INCOMPLETE, /* not all of it is there yet */
};

static enum taken
take_one(struct session *s)
{
    size_t have = s->in_end - s->in_begin;
    size_t header = request_header_bytes(&s->neg);
    struct request r;

    if (have < header) {
        return INCOMPLETE;
    }
    if (!request_decode(s->in + s->in_begin, &s->neg, &r) ||
        r.payload_bytes > LIMIT_DRAIN_BYTES) {
        s->error = -EPROTO;
        s->ended = true;
        return INCOMPLETE;
    }
    r.start_ns = s->now_ns;
    if (r.type == NBD_CMD_DISC) { /* obeyed however it is dressed */
        session_count(s, &r, 0);
        s->ended = true;
        return INCOMPLETE;
    }
    if (r.payload_bytes <= have - header) {
        const uint8_t *payload = s->in + s->in_begin + header;

        s->in_begin += header + (size_t)r.payload_bytes;
        command_run(s, &r, payload);
        return TAKEN;
    }
    /* Short payloads, and those that another command than a write must see
     * whole, are waited for. */
    bool whole = r.type != NBD_CMD_WRITE && r.error == 0;

    if (whole && r.payload_bytes > STREAM_MIN_BYTES) {
        r.error = NBD_EINVAL;
        r.why = "the payload is too long for this command";
        whole = false;
    }
    if (whole || r.payload_bytes < STREAM_MIN_BYTES) {
        return INCOMPLETE;
    }
    s->in_begin += header;
    write_commit(s);
    take_payload(s, &r);
    return TAKEN;
}

static void
take_all(struct session *s)
{
    while (!s->ended && s->out.error == 0 && take_one(s) == TAKEN) {
    }
    write_commit(s);
    settle(s);
    make_room(s, IN_ROOM_MIN_BYTES);
}

/* Finishes what is under way; its replies are still sent. */
static void
drain(struct session *s)
{
    write_commit(s);
    settle(s);
    while (s->pending_count > 0) {
        session_wait_one(s);
        settle(s);
    }
}

static int
transmission(struct session *s)
{
    struct timeval idle = {.tv_sec = IDLE_S};

    s->disk = s->neg.export->disk;
    s->completed_end = &s->completed;
    s->stream.stall = wait_for_peer;
    s->stream.stall_arg = s;
    s->in = mem_reserve(SESSION_IN_BYTES);
    if (s->in == NULL ||
        reply_queue_init(&s->out, &s->stream, &s->neg, &s->stats) != 0) {
        return -ENOMEM;
    }
    if (s->stream.is_socket &&
        setsockopt(s->stream.in_fd, SOL_SOCKET, SO_RCVTIMEO, &idle,
                   sizeof(idle)) == 0) {
        s->stream.has_idle_tick = true;
    }
    while (!s->ended && s->out.error == 0) {
        wait_for_more(s);
        take_all(s);
    }
    drain(s);
    return s->error != 0 ? s->error : s->out.error;
}

int
session_run(struct session *s)
{
    int err;

    if (s->handshake_s != 0) {
        s->stream.deadline_ns = monotonic_ns() +
                                s->handshake_s * UINT64_C(1000000000);
    }
    splicer_init(&s->splicer);
    err = handshake_run(&s->stream, s->handshake, &s->neg);
    s->stream.deadline_ns = 0;
    if (err == 0) {
        err = transmission(s);
    } else if (err > 0) {
        err = 0;
    }
    io_ctx_free(s->io);
    splicer_free(&s->splicer);
    reply_queue_free(&s->out);
    mem_release(s->in, SESSION_IN_BYTES);
    return err;
}
