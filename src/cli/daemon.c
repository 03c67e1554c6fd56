/* SPDX-License-Identifier: BSD-2-Clause */
/* Background processes and pid files (daemon.h). No state of its own. */
#include "cli/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"

/* The parent's whole rest of life. One byte means ready; without one the
 * child has ended, and what was wrong it has said itself. */
static void __attribute__((noreturn)) wait_for_child(int fd, pid_t child)
{
    char byte;
    ssize_t n;
    int status;

    do {
        n = read(fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 1) {
        _exit(CLI_OK);
    }
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) {
            _exit(CLI_FAILED);
        }
    }
    if (WIFSIGNALED(status)) {
        dprintf(STDERR_FILENO,
                "rewind: error: the server was ended by signal "
                "%d before it was ready\n",
                WTERMSIG(status));
        _exit(CLI_FAILED);
    }
    _exit(WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : CLI_FAILED);
}

int
daemon_start(struct daemon *d, struct err *e)
{
    int fds[2];
    pid_t child;

    fflush(NULL); /* or both would print what is buffered */
    if (pipe(fds) != 0) {
        return err_set(e, errno, "cannot make a pipe: %s", strerror(errno));
    }
    child = fork();
    if (child < 0) {
        int saved = errno;

        close(fds[0]);
        close(fds[1]);
        return err_set(e, saved, "cannot fork: %s", strerror(saved));
    }
    if (child > 0) {
        close(fds[1]);
        wait_for_child(fds[0], child);
    }
    close(fds[0]);
    (void)fcntl(fds[1], F_SETFD, FD_CLOEXEC);
    d->ready_fd = fds[1];
    (void)setsid();
    return 0;
}

int
daemon_ready(struct daemon *d, bool keep_stderr)
{
    cleanup_fd int null = -1;
    ssize_t n;

    if (d->ready_fd < 0) {
        return 0;
    }
    /* First the streams: a caller who reads our output up to its end, as a
     * shell's $(...) does, must not wait for the server's end. */
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 ||
        dup2(null, STDOUT_FILENO) < 0 ||
        (!keep_stderr && dup2(null, STDERR_FILENO) < 0) || chdir("/") != 0) {
        return -errno;
    }
    do {
        n = write(d->ready_fd, "", 1);
    } while (n < 0 && errno == EINTR);
    int r = n == 1 ? 0 : -errno;

    close(d->ready_fd);
    d->ready_fd = -1;
    return r;
}

/* ---- the pid file ---- */

/* `path` as it is reached after a chdir; to be freed, NULL if it can't be. */
static char *
absolute_path(const char *path)
{
    char *full = NULL, *cwd;

    if (path[0] == '/') {
        return strdup(path);
    }
    cwd = getcwd(NULL, 0);
    if (cwd != NULL && asprintf(&full, "%s/%s", cwd, path) < 0) {
        full = NULL;
    }
    free(cwd);
    return full;
}

static int
fill_and_rename(const struct pid_file *p, int fd, const char *temporary)
{
    int r = 0;

    if (dprintf(fd, "%ld\n", (long)getpid()) < 0 || fchmod(fd, 0644) != 0 ||
        rename(temporary, p->path) != 0) {
        r = -errno;
        (void)unlink(temporary);
    }
    return r;
}

int
pid_file_write(struct pid_file *p, const char *path, struct err *e)
{
    cleanup_fd int fd = -1;
    char *temporary = NULL;
    int r;

    p->path = absolute_path(path);
    if (p->path == NULL || asprintf(&temporary, "%s.XXXXXX", p->path) < 0) {
        free(p->path);
        p->path = NULL;
        return err_set(e, ENOMEM, "out of memory");
    }
    fd = mkstemp(temporary);
    if (fd >= 0) {
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    r = fd >= 0 ? fill_and_rename(p, fd, temporary) : -errno;
    free(temporary);
    if (r < 0) {
        err_set(e, -r, "cannot write the pid file %s: %s", path, strerror(-r));
        free(p->path);
        p->path = NULL;
    }
    return r;
}

void
pid_file_remove(struct pid_file *p)
{
    FILE *f = p->path != NULL ? fopen(p->path, "re") : NULL;
    char line[32];

    if (f != NULL) {
        if (fgets(line, sizeof(line), f) != NULL &&
            strtol(line, NULL, 10) == (long)getpid()) {
            (void)unlink(p->path);
        }
        fclose(f);
    }
    free(p->path);
    p->path = NULL;
}
