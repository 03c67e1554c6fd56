/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Listening sockets (listen.h): addresses, TCP, and sockets handed to us. Unix
 * sockets are made in listen_unix.c. No state; one thread.
 */
#include "nbd/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/file.h"
#include "nbd/listen_unix.h"
#include "nbd/proto.h"

/* A port that the system chose for one family can be taken in the other;
 * then it chooses again, this often. */
#define PORT_TRIES 16

/* ---- addresses ---- */

static int
parse_port(const char *text, const char *port, uint16_t *ret, struct err *e)
{
    unsigned long value;
    char *end;

    value = strtoul(port, &end, 10);
    if (port[0] < '0' || port[0] > '9' || *end != '\0' || value > 65535) {
        return err_set(e, EINVAL,
                       "\"%s\": the port must be a number from 0 "
                       "to 65535",
                       text);
    }
    *ret = (uint16_t)value;
    return 0;
}

static int
parse_path(const char *path, struct listen_address *ret, struct err *e)
{
    if (path[0] == '\0') {
        return err_set(e, EINVAL,
                       "the socket's path is empty; write "
                       "unix:/run/disk.sock");
    }
    if (strlen(path) >= sizeof(ret->path)) {
        return err_set(e, ENAMETOOLONG, "\"%s\" is too long for a socket",
                       path);
    }
    ret->kind = LISTEN_UNIX;
    snprintf(ret->path, sizeof(ret->path), "%s", path);
    return 0;
}

/* HOST, HOST:PORT, [IPV6], [IPV6]:PORT; `text` for messages. */
static int
parse_tcp(const char *text, const char *at, struct listen_address *ret,
          struct err *e)
{
    const bool bracketed = at[0] == '[';
    const char *host = at, *end;

    if (bracketed) {
        host = at + 1;
        end = strchr(host, ']');
        if (end == NULL) {
            return err_set(e, EINVAL, "\"%s\": no closing bracket", text);
        }
        at = end + 1;
    } else {
        end = at = host + strcspn(host, ":");
        if (strchr(at, ':') != strrchr(at, ':')) {
            return err_set(e, EINVAL,
                           "\"%s\": write an IPv6 address in "
                           "brackets: [::1]:10809",
                           text);
        }
    }
    if ((size_t)(end - host) >= sizeof(ret->host)) {
        return err_set(e, EINVAL, "\"%s\": the host name is too long", text);
    }
    if (*at != '\0' && *at != ':') {
        return err_set(e, EINVAL, "\"%s\": only :PORT may follow the address",
                       text);
    }
    if (end > host && *at == '\0' && !bracketed &&
        strspn(host, "0123456789") == strlen(host)) {
        return err_set(e, EINVAL,
                       "\"%s\": is this a port? Write "
                       "localhost:%s",
                       text, host);
    }
    ret->kind = LISTEN_TCP;
    ret->port = NBD_PORT;
    memcpy(ret->host, host, (size_t)(end - host));
    ret->host[end - host] = '\0';
    return *at == ':' ? parse_port(text, at + 1, &ret->port, e) : 0;
}

int
listen_parse(const char *text, struct listen_address *ret, struct err *e)
{
    struct listen_address a = {.port = 0};
    int r;

    if (strstr(text, "://") != NULL) {
        return err_set(e, EINVAL,
                       "\"%s\" is a URI; to listen write HOST:PORT "
                       "or unix:PATH",
                       text);
    }
    if (text[0] == '\0') {
        return err_set(e, EINVAL,
                       "the address is empty; write HOST:PORT or "
                       "unix:PATH");
    }
    if (strncmp(text, "unix:", 5) == 0) {
        r = parse_path(text + 5, &a, e);
    } else if (strncmp(text, "tcp:", 4) == 0) {
        r = parse_tcp(text, text + 4, &a, e);
    } else if (strchr(text, '/') != NULL) {
        r = parse_path(text, &a, e);
    } else {
        r = parse_tcp(text, text, &a, e);
    }
    if (r == 0) {
        *ret = a;
    }
    return r;
}

static bool
is_wildcard(const char *host)
{
    return host[0] == '\0' || strcmp(host, "*") == 0;
}

/* All socket addresses of a TCP address; freeaddrinfo is the caller's. */
static int
resolve(const struct listen_address *a, uint16_t port, struct addrinfo **ret,
        struct err *e)
{
    const struct addrinfo hints = {
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
    };
    char service[8];
    int r;

