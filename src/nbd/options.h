/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_OPTIONS_H
#define REWIND_NBD_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "nbd/handshake.h"

/* Between handshake.c, which moves bytes, and options.c, which knows what
 * they mean. */

/* Holds the longest single reply, a name and a description with their
 * headers, and all replies of any option but a long LIST, so that those leave
 * in one write. */
#define OPTION_OUT_BYTES (9u << 10)

/* One handshake, on the stack of handshake_run. */
struct handshake {
    struct stream *s;                        /* borrowed */
    const struct handshake_options *options; /* borrowed */
    bool fixed;        /* the client understands option replies */
    bool no_zeroes;    /* no padding after NBD_OPT_EXPORT_NAME */
    bool structured;   /* NBD_OPT_STRUCTURED_REPLY was acknowledged */
    bool extended;     /* NBD_OPT_EXTENDED_HEADERS was acknowledged */
    unsigned contexts; /* by the last SET_META_CONTEXT ... */
    const struct export *contexts_of; /* ... for this export, borrowed */
    uint32_t option;                  /* being answered */
    struct builder out;               /* replies not yet sent */
    struct negotiated result;         /* valid after STEP_TRANSMIT */
};

/* What a handler returns, if not -errno: the session is to be dropped. */
enum option_step {
    STEP_NEXT,     /* await the next option */
    STEP_LEAVE,    /* the client ends the session in good order */
    STEP_TRANSMIT, /* begin the transmission phase */
};

enum option_data {
    OPTION_DATA_NONE,    /* any is an error */
    OPTION_DATA_IGNORED, /* skipped, whatever it is */
    OPTION_DATA_READ,    /* the handler parses it */
};

struct option_handler {
    uint32_t option;
    enum option_data data;
    bool silent;         /* has no error reply: drop the session instead */
    bool drops_contexts; /* the previous selection goes even on failure */
    int (*run)(struct handshake *h, struct reader *data);
};

/* The table's entry for `option`; one that answers ERR_UNSUP if there is
 * none. Never NULL. */
const struct option_handler *option_handler_find(uint32_t option);

/* Adds an error reply to the option at hand. 0 or -errno. */
int option_reply_error(struct handshake *h, uint32_t type, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Sends what has been added so far. 0 or -errno. */
int option_flush(struct handshake *h);

#endif
