/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reading a disk (disk.h): a request is cut into steps, a step into pieces
 * that each lie in one place. Steps bound the memory and the time of a large
 * request over small extents.
 *
 * The asynchronous read runs on the thread of its io context; only the
 * planning of a step whose tables are not in memory, and the unpacking of
 * compressed pieces, run on the pool, never at the same time as the former.
 */
#include "blk/disk_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* What the top says, before the layers below are asked for its gaps. */
struct top_run {
    struct disk_source *source;
    struct disk_plan plan;
};

static int
top_extent(void *arg, const struct extent *e)
{
    struct top_run *run = arg;
    struct disk_piece piece;
    int err = disk_source_piece(run->source, e, &piece);

    if (err != 0) {
        return err;
    }
    return disk_plan_add(&run->plan, &piece) ? 0 : 1;
}

/*
 * The top is asked first and completely, so that a slow look at the tables of
 * the layers below never runs inside its extents().
 */
static int
plan_top(struct disk *d, uint64_t off, uint64_t len, bool wait,
         struct disk_plan *ret)
{
    struct layer *top = d->top.layer;
    struct top_run run;
    int err;

    run.source = &d->top;
    disk_plan_init(&run.plan);
    err = top->ops->extents(top, off, len, top_extent, &run);
    if (err < 0) {
        return err;
    }
    for (unsigned i = 0; i < run.plan.count; i++) {
        struct disk_piece *piece = &run.plan.pieces[i];
        uint64_t before = ret->covered_bytes;

        if (piece->kind != EXTENT_BACKING) {
            disk_plan_add(ret, piece);
        } else {
            err = disk_map_plan(&d->map, off, piece->len_bytes, wait, ret);
        }
        if (err != 0 || ret->covered_bytes - before < piece->len_bytes) {
            break;
        }
        off += piece->len_bytes;
    }
    return err;
}

int
disk_plan(struct disk *d, uint64_t off, uint64_t len, bool wait,
          struct disk_plan *ret)
{
    int err = 0;

    disk_plan_init(ret);
    if (!d->has_top) {
        err = disk_map_plan(&d->map, off, len, wait, ret);
    } else if (d->top.flat) {
        disk_source_plan(&d->top, off, len, ret);
    } else {
        err = plan_top(d, off, len, wait, ret);
    }
    if (ret->covered_bytes > 0) {
        return 0; /* an error later in the range is met in its own step */
    }
    return err != 0 ? err : -EIO;
}

/* ---- one piece ---- */

/* What the end of the file means after `got` bytes of the piece. */
static int
piece_end(const struct disk_piece *piece, char *buf, size_t got)
{
    if (got < piece->len_bytes) {
        if (!piece->zero_past_eof) {
            return -EIO;
        }
        memset(buf + got, 0, piece->len_bytes - got);
    }
    return 0;
}

static int
piece_unpack(const struct disk_piece *piece, char *buf, uint64_t off)
{
    struct layer *l = piece->file->layer;
    struct extent e = {
        .guest_off = off,
        .len_bytes = piece->len_bytes,
        .kind = EXTENT_PACKED,
        .fd = -1,
        .layer = l,
        .packed = piece->host_off,
        .packed_off = piece->packed_off,
    };

    return l->ops->read_packed(l, &e, buf, piece->len_bytes);
}

static int
piece_read_cached(const struct disk_piece *piece, char *buf, uint64_t off)
{
    size_t got = 0;
    ssize_t n = 1;

    (void)off;
    if (piece->kind == EXTENT_ZERO) {
        memset(buf, 0, piece->len_bytes);
        return 0;
    }
    if (piece->kind == EXTENT_PACKED) {
        return -EAGAIN;
    }
    while (got < piece->len_bytes && n > 0) {
        n = file_pread_cached(disk_file_fd(piece->file), buf + got,
                              piece->len_bytes - got, piece->host_off + got,
                              &piece->file->may_wait);
        got += n > 0 ? (size_t)n : 0;
    }
    return n < 0 ? (int)n : piece_end(piece, buf, got);
}

