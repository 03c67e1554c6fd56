/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_REPLY_H
#define REWIND_NBD_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd/handshake.h"
#include "nbd/request.h"
#include "nbd/stats.h"
#include "nbd/stream.h"

/*
 * Replies on their way out. Headers and data are laid down one after the other
 * in one buffer, and go out in one system call when the session has nothing
 * more to do, or when enough has come together. One thread.
 */

/* The buffer: the largest read that is answered from it, and some headers. It
 * is reserved, not touched: memory is used as far as it is filled. */
#define REPLY_DATA_MAX (UINT32_C(4) << 20)
#define REPLY_BUFFER_BYTES (REPLY_DATA_MAX + (UINT32_C(64) << 10))

/* Above this the queue is sent before more is laid down: the buffer's first
 * part then stays in the processor's cache. */
#define REPLY_FLUSH_BYTES (UINT32_C(256) << 10)

/* Longest header before a read's data: extended header and offset. */
#define REPLY_READ_HEADER_MAX (NBD_EXTENDED_REPLY_BYTES + 8)

struct reply_queue {
    struct stream *stream;        /* borrowed */
    const struct negotiated *neg; /* borrowed */
    struct stats *stats;          /* borrowed */
    uint8_t *buf;                 /* owned, REPLY_BUFFER_BYTES */
    size_t len_bytes;
    /* Sticky: the peer is gone, or the stream is lost in the middle of a reply;
     * nothing is sent any more. It is the only safe way to drop a session
     * whose reply has begun. */
    int error;
};

int reply_queue_init(struct reply_queue *q, struct stream *stream,
                     const struct negotiated *neg, struct stats *stats);
void reply_queue_free(struct reply_queue *q);

/* Gives back memory that an idle session does not need. Queue empty. */
void reply_queue_trim(struct reply_queue *q);

/* Sends what is queued; `more`: other bytes follow at once. */
void reply_flush(struct reply_queue *q, bool more);

/* Room for `len` bytes (at most REPLY_BUFFER_BYTES) at the end of the queue;
 * sends what is in the way. reply_commit makes them part of it. */
uint8_t *reply_room(struct reply_queue *q, size_t len);
static inline void
reply_commit(struct reply_queue *q, size_t len)
{
    q->len_bytes += len;
}

/* Sends `len` bytes after what is queued, without copying them. */
void reply_send(struct reply_queue *q, const void *bytes, size_t len);

/* Answers a request that carries no data, or any request with an error;
 * `why` (may be NULL) is told where the protocol has room for it. */
void reply_status(struct reply_queue *q, const struct request *r,
                  uint32_t error, const char *why);

/* Writes the header that goes before `len` bytes of read data at `p`
 * (REPLY_READ_HEADER_MAX bytes) and returns its length. */
size_t reply_read_header(const struct negotiated *n, uint8_t *p,
                         const struct request *r, uint64_t off, uint32_t len,
                         bool done);
size_t reply_read_header_bytes(const struct negotiated *n);

/* Queues a chunk that says [off, off + len) is zeroes. Structured only. */
void reply_hole(struct reply_queue *q, const struct request *r, uint64_t off,
                uint32_t len, bool done);

/* A chunk's header at `p`; structured or extended. Returns its length. */
size_t reply_chunk_header(const struct negotiated *n, uint8_t *p,
                          const struct request *r, uint16_t flags,
                          uint16_t type, uint64_t len);

#endif
