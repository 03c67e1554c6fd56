/* SPDX-License-Identifier: BSD-2-Clause */
/* Linux: splice(2) from the page cache into a pipe, and on to the socket. */
#include "nbd/splice.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* What an ordinary user may ask for without a sysctl. */
#define PIPE_BYTES (1 << 20)

void
splicer_init(struct splicer *sp)
{
    *sp = (struct splicer){.pipe_fd = {-1, -1}};
}

void
splicer_drop(struct splicer *sp)
{
    for (int i = 0; i < 2; i++) {
        if (sp->pipe_fd[i] >= 0) {
            close(sp->pipe_fd[i]);
            sp->pipe_fd[i] = -1;
        }
    }
}

void
splicer_free(struct splicer *sp)
{
    splicer_drop(sp);
}

size_t
splicer_capacity(struct splicer *sp)
{
    if (sp->refused != 0) {
        return 0;
    }
    if (sp->pipe_fd[0] < 0) {
        if (pipe2(sp->pipe_fd, O_CLOEXEC) != 0) {
            sp->pipe_fd[0] = sp->pipe_fd[1] = -1;
            sp->refused = -errno;
            return 0;
        }
        /* If it is refused the pipe stays small. */
        (void)fcntl(sp->pipe_fd[1], F_SETPIPE_SZ, PIPE_BYTES);

        int bytes = fcntl(sp->pipe_fd[1], F_GETPIPE_SZ);

        sp->capacity_bytes = bytes > 0 ? (size_t)bytes : 0;
    }
    return sp->capacity_bytes;
}

ssize_t
splicer_load(struct splicer *sp, int fd, uint64_t off, size_t len)
{
    loff_t at = (loff_t)off;
    size_t loaded = 0;

    while (loaded < len) {
        ssize_t n = splice(fd, &at, sp->pipe_fd[1], NULL, len - loaded,
                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN && loaded > 0) {
            break; /* the pipe is full */
        }
        if (n <= 0) {
            int err = n < 0 ? -errno : -EIO;

            if (err == -EINVAL) {
                sp->refused = err; /* this filesystem has no splice */
            }
            splicer_drop(sp);
            return err;
        }
        loaded += (size_t)n;
    }
    return (ssize_t)loaded;
}

int
splicer_send(struct splicer *sp, int out_fd, size_t len)
{
    while (len > 0) {
        ssize_t n = splice(sp->pipe_fd[0], NULL, out_fd, NULL, len,
                           SPLICE_F_MOVE);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EPIPE;
        }
        len -= (size_t)n;
    }
    return 0;
}
