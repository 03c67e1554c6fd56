/* SPDX-License-Identifier: BSD-2-Clause */
/* Listening sockets (nbd/listen.h): modes, what is replaced and what is not,
 * what is cleaned up, TCP on both families, sockets that are handed over. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "nbd/activate.h"
#include "nbd/listen.h"

/* Every test works in a fresh directory and leaves it empty. */
static char dir[256];

static int
enter_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof(dir), "%s/lsXXXXXX", tmp != NULL ? tmp : "/tmp");
    return mkdtemp(dir) != NULL && chdir(dir) == 0 ? 0 : -1;
}

static int
leave_dir(void **state)
{
    (void)state;
    return chdir("/") == 0 && rmdir(dir) == 0 ? 0 : -1;
}

static struct listen_address
unix_at(const char *path)
{
    struct listen_address a = {.kind = LISTEN_UNIX};

    snprintf(a.path, sizeof(a.path), "%s", path);
    return a;
}

static int
open_unix(const char *path, int mode, struct listener *ret, struct err *e)
{
    const struct listen_address a = unix_at(path);

    return listen_open(&a, mode, ret, e);
}

/* Whether somebody listens there. */
static bool
answers(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool ok;

    strcpy(sa.sun_path, path);
    ok = connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0;
    close(fd);
    return ok;
}

static unsigned
mode_of(const char *path)
{
    struct stat st;

    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    return st.st_mode & 0777;
}

static void
socket_has_the_mode_asked_for(void **state)
{
    static const int modes[] = {0600, 0660, 0666, 0, 0777};
    mode_t before = umask(027);
    struct listener l;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        assert_int_equal(open_unix("s", modes[i], &l, &e), 0);
        assert_int_equal(mode_of("s"), modes[i]);
        listen_close(&l);
        assert_int_equal(access("s", F_OK), -1);
    }
    assert_int_equal(open_unix("s", LISTEN_MODE_UMASK, &l, &e), 0);
    assert_int_equal(mode_of("s"), 0750);
    listen_close(&l);
    assert_int_equal(umask(before), 027); /* left as it was */
}

static void
uri_has_the_full_path(void **state)
{
    char real[4096];
    struct listener l;
    struct err e;

    (void)state;
    assert_non_null(realpath(dir, real));
    strcat(real, "/s");
    assert_int_equal(open_unix("./s", 0600, &l, &e), 0);
    assert_int_equal(l.uri.scheme, URI_UNIX);
    assert_string_equal(l.uri.socket, real);
    assert_true(answers(real));
    /* Whatever the working directory is by then. */
    assert_int_equal(chdir("/"), 0);
    listen_close(&l);
    assert_int_equal(chdir(dir), 0);
    assert_int_equal(access("s", F_OK), -1);
}

