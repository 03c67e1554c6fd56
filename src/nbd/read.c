/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads, in four ways:
 * - cached: straight from the page cache into the reply queue. Most of them.
 * - pending: what must wait for a device goes to the engine with a buffer of
 *   its own, and is answered when it comes back.
 * - by reference: large reads of immutable layers, never copied by us.
 * - long: more than the queue holds, piece by piece, waiting in place.
 * With structured replies, holes are sent as holes.
 */
#include "nbd/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"

/* From here on the pages are handed over instead of copied. Below it two more
 * system calls cost more than the copy. */
#define REFERENCE_MIN_BYTES (UINT32_C(32) << 10)

/* From here on a read asks for holes; shorter ones only look whether all they
 * read is zero. */
#define SPARSE_MIN_BYTES (UINT32_C(64) << 10)

/* A hole shorter than this inside a read is sent as data: one chunk less. */
#define SPARSE_HOLE_BYTES (UINT32_C(16) << 10)

/* Extents looked at for one chunked read. */
#define SPARSE_EXTENTS 32u

/* Longer reads share a limit over all sessions, for what their replies take;
 * beyond it they are sent in pieces. */
#define BIG_MIN_BYTES (UINT32_C(1) << 20)

/* Piece of a long read. */
#define LONG_PIECE_BYTES (UINT32_C(1) << 20)

/* A pending read up to this is copied into the queue when it comes back. */
#define PENDING_COPY_BYTES (UINT32_C(64) << 10)

