/* SPDX-License-Identifier: BSD-2-Clause */
/* The bell of a context, as an eventfd: see wake.h. No state of its own. */
#include "io/wake.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

int
wake_open(struct wake *w)
{
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->write_fd = w->fd;
    return w->fd >= 0 ? 0 : -errno;
}

void
wake_close(struct wake *w)
{
    close(w->fd);
}

void
wake_signal(struct wake *w)
{
    int errno_before = errno;
    uint64_t one = 1;
    ssize_t n;

    /* EAGAIN: the counter is full, so the bell rings already. */
    do {
        n = write(w->write_fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
    errno = errno_before;
}

void
wake_clear(struct wake *w)
{
    uint64_t count;
    ssize_t n;

    do {
        n = read(w->fd, &count, sizeof(count));
    } while (n < 0 && errno == EINTR);
}