static void
dead_socket_is_replaced(void **state)
{
    struct listener l;
    struct err e;
    pid_t pid = fork();

    (void)state;
    if (pid == 0) {
        _exit(open_unix("s", 0600, &l, &e) == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(access("s", F_OK), 0);
    assert_false(answers("s"));
    assert_int_equal(open_unix("s", 0600, &l, &e), 0);
    assert_true(answers("s"));
    listen_close(&l);
}

/* Only the socket that was made is unlinked, also if its server has closed it
 * by then and the file system is quick to use a number again. */
static void
other_socket_is_not_unlinked(void **state)
{
    struct listener old, l;
    struct err e;

    (void)state;
    assert_int_equal(open_unix("s", 0600, &old, &e), 0);
    close(old.fds[0]);
    old.fds[0] = -1;
    assert_int_equal(unlink("s"), 0);
    assert_int_equal(open_unix("s", 0600, &l, &e), 0);
    listen_close(&old);
    assert_true(answers("s"));
    listen_unlink(&l);
    assert_int_equal(access("s", F_OK), -1);
    listen_unlink(&l);
    listen_close(&l);
}

static void
live_socket_is_refused(void **state)
{
    struct listener live, l;
    struct err e;

    (void)state;
    assert_int_equal(open_unix("s", 0600, &live, &e), 0);
    assert_int_equal(open_unix("s", 0600, &l, &e), -EADDRINUSE);
    assert_non_null(strstr(e.text, "already in use"));
    assert_true(answers("s"));
    listen_close(&live);
}

static void
other_files_are_kept(void **state)
{
    struct listener l;
    struct err e;
    int fd;

    (void)state;
    fd = open("s", O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(open_unix("s", 0600, &l, &e), -EEXIST);
    assert_non_null(strstr(e.text, "not a socket"));
    assert_int_equal(unlink("s"), 0);
    assert_int_equal(symlink("/nowhere", "s"), 0);
    assert_int_equal(open_unix("s", 0600, &l, &e), -EEXIST);
    assert_int_equal(unlink("s"), 0);
}

static void
bad_paths_are_explained(void **state)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1];
    struct listener l;
    struct err e;

    (void)state;
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0'; /* exactly one byte too long */
    assert_int_equal(open_unix(path, 0600, &l, &e), -ENAMETOOLONG);
    assert_non_null(strstr(e.text, "shorter"));
    path[sizeof(path) - 2] = '\0';
    assert_int_equal(open_unix(path, 0600, &l, &e), 0);
    listen_close(&l);
    assert_int_equal(open_unix("none/s", 0600, &l, &e), -ENOENT);
    assert_non_null(strstr(e.text, "none"));
}

static void
private_socket_is_ours_alone(void **state)
{
    const struct listen_address a = {.kind = LISTEN_PRIVATE};
    struct listener one, two;
    struct stat st;
    struct err e;

    (void)state;
    setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(listen_open(&a, 0600, &one, &e), 0);
    assert_int_equal(listen_open(&a, 0600, &two, &e), 0);
    assert_string_not_equal(one.uri.socket, two.uri.socket);
    assert_int_equal(mode_of(one.uri.socket), 0600);
    assert_int_equal(stat("rewind", &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    listen_close(&one);
    assert_true(answers(two.uri.socket));
    listen_close(&two);
    assert_int_equal(access("rewind", F_OK), -1);

    /* A directory that others may enter is not trusted. */
    assert_int_equal(mkdir("rewind", 0700), 0);
    assert_int_equal(chmod("rewind", 0755), 0);
    assert_int_equal(listen_open(&a, 0600, &one, &e), -EPERM);
    assert_int_equal(rmdir("rewind"), 0);
    assert_int_equal(symlink("/tmp", "rewind"), 0);
    assert_int_equal(listen_open(&a, 0600, &one, &e), -EPERM);
    assert_int_equal(unlink("rewind"), 0);
    unsetenv("XDG_RUNTIME_DIR");
}

static void
tcp_takes_one_port_on_all_families(void **state)
{
    struct listen_address a = {.kind = LISTEN_TCP, .host = "localhost"};
    struct listener l, again;
    struct err e;

    (void)state;
    assert_int_equal(listen_open(&a, 0600, &l, &e), 0);
    assert_true(l.fd_count >= 1);
    assert_int_not_equal(l.uri.port, 0);
    assert_string_equal(l.uri.host, "localhost");
    for (unsigned i = 0; i < l.fd_count; i++) {
        struct sockaddr_in6 sa;
        socklen_t len = sizeof(sa);

        assert_int_equal(getsockname(l.fds[i], (struct sockaddr *)&sa, &len),
                         0);
        /* The port is at the same place in both families. */
        assert_int_equal(ntohs(sa.sin6_port), l.uri.port);
    }
    a.port = l.uri.port;
    assert_int_equal(listen_open(&a, 0600, &again, &e), -EADDRINUSE);
    assert_non_null(strstr(e.text, "another port"));
    listen_close(&l);

    /* No such address on this host (RFC 5737). */
    strcpy(a.host, "192.0.2.1");
    assert_int_equal(listen_open(&a, 0600, &again, &e), -EADDRNOTAVAIL);
}

static void
network_is_told_from_loopback(void **state)
{
    static const struct {
        const char *text;
        bool network;
    } rows[] = {
        {"localhost", false},
        {"127.0.0.1", false},
        {"127.9.9.9:1", false},
        {"[::1]:1", false},
        {"unix:/run/s", false},
        {"[::ffff:127.0.0.1]", false},
        {"0.0.0.0:1", true},
        {"[::]:1", true},
        {"*", true},
        {":1", true},
        {"192.0.2.1", true},
        {"[2001:db8::1]", true},
        {"[::ffff:10.0.0.1]", true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct listen_address a;
        struct err e;
        bool network = !rows[i].network;

        assert_int_equal(listen_parse(rows[i].text, &a, &e), 0);
        assert_int_equal(listen_reaches_network(&a, &network, &e), 0);
        assert_int_equal(network, rows[i].network);
    }
}

static void
sockets_are_adopted(void **state)
{
    struct listener l;
    struct err e;
    int fd, pair[2];

    (void)state;
    assert_int_equal(open_unix("s", 0600, &l, &e), 0);
    fd = dup(l.fds[0]);
    struct listener adopted;

    assert_int_equal(listen_adopt(fd, &adopted, &e), 0);
    assert_int_equal(adopted.uri.scheme, URI_UNIX);
    assert_string_equal(adopted.uri.socket, "s");
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    listen_close(&adopted);
    assert_int_equal(access("s", F_OK), 0); /* not ours to unlink */
    listen_close(&l);

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(listen_adopt(pair[0], &adopted, &e), -EINVAL);
    assert_non_null(strstr(e.text, "--inetd"));
    close(pair[1]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    assert_int_equal(listen_adopt(pair[0], &adopted, &e), -EPROTOTYPE);
    close(pair[1]);
    fd = open("/dev/null", O_RDWR);
    assert_int_equal(listen_adopt(fd, &adopted, &e), -ENOTSOCK);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* taken over all the same */
}

/* Only what is meant for this very process counts. */
static void
activation_reads_the_environment(void **state)
{
    int fds[ACTIVATE_SOCKETS_MAX];
    char pid[24];
    struct err e;

    (void)state;
    snprintf(pid, sizeof(pid), "%ld", (long)getpid());
    assert_int_equal(activate_sockets(fds, &e), 0);
    setenv("LISTEN_FDS", "1", 1);
    assert_int_equal(activate_sockets(fds, &e), 0);
    setenv("LISTEN_PID", "1", 1);
    assert_int_equal(activate_sockets(fds, &e), 0);
    assert_non_null(getenv("LISTEN_FDS")); /* somebody else's: let alone */
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "-1", 1);
    assert_int_equal(activate_sockets(fds, &e), 0);
    setenv("LISTEN_FDS", "33", 1);
    assert_int_equal(activate_sockets(fds, &e), -E2BIG);
    assert_null(getenv("LISTEN_FDS"));

    int null = open("/dev/null", O_RDWR);
    const bool here = null == 3 || dup2(null, 3) == 3;

    assert_true(here);
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_FDNAMES", "nbd", 1);
    assert_int_equal(activate_sockets(fds, &e), 1);
    assert_int_equal(fds[0], 3);
    assert_true((fcntl(3, F_GETFD) & FD_CLOEXEC) != 0);
    assert_null(getenv("LISTEN_PID"));
    assert_null(getenv("LISTEN_FDNAMES"));
    close(3);
    if (null != 3) {
        close(null);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, enter_dir, leave_dir)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(socket_has_the_mode_asked_for),
        TEST(uri_has_the_full_path),
        TEST(dead_socket_is_replaced),
        TEST(other_socket_is_not_unlinked),
        TEST(live_socket_is_refused),
        TEST(other_files_are_kept),
        TEST(bad_paths_are_explained),
        TEST(private_socket_is_ours_alone),
        TEST(tcp_takes_one_port_on_all_families),
        TEST(network_is_told_from_loopback),
        TEST(sockets_are_adopted),
        TEST(activation_reads_the_environment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