static int
piece_read(const struct disk_piece *piece, char *buf, uint64_t off)
{
    ssize_t n;

    if (piece->kind == EXTENT_ZERO) {
        memset(buf, 0, piece->len_bytes);
        return 0;
    }
    if (piece->kind == EXTENT_PACKED) {
        return piece_unpack(piece, buf, off);
    }
    n = file_pread(disk_file_fd(piece->file), buf, piece->len_bytes,
                   piece->host_off);
    return n < 0 ? (int)n : piece_end(piece, buf, (size_t)n);
}

/* ---- at once ---- */

static int
plan_read(const struct disk_plan *plan, char *buf, uint64_t off,
          int (*read)(const struct disk_piece *, char *, uint64_t))
{
    int err = 0;

    for (unsigned i = 0; i < plan->count && err == 0; i++) {
        err = read(&plan->pieces[i], buf, off);
        buf += plan->pieces[i].len_bytes;
        off += plan->pieces[i].len_bytes;
    }
    return err;
}

int
disk_read_cached(struct disk *d, void *buf, uint64_t off, size_t len)
{
    unsigned pin = disk_pin(d);
    struct disk_plan plan;
    char *to = buf;
    int err = 0;

    while (len > 0 && err == 0) {
        err = disk_plan(d, off, len, false, &plan);
        if (err == 0) {
            err = plan_read(&plan, to, off, piece_read_cached);
            to += plan.covered_bytes;
            off += plan.covered_bytes;
            len -= plan.covered_bytes;
        }
    }
    disk_unpin(d, pin);
    return err;
}

int
disk_read(struct disk *d, void *buf, uint64_t off, size_t len)
{
    unsigned pin = disk_pin(d);
    struct disk_plan plan;
    char *to = buf;
    int err = 0;

    while (len > 0 && err == 0) {
        err = disk_plan(d, off, len, true, &plan);
        if (err == 0) {
            err = plan_read(&plan, to, off, piece_read);
            to += plan.covered_bytes;
            off += plan.covered_bytes;
            len -= plan.covered_bytes;
        }
    }
    disk_unpin(d, pin);
    return err;
}

int
disk_read_below(void *arg, void *buf, uint64_t off, size_t len)
{
    struct disk *d = arg;
    struct disk_plan plan;
    char *to = buf;
    int err = 0;

    while (len > 0 && err == 0) {
        disk_plan_init(&plan);
        err = disk_map_plan(&d->map, off, len, true, &plan);
        if (plan.covered_bytes > 0) {
            err = plan_read(&plan, to, off, piece_read);
            to += plan.covered_bytes;
            off += plan.covered_bytes;
            len -= plan.covered_bytes;
        }
    }
    return err;
}

/* ---- through the I/O engine ---- */

/* A piece that is waited for. A read owns an array of them, and frees it before
 * its next step. */
struct disk_read_piece {
    struct io_op op;
    struct disk_read *read; /* borrowed, its owner */
    struct disk_piece piece;
    char *buf; /* borrowed from the caller */
    uint64_t off;
};

static bool read_on(struct disk_read *r);

/* On the context's thread, inside io_reap. */
static void
read_finish(struct disk_read *r)
{
    disk_unpin(r->disk, r->pin);
    r->done(r, r->result);
}

static void
read_continue(struct disk_read *r)
{
    free(r->pieces);
    r->pieces = NULL;
    if (read_on(r)) {
        read_finish(r);
    }
}

static void
read_piece_done(struct io_op *op, int64_t result)
{
    struct disk_read_piece *p = container_of(op, struct disk_read_piece, op);
    struct disk_read *r = p->read;
    int err = result < 0 ? (int)result : 0;

    if (err == 0 && p->piece.kind == EXTENT_DATA) {
        err = piece_end(&p->piece, p->buf, (size_t)result);
    }
    if (err != 0 && r->result == 0) {
        r->result = err;
    }
    if (--r->left == 0) {
        read_continue(r);
    }
}

