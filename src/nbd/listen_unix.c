/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening Unix sockets (listen_unix.h). What is hard about them is the
 * file: a server that was killed leaves one behind, and the next has to tell
 * that from one in use. Looking, unlinking and binding are three steps; a lock
 * on the directory keeps two of us from taking them at once.
 */
#include "nbd/listen_unix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/file.h"

/* How long to wait for the directory's lock: others hold it for microseconds,
 * and whoever holds it longer means harm; then we go on without. */
#define LOCK_TRIES 50
#define LOCK_PAUSE_MS 10

/* The private directory can vanish as its last user leaves it. */
#define PRIVATE_TRIES 8

/* ---- the path ---- */

/* The directory part of `path`, to be freed. */
static char *
directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL) {
        return strdup(".");
    }
    return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

/* `path` so that it holds after a chdir; to be freed. NULL without memory, or
 * if the directory is not there. */
static char *
absolute(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = directory_of(path);
    char *real = dir != NULL ? realpath(dir, NULL) : NULL;
    char *full = NULL;

    if (real != NULL &&
        asprintf(&full, "%s/%s", strcmp(real, "/") == 0 ? "" : real,
                 slash != NULL ? slash + 1 : path) < 0) {
        full = NULL;
    }
    free(real);
    free(dir);
    return full;
}

static int
set_address(const char *path, struct sockaddr_un *sa, struct err *e)
{
    if (strlen(path) >= sizeof(sa->sun_path)) {
        return err_set(e, ENAMETOOLONG,
                       "%s: a socket's path can have %zu bytes here, and this "
                       "has %zu; choose a shorter one",
                       path, sizeof(sa->sun_path) - 1, strlen(path));
    }
    memset(sa, 0, sizeof(*sa));
    sa->sun_family = AF_UNIX;
    memcpy(sa->sun_path, path, strlen(path)); /* its NUL is there */
    return 0;
}

/* ---- who is there ---- */

/* Keeps others of us out of the directory; -1 without a lock. */
static int
lock_directory(const char *path, struct err *e, int *ret)
{
    char *dir = directory_of(path);
    int fd;

    *ret = -1;
    if (dir == NULL) {
        return err_set(e, ENOMEM, "out of memory");
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno != EACCES) {
        int saved = errno;

        err_set(e, saved, "%s: cannot use the directory %s: %s%s", path, dir,
                strerror(saved), saved == ENOENT ? "; make it first" : "");
        free(dir);
        return -saved;
    }
    free(dir);
    if (fd < 0) {
        return 0; /* may not be listed, but perhaps written: bind will tell */
    }
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            break;
        }
        poll(NULL, 0, LOCK_PAUSE_MS);
    }
    *ret = fd;
    return 0;
}

/* 0 if nobody listens, -EADDRINUSE if somebody does, or what connect said. */
static int
probe(const struct sockaddr_un *sa)
{
    cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    if (fd < 0) {
        return -errno;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    /* A full queue must not make us wait. */
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0) {
        return -EADDRINUSE;
    }
    switch (errno) {
    case ECONNREFUSED:
    case ENOENT:
        return 0;
    case EAGAIN:
    case EINPROGRESS:
    case EPROTOTYPE:
        return -EADDRINUSE;
    default:
        return -errno;
    }
}

/* Makes room at the path: nothing is there, or a socket that is dead. */
static int
remove_stale(const struct sockaddr_un *sa, struct err *e)
{
    const char *path = sa->sun_path;
    struct stat st;
    int r;

    if (lstat(path, &st) != 0) {
        return errno == ENOENT
                   ? 0
                   : err_set(e, errno, "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return err_set(e, EEXIST,
                       "%s exists and is not a socket; remove it "
                       "or choose another path",
                       path);
    }
    r = probe(sa);
    if (r == -EADDRINUSE) {
        return err_set(e, EADDRINUSE,
                       "%s is already in use: another server "
                       "listens there; stop it or choose another path",
                       path);
    }
    if (r < 0) {
        return err_set(e, -r,
                       "%s: cannot tell whether a server still listens "
                       "there: %s",
                       path, strerror(-r));
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return err_set(e, errno,
                       "%s: cannot remove the socket that an ended "
                       "server left: %s",
                       path, strerror(errno));
    }
    return 0;
}

/* ---- making one ---- */

/* Binds and listens, so that the file has its mode from the first moment. */
static int
bind_socket(int fd, const struct sockaddr_un *sa, int mode)
{
    mode_t before = 0;
    int r = 0;

    if (mode != LISTEN_MODE_UMASK) {
        before = umask(0777 & ~(mode_t)mode);
    }
    if (bind(fd, (const struct sockaddr *)sa, sizeof(*sa)) != 0) {
        r = -errno;
    }
    if (mode != LISTEN_MODE_UMASK) {
        umask(before);
    }
    if (r == 0 && listen(fd, SOMAXCONN) != 0) {
        r = -errno;
    }
    return r;
}

