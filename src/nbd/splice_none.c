/* SPDX-License-Identifier: BSD-2-Clause */
/* Systems without a way from the page cache to any socket: reads are copied. */
#include "nbd/splice.h"

#include <errno.h>

void
splicer_init(struct splicer *sp)
{
    *sp = (struct splicer){.pipe_fd = {-1, -1}, .refused = -ENOTSUP};
}

void
splicer_free(struct splicer *sp)
{
    (void)sp;
}

size_t
splicer_capacity(struct splicer *sp)
{
    (void)sp;
    return 0;
}

ssize_t
splicer_load(struct splicer *sp, int fd, uint64_t off, size_t len)
{
    (void)fd;
    (void)off;
    (void)len;
    return sp->refused;
}

int
splicer_send(struct splicer *sp, int out_fd, size_t len)
{
    (void)out_fd;
    (void)len;
    return sp->refused;
}

void
splicer_drop(struct splicer *sp)
{
    (void)sp;
}
