/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The options of the handshake: a table with one handler each. A handler
 * parses the option's data with the bounded reader, adds its replies to the
 * handshake's buffer, and says how to go on. One thread per handshake; no
 * handler touches a disk. Reference: proto.md "Option types" and "Option
 * reply types", with the extended headers' branch.
 */
#include "nbd/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "nbd/limits.h"
#include "nbd/meta.h"

#define EXPORT_PADDING_BYTES 124u

/* Bytes of a peer's name that a message of ours repeats. */
#define QUOTE_BYTES 128

/* Information requests are told apart as bits; only those we know count. */
#define WANT(info) (1u << (info))
#define WANT_KNOWN                                                             \
    (WANT(NBD_INFO_EXPORT) | WANT(NBD_INFO_NAME) |                             \
     WANT(NBD_INFO_DESCRIPTION) | WANT(NBD_INFO_BLOCK_SIZE))

_Static_assert(OPTION_OUT_BYTES >=
                   NBD_OPTION_REPLY_BYTES + 4 + 2 * NBD_STRING_MAX,
               "an entry of LIST fits");

int
option_flush(struct handshake *h)
{
    size_t len = h->out.len_bytes;

    h->out.len_bytes = 0;
    return len > 0 ? stream_write(h->s, h->out.buf, len) : 0;
}

/* Adds a reply's header; `len` bytes of payload must follow, and there is room
 * for them. */
static int
reply_begin(struct handshake *h, uint32_t type, size_t len)
{
    struct builder *out = &h->out;

    if (NBD_OPTION_REPLY_BYTES + len > out->cap_bytes - out->len_bytes) {
        int rc = option_flush(h);

        if (rc < 0) {
            return rc;
        }
    }
    builder_u64(out, NBD_OPTION_REPLY_MAGIC);
    builder_u32(out, h->option);
    builder_u32(out, type);
    builder_u32(out, (uint32_t)len);
    return 0;
}

static int
reply_ack(struct handshake *h)
{
    return reply_begin(h, NBD_REP_ACK, 0);
}

int
option_reply_error(struct handshake *h, uint32_t type, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    size_t len;
    int rc;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    len = strlen(text);
    rc = reply_begin(h, type, len);
    if (rc == 0) {
        builder_bytes(&h->out, text, len);
        log_debug("option %u refused: %s", h->option, text);
    }
    return rc;
}

static int
reply_unknown_export(struct handshake *h, const uint8_t *name, size_t len)
{
    char quoted[QUOTE_BYTES];

    return option_reply_error(h, NBD_REP_ERR_UNKNOWN, "no export \"%s\" here",
                              log_quote(quoted, sizeof(quoted), name, len));
}

/* The contexts that count once `x` is chosen: those selected for it. */
static unsigned
contexts_for(const struct handshake *h, const struct export *x)
{
    return h->contexts_of == x ? h->contexts : 0;
}

/* What the transmission phase is told; also the source of the flags that the
 * client is told. */
static void
settle(struct handshake *h, const struct export *x, bool block_size_known)
{
    unsigned contexts = contexts_for(h, x);

    h->result = (struct negotiated){
        .export = x,
        .flags = export_flags(x, h->structured, h->extended, contexts),
        .structured = h->structured || h->extended,
        .extended = h->extended,
        .block_size_known = block_size_known,
        .contexts = contexts,
    };
}

static int
run_export_name(struct handshake *h, struct reader *data)
{
    size_t len = data->left_bytes;
    const struct export *x = export_set_find(h->options->exports,
                                             reader_take(data, len), len);
    uint8_t *padding;

    /* No reply can say what is wrong, so each of these drops the session. */
    if (h->extended) {
        log_debug("session dropped: EXPORT_NAME with extended headers");
        return -EPROTO;
    }
    if (x == NULL) {
        log_debug("session dropped: EXPORT_NAME of an unknown export");
        return -ENOENT;
    }
    if (x->min_block_bytes > 1) {
        log_debug("session dropped: EXPORT_NAME cannot tell block sizes");
        return -EPROTO;
    }
    settle(h, x, false);
    builder_u64(&h->out, x->size_bytes);
    builder_u16(&h->out, h->result.flags);
    padding = h->no_zeroes ? NULL : builder_room(&h->out, EXPORT_PADDING_BYTES);
    if (padding != NULL) {
        memset(padding, 0, EXPORT_PADDING_BYTES);
    }
    return STEP_TRANSMIT;
}

static int
run_abort(struct handshake *h, struct reader *data)
{
    int rc = reply_ack(h);

    (void)data;
    return rc < 0 ? rc : STEP_LEAVE;
}

static int
run_list(struct handshake *h, struct reader *data)
{
    const struct export_set *set = h->options->exports;

    (void)data;
    for (unsigned i = 0; i < set->count; i++) {
        const struct export *x = &set->exports[i];
        const char *description = x->description != NULL ? x->description : "";
        size_t name_len = strlen(x->name);
        size_t description_len = strlen(description);
        int rc = reply_begin(h, NBD_REP_SERVER, 4 + name_len + description_len);

        if (rc < 0) {
            return rc;
        }
        builder_u32(&h->out, (uint32_t)name_len);
        builder_bytes(&h->out, x->name, name_len);
        builder_bytes(&h->out, description, description_len);
    }
    return reply_ack(h);
}