    snprintf(service, sizeof(service), "%u", port);
    r = getaddrinfo(is_wildcard(a->host) ? NULL : a->host, service, &hints,
                    ret);
    if (r != 0) {
        return err_set(e, EADDRNOTAVAIL,
                       "cannot find the address of \"%s\": "
                       "%s",
                       a->host,
                       r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
    }
    return 0;
}

static bool
is_loopback(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)sa;

        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)sa;

        return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
               (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) &&
                in6->sin6_addr.s6_addr[12] == 127);
    }
    return false;
}

int
listen_reaches_network(const struct listen_address *a, bool *ret, struct err *e)
{
    struct addrinfo *list;
    bool network = false;
    int r;

    if (a->kind != LISTEN_TCP) {
        *ret = false;
        return 0;
    }
    r = resolve(a, a->port, &list, e);
    if (r < 0) {
        return r;
    }
    for (const struct addrinfo *i = list; i != NULL; i = i->ai_next) {
        network = network || !is_loopback(i->ai_addr);
    }
    freeaddrinfo(list);
    *ret = network;
    return 0;
}

/* ---- TCP ---- */

static uint16_t
port_of(int fd)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);

    memset(&sa, 0, sizeof(sa));
    if (getsockname(fd, (struct sockaddr *)&sa, &len) != 0) {
        return 0;
    }
    return ntohs(sa.ss_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)&sa)->sin6_port
                     : ((const struct sockaddr_in *)&sa)->sin_port);
}

static void
set_port(struct sockaddr *sa, uint16_t port)
{
    if (sa->sa_family == AF_INET6) {
        ((struct sockaddr_in6 *)sa)->sin6_port = htons(port);
    } else if (sa->sa_family == AF_INET) {
        ((struct sockaddr_in *)sa)->sin_port = htons(port);
    }
}

