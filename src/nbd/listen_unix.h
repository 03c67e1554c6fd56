/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_LISTEN_UNIX_H
#define REWIND_NBD_LISTEN_UNIX_H

#include "nbd/listen.h"

/* listen.c's other half: Unix sockets. `ret` is zeroes before; on failure it
 * may be part filled, and listen_close cleans it up. */
int listen_open_unix(const char *path, int mode, struct listener *ret,
                     struct err *e);

/* In a directory only we may enter: $XDG_RUNTIME_DIR/rewind, or
 * rewind-UID in $TMPDIR or /tmp. */
int listen_open_private(int mode, struct listener *ret, struct err *e);

#endif