static int
run_starttls(struct handshake *h, struct reader *data)
{
    (void)data;
    return option_reply_error(h, NBD_REP_ERR_POLICY,
                              "this server does not offer TLS; use nbd: or "
                              "nbd+unix: instead of nbds: or nbds+unix:");
}

struct info_request {
    const uint8_t *name; /* borrowed from the option's data */
    uint32_t name_len;
    unsigned wanted; /* bits WANT() */
};

/* Reads the name of an export with its length in front. Returns NULL or what
 * is wrong. The name borrows from the reader. */
static const char *
read_name(struct reader *r, const uint8_t **ret_name, uint32_t *ret_len)
{
    uint32_t len = reader_u32(r);
    const uint8_t *name;

    if (!r->bad && len > NBD_STRING_MAX && len <= r->left_bytes) {
        return "the export name is longer than the 4096 bytes of a string";
    }
    name = reader_take(r, len);
    if (name == NULL) {
        return "the export name is longer than the option that holds it";
    }
    *ret_name = name;
    *ret_len = len;
    return NULL;
}

static const char *
read_info_request(struct reader *r, struct info_request *ret)
{
    const char *problem = read_name(r, &ret->name, &ret->name_len);
    uint16_t count;

    if (problem != NULL) {
        return problem;
    }
    count = reader_u16(r);
    if (r->bad || r->left_bytes != (size_t)count * sizeof(uint16_t)) {
        return "the option's length does not match its information requests";
    }
    ret->wanted = 0;
    for (unsigned i = 0; i < count; i++) {
        uint16_t info = reader_u16(r);
        unsigned bit = info < 32 ? WANT(info) & WANT_KNOWN : 0;

        if ((ret->wanted & bit) != 0) {
            return "an information request is repeated";
        }
        ret->wanted |= bit;
    }
    return NULL;
}

static int
reply_info_export(struct handshake *h, const struct export *x, uint16_t flags)
{
    int rc = reply_begin(h, NBD_REP_INFO, 2 + 8 + 2);

    if (rc == 0) {
        builder_u16(&h->out, NBD_INFO_EXPORT);
        builder_u64(&h->out, x->size_bytes);
        builder_u16(&h->out, flags);
    }
    return rc;
}

static int
reply_info_block_size(struct handshake *h, const struct export *x)
{
    int rc = reply_begin(h, NBD_REP_INFO, 2 + 4 + 4 + 4);

    if (rc == 0) {
        builder_u16(&h->out, NBD_INFO_BLOCK_SIZE);
        builder_u32(&h->out, x->min_block_bytes);
        builder_u32(&h->out, x->pref_block_bytes);
        builder_u32(&h->out, x->max_payload_bytes);
    }
    return rc;
}

static int
reply_info_text(struct handshake *h, uint16_t info, const char *text)
{
    size_t len = strlen(text);
    int rc = reply_begin(h, NBD_REP_INFO, 2 + len);

    if (rc == 0) {
        builder_u16(&h->out, info);
        builder_bytes(&h->out, text, len);
    }
    return rc;
}

static int
reply_info_wanted(struct handshake *h, const struct export *x, unsigned wanted)
{
    int rc = reply_info_export(h, x, h->result.flags);

    if (rc == 0 && (wanted & WANT(NBD_INFO_BLOCK_SIZE)) != 0) {
        rc = reply_info_block_size(h, x);
    }
    if (rc == 0 && (wanted & WANT(NBD_INFO_NAME)) != 0) {
        rc = reply_info_text(h, NBD_INFO_NAME, x->name);
    }
    if (rc == 0 && (wanted & WANT(NBD_INFO_DESCRIPTION)) != 0 &&
        x->description != NULL) {
        rc = reply_info_text(h, NBD_INFO_DESCRIPTION, x->description);
    }
    return rc == 0 ? reply_ack(h) : rc;
}

/* NBD_OPT_INFO and NBD_OPT_GO: the same answer, so that GO keeps what INFO
 * promised; GO then moves on if the answer was a success. */
static int
run_info(struct handshake *h, struct reader *data)
{
    struct info_request q;
    const char *problem = read_info_request(data, &q);
    const struct export *x;
    bool block_size;
    int rc;

    if (problem != NULL) {
        return option_reply_error(h, NBD_REP_ERR_INVALID, "%s", problem);
    }
    x = export_set_find(h->options->exports, q.name, q.name_len);
    if (x == NULL) {
        return reply_unknown_export(h, q.name, q.name_len);
    }
    block_size = (q.wanted & WANT(NBD_INFO_BLOCK_SIZE)) != 0;
    if (x->min_block_bytes > 1 && !block_size) {
        rc = reply_info_block_size(h, x);
        return rc < 0 ? rc
                      : option_reply_error(h, NBD_REP_ERR_BLOCK_SIZE_REQD,
                                           "this export has blocks of %u "
                                           "bytes; ask for "
                                           "NBD_INFO_BLOCK_SIZE",
                                           x->min_block_bytes);
    }
    settle(h, x, block_size);
    rc = reply_info_wanted(h, x, q.wanted);
    if (rc < 0) {
        return rc;
    }
    return h->option == NBD_OPT_GO ? STEP_TRANSMIT : STEP_NEXT;
}

