/* SPDX-License-Identifier: BSD-2-Clause */
/* Asks other programs for their version (program.h). One thread. */
#include "cli/program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/host.h"

#define TIMEOUT_MS 3000

static int
spawn(const char *name, int out_fd, pid_t *ret_pid)
{
    char *argv[] = {(char *)name, (char *)"--version", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t signals;
    int r;

    /* We ignore these, and it would too. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    sigaddset(&signals, SIGXFSZ);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null",
                                     O_WRONLY, 0);
    r = posix_spawnp(ret_pid, name, &actions, &attributes, argv,
                     host_environment());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

/* Reads up to the end or a full buffer; NUL-terminated. */
static int
read_all(int fd, char *buf, size_t cap)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t len = 0;

    while (len < cap - 1) {
        int ready = poll(&p, 1, TIMEOUT_MS);
        ssize_t n;

        if (ready <= 0) {
            buf[len] = '\0';
            return ready == 0 ? -ETIMEDOUT : -errno;
        }
        n = read(fd, buf + len, cap - 1 - len);
        if (n <= 0) {
            break;
        }
        len += (size_t)n;
    }
    buf[len] = '\0';
    return 0;
}

int
program_version(const char *name, char *buf, size_t cap)
{
    cleanup_fd int in = -1, out = -1;
    int fds[2], status, r;
    pid_t pid;

    if (pipe(fds) != 0) {
        return -errno;
    }
    in = fds[0];
    out = fds[1];
    (void)fcntl(in, F_SETFD, FD_CLOEXEC);
    (void)fcntl(out, F_SETFD, FD_CLOEXEC);
    r = spawn(name, out, &pid);
    if (r < 0) {
        return r;
    }
    file_close_ptr(&out);
    r = read_all(in, buf, cap);
    buf[strcspn(buf, "\n")] = '\0';
    /* It may print more than we want: then the pipe breaks. */
    file_close_ptr(&in);
    if (r < 0) {
        kill(pid, SIGKILL);
    }
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    if (r == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        return -ENOENT; /* how older systems' spawn reports it */
    }
    return r;
}
