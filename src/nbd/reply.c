/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Encoding replies and sending them in batches; see reply.h. Formats: proto.md
 * "Simple reply message", "Structured reply chunk message", and the extended
 * reply of extension-ext-header.
 */
#include "nbd/reply.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

int
reply_queue_init(struct reply_queue *q, struct stream *stream,
                 const struct negotiated *neg, struct stats *stats)
{
    *q = (struct reply_queue){
        .stream = stream,
        .neg = neg,
        .stats = stats,
        .buf = mem_reserve(REPLY_BUFFER_BYTES),
    };
    return q->buf != NULL ? 0 : -ENOMEM;
}

void
reply_queue_free(struct reply_queue *q)
{
    mem_release(q->buf, REPLY_BUFFER_BYTES);
    q->buf = NULL;
}

void
reply_queue_trim(struct reply_queue *q)
{
    mem_forget(q->buf, REPLY_BUFFER_BYTES);
}

static void
send_bytes(struct reply_queue *q, struct iovec *iov, unsigned count, size_t len,
           bool more)
{
    if (q->error == 0) {
        q->error = stream_sendv(q->stream, iov, count, more);
        stats_sent(q->stats, len);
    }
}

void
reply_flush(struct reply_queue *q, bool more)
{
    if (q->len_bytes > 0) {
        struct iovec iov = {q->buf, q->len_bytes};

        send_bytes(q, &iov, 1, q->len_bytes, more);
        q->len_bytes = 0;
    }
}

uint8_t *
reply_room(struct reply_queue *q, size_t len)
{
    if (q->len_bytes >= REPLY_FLUSH_BYTES ||
        len > REPLY_BUFFER_BYTES - q->len_bytes) {
        reply_flush(q, true);
    }
    return q->buf + q->len_bytes;
}

void
reply_send(struct reply_queue *q, const void *bytes, size_t len)
{
    struct iovec iov[2] = {
        {q->buf, q->len_bytes},
        {(void *)(uintptr_t)bytes, len},
    };

    send_bytes(q, iov, 2, q->len_bytes + len, false);
    q->len_bytes = 0;
}

size_t
reply_chunk_header(const struct negotiated *n, uint8_t *p,
                   const struct request *r, uint16_t flags, uint16_t type,
                   uint64_t len)
{
    store_be32(p, n->extended ? NBD_EXTENDED_REPLY_MAGIC
                              : NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(p + 4, flags);
    store_be16(p + 6, type);
    store_be64(p + 8, r->cookie);
    if (!n->extended) {
        store_be32(p + 16, (uint32_t)len);
        return NBD_STRUCTURED_REPLY_BYTES;
    }
    store_be64(p + 16, r->off);
    store_be64(p + 24, len);
    return NBD_EXTENDED_REPLY_BYTES;
}

static size_t
put_simple(uint8_t *p, const struct request *r, uint32_t error)
{
    store_be32(p, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(p + 4, error);
    store_be64(p + 8, r->cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

static void
reply_error_chunk(struct reply_queue *q, const struct request *r,
                  uint32_t error, const char *why)
{
    size_t text = why != NULL ? strnlen(why, 256) : 0;
    uint8_t *p = reply_room(q, NBD_EXTENDED_REPLY_BYTES + 6 + text);
    size_t n = reply_chunk_header(q->neg, p, r, NBD_REPLY_FLAG_DONE,
                                  NBD_REPLY_TYPE_ERROR, 6 + text);

    store_be32(p + n, error);
    store_be16(p + n + 4, (uint16_t)text);
    if (text > 0) {
        memcpy(p + n + 6, why, text);
    }
    reply_commit(q, n + 6 + text);
}

void
reply_status(struct reply_queue *q, const struct request *r, uint32_t error,
             const char *why)
{
    if (error != 0 && q->neg->structured) {
        reply_error_chunk(q, r, error, why);
        return;
    }
    uint8_t *p = reply_room(q, NBD_EXTENDED_REPLY_BYTES);
    size_t n;

    /* A read's reply is never simple once replies are structured; other
     * commands may stay with the shorter one, unless headers are extended. */
    if (q->neg->extended || (q->neg->structured && r->type == NBD_CMD_READ)) {
        n = reply_chunk_header(q->neg, p, r, NBD_REPLY_FLAG_DONE,
                               NBD_REPLY_TYPE_NONE, 0);
    } else {
        n = put_simple(p, r, error);
    }
    reply_commit(q, n);
}

size_t
reply_read_header_bytes(const struct negotiated *n)
{
    return n->extended     ? NBD_EXTENDED_REPLY_BYTES + 8
           : n->structured ? NBD_STRUCTURED_REPLY_BYTES + 8
                           : NBD_SIMPLE_REPLY_BYTES;
}

size_t
reply_read_header(const struct negotiated *n, uint8_t *p,
                  const struct request *r, uint64_t off, uint32_t len,
                  bool done)
{
    if (!n->structured) {
        return put_simple(p, r, 0);
    }
    size_t at = reply_chunk_header(n, p, r, done ? NBD_REPLY_FLAG_DONE : 0,
                                   NBD_REPLY_TYPE_OFFSET_DATA,
                                   (uint64_t)len + 8);

    store_be64(p + at, off);
    return at + 8;
}

void
reply_hole(struct reply_queue *q, const struct request *r, uint64_t off,
           uint32_t len, bool done)
{
    uint8_t *p = reply_room(q, NBD_EXTENDED_REPLY_BYTES + 12);
    size_t n = reply_chunk_header(q->neg, p, r, done ? NBD_REPLY_FLAG_DONE : 0,
                                  NBD_REPLY_TYPE_OFFSET_HOLE, 12);

    store_be64(p + n, off);
    store_be32(p + n + 8, len);
    reply_commit(q, n + 12);
}
