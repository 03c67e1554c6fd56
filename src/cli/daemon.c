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
#include "base/log.h"
#include "cli/cli.h"

/* A server that ends while we start takes its pid file away once; more than a
 * few of them in a row is something else. */
#define OPEN_TRIES 100u

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

/* Opens it and takes its lock. Whoever had it may just have ended and removed
 * the file that we opened: -EAGAIN then. */
static int
open_pid_file(struct pid_file *p, const char *path, struct err *e)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat st, now;

    /* Never a controlling terminal: after --fork we lead a session. */
    p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0644);
    if (p->fd < 0 || fstat(p->fd, &st) != 0) {
        return err_set(e, errno, "cannot write the pid file %s: %s", path,
                       strerror(errno));
    }
    p->is_file = S_ISREG(st.st_mode);
    if (!p->is_file) {
        return S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)
                   ? 0
                   : err_set(e, EINVAL,
                             "the pid file %s is neither a file, a pipe nor "
                             "a character device; name another one",
                             path);
    }
    if (fcntl(p->fd, F_SETLK, &lock) == 0) {
        return stat(p->path, &now) == 0 && now.st_dev == st.st_dev &&
                       now.st_ino == st.st_ino
                   ? 0
                   : -EAGAIN;
    }
    if (errno != EAGAIN && errno != EACCES) {
        return err_set(e, errno, "cannot lock the pid file %s: %s", path,
                       strerror(errno));
    }
    return err_set(e, EBUSY,
                   "the pid file %s is locked by another process, most likely "
                   "a server that runs; stop that one first, or name another "
                   "file",
                   path);
}

/* What is at its path, if that is the file itself or a link to it. */
enum pid_path { PATH_OTHER, PATH_FILE, PATH_LINK };

static enum pid_path
look_at_path(const struct pid_file *p)
{
    struct stat own, direct, followed;

    if (!p->is_file || fstat(p->fd, &own) != 0 ||
        lstat(p->path, &direct) != 0 || stat(p->path, &followed) != 0 ||
        followed.st_dev != own.st_dev || followed.st_ino != own.st_ino) {
        return PATH_OTHER;
    }
    return S_ISLNK(direct.st_mode) ? PATH_LINK : PATH_FILE;
}

static void
forget(struct pid_file *p)
{
    file_close_ptr(&p->fd);
    free(p->path);
    p->path = NULL;
}

static int
write_pid(struct pid_file *p, const char *path, struct err *e)
{
    char line[32];
    int len = snprintf(line, sizeof(line), "%ld\n", (long)getpid());
    ssize_t n;

    if (p->is_file && ftruncate(p->fd, 0) != 0) {
        return err_set(e, errno, "cannot empty the pid file %s: %s", path,
                       strerror(errno));
    }
    do {
        n = write(p->fd, line, (size_t)len);
    } while (n < 0 && errno == EINTR);
    if (n == len) {
        return 0;
    }
    n = n < 0 ? -errno : -ENOSPC;
    if (look_at_path(p) == PATH_FILE) {
        (void)unlink(p->path);
    }
    return err_set(e, (int)-n, "cannot write the pid file %s: %s", path,
                   strerror((int)-n));
}

int
pid_file_write(struct pid_file *p, const char *path, struct err *e)
{
    int r;

    p->path = absolute_path(path);
    if (p->path == NULL) {
        return err_set(e, ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i < OPEN_TRIES; i++) {
        r = open_pid_file(p, path, e);
        if (r != -EAGAIN) {
            break;
        }
        file_close_ptr(&p->fd);
    }
    if (r == -EAGAIN) {
        err_set(e, EAGAIN,
                "the pid file %s is removed again and again; name another one",
                path);
    }
    r = r == 0 ? write_pid(p, path, e) : r;
    if (r < 0) {
        forget(p);
    }
    return r;
}

void
pid_file_remove(struct pid_file *p)
{
    char line[32] = "";

    if (p->path == NULL) {
        return;
    }
    if (p->is_file && pread(p->fd, line, sizeof(line) - 1, 0) > 0 &&
        strtol(line, NULL, 10) == (long)getpid()) {
        switch (look_at_path(p)) {
        case PATH_FILE:
            (void)unlink(p->path);
            break;
        case PATH_LINK: /* which is not ours */
            if (ftruncate(p->fd, 0) != 0) {
                log_debug("cannot empty %s: %s", p->path, strerror(errno));
            }
            break;
        case PATH_OTHER:
            break;
        }
    }
    forget(p);
}
