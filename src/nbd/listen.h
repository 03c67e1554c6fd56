/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_LISTEN_H
#define REWIND_NBD_LISTEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "nbd/uri.h"

/*
 * Where a server listens: addresses as people write them, sockets made from
 * them, and sockets that whoever started us has made already. Control path;
 * one thread, before others are started (making a Unix socket sets the
 * process's umask for a moment).
 */

enum listen_kind {
    LISTEN_TCP,
    LISTEN_UNIX,
    LISTEN_PRIVATE, /* a Unix socket of our own choosing */
};

struct listen_address {
    enum listen_kind kind;
    char host[256];  /* TCP: name or address without brackets; "" or "*": all
                        interfaces */
    uint16_t port;   /* TCP; 0: any that is free */
    char path[1024]; /* UNIX */
};

/* Sockets that one address can lead to: an IPv4 and an IPv6 one for a name. */
#define LISTENER_SOCKETS_MAX 8u

/* Permission bits of a Unix socket: as the umask has it. */
#define LISTEN_MODE_UMASK (-1)

/* What listens at one address. */
struct listener {
    struct uri uri;                /* how a client on this host reaches it; no
                                      export */
    int fds[LISTENER_SOCKETS_MAX]; /* owned; -1 once somebody took it over */
    unsigned fd_count;
    char *path; /* owned: what listen_unlink removes, absolute; or NULL */
    char *dir;  /* owned: a directory to remove if empty; or NULL */
    dev_t dev;  /* the socket's, so that only ours is unlinked */
    ino_t ino;
    int hold_fd; /* owned: keeps `ino` from being given to another file; only
                    with `path` */
};

/*
 * Reads an address: "unix:PATH" or anything with a slash; "HOST", "HOST:PORT",
 * "[IPV6]:PORT", each perhaps after "tcp:". Without a port it is NBD's 10809.
 * -EINVAL with a message that says what is wrong.
 */
int listen_parse(const char *text, struct listen_address *ret, struct err *e);

/* Whether anybody beyond this host could connect to it: a TCP address that is
 * not a loopback one. Resolves names. 0 or -errno and `e`. */
int listen_reaches_network(const struct listen_address *a, bool *ret,
                           struct err *e);

/*
 * Listens at `a`; `mode` is for Unix sockets, permission bits or
 * LISTEN_MODE_UMASK. The caller owns *ret and ends it with listen_close.
 *
 * A Unix socket that nobody listens on any more is replaced; one that is in
 * use, and any other kind of file, is not: -EADDRINUSE, -EEXIST.
 */
int listen_open(const struct listen_address *a, int mode, struct listener *ret,
                struct err *e);

/* Takes over `fd`, on which we were started: it must be a listening stream
 * socket. Its path, if it has one, is not ours to unlink. */
int listen_adopt(int fd, struct listener *ret, struct err *e);

/* Unlinks the Unix socket, if there is one and it is still the one that was
 * made. What is connected stays so. Fine on zeroes, and twice. */
void listen_unlink(struct listener *l);

/* That, and closes what nobody took over. Fine on zeroes. */
void listen_close(struct listener *l);

#endif
