/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_CLIENT_H
#define REWIND_NBD_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "nbd/stream.h"
#include "nbd/uri.h"

/* The client half that `serve --list` needs: ask a server what it exports.
 * All text comes from the server as it is: quote it before it is shown. */
struct listed_export {
    char *name;        /* owned */
    char *description; /* owned, may be NULL */
    bool has_details;  /* false: the server told no more than the name */
    uint64_t size_bytes;
    uint16_t flags;
    uint32_t min_block_bytes, pref_block_bytes, max_payload_bytes;
    bool has_block_size;
    char **contexts; /* owned array of owned strings */
    unsigned context_count;
};

struct export_list {
    struct listed_export *exports; /* owned */
    unsigned count;
};

/* Connects to `u`, lists its exports with their details, leaves. Gives up
 * after `timeout_s`. Bounded whatever the server sends. 0 or -errno and `e`. */
int client_list(const struct uri *u, unsigned timeout_s,
                struct export_list *ret, struct err *e);

/* The same over a stream that is connected already, up to the stream's own
 * deadline. Leaves the stream open. */
int client_list_stream(struct stream *s, struct export_list *ret,
                       struct err *e);

/* Empties the list. */
void export_list_free(struct export_list *l);

#endif
