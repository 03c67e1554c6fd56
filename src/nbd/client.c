/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client that lists a server's exports and leaves: greeting, LIST, then INFO
 * and LIST_META_CONTEXT for each. The server is not trusted: every length is
 * checked before it is used, every loop counts, and all text together is
 * limited. One thread per call. Reference: proto.md "Fixed newstyle
 * negotiation" and "Option types".
 */
#include "nbd/client.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

/* Data of one option reply: a name and a description, each a string, with
 * their lengths; an error's text is a string too. */
#define REPLY_BYTES_MAX (2 * NBD_STRING_MAX + 64)

/* More exports or contexts than a person would read. */
#define EXPORTS_MAX 4096u
#define CONTEXTS_MAX 256u

/* Replies to one INFO: four types are known, some more may be invented. */
#define INFO_REPLIES_MAX 64u

/* All text that one listing may make us keep. */
#define TEXT_BYTES_MAX (16u << 20)

#define GREETING_BYTES 18u
#define OLDSTYLE_MAGIC UINT64_C(0x420281861253)

struct lister {
    struct stream *s;  /* borrowed */
    struct err *e;     /* borrowed, may be NULL */
    size_t text_bytes; /* kept so far */
    bool structured;   /* the server does structured replies */
    uint32_t option;   /* the last one sent */

    /* The last reply to it. */
    uint32_t type;
    struct reader data;
    uint8_t bytes[REPLY_BYTES_MAX];
};

static int
lost(struct lister *l, int rc)
{
    if (rc == -ECONNRESET) {
        return err_set(l->e, ECONNRESET, "the server closed the connection");
    }
    if (rc == -ETIMEDOUT) {
        return err_set(l->e, ETIMEDOUT, "the server did not answer in time");
    }
    return err_set(l->e, -rc, "the connection failed: %s", strerror(-rc));
}

static int
broken(struct lister *l, const char *what)
{
    return err_set(l->e, EPROTO, "the server does not keep to the protocol: %s",
                   what);
}

static int
greet(struct lister *l)
{
    uint8_t greeting[GREETING_BYTES], answer[4];
    struct reader r = reader_of(greeting, sizeof(greeting));
    uint64_t magic, style;
    uint16_t flags;
    int rc = stream_read(l->s, greeting, sizeof(greeting));

    if (rc < 0) {
        return lost(l, rc);
    }
    magic = reader_u64(&r);
    style = reader_u64(&r);
    flags = reader_u16(&r);
    if (magic != NBD_INIT_MAGIC) {
        return err_set(l->e, EPROTO, "this is not an NBD server");
    }
    if (style == OLDSTYLE_MAGIC) {
        return err_set(l->e, EOPNOTSUPP,
                       "the server speaks the oldstyle protocol, which has "
                       "one export without a name");
    }
    if (style != NBD_OPTION_MAGIC) {
        return broken(l, "bad magic in its greeting");
    }
    if ((flags & NBD_FLAG_FIXED_NEWSTYLE) == 0) {
        return err_set(l->e, EOPNOTSUPP,
                       "the server is too old to list its exports");
    }
    store_be32(
        answer,
        NBD_FLAG_C_FIXED_NEWSTYLE |
            ((flags & NBD_FLAG_NO_ZEROES) != 0 ? NBD_FLAG_C_NO_ZEROES : 0));
    rc = stream_write(l->s, answer, sizeof(answer));
    return rc < 0 ? lost(l, rc) : 0;
}

static int
send_option(struct lister *l, uint32_t option, const void *data, size_t len)
{
    uint8_t header[NBD_OPTION_BYTES];
    struct iovec iov[2] = {
        {.iov_base = header, .iov_len = sizeof(header)},
        {.iov_base = (void *)(uintptr_t)data, .iov_len = len},
    };
    int rc;

    store_be64(header, NBD_OPTION_MAGIC);
    store_be32(header + 8, option);
    store_be32(header + 12, (uint32_t)len);
    l->option = option;
    rc = stream_sendv(l->s, iov, 2, false);
    return rc < 0 ? lost(l, rc) : 0;
}

/* Reads one reply to the last option into `type` and `data`. */
static int
read_reply(struct lister *l)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    struct reader r = reader_of(header, sizeof(header));
    uint64_t magic;
    uint32_t option, len;
    int rc = stream_read(l->s, header, sizeof(header));

    if (rc < 0) {
        return lost(l, rc);
    }
    magic = reader_u64(&r);
    option = reader_u32(&r);
    l->type = reader_u32(&r);
    len = reader_u32(&r);
    if (magic != NBD_OPTION_REPLY_MAGIC) {
        return broken(l, "bad magic in an option reply");
    }
    if (option != l->option) {
        return broken(l, "it answers an option that was not sent");
    }
    if (len > sizeof(l->bytes)) {
        return broken(l, "an option reply is too long");
    }
    rc = stream_read(l->s, l->bytes, len);
    if (rc < 0) {
        return lost(l, rc);
    }
    l->data = reader_of(l->bytes, len);
    return 0;
}

