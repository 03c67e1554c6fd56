/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_DAEMON_H
#define REWIND_CLI_DAEMON_H

#include "base/err.h"
#include <stdbool.h>

/*
 * Going into the background, and the file that says who we are. One thread,
 * and only one in the process until daemon_start has returned.
 */
struct daemon {
    int ready_fd; /* owned: tells the parent; -1 when not forked */
};

#define DAEMON_INIT                                                            \
    {                                                                          \
        .ready_fd = -1                                                         \
    }

/*
 * Forks. Returns 0 in the child, which leads a session of its own and still
 * has the parent's standard streams, so that errors are seen. The parent never
 * returns: it waits, and exits with 0 once daemon_ready was called, or with
 * the child's status if that ended before.
 */
int daemon_start(struct daemon *d, struct err *e);

/*
 * Lets go of the terminal and then of the parent: standard input and output
 * become /dev/null, standard error too unless `keep_stderr`, the root becomes
 * the working directory. -EPIPE if the parent was killed meanwhile: nobody
 * waits for this server any more. Does nothing if daemon_start was not called.
 */
int daemon_ready(struct daemon *d, bool keep_stderr);

/*
 * A file with our process id, a line. A regular file is locked for as long as
 * we live, in the way of QEMU's programs (fcntl(2), all of it), so that two
 * servers can't have the same one, ours and theirs. The lock is the process's
 * own: a fork loses it.
 */
struct pid_file {
    char *path;   /* owned, absolute; NULL: none, and what follows is unset */
    int fd;       /* owned: holds the lock, or what a pipe has not passed on */
    bool is_file; /* else a pipe or a character device */
};

/*
 * Writes it in place: what is at the path stays what it is, a link, a pipe or
 * a device too. A regular file is emptied first, and made if there is none.
 * -EBUSY if another process has locked it.
 */
int pid_file_write(struct pid_file *p, const char *path, struct err *e);

/* Removes it, if it is still the same regular file and names this process. One
 * that was reached through a symbolic link is emptied. NULL path is fine. */
void pid_file_remove(struct pid_file *p);

#endif
