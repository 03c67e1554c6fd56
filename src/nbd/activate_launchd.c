/* SPDX-License-Identifier: BSD-2-Clause */
/* Sockets from macOS's launchd (activate.h; launch_activate_socket(3), the key
 * Sockets of launchd.plist(5)). No state. */
#include <errno.h>
#include <fcntl.h>
#include <launch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbd/activate.h"

int
activate_sockets_system(int fds[ACTIVATE_SOCKETS_MAX], struct err *e)
{
    int *found = NULL;
    size_t count = 0;
    int r = launch_activate_socket("Listeners", &found, &count);

    /* Not started by launchd, or without sockets of that name. */
    if (r == ESRCH || r == ENOENT) {
        return 0;
    }
    if (r != 0) {
        return err_set(e, r, "cannot get the sockets from launchd: %s",
                       strerror(r));
    }
    if (count > ACTIVATE_SOCKETS_MAX) {
        free(found);
        return err_set(e, E2BIG,
                       "launchd hands over %zu sockets; at most %u "
                       "are taken",
                       count, ACTIVATE_SOCKETS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        (void)fcntl(found[i], F_SETFD, FD_CLOEXEC);
        fds[i] = found[i];
    }
    free(found);
    return (int)count;
}
