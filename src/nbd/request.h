/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_REQUEST_H
#define REWIND_NBD_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd/handshake.h"
#include "nbd/proto.h"

/* One request of the transmission phase, decoded and judged. */
struct request {
    uint64_t cookie;
    uint64_t off;
    uint64_t len_bytes;     /* of the export: the effect length */
    uint64_t payload_bytes; /* that follow the header on the wire */
    uint64_t start_ns;      /* when it was received */
    uint16_t flags;
    uint16_t type;   /* enum nbd_command, or unknown with an error */
    uint32_t error;  /* enum nbd_error to answer, 0: carry it out */
    const char *why; /* text for the error; static */
};

/* Bytes of a request's header in this session. */
static inline size_t
request_header_bytes(const struct negotiated *n)
{
    return n->extended ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/*
 * Decodes and checks the header at `bytes` (request_header_bytes of them)
 * against what was negotiated. Returns false only if the magic is wrong: then
 * the stream is out of step and the session must be dropped. Everything else
 * wrong is recorded in ret->error, to be answered in band once the payload is
 * consumed (proto.md "Request message").
 */
bool request_decode(const void *bytes, const struct negotiated *n,
                    struct request *ret);

/* What a result of the data path (0 or -errno) is on the wire. `fast_zero`:
 * the only case in which ENOTSUP may be said. */
uint32_t request_wire_error(int result, bool fast_zero);

#endif
