/* SPDX-License-Identifier: BSD-2-Clause */
/* The bell of a context, as a pipe: see wake.h. No state of its own. */
#include "io/wake.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static int
set_flags(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
        return -errno;
    }
    return 0;
}

/* Without pipe2 a child that another thread starts right now inherits the
 * descriptors until it execs; it can do no more with them than ring. */
int
wake_open(struct wake *w)
{
    int fds[2];
    int r;

    if (pipe(fds) != 0) {
        return -errno;
    }
    w->fd = fds[0];
    w->write_fd = fds[1];
    r = set_flags(w->fd);
    if (r == 0) {
        r = set_flags(w->write_fd);
    }
    if (r != 0) {
        wake_close(w);
    }
    return r;
}

void
wake_close(struct wake *w)
{
    close(w->fd);
    close(w->write_fd);
}

void
wake_signal(struct wake *w)
{
    int errno_before = errno;
    ssize_t n;

    /* EAGAIN: the pipe is full, so the bell rings already. */
    do {
        n = write(w->write_fd, "", 1);
    } while (n < 0 && errno == EINTR);
    errno = errno_before;
}

void
wake_clear(struct wake *w)
{
    char bytes[256];
    ssize_t n;

    do {
        n = read(w->fd, bytes, sizeof(bytes));
    } while (n == (ssize_t)sizeof(bytes) || (n < 0 && errno == EINTR));
}
