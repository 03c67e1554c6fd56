/* SPDX-License-Identifier: BSD-2-Clause */
/* macOS: no accept4, and SO_NOSIGPIPE belongs to the socket. A socket that is
 * accepted from a non-blocking listener is non-blocking too. */
#include "nbd/accept.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/socket.h>

int
accept_session(int listener)
{
    int on = 1;
    int fd = accept(listener, NULL, NULL);

    if (fd < 0) {
        return errno == EINTR || errno == ECONNABORTED ? -EAGAIN : -errno;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)fcntl(fd, F_SETFL, 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
    return fd;
}