static bool
is_error(const struct lister *l)
{
    return (l->type & NBD_REP_ERR_BIT) != 0;
}

/* Reports the error reply at hand, with the server's own words if it has
 * any. */
static int
refused(struct lister *l, const char *what)
{
    static const struct {
        uint32_t type;
        const char *text;
    } reasons[] = {
        {NBD_REP_ERR_UNSUP, "it does not support that"},
        {NBD_REP_ERR_POLICY, "its policy forbids that"},
        {NBD_REP_ERR_TLS_REQD, "it wants TLS first"},
        {NBD_REP_ERR_SHUTDOWN, "it is shutting down"},
    };
    const char *reason = "it gives an error";
    char quoted[300];

    for (size_t i = 0; i < ARRAY_LEN(reasons); i++) {
        reason = reasons[i].type == l->type ? reasons[i].text : reason;
    }
    log_quote(quoted, sizeof(quoted), l->bytes, l->data.left_bytes);
    return err_set(l->e, EPROTO, "the server does not %s: %s (0x%x%s%s)", what,
                   reason, l->type, quoted[0] != '\0' ? ", " : "", quoted);
}

/*
 * Keeps the `len` bytes of text at the reader as a C string in *ret, in place
 * of what was there. Refuses NUL, overlong text and more text than one listing
 * may have.
 */
static int
take_text(struct lister *l, size_t len, char **ret)
{
    const uint8_t *bytes = reader_take(&l->data, len);
    char *text;

    if (bytes == NULL) {
        return broken(l, "a text is longer than the reply that holds it");
    }
    if (len > NBD_STRING_MAX || memchr(bytes, '\0', len) != NULL) {
        return broken(l, "a text is too long or holds a NUL");
    }
    if (len > TEXT_BYTES_MAX - l->text_bytes) {
        return err_set(l->e, E2BIG, "the server's list is too long");
    }
    text = strndup((const char *)bytes, len);
    if (text == NULL) {
        return err_set(l->e, ENOMEM, "out of memory");
    }
    l->text_bytes += len;
    free(*ret);
    *ret = text;
    return 0;
}

/* An element more in `array`, cleared; NULL if there is no memory. Grows by
 * halves of its size, which `count` tells. */
static void *
array_grow(void **array, unsigned count, size_t element_bytes)
{
    void *grown = *array;

    if ((count & (count - 1)) == 0) { /* full at 0, 1, 2, 4, 8 ... */
        size_t room = count == 0 ? 1 : (size_t)count * 2;

        grown = realloc(*array, room * element_bytes);
        if (grown == NULL) {
            return NULL;
        }
        *array = grown;
    }
    return memset((char *)grown + count * element_bytes, 0, element_bytes);
}

static int
add_export(struct lister *l, struct export_list *list)
{
    void *array = list->exports;
    struct listed_export *x;
    uint32_t name_len = reader_u32(&l->data);
    int rc;

    if (list->count == EXPORTS_MAX) {
        return err_set(l->e, E2BIG, "the server lists more than %u exports",
                       EXPORTS_MAX);
    }
    x = array_grow(&array, list->count, sizeof(*x));
    if (x == NULL) {
        return err_set(l->e, ENOMEM, "out of memory");
    }
    list->exports = array;
    list->count++;
    rc = take_text(l, name_len, &x->name);
    if (rc == 0 && l->data.left_bytes > 0) {
        rc = take_text(l, l->data.left_bytes, &x->description);
    }
    return rc;
}

static int
list_exports(struct lister *l, struct export_list *list)
{
    int rc = send_option(l, NBD_OPT_LIST, NULL, 0);

    while (rc == 0) {
        rc = read_reply(l);
        if (rc < 0) {
            break;
        }
        if (l->type == NBD_REP_ACK) {
            return 0;
        }
        if (is_error(l)) {
            return refused(l, "list its exports");
        }
        if (l->type != NBD_REP_SERVER) {
            return broken(l, "an unknown reply to LIST");
        }
        rc = add_export(l, list);
    }
    return rc;
}

static int
negotiate_structured(struct lister *l)
{
    int rc = send_option(l, NBD_OPT_STRUCTURED_REPLY, NULL, 0);

    if (rc == 0) {
        rc = read_reply(l);
    }
    if (rc == 0 && l->type != NBD_REP_ACK && !is_error(l)) {
        rc = broken(l, "an unknown reply to STRUCTURED_REPLY");
    }
    l->structured = rc == 0 && l->type == NBD_REP_ACK;
    return rc;
}

