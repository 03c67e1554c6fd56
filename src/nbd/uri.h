/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_URI_H
#define REWIND_NBD_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "nbd/proto.h"

/* NBD URIs: doc/uri.md of NetworkBlockDevice/nbd. */
enum uri_scheme { URI_TCP, URI_UNIX };

struct uri {
    enum uri_scheme scheme;
    bool tls;                        /* nbds:, nbds+unix: */
    char host[256];                  /* TCP; without brackets */
    uint16_t port;                   /* TCP; NBD_PORT by default */
    char socket[1024];               /* UNIX: path, "" if none was given */
    char export[NBD_STRING_MAX + 1]; /* percent-decoded */
};

/* Parses `text`. -EINVAL with a message that names the offending part:
 * unknown scheme or parameter, bad port, bad escape, NUL or an overlong name.
 * Parameters beginning with x- and tls- are accepted and ignored. */
int uri_parse(const char *text, struct uri *ret, struct err *e);

/* The canonical text of `u`, with everything escaped that must be.
 * -ENAMETOOLONG if it does not fit. */
int uri_format(const struct uri *u, char *buf, size_t cap);

#endif
