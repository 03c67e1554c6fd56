/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_LIMITS_H
#define REWIND_NBD_LIMITS_H

/*
 * What a peer may make us spend, each with its reason. Settable ones are the
 * defaults of struct server_options.
 */

/* Sessions at once, when nobody says otherwise (-e 0). */
#define LIMIT_SESSIONS_DEFAULT 1024u

/* Seconds a session has from accept to the end of its handshake; qemu-nbd's
 * figure. */
#define LIMIT_HANDSHAKE_S_DEFAULT 10u

/* Options one handshake may send; a real client sends about ten. */
#define LIMIT_OPTIONS 512u

/* Data of one option that we look at: a name, a few dozen queries. Longer ones
 * are skipped and answered TOO_BIG ... */
#define LIMIT_OPTION_BYTES (64u << 10)

/* ... up to this, where a hard disconnect is allowed as denial of service. */
#define LIMIT_OPTION_SKIP_BYTES (32u << 20)

/* Metadata context queries in one option. */
#define LIMIT_QUERIES 64u

/* Payload of one request. The protocol's test suite sends over 50 MB;
 * libnbd stops at 64 MiB. */
#define LIMIT_PAYLOAD_BYTES (64u << 20)

/* A larger payload than LIMIT_PAYLOAD_BYTES is drained and refused in band up
 * to this, then it is denial of service. */
#define LIMIT_DRAIN_BYTES (256u << 20)

/* Extents in one block-status reply; the protocol says at most 2^20, clients
 * ask again for the rest. */
#define LIMIT_EXTENTS 16384u

#endif