/* A listening socket, or -errno. */
static int
open_tcp(const struct addrinfo *i, bool only_ipv6)
{
    int on = 1, fd = socket(i->ai_family, SOCK_STREAM, 0), saved;

    if (fd < 0) {
        return -errno;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (i->ai_family == AF_INET6) {
        on = only_ipv6;
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    if (bind(fd, i->ai_addr, i->ai_addrlen) != 0 ||
        listen(fd, SOMAXCONN) != 0) {
        saved = errno;
        close(fd);
        return -saved;
    }
    return fd;
}

static void
close_fds(struct listener *l)
{
    for (unsigned i = 0; i < l->fd_count; i++) {
        if (l->fds[i] >= 0) {
            close(l->fds[i]);
        }
    }
    l->fd_count = 0;
}

/*
 * One socket for each address, all on one port. An address that this host has
 * not got (IPv6 switched off, say) is left out if another can be had; one that
 * somebody else listens at is not, since clients would reach either.
 */
static int
open_all(struct addrinfo *list, struct listener *ret)
{
    bool several = list->ai_next != NULL;
    int missing = -EADDRNOTAVAIL;
    uint16_t port = 0;

    for (struct addrinfo *i = list; i != NULL; i = i->ai_next) {
        if (ret->fd_count == LISTENER_SOCKETS_MAX) {
            break;
        }
        if (port != 0) {
            set_port(i->ai_addr, port);
        }
        /* A lone "::" takes IPv4 too; beside "0.0.0.0" it must not. */
        int fd = open_tcp(i, several);

        if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT ||
            fd == -EPROTONOSUPPORT) {
            missing = fd;
            continue;
        }
        if (fd < 0) {
            return fd;
        }
        ret->fds[ret->fd_count++] = fd;
        if (port == 0) {
            port = port_of(fd);
        }
    }
    ret->uri.port = port;
    return ret->fd_count > 0 ? 0 : missing;
}

static int
listen_open_tcp(const struct listen_address *a, struct listener *ret,
                struct err *e)
{
    const bool everywhere = is_wildcard(a->host) ||
                            strcmp(a->host, "0.0.0.0") == 0 ||
                            strcmp(a->host, "::") == 0;
    struct addrinfo *list;
    int r = -EADDRINUSE;

    ret->uri.scheme = URI_TCP;
    snprintf(ret->uri.host, sizeof(ret->uri.host), "%s",
             everywhere ? "localhost" : a->host);
    for (int i = 0; i < PORT_TRIES && r == -EADDRINUSE; i++) {
        close_fds(ret);
        r = resolve(a, a->port, &list, e);
        if (r < 0) {
            return r;
        }
        r = open_all(list, ret);
        freeaddrinfo(list);
        if (a->port != 0) {
            break;
        }
    }
    if (r < 0) {
        return err_set(e, -r, "cannot listen on %s port %u: %s%s",
                       a->host[0] != '\0' ? a->host : "*", a->port,
                       strerror(-r),
                       r == -EADDRINUSE ? "; choose another port, or 0 for any"
                       : r == -EACCES   ? "; ports below 1024 need privileges"
                                        : "");
    }
    return 0;
}

/* ---- all kinds ---- */

int
listen_open(const struct listen_address *a, int mode, struct listener *ret,
            struct err *e)
{
    struct listener l = {.fd_count = 0};
    int r;

    if (a->kind == LISTEN_TCP) {
        r = listen_open_tcp(a, &l, e);
    } else if (a->kind == LISTEN_UNIX) {
        r = listen_open_unix(a->path, mode, &l, e);
    } else {
        r = listen_open_private(mode, &l, e);
    }
    if (r < 0) {
        listen_close(&l);
        return r;
    }
    *ret = l;
    return 0;
}

/* How to reach a socket that we were given. */
static int
uri_of_socket(int fd, struct uri *ret)
{
    struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};
    const struct sockaddr_un *un = (const void *)&sa;
    const struct sockaddr_in6 *in6 = (const void *)&sa;
    const struct sockaddr_in *in = (const void *)&sa;
    socklen_t len = sizeof(sa);
    bool all = false;

    if (getsockname(fd, (struct sockaddr *)&sa, &len) != 0) {
        return -errno;
    }
    if (sa.ss_family == AF_UNIX) {
        size_t head = offsetof(struct sockaddr_un, sun_path);

        ret->scheme = URI_UNIX;
        if (len > head && un->sun_path[0] != '\0') {
            snprintf(ret->socket, sizeof(ret->socket), "%.*s",
                     (int)(len - head), un->sun_path);
        }
        return 0;
    }
    ret->scheme = URI_TCP;
    ret->port = port_of(fd);
    if (sa.ss_family == AF_INET) {
        all = in->sin_addr.s_addr == htonl(INADDR_ANY);
        inet_ntop(AF_INET, &in->sin_addr, ret->host, sizeof(ret->host));
    } else if (sa.ss_family == AF_INET6) {
        all = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
        inet_ntop(AF_INET6, &in6->sin6_addr, ret->host, sizeof(ret->host));
    } else {
        return -EAFNOSUPPORT;
    }
    if (all) {
        snprintf(ret->host, sizeof(ret->host), "localhost");
    }
    return 0;
}

int
listen_adopt(int fd, struct listener *ret, struct err *e)
{
    struct listener l = {.fd_count = 1, .fds = {fd}};
    int type = 0, listening = 1, r;
    socklen_t len = sizeof(type);

    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) != 0) {
        r = err_set(e, errno,
                    "descriptor %d, which we were started with, is "
                    "not a socket",
                    fd);
    } else if (type != SOCK_STREAM) {
        r = err_set(e, EPROTOTYPE,
                    "socket %d, which we were started with, is "
                    "not a stream socket",
                    fd);
    } else {
        /* Some systems can't tell; then accept will. */
        len = sizeof(listening);
        (void)getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len);
        r = listening ? uri_of_socket(fd, &l.uri) : -EINVAL;
        if (!listening) {
            err_set(e, EINVAL,
                    "socket %d, which we were started with, does "
                    "not listen; for one connection use --inetd (systemd: "
                    "Accept=yes)",
                    fd);
        } else if (r < 0) {
            err_set(e, -r, "socket %d, which we were started with: %s", fd,
                    strerror(-r));
        }
    }
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret = l;
    return 0;
}

void
listen_unlink(struct listener *l)
{
    struct stat st;

    if (l->path == NULL) {
        return;
    }
    if (lstat(l->path, &st) == 0 && st.st_dev == l->dev &&
        st.st_ino == l->ino) {
        (void)unlink(l->path);
    }
    if (l->dir != NULL) {
        (void)rmdir(l->dir); /* fails if others have sockets there: good */
    }
    close(l->hold_fd);
    free(l->path);
    free(l->dir);
    l->path = l->dir = NULL;
}

void
listen_close(struct listener *l)
{
    listen_unlink(l);
    close_fds(l);
    *l = (struct listener){.fd_count = 0};
}
