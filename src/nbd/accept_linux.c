/* SPDX-License-Identifier: BSD-2-Clause */
/* Linux: accept4; MSG_NOSIGNAL is given with each send. */
#include "nbd/accept.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

int
accept_session(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) {
        return errno == EINTR || errno == ECONNABORTED ? -EAGAIN : -errno;
    }
    return fd;
}
