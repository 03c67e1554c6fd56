/* SPDX-License-Identifier: BSD-2-Clause */
/* The kernel signals a parent's end: PR_SET_PDEATHSIG of prctl(2). No state. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cli/parent.h"

int
parent_watch(struct err *e)
{
    const pid_t parent = getppid();

    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) {
        return err_set(e, errno, "cannot watch the parent process: %s",
                       strerror(errno));
    }
    /* It may have ended before the kernel knew that we care. */
    if (getppid() != parent) {
        kill(getpid(), SIGTERM);
    }
    return 0;
}
