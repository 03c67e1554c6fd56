/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_HANDSHAKE_H
#define REWIND_NBD_HANDSHAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "nbd/export.h"
#include "nbd/stream.h"

/* What a handshake has settled; everything the transmission phase must know. */
struct negotiated {
    const struct export *export; /* borrowed from the set */
    uint16_t flags;              /* transmission flags as told to the client */
    bool structured;             /* structured replies, or extended headers */
    bool extended;               /* extended headers */
    bool block_size_known;       /* the client asked for the constraints in GO,
                                    and so must keep to them */
    unsigned contexts;           /* selected: bits 1 << enum nbd_context */
};

struct handshake_options {
    const struct export_set *exports; /* borrowed */
    const bool *stopping; /* read atomically; true: answer ERR_SHUTDOWN */
};

/*
 * Runs the server's side of the fixed newstyle handshake on `s` until the
 * transmission phase, an abort or an error. The caller has set the stream's
 * deadline. Returns 0 with *ret filled in; 1 if the client ended in good
 * order (NBD_OPT_ABORT, LIST and leave); -errno if the session must be
 * dropped. No input can make it use more than LIMIT_OPTION_BYTES of memory or
 * touch a disk (H1, H2).
 */
int handshake_run(struct stream *s, const struct handshake_options *options,
                  struct negotiated *ret);

#endif