static int
read_piece_unpack(void *arg)
{
    struct disk_read_piece *p = arg;

    return piece_unpack(&p->piece, p->buf, p->off);
}

static void
read_piece_submit(struct disk_read_piece *p)
{
    struct io_ctx *io = p->read->io;

    p->op.done = read_piece_done;
    if (p->piece.kind == EXTENT_PACKED) {
        io_submit_call(io, &p->op, read_piece_unpack, p);
    } else {
        io_submit_read(io, &p->op, disk_file_fd(p->piece.file), p->buf,
                       p->piece.len_bytes, p->piece.host_off);
    }
}

/* Starts all pieces of a plan and moves the read past them. */
static int
read_issue(struct disk_read *r, const struct disk_plan *plan)
{
    struct disk_read_piece *pieces = NULL;
    unsigned count = 0;

    for (unsigned i = 0; i < plan->count; i++) {
        count += plan->pieces[i].kind != EXTENT_ZERO;
    }
    if (count > 0) {
        pieces = malloc(count * sizeof(*pieces));
        if (pieces == NULL) {
            return -ENOMEM;
        }
    }
    r->left = count;
    for (unsigned i = 0, k = 0; i < plan->count; i++) {
        const struct disk_piece *piece = &plan->pieces[i];

        if (piece->kind == EXTENT_ZERO) {
            memset(r->buf, 0, piece->len_bytes);
        } else {
            struct disk_read_piece *p = &pieces[k++];

            p->read = r;
            p->piece = *piece;
            p->buf = r->buf;
            p->off = r->off;
        }
        r->buf += piece->len_bytes;
        r->off += piece->len_bytes;
        r->len -= piece->len_bytes;
    }
    r->pieces = pieces;
    for (unsigned k = 0; k < count; k++) {
        read_piece_submit(&pieces[k]);
    }
    return 0;
}

/* On the pool. */
static int
plan_call(void *arg)
{
    struct disk_read *r = arg;

    return disk_plan(r->disk, r->off, r->len, true, r->plan);
}

static void
plan_call_done(struct io_op *op, int64_t result)
{
    struct disk_read *r = container_of(op, struct disk_read, self);

    r->result = result < 0 ? (int)result : read_issue(r, r->plan);
    free(r->plan);
    r->plan = NULL;
    if (r->left == 0) {
        read_continue(r);
    }
}

/* Has the next step planned by a thread that may wait. */
static int
read_plan_later(struct disk_read *r)
{
    r->plan = malloc(sizeof(*r->plan));
    if (r->plan == NULL) {
        return -ENOMEM;
    }
    r->left = 0;
    r->self.done = plan_call_done;
    io_submit_call(r->io, &r->self, plan_call, r);
    return 0;
}

/* Starts steps until something is under way; true if there is nothing left to
 * wait for. r->pieces is NULL on entry. */
static bool
read_on(struct disk_read *r)
{
    while (r->result == 0 && r->len > 0) {
        struct disk_plan plan;
        int err = disk_plan(r->disk, r->off, r->len, false, &plan);

        if (err == -EAGAIN) {
            r->result = read_plan_later(r);
            return r->result != 0;
        }
        r->result = err != 0 ? err : read_issue(r, &plan);
        if (r->result == 0 && r->left > 0) {
            return false;
        }
    }
    return true;
}

static int
nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void
nothing_done(struct io_op *op, int64_t result)
{
    (void)result;
    read_finish(container_of(op, struct disk_read, self));
}

void
disk_read_start(struct disk_read *r, struct disk *d, struct io_ctx *io,
                void *buf, uint64_t off, size_t len)
{
    r->disk = d;
    r->io = io;
    r->buf = buf;
    r->off = off;
    r->len = len;
    r->left = 0;
    r->result = 0;
    r->plan = NULL;
    r->pieces = NULL;
    r->pin = disk_pin(d);
    if (read_on(r)) {
        r->self.done = nothing_done;
        io_submit_call(io, &r->self, nothing, NULL);
    }
}