static int
run_structured_reply(struct handshake *h, struct reader *data)
{
    (void)data;
    if (h->extended) {
        return option_reply_error(h, NBD_REP_ERR_EXT_HEADER_REQD,
                                  "extended headers are in use already");
    }
    h->structured = true;
    return reply_ack(h);
}

static int
run_extended_headers(struct handshake *h, struct reader *data)
{
    (void)data;
    h->extended = true;
    return reply_ack(h);
}

static int
reply_contexts(struct handshake *h, unsigned contexts, bool listing)
{
    for (unsigned i = 0; i < NBD_CONTEXT_COUNT; i++) {
        const char *name = meta_context_name(i);
        int rc;

        if ((contexts & 1u << i) == 0) {
            continue;
        }
        rc = reply_begin(h, NBD_REP_META_CONTEXT, 4 + strlen(name));
        if (rc < 0) {
            return rc;
        }
        builder_u32(&h->out, listing ? 0 : i + 1);
        builder_bytes(&h->out, name, strlen(name));
    }
    return reply_ack(h);
}

/* LIST_META_CONTEXT and SET_META_CONTEXT. The caller has already dropped the
 * previous selection for SET. */
static int
run_meta_context(struct handshake *h, struct reader *data)
{
    bool listing = h->option == NBD_OPT_LIST_META_CONTEXT;
    const struct export *x;
    const uint8_t *name;
    uint32_t name_len;
    unsigned contexts;
    const char *problem;
    int rc;

    if (!h->structured && !h->extended) {
        return option_reply_error(h, NBD_REP_ERR_INVALID,
                                  "metadata contexts need structured replies "
                                  "or extended headers first");
    }
    problem = read_name(data, &name, &name_len);
    if (problem != NULL) {
        return option_reply_error(h, NBD_REP_ERR_INVALID, "%s", problem);
    }
    x = export_set_find(h->options->exports, name, name_len);
    rc = meta_read_queries(data, listing, x != NULL ? x->contexts : 0,
                           &contexts, &problem);
    if (rc < 0) {
        return option_reply_error(
            h, rc == -E2BIG ? NBD_REP_ERR_TOO_BIG : NBD_REP_ERR_INVALID, "%s",
            problem);
    }
    if (x == NULL) {
        return reply_unknown_export(h, name, name_len);
    }
    if (!listing) {
        h->contexts = contexts;
        h->contexts_of = x;
    }
    return reply_contexts(h, contexts, listing);
}

static int
run_unsupported(struct handshake *h, struct reader *data)
{
    (void)data;
    return option_reply_error(h, NBD_REP_ERR_UNSUP,
                              "option %u is not supported", h->option);
}

static const struct option_handler handlers[] = {
    {
        .option = NBD_OPT_EXPORT_NAME,
        .data = OPTION_DATA_READ,
        .silent = true,
        .run = run_export_name,
    },
    {
        .option = NBD_OPT_ABORT,
        .data = OPTION_DATA_IGNORED,
        .run = run_abort,
    },
    {
        .option = NBD_OPT_LIST,
        .data = OPTION_DATA_NONE,
        .run = run_list,
    },
    {
        .option = NBD_OPT_STARTTLS,
        .data = OPTION_DATA_NONE,
        .run = run_starttls,
    },
    {
        .option = NBD_OPT_INFO,
        .data = OPTION_DATA_READ,
        .run = run_info,
    },
    {
        .option = NBD_OPT_GO,
        .data = OPTION_DATA_READ,
        .run = run_info,
    },
    {
        .option = NBD_OPT_STRUCTURED_REPLY,
        .data = OPTION_DATA_NONE,
        .run = run_structured_reply,
    },
    {
        .option = NBD_OPT_LIST_META_CONTEXT,
        .data = OPTION_DATA_READ,
        .run = run_meta_context,
    },
    {
        .option = NBD_OPT_SET_META_CONTEXT,
        .data = OPTION_DATA_READ,
        .drops_contexts = true,
        .run = run_meta_context,
    },
    {
        .option = NBD_OPT_EXTENDED_HEADERS,
        .data = OPTION_DATA_NONE,
        .run = run_extended_headers,
    },
};

static const struct option_handler unsupported = {
    .data = OPTION_DATA_IGNORED,
    .run = run_unsupported,
};

const struct option_handler *
option_handler_find(uint32_t option)
{
    for (size_t i = 0; i < ARRAY_LEN(handlers); i++) {
        if (handlers[i].option == option) {
            return &handlers[i];
        }
    }
    return &unsupported;
}