/* Reads one NBD_REP_INFO into `x`. Unknown types are ignored. */
static int
take_info(struct lister *l, struct listed_export *x)
{
    struct reader *r = &l->data;
    uint16_t info = reader_u16(r);

    if (r->bad) {
        return broken(l, "an information reply is too short");
    }
    switch (info) {
    case NBD_INFO_EXPORT:
        x->size_bytes = reader_u64(r);
        x->flags = reader_u16(r);
        x->has_details = true;
        break;
    case NBD_INFO_BLOCK_SIZE:
        x->min_block_bytes = reader_u32(r);
        x->pref_block_bytes = reader_u32(r);
        x->max_payload_bytes = reader_u32(r);
        x->has_block_size = true;
        break;
    case NBD_INFO_DESCRIPTION:
        return take_text(l, r->left_bytes, &x->description);
    default:
        return 0;
    }
    if (r->bad || r->left_bytes > 0) {
        return broken(l, "an information reply has the wrong length");
    }
    return 0;
}

/* Asks for the details of `x`. A refusal leaves it without; that is no error
 * here, because others may have some. */
static int
ask_info(struct lister *l, struct listed_export *x)
{
    uint8_t data[4 + NBD_STRING_MAX + 6];
    struct builder b = builder_of(data, sizeof(data));
    int rc;

    builder_u32(&b, (uint32_t)strlen(x->name));
    builder_bytes(&b, x->name, strlen(x->name));
    builder_u16(&b, 2);
    builder_u16(&b, NBD_INFO_BLOCK_SIZE);
    builder_u16(&b, NBD_INFO_DESCRIPTION);
    rc = send_option(l, NBD_OPT_INFO, data, b.len_bytes);
    for (unsigned i = 0; rc == 0 && i < INFO_REPLIES_MAX; i++) {
        rc = read_reply(l);
        if (rc < 0) {
            return rc;
        }
        if (is_error(l)) {
            x->has_details = false;
            return 0;
        }
        if (l->type == NBD_REP_ACK) {
            return x->has_details ? 0 : broken(l, "INFO told no size");
        }
        if (l->type != NBD_REP_INFO) {
            return broken(l, "an unknown reply to INFO");
        }
        rc = take_info(l, x);
    }
    return rc < 0 ? rc : broken(l, "INFO has no end");
}

static int
add_context(struct lister *l, struct listed_export *x)
{
    void *array = x->contexts;
    char **context;

    if (x->context_count == CONTEXTS_MAX) {
        return err_set(l->e, E2BIG,
                       "the server lists more than %u metadata contexts for "
                       "one export",
                       CONTEXTS_MAX);
    }
    context = array_grow(&array, x->context_count, sizeof(*context));
    if (context == NULL) {
        return err_set(l->e, ENOMEM, "out of memory");
    }
    x->contexts = array;
    x->context_count++;
    reader_u32(&l->data); /* its id, which means nothing in a listing */
    return take_text(l, l->data.left_bytes, context);
}

static void
drop_contexts(struct listed_export *x)
{
    for (unsigned i = 0; i < x->context_count; i++) {
        free(x->contexts[i]);
    }
    free(x->contexts);
    x->contexts = NULL;
    x->context_count = 0;
}

static int
ask_contexts(struct lister *l, struct listed_export *x)
{
    uint8_t data[4 + NBD_STRING_MAX + 4];
    struct builder b = builder_of(data, sizeof(data));
    int rc;

    builder_u32(&b, (uint32_t)strlen(x->name));
    builder_bytes(&b, x->name, strlen(x->name));
    builder_u32(&b, 0); /* no query: all contexts */
    rc = send_option(l, NBD_OPT_LIST_META_CONTEXT, data, b.len_bytes);
    while (rc == 0) {
        rc = read_reply(l);
        if (rc < 0) {
            return rc;
        }
        if (l->type == NBD_REP_ACK) {
            return 0;
        }
        if (is_error(l)) {
            drop_contexts(x); /* "the client MUST disregard" them */
            return 0;
        }
        if (l->type != NBD_REP_META_CONTEXT) {
            return broken(l, "an unknown reply to LIST_META_CONTEXT");
        }
        rc = add_context(l, x);
    }
    return rc;
}

int
client_list_stream(struct stream *s, struct export_list *ret, struct err *e)
{
    struct lister l = {.s = s, .e = e};
    struct export_list list = {0};
    int rc = greet(&l);

    if (rc == 0) {
        rc = negotiate_structured(&l);
    }
    if (rc == 0) {
        rc = list_exports(&l, &list);
    }
    for (unsigned i = 0; rc == 0 && i < list.count; i++) {
        rc = ask_info(&l, &list.exports[i]);
        if (rc == 0 && l.structured) {
            rc = ask_contexts(&l, &list.exports[i]);
        }
    }
    if (rc < 0) {
        export_list_free(&list);
        return rc;
    }
    /* The answer is not waited for, so a failure here does not matter. */
    l.e = NULL;
    (void)send_option(&l, NBD_OPT_ABORT, NULL, 0);
    *ret = list;
    return 0;
}

