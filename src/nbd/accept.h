/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_ACCEPT_H
#define REWIND_NBD_ACCEPT_H

/*
 * Accepts one connection on a listening socket, close-on-exec, blocking, and
 * such that a write to a peer that has gone is an error and not a signal.
 * Returns the descriptor (owned by the caller) or -errno; -EAGAIN if the peer
 * has gone already. accept_linux.c, accept_macos.c.
 */
int accept_session(int listener);

#endif
