/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The server's side of the handshake: greeting, client flags and the loop that
 * reads options and hands them to options.c. Reads exactly the bytes that
 * belong to the handshake, so that whatever follows is still in the stream.
 * One thread per handshake. Reference: proto.md "Newstyle negotiation" and
 * "Fixed newstyle negotiation".
 */
#include "nbd/handshake.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nbd/limits.h"
#include "nbd/options.h"

#define GREETING_BYTES 18u
#define CLIENT_FLAGS_BYTES 4u

struct option_header {
    uint32_t option;
    uint32_t len_bytes;
};

static void
free_ptr(uint8_t **p)
{
    free(*p);
}

static int
greet(struct handshake *h)
{
    const uint32_t known = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES;
    uint8_t greeting[GREETING_BYTES], answer[CLIENT_FLAGS_BYTES];
    uint32_t flags;
    int rc;

    store_be64(greeting, NBD_INIT_MAGIC);
    store_be64(greeting + 8, NBD_OPTION_MAGIC);
    store_be16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    rc = stream_write(h->s, greeting, sizeof(greeting));
    if (rc == 0) {
        rc = stream_read(h->s, answer, sizeof(answer));
    }
    if (rc < 0) {
        return rc;
    }
    flags = load_be32(answer);
    if ((flags & ~known) != 0) {
        log_debug("session dropped: unknown client flags 0x%x", flags);
        return -EPROTO;
    }
    h->fixed = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) != 0;
    h->no_zeroes = (flags & NBD_FLAG_C_NO_ZEROES) != 0;
    return 0;
}

/* Reads an option's header. Returns 0; 1 if the client has left between two
 * options; or -errno. */
static int
read_header(struct stream *s, struct option_header *ret)
{
    uint8_t bytes[NBD_OPTION_BYTES];
    struct reader r = reader_of(bytes, sizeof(bytes));
    ssize_t n = stream_recv(s, bytes, sizeof(bytes), true);
    int rc;

    if (n <= 0) {
        return n < 0 ? (int)n : 1;
    }
    rc = stream_read(s, bytes + n, sizeof(bytes) - (size_t)n);
    if (rc < 0) {
        return rc;
    }
    if (reader_u64(&r) != NBD_OPTION_MAGIC) {
        log_debug("session dropped: no option magic");
        return -EPROTO;
    }
    ret->option = reader_u32(&r);
    ret->len_bytes = reader_u32(&r);
    return 0;
}

/*
 * What is refused for every option alike, after its data has been skipped.
 * Returns a reply type, or 0 if the handler may look at the option.
 */
static uint32_t
refusal_of(const struct handshake *h, const struct option_handler *o,
           uint32_t len_bytes)
{
    if (o->option != NBD_OPT_ABORT &&
        __atomic_load_n(h->options->stopping, __ATOMIC_RELAXED)) {
        return NBD_REP_ERR_SHUTDOWN;
    }
    if (o->data == OPTION_DATA_NONE && len_bytes > 0) {
        return NBD_REP_ERR_INVALID;
    }
    if (o->data == OPTION_DATA_READ && len_bytes > LIMIT_OPTION_BYTES) {
        return NBD_REP_ERR_TOO_BIG;
    }
    return 0;
}

static int
refuse(struct handshake *h, const struct option_handler *o, uint32_t type)
{
    if (o->silent) {
        log_debug("session dropped: option %u refused", h->option);
        return type == NBD_REP_ERR_SHUTDOWN ? -ESHUTDOWN : -EPROTO;
    }
    switch (type) {
    case NBD_REP_ERR_SHUTDOWN:
        return option_reply_error(h, type, "the server is shutting down");
    case NBD_REP_ERR_TOO_BIG:
        return option_reply_error(h, type, "option data is limited to %u bytes",
                                  LIMIT_OPTION_BYTES);
    default:
        return option_reply_error(h, type, "this option takes no data");
    }
}

/* Reads an option's data, which is all that is left of it, and answers. */
static int
run_option(struct handshake *h, uint32_t len_bytes)
{
    const struct option_handler *o = option_handler_find(h->option);
    __attribute__((cleanup(free_ptr))) uint8_t *data = NULL;
    struct reader r = reader_of("", 0);
    uint32_t refusal = refusal_of(h, o, len_bytes);
    int rc;

    if (o->silent && (refusal != 0 || len_bytes > NBD_STRING_MAX)) {
        return refuse(h, o, refusal);
    }
    if (o->data == OPTION_DATA_READ && refusal == 0 && len_bytes > 0) {
        data = malloc(len_bytes);
        if (data == NULL) {
            return -ENOMEM;
        }
        r = reader_of(data, len_bytes);
        rc = stream_read(h->s, data, len_bytes);
    } else {
        rc = stream_skip(h->s, len_bytes);
    }
    if (rc < 0) {
        return rc;
    }
    if (o->drops_contexts) {
        h->contexts = 0;
        h->contexts_of = NULL;
    }
    return refusal != 0 ? refuse(h, o, refusal) : o->run(h, &r);
}

/* One option from its first byte to the last of its replies. */
static int
next_option(struct handshake *h, unsigned seen)
{
    struct option_header header = {0};
    int step, rc = read_header(h->s, &header);

    if (rc > 0) {
        return seen > 0 ? STEP_LEAVE : -ECONNRESET;
    }
    if (rc < 0) {
        return rc;
    }
    h->option = header.option;
    if (!h->fixed && h->option != NBD_OPT_EXPORT_NAME) {
        /* The one option without replies is all such a client may send, and
         * it would not understand a refusal. */
        log_debug("session dropped: option %u without fixed newstyle",
                  h->option);
        return -EPROTO;
    }
    if (header.len_bytes > LIMIT_OPTION_SKIP_BYTES) {
        log_debug("session dropped: option %u with %u bytes", h->option,
                  header.len_bytes);
        return -EPROTO;
    }
    step = run_option(h, header.len_bytes);
    if (step < 0) {
        return step;
    }
    rc = option_flush(h);
    return rc < 0 && step != STEP_LEAVE ? rc : step;
}

int
handshake_run(struct stream *s, const struct handshake_options *options,
              struct negotiated *ret)
{
    uint8_t out[OPTION_OUT_BYTES];
    struct handshake h = {
        .s = s,
        .options = options,
        .out = builder_of(out, sizeof(out)),
    };
    int step = greet(&h);

    for (unsigned seen = 0; step == STEP_NEXT; seen++) {
        if (seen == LIMIT_OPTIONS) {
            log_debug("session dropped: more than %u options", LIMIT_OPTIONS);
            return -EPROTO;
        }
        step = next_option(&h, seen);
    }
    if (step == STEP_TRANSMIT) {
        *ret = h.result;
        return 0;
    }
    return step;
}
