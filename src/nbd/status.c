/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Block status: proto.md "NBD_CMD_BLOCK_STATUS" and "Metadata querying". Each
 * context gets one chunk; neighbours of equal status are joined, and an answer
 * that would be too long stops early, as the protocol allows.
 */
#include "nbd/session.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "nbd/limits.h"

#define EXTENTS_AT_ONCE 512u

/* Looks at the disk for one context of one request. Each is bounded in its own
 * work; the client asks again for what was not reached. */
#define LOOKS_MAX 32u

/* Longest length a 32-bit descriptor may say: a multiple of every block size
 * that may be negotiated. */
#define STATUS_LEN_32_MAX UINT64_C(0xffff0000)

/* A chunk being built at the end of the reply queue. */
struct status_chunk {
    struct session *session; /* borrowed */
    const struct request *request;
    uint32_t context_id;
    uint8_t *begin; /* where its header goes, in the queue */
    uint8_t *at;    /* where the next descriptor goes */
    unsigned count;
    uint64_t run_bytes; /* of the descriptor not yet put down */
    uint32_t run_status;
};

static uint32_t
status_of(enum nbd_context context, const struct extent *e)
{
    if (context == NBD_CONTEXT_DEPTH) {
        return e->depth;
    }
    if (e->kind != EXTENT_ZERO) {
        return 0;
    }
    return e->allocated ? NBD_STATE_ZERO : NBD_STATE_ZERO | NBD_STATE_HOLE;
}

/* Bytes of a chunk before its first descriptor. */
static size_t
chunk_head_bytes(const struct negotiated *n)
{
    return n->extended ? NBD_EXTENDED_REPLY_BYTES + 8
                       : NBD_STRUCTURED_REPLY_BYTES + 4;
}

static void
put_run(struct status_chunk *c)
{
    bool extended = c->session->neg.extended;

    while (c->run_bytes > 0 && c->count < LIMIT_EXTENTS) {
        uint64_t n = extended ? c->run_bytes
                              : min_u64(c->run_bytes, STATUS_LEN_32_MAX);

        if (extended) {
            store_be64(c->at, n);
            store_be64(c->at + 8, c->run_status);
            c->at += 16;
        } else {
            store_be32(c->at, (uint32_t)n);
            store_be32(c->at + 4, c->run_status);
            c->at += 8;
        }
        c->run_bytes -= n;
        c->count++;
    }
    c->run_bytes = 0;
}

static void
add_run(struct status_chunk *c, uint64_t len, uint32_t status)
{
    if (c->run_bytes > 0 && status != c->run_status) {
        put_run(c);
    }
    c->run_status = status;
    c->run_bytes += len;
}

static void
close_chunk(struct status_chunk *c, bool done)
{
    const struct negotiated *n = &c->session->neg;
    size_t head = chunk_head_bytes(n);
    size_t body = (size_t)(c->at - c->begin) - head;
    uint16_t flags = done ? NBD_REPLY_FLAG_DONE : 0;
    uint8_t *p = c->begin;

    if (n->extended) {
        p += reply_chunk_header(n, p, c->request, flags,
                                NBD_REPLY_TYPE_BLOCK_STATUS_EXT, body + 8);
        store_be32(p, c->context_id);
        store_be32(p + 4, c->count);
    } else {
        p += reply_chunk_header(n, p, c->request, flags,
                                NBD_REPLY_TYPE_BLOCK_STATUS, body + 4);
        store_be32(p, c->context_id);
    }
    reply_commit(&c->session->out, head + body);
}

/* One context's chunk. Nothing is queued on failure. */
static int
put_context(struct session *s, const struct request *r, uint64_t len,
            enum nbd_context context, bool done)
{
    bool one = (r->flags & NBD_CMD_FLAG_REQ_ONE) != 0;
    struct extent extents[EXTENTS_AT_ONCE];
    struct status_chunk c = {
        .session = s,
        .request = r,
        .context_id = context + 1,
    };
    uint64_t at = 0;

    c.begin = reply_room(&s->out, chunk_head_bytes(&s->neg) +
                                      (size_t)LIMIT_EXTENTS * 16);
    c.at = c.begin + chunk_head_bytes(&s->neg);
    for (unsigned look = 0; look < LOOKS_MAX && at < len; look++) {
        unsigned count = 0;

        if (c.count >= LIMIT_EXTENTS || (one && c.count > 0)) {
            break;
        }
        int err = disk_extents(s->disk, r->off + at, len - at, extents,
                               EXTENTS_AT_ONCE, &count);

        if (err != 0) {
            return err;
        }
        for (unsigned i = 0; i < count; i++) {
            add_run(&c, extents[i].len_bytes, status_of(context, &extents[i]));
            at += extents[i].len_bytes;
        }
        if (count < EXTENTS_AT_ONCE) {
            break; /* it is all, or as much as one look may cost */
        }
    }
    put_run(&c);
    if (one && c.count > 1) {
        c.at = c.begin + chunk_head_bytes(&s->neg) + (s->neg.extended ? 16 : 8);
        c.count = 1;
    }
    close_chunk(&c, done);
    return 0;
}

/* The payload form: an effect length and the context ids that are asked for.
 * Returns the contexts, or 0 if the payload is not well formed. */
static unsigned
parse_payload(const struct session *s, const struct request *r,
              const uint8_t *payload, uint64_t *ret_len)
{
    struct reader in = reader_of(payload, r->payload_bytes);
    unsigned contexts = 0;

    *ret_len = reader_u64(&in);
    while (in.left_bytes > 0 && !in.bad) {
        uint32_t id = reader_u32(&in);

        if (in.bad || id == 0 || id > NBD_CONTEXT_COUNT ||
            (contexts & 1u << (id - 1)) != 0) {
            return 0;
        }
        contexts |= 1u << (id - 1);
    }
    return in.bad || (contexts & ~s->neg.contexts) != 0 ? 0 : contexts;
}

void
status_run(struct session *s, const struct request *r, const uint8_t *payload)
{
    unsigned contexts = s->neg.contexts;
    uint64_t len = r->len_bytes;

    if (r->payload_bytes > 0) {
        contexts = parse_payload(s, r, payload, &len);
    }
    if (contexts == 0 || len == 0 ||
        ((r->off | len) & (s->neg.export->min_block_bytes - 1)) != 0 ||
        !range_within(r->off, len, s->neg.export->size_bytes)) {
        session_answer(s, r, -EINVAL);
        return;
    }
    for (unsigned i = 0; i < NBD_CONTEXT_COUNT && contexts != 0; i++) {
        if (contexts & 1u << i) {
            contexts &= ~(1u << i);
            int err = put_context(s, r, len, i, contexts == 0);

            if (err != 0) {
                session_answer(s, r, err);
                return;
            }
        }
    }
    session_count(s, r, 0);
}
