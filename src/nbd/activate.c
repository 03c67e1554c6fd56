/* SPDX-License-Identifier: BSD-2-Clause */
/* Socket activation as systemd does it (activate.h, sd_listen_fds(3)). No
 * state but the environment; one thread. */
#include "nbd/activate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define FIRST_FD 3

/* A decimal number and nothing else, or -1. */
static long
number_in(const char *text)
{
    char *end;
    long value;

    if (text == NULL || text[0] < '0' || text[0] > '9') {
        return -1;
    }
    errno = 0;
    value = strtol(text, &end, 10);
    return *end == '\0' && errno == 0 ? value : -1;
}

int
activate_sockets(int fds[ACTIVATE_SOCKETS_MAX], struct err *e)
{
    const long pid = number_in(getenv("LISTEN_PID"));
    const long count = number_in(getenv("LISTEN_FDS"));

    /* Meant for another process, or not at all. */
    if (pid != (long)getpid() || count <= 0) {
        return activate_sockets_system(fds, e);
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (count > (long)ACTIVATE_SOCKETS_MAX) {
        return err_set(e, E2BIG,
                       "$LISTEN_FDS hands over %ld sockets; at most "
                       "%u are taken",
                       count, ACTIVATE_SOCKETS_MAX);
    }
    for (int i = 0; i < (int)count; i++) {
        if (fcntl(FIRST_FD + i, F_SETFD, FD_CLOEXEC) != 0) {
            return err_set(e, EBADF,
                           "$LISTEN_FDS says %ld, but descriptor "
                           "%d is not open",
                           count, FIRST_FD + i);
        }
        fds[i] = FIRST_FD + i;
    }
    return (int)count;
}