static bool
is_zero(const uint8_t *p, size_t len)
{
    /* A buffer is zero if its first byte is and it equals itself moved by
     * one; memcmp stops at the first difference, mostly at once. */
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static bool
wants_holes(const struct session *s, const struct request *r)
{
    return s->neg.structured && !(r->flags & NBD_CMD_FLAG_DF);
}

/* ---- pending ---- */

struct pending_read {
    struct disk_read read;
    struct completion completion;
    int result;
    struct session *session; /* borrowed */
    struct request request;
    uint8_t bytes[]; /* REPLY_READ_HEADER_MAX, then the data */
};

static uint64_t
pending_cost(const struct request *r)
{
    return sizeof(struct pending_read) + REPLY_READ_HEADER_MAX + r->len_bytes;
}

static void
pending_finish(struct session *s, struct completion *c)
{
    struct pending_read *p = container_of(c, struct pending_read, completion);
    const struct request *r = &p->request;
    uint32_t len = (uint32_t)r->len_bytes;
    uint8_t *data = p->bytes + REPLY_READ_HEADER_MAX;
    int result = p->result;

    session_pending_end(s, pending_cost(r));
    if (result != 0) {
        session_answer(s, r, result);
    } else if (wants_holes(s, r) && is_zero(data, len)) {
        reply_hole(&s->out, r, r->off, len, true);
        session_count(s, r, 0);
    } else {
        size_t header = reply_read_header_bytes(&s->neg);
        uint8_t *begin = data - header;

        reply_read_header(&s->neg, begin, r, r->off, len, true);
        if (len <= PENDING_COPY_BYTES) {
            memcpy(reply_room(&s->out, header + len), begin, header + len);
            reply_commit(&s->out, header + len);
        } else {
            reply_send(&s->out, begin, header + len);
        }
        session_count(s, r, 0);
    }
    free(p);
}

static void
pending_done(struct disk_read *read, int result)
{
    struct pending_read *p = container_of(read, struct pending_read, read);

    p->result = result;
    session_completed(p->session, &p->completion);
}

static bool
read_pending(struct session *s, const struct request *r)
{
    if (session_io(s) == NULL || !session_pending_begin(s, pending_cost(r))) {
        return false;
    }
    struct pending_read *p =
        malloc(sizeof(*p) + REPLY_READ_HEADER_MAX + r->len_bytes);

    if (p == NULL) {
        session_pending_end(s, pending_cost(r));
        return false;
    }
    p->read.done = pending_done;
    p->completion.finish = pending_finish;
    p->session = s;
    p->request = *r;
    disk_read_start(&p->read, s->disk, s->io, p->bytes + REPLY_READ_HEADER_MAX,
                    r->off, r->len_bytes);
    return true;
}

/* ---- cached, and waiting in place where there is no engine ---- */

static void
read_whole(struct session *s, const struct request *r)
{
    uint32_t len = (uint32_t)r->len_bytes;
    size_t header = reply_read_header_bytes(&s->neg);
    uint8_t *p = reply_room(&s->out, header + len);
    int err = disk_read_cached(s->disk, p + header, r->off, len);

    if (err == -EAGAIN) {
        if (read_pending(s, r)) {
            return;
        }
        /* Making room for it may have sent the queue. */
        p = reply_room(&s->out, header + len);
        err = disk_read(s->disk, p + header, r->off, len);
    }
    if (err != 0) {
        session_answer(s, r, err);
        return;
    }
    if (wants_holes(s, r) && is_zero(p + header, len)) {
        reply_hole(&s->out, r, r->off, len, true);
    } else {
        reply_read_header(&s->neg, p, r, r->off, len, true);
        reply_commit(&s->out, header + len);
    }
    session_count(s, r, 0);
}

/* ---- by reference ---- */

/*
 * Queues [off, off + len) of the read as one piece, by reference. Returns
 * false, with nothing done, if that can't be: then it must be copied.
 */
static bool
piece_by_reference(struct session *s, const struct request *r, uint64_t off,
                   uint32_t len, bool done)
{
    bool may_wait = false;
    uint64_t host_off;
    uint8_t probe;
    int fd;

    /* Splicing to the peer waits in the kernel, where nobody would look after
     * what is under way. */
    if (len < REFERENCE_MIN_BYTES || s->pending_count > 0 ||
        splicer_capacity(&s->splicer) < len ||
        !disk_immutable_range(s->disk, off, len, &fd, &host_off)) {
        return false;
    }
    /* Loading waits for pages that are not there. The last one tells: what
     * comes before it was read ahead of it. */
    if (file_pread_cached(fd, &probe, 1, host_off + len - 1, &may_wait) != 1) {
        return false;
    }
    ssize_t loaded = splicer_load(&s->splicer, fd, host_off, len);

    if (loaded < 0) {
        return false;
    }
    size_t header = reply_read_header_bytes(&s->neg);
    uint32_t rest = len - (uint32_t)loaded;
    uint8_t *p = reply_room(&s->out, header + rest);

    if (rest > 0 &&
        disk_read(s->disk, p + header, off + (uint64_t)loaded, rest) != 0) {
        splicer_drop(&s->splicer);
        return false;
    }
    reply_read_header(&s->neg, p, r, off, len, done);
    reply_commit(&s->out, header);
    reply_flush(&s->out, true);
    if (s->out.error == 0) {
        s->out.error = splicer_send(&s->splicer, s->stream.out_fd,
                                    (size_t)loaded);
        stats_sent(&s->stats, (uint64_t)loaded);
    }
    if (rest > 0) {
        reply_send(&s->out, p + header, rest);
    }
    return true;
}

/* ---- in chunks ---- */

/* Queues [off, off + len) as data, waiting for it if need be. */
static int
piece_of_data(struct session *s, const struct request *r, uint64_t off,
              uint32_t len, bool done)
{
    size_t header = reply_read_header_bytes(&s->neg);

    if (piece_by_reference(s, r, off, len, done)) {
        return 0;
    }
    uint8_t *p = reply_room(&s->out, header + len);
    int err = disk_read(s->disk, p + header, off, len);

    if (err == 0) {
        reply_read_header(&s->neg, p, r, off, len, done);
        reply_commit(&s->out, header + len);
    }
    return err;
}

/* The length of the run of holes or data that begins at extent *i, where holes
 * too short to be worth a chunk count as data. Moves *i past it. */
static uint64_t
next_run(const struct extent *e, unsigned count, unsigned *i, bool *ret_hole)
{
    uint64_t len = 0;
    bool hole = e[*i].kind == EXTENT_ZERO &&
                e[*i].len_bytes >= SPARSE_HOLE_BYTES;

    *ret_hole = hole;
    while (*i < count) {
        bool this_hole = e[*i].kind == EXTENT_ZERO &&
                         e[*i].len_bytes >= SPARSE_HOLE_BYTES;

        if (this_hole != hole) {
            break;
        }
        len += e[*i].len_bytes;
        ++*i;
    }
    return len;
}

/* Answers [off, off + len) of a structured read with a chunk per run. */
static int
read_runs(struct session *s, const struct request *r, uint64_t off,
          uint64_t len, bool last)
{
    struct extent extents[SPARSE_EXTENTS];
    uint64_t end = off + len;

    while (off < end) {
        unsigned count = 0, i = 0;
        int err = disk_extents(s->disk, off, end - off, extents, SPARSE_EXTENTS,
                               &count);

        while (err == 0 && i < count) {
            bool hole;
            uint64_t run = next_run(extents, count, &i, &hole);
            uint32_t n = (uint32_t)min_u64(run, end - off);
            bool done = last && off + n == end;

            if (n == 0) {
                break;
            }
            if (hole) {
                reply_hole(&s->out, r, off, n, done);
            } else {
                err = piece_of_data(s, r, off, n, done);
            }
            off += n;
        }
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

/* True if the last byte is there: what comes before it was mostly read ahead
 * of it. What is not there goes to the engine, whole. */
static bool
ends_cached(struct session *s, const struct request *r)
{
    uint8_t probe;

    return disk_read_cached(s->disk, &probe, r->off + r->len_bytes - 1, 1) == 0;
}

static void
read_sparse(struct session *s, const struct request *r)
{
    if (!ends_cached(s, r) && read_pending(s, r)) {
        return;
    }
    int err = read_runs(s, r, r->off, r->len_bytes, true);

    if (err != 0) {
        session_answer(s, r, err);
    } else {
        session_count(s, r, 0);
    }
}

/* ---- long ---- */

static void
read_long_chunks(struct session *s, const struct request *r)
{
    for (uint64_t at = 0; at < r->len_bytes; at += LONG_PIECE_BYTES) {
        uint64_t n = min_u64(LONG_PIECE_BYTES, r->len_bytes - at);
        int err = read_runs(s, r, r->off + at, n, at + n == r->len_bytes);

        if (err != 0) {
            session_answer(s, r, err);
            return;
        }
    }
    session_count(s, r, 0);
}

/*
 * A reply in one piece can only tell of an error before it begins. So all of
 * it is read once to see that it can be, and then again to be sent. If the
 * second time fails the stream is lost: nothing more may go out, not even
 * replies that wait behind it (proto.md "NBD_CMD_READ"), and the queue's
 * error is what makes sure of that.
 */
static void
read_long_whole(struct session *s, const struct request *r)
{
    for (int sending = 0; sending < 2; sending++) {
        if (sending) {
            uint8_t *p = reply_room(&s->out, REPLY_READ_HEADER_MAX);

            reply_commit(&s->out,
                         reply_read_header(&s->neg, p, r, r->off,
                                           (uint32_t)r->len_bytes, true));
        }
        for (uint64_t at = 0; at < r->len_bytes; at += LONG_PIECE_BYTES) {
            uint32_t n = (uint32_t)min_u64(LONG_PIECE_BYTES, r->len_bytes - at);
            uint8_t *p = reply_room(&s->out, n);
            int err = disk_read(s->disk, p, r->off + at, n);

            if (err != 0 && !sending) {
                session_answer(s, r, err);
                return;
            }
            if (err != 0) {
                s->out.error = err;
                return;
            }
            if (sending) {
                reply_commit(&s->out, n);
            }
        }
    }
    session_count(s, r, 0);
}

/* A read of one piece, by reference or copied. */
static void
read_one(struct session *s, const struct request *r)
{
    if (wants_holes(s, r) && r->len_bytes >= SPARSE_MIN_BYTES) {
        read_sparse(s, r);
    } else if (piece_by_reference(s, r, r->off, (uint32_t)r->len_bytes, true)) {
        session_count(s, r, 0);
    } else {
        read_whole(s, r);
    }
}

static void
read_long(struct session *s, const struct request *r)
{
    if (wants_holes(s, r)) {
        read_long_chunks(s, r);
    } else if (s->neg.structured) {
        /* DF: one chunk or none. */
        reply_status(&s->out, r, NBD_EOVERFLOW,
                     "too long to be sent in one chunk");
        session_count(s, r, NBD_EOVERFLOW);
    } else {
        read_long_whole(s, r);
    }
}

void
read_run(struct session *s, const struct request *r)
{
    uint64_t len = r->len_bytes;

    if (len == 0) {
        session_answer(s, r, 0);
    } else if (len <= BIG_MIN_BYTES) {
        read_one(s, r);
    } else if (len <= REPLY_DATA_MAX && session_pending_begin(s, len)) {
        /* It fills the queue's buffer, which counts until it is sent. */
        read_one(s, r);
        reply_flush(&s->out, false);
        session_pending_end(s, len);
    } else {
        read_long(s, r);
    }
}