/* Connects without blocking past the deadline. 0 or -errno. */
static int
connect_within(int fd, const struct sockaddr *addr, socklen_t addr_bytes,
               uint64_t deadline_ns)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t error_bytes = sizeof(error);

    if (connect(fd, addr, addr_bytes) == 0) {
        return 0;
    }
    if (errno != EINPROGRESS && errno != EINTR) {
        return -errno;
    }
    for (;;) {
        uint64_t now_ns = monotonic_ns();
        int n;

        if (now_ns >= deadline_ns) {
            return -ETIMEDOUT;
        }
        n = poll(&p, 1,
                 (int)min_u64((deadline_ns - now_ns) / NS_PER_MS + 1, 60000));
        if (n > 0) {
            break;
        }
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_bytes) < 0) {
        return -errno;
    }
    return -error;
}

/* Where sending cannot be told to raise no SIGPIPE, the socket is (macOS). */
static void
no_sigpipe(int fd)
{
#ifdef SO_NOSIGPIPE
    int one = 1;

    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof(one));
#else
    (void)fd;
#endif
}

/* A connected socket (owned by the caller), not blocking, or -errno. */
static int
open_connected(int family, const struct sockaddr *addr, socklen_t addr_bytes,
               uint64_t deadline_ns)
{
    int fd = socket(family, SOCK_STREAM, 0);
    int one = 1, rc = 0;

    if (fd < 0) {
        return -errno;
    }
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        rc = -errno;
    }
    no_sigpipe(fd);
    if (family != AF_UNIX) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    if (rc == 0) {
        rc = connect_within(fd, addr, addr_bytes, deadline_ns);
    }
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

static int
connect_unix(const struct uri *u, uint64_t deadline_ns, struct err *e)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = strlen(u->socket);
    int rc;

    if (len == 0) {
        return err_set(e, EINVAL,
                       "the URI names no socket; want "
                       "nbd+unix:///?socket=PATH");
    }
    if (len >= sizeof(addr.sun_path)) {
        return err_set(e, ENAMETOOLONG,
                       "%s: the path of a socket is limited to %zu bytes",
                       u->socket, sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, u->socket, len + 1);
    rc = open_connected(AF_UNIX, (struct sockaddr *)&addr, sizeof(addr),
                        deadline_ns);
    if (rc < 0) {
        err_set(e, -rc, "cannot connect to %s: %s", u->socket, strerror(-rc));
    }
    return rc;
}

static int
connect_tcp(const struct uri *u, uint64_t deadline_ns, struct err *e)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char port[8];
    int rc;

    snprintf(port, sizeof(port), "%u", u->port);
    rc = getaddrinfo(u->host, port, &hints, &found);
    if (rc != 0) {
        return err_set(e, EHOSTUNREACH, "cannot find host %s: %s", u->host,
                       gai_strerror(rc));
    }
    rc = -EHOSTUNREACH;
    for (struct addrinfo *a = found; a != NULL && rc < 0; a = a->ai_next) {
        rc = open_connected(a->ai_family, a->ai_addr, a->ai_addrlen,
                            deadline_ns);
    }
    freeaddrinfo(found);
    if (rc < 0) {
        err_set(e, -rc, "cannot connect to %s port %s: %s", u->host, port,
                strerror(-rc));
    }
    return rc;
}

int
client_list(const struct uri *u, unsigned timeout_s, struct export_list *ret,
            struct err *e)
{
    uint64_t deadline_ns = monotonic_ns() + timeout_s * NS_PER_S;
    cleanup_fd int fd = -1;
    struct stream s = {.is_socket = true, .deadline_ns = deadline_ns};
    char text[sizeof(*u)];
    int rc;

    if (u->tls) {
        return err_set(e, EOPNOTSUPP,
                       "listing over TLS is not supported; use nbd: or "
                       "nbd+unix: instead of nbds: or nbds+unix:");
    }
    fd = u->scheme == URI_UNIX ? connect_unix(u, deadline_ns, e)
                               : connect_tcp(u, deadline_ns, e);
    if (fd < 0) {
        return fd;
    }
    s.in_fd = s.out_fd = fd;
    rc = client_list_stream(&s, ret, e);
    if (rc < 0 && uri_format(u, text, sizeof(text)) == 0) {
        err_prefix(e, "%s", text);
    }
    return rc;
}

void
export_list_free(struct export_list *l)
{
    for (unsigned i = 0; i < l->count; i++) {
        struct listed_export *x = &l->exports[i];

        free(x->name);
        free(x->description);
        drop_contexts(x);
    }
    free(l->exports);
    *l = (struct export_list){0};
}