/* Remembers which file is ours. While a descriptor of the socket is open, no
 * other file can have its number. */
static int
remember(const char *path, struct listener *ret, struct err *e)
{
    struct stat st;
    char *full;
    int fd;

    if (lstat(path, &st) != 0) {
        return err_set(e, errno, "%s: %s", path, strerror(errno));
    }
    fd = fcntl(ret->fds[0], F_DUPFD_CLOEXEC, 3);
    full = fd >= 0 ? absolute(path) : NULL;
    if (full == NULL) {
        int saved = errno;

        (void)unlink(path);
        if (fd >= 0) {
            close(fd);
        }
        return err_set(e, saved, "%s: %s", path, strerror(saved));
    }
    ret->dev = st.st_dev;
    ret->ino = st.st_ino;
    ret->hold_fd = fd;
    ret->path = full;
    /* A client connects by the full path, unless that is too long for it. */
    ret->uri.scheme = URI_UNIX;
    snprintf(ret->uri.socket, sizeof(ret->uri.socket), "%s",
             strlen(ret->path) < sizeof(((struct sockaddr_un *)0)->sun_path)
                 ? ret->path
                 : path);
    return 0;
}

int
listen_open_unix(const char *path, int mode, struct listener *ret,
                 struct err *e)
{
    cleanup_fd int lock = -1;
    struct sockaddr_un sa;
    int fd, r;

    r = set_address(path, &sa, e);
    if (r == 0) {
        r = lock_directory(path, e, &lock);
    }
    if (r == 0) {
        r = remove_stale(&sa, e);
    }
    if (r < 0) {
        return r;
    }
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) {
        return err_set(e, errno, "cannot make a socket: %s", strerror(errno));
    }
    ret->fds[ret->fd_count++] = fd;
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    r = bind_socket(fd, &sa, mode);
    if (r < 0) {
        return err_set(e, -r, "%s: cannot listen there: %s", path,
                       strerror(-r));
    }
    return remember(path, ret, e);
}

/* ---- a place of our own ---- */

/* Candidates in order; the first that is set and short enough is used. */
static int
private_dir(char *buf, size_t cap)
{
    const struct {
        const char *base;
        bool shared; /* with other users: the name must tell us apart */
    } places[] = {
        {getenv("XDG_RUNTIME_DIR"), false},
        {getenv("TMPDIR"), true},
        {"/tmp", true},
    };
    /* "/PID-NNNN.sock" comes behind it. */
    const size_t room = sizeof(((struct sockaddr_un *)0)->sun_path) - 20;

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        const char *base = places[i].base;
        int n;

        if (base == NULL || base[0] != '/') {
            continue;
        }
        if (places[i].shared) {
            n = snprintf(buf, cap, "%s/rewind-%lu", base,
                         (unsigned long)geteuid());
        } else {
            n = snprintf(buf, cap, "%s/rewind", base);
        }
        if (n > 0 && (size_t)n < cap && (size_t)n < room &&
            access(base, W_OK | X_OK) == 0) {
            return 0;
        }
    }
    return -ENOENT;
}

/* Makes the directory, or makes sure that it is ours alone: what lies in a
 * directory of somebody else's, they can replace. */
static int
own_directory(const char *dir, struct err *e)
{
    struct stat st;

    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        return err_set(e, errno,
                       "cannot make the directory %s: %s; name a "
                       "socket with --listen",
                       dir, strerror(errno));
    }
    if (lstat(dir, &st) != 0) {
        return -errno;
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
        (st.st_mode & 077) != 0) {
        return err_set(e, EPERM,
                       "%s is not a directory that only you may "
                       "enter; remove it, or name a socket with --listen",
                       dir);
    }
    return 0;
}

int
listen_open_private(int mode, struct listener *ret, struct err *e)
{
    char dir[1024], path[sizeof(dir) + 32];
    int r;

    if (private_dir(dir, sizeof(dir)) < 0) {
        return err_set(e, ENOENT,
                       "no directory for a socket: "
                       "$XDG_RUNTIME_DIR, $TMPDIR and /tmp cannot be used; "
                       "name a socket with --listen");
    }
    for (int i = 0; i < PRIVATE_TRIES; i++) {
        r = own_directory(dir, e);
        if (r == -ENOENT) {
            continue; /* its last user has just left */
        }
        if (r < 0) {
            return r;
        }
        /* The number tells apart processes that see different process ids. */
        snprintf(path, sizeof(path), "%s/%ld-%d.sock", dir, (long)getpid(), i);
        r = listen_open_unix(path, mode, ret, e);
        if (r == 0) {
            ret->dir = strdup(dir);
            return 0;
        }
        listen_close(ret);
        (void)rmdir(dir);
        if (r != -ENOENT && r != -EADDRINUSE) {
            return r;
        }
    }
    return err_set(e, EADDRINUSE, "%s: no free name for a socket", dir);
}
