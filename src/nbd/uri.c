/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * NBD URIs, read strictly and written canonically. No state, any thread.
 * Reference: doc/uri.md of NetworkBlockDevice/nbd; RFC 3986 for the grammar,
 * RFC 6874 for the zone of an IPv6 address.
 *
 * Names of abstract sockets (a leading %00) are refused: nothing checks who
 * may bind or connect to them, and struct uri holds C strings.
 */
#include "nbd/uri.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/log.h"
#include "nbd/text.h"

#define HOST_DEFAULT "localhost"

/* Characters that may stand for themselves. */
#define ALPHA "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define DIGIT "0123456789"
#define UNRESERVED ALPHA DIGIT "-._~"
#define SUB_DELIMS "!$&'()*+,;="
#define PCHAR UNRESERVED SUB_DELIMS ":@"

/* What we leave as it is when we write: less than the grammar allows, so that
 * a line can be pasted into a shell or a query without another look. */
#define PLAIN UNRESERVED "/:@"

/* A borrowed part of the text. */
struct span {
    const char *at;
    size_t len;
};

struct scheme {
    const char *name;
    enum uri_scheme scheme;
    bool tls;
    bool known; /* else a scheme that others speak and we do not */
};

static const struct scheme schemes[] = {
    {.name = "nbd", .scheme = URI_TCP, .known = true},
    {.name = "nbds", .scheme = URI_TCP, .tls = true, .known = true},
    {.name = "nbd+unix", .scheme = URI_UNIX, .known = true},
    {.name = "nbds+unix", .scheme = URI_UNIX, .tls = true, .known = true},
    {.name = "nbd+vsock"},
    {.name = "nbds+vsock"},
    {.name = "nbd+ssh"},
    {.name = "nbds+ssh"},
};

struct parser {
    const char *text; /* the whole URI, for messages; borrowed */
    struct span rest; /* not yet parsed */
    struct uri uri;
    bool has_socket;
    struct err *e; /* borrowed, may be NULL */
};

/* -EINVAL with a message that names the URI, the part and the reason. */
static int
fail(struct parser *p, struct span part, const char *why)
{
    char whole[200], quoted[100];

    log_quote(whole, sizeof(whole), p->text, strlen(p->text));
    log_quote(quoted, sizeof(quoted), part.at, part.len);
    return err_set(p->e, EINVAL, "URI \"%s\": \"%s\": %s", whole, quoted, why);
}

static struct span
span_until(struct span s, const char *stops)
{
    size_t len = 0;

    while (len < s.len && strchr(stops, s.at[len]) == NULL) {
        len++;
    }
    return (struct span){s.at, len};
}

static struct span
span_skip(struct span s, size_t len)
{
    return (struct span){s.at + len, s.len - len};
}

static bool
span_is(struct span s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.at, text, s.len) == 0;
}

static bool
span_begins(struct span s, const char *text)
{
    return s.len >= strlen(text) && memcmp(s.at, text, strlen(text)) == 0;
}

static int
hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes `part`, in which the characters `plain` and %XX may occur, into a C
 * string in `buf`. 0 or -EINVAL. */
static int
decode(struct parser *p, struct span part, const char *plain, char *buf,
       size_t cap)
{
    size_t len = 0;

    for (size_t i = 0; i < part.len; i++) {
        unsigned char c = (unsigned char)part.at[i];

        if (c == '%') {
            int high = part.len - i > 2 ? hex_value(part.at[i + 1]) : -1;
            int low = part.len - i > 2 ? hex_value(part.at[i + 2]) : -1;

            if (high < 0 || low < 0) {
                return fail(p, span_skip(part, i),
                            "bad escape, want % and two hex digits");
            }
            c = (unsigned char)(high << 4 | low);
            if (c == 0) {
                return fail(p, part,
                            "no name may hold a NUL; abstract "
                            "sockets are not supported");
            }
            i += 2;
        } else if (strchr(plain, c) == NULL) {
            return fail(p, span_skip(part, i),
                        "this character must be written as %XX");
        }
        if (len + 1 >= cap) {
            return fail(p, part, "too long");
        }
        buf[len++] = (char)c;
    }
    buf[len] = '\0';
    return 0;
}

static int
parse_scheme(struct parser *p)
{
    struct span name = span_until(p->rest, ":/?#");
    const char *why = "unknown scheme, want nbd, nbds, nbd+unix or nbds+unix";

    if (name.len == p->rest.len || p->rest.at[name.len] != ':') {
        return fail(p, p->rest,
                    "no scheme; an NBD URI begins with nbd:// or "
                    "nbd+unix://");
    }
    for (size_t i = 0; i < ARRAY_LEN(schemes); i++) {
        const struct scheme *s = &schemes[i];

        if (name.len != strlen(s->name) ||
            strncasecmp(name.at, s->name, name.len) != 0) {
            continue;
        }
        if (!s->known) {
            return fail(p, name, "this transport is not supported");
        }
        p->uri.scheme = s->scheme;
        p->uri.tls = s->tls;
        p->rest = span_skip(p->rest, name.len + 1);
        return 0;
    }
    return fail(p, name, why);
}

static int
parse_port(struct parser *p, struct span port)
{
    unsigned value = 0;

    if (port.len == 0) {
        return 0; /* "host:" means the default port */
    }
    for (size_t i = 0; i < port.len; i++) {
        if (port.at[i] < '0' || port.at[i] > '9' || value > UINT16_MAX) {
            value = 0;
            break;
        }
        value = value * 10 + (unsigned)(port.at[i] - '0');
    }
    if (value == 0 || value > UINT16_MAX) {
        return fail(p, port, "bad port, want 1 to 65535");
    }
    p->uri.port = (uint16_t)value;
    return 0;
}

/* What stands between the brackets: an IPv6 address, perhaps with "%25" and a
 * zone. It is kept as getaddrinfo wants it, with a bare "%". */
static int
parse_ipv6(struct parser *p, struct span inside)
{
    char *host = p->uri.host;
    struct in6_addr address;
    char *zone;
    int rc = decode(p, inside, UNRESERVED ":", host, sizeof(p->uri.host));

    if (rc < 0) {
        return rc;
    }
    zone = strchr(host, '%');
    if (zone != NULL) {
        *zone = '\0';
    }
    rc = inet_pton(AF_INET6, host, &address);
    if (zone != NULL) {
        *zone = '%';
    }
    if (rc != 1 || (zone != NULL && zone[1] == '\0')) {
        return fail(p, inside, "not an IPv6 address");
    }
    return 0;
}

static int
parse_host(struct parser *p, struct span host)
{
    int rc;

    if (host.len == 0) {
        return 0; /* keeps the default */
    }
    rc = decode(p, host, UNRESERVED SUB_DELIMS, p->uri.host,
                sizeof(p->uri.host));
    if (rc < 0) {
        return rc;
    }
    for (const char *c = p->uri.host; *c != '\0'; c++) {
        /* These would be taken for something else when written back. */
        if ((unsigned char)*c <= ' ' || *c == 0x7f || strchr("%:[]/@", *c)) {
            return fail(p, host, "not a host name");
        }
    }
    return 0;
}

/* [userinfo@]host[:port]; the user's name belongs to TLS and is let pass. */
static int
parse_authority(struct parser *p, struct span authority)
{
    struct span user = span_until(authority, "@");
    char ignored[sizeof(p->uri.host)];
    struct span host;
    int rc;

    if (p->uri.scheme == URI_UNIX) {
        return authority.len == 0 ? 0
                                  : fail(p, authority,
                                         "a Unix socket has no host; want "
                                         "nbd+unix:///EXPORT?socket=PATH");
    }
    if (user.len < authority.len) {
        rc = decode(p, user, UNRESERVED SUB_DELIMS ":", ignored,
                    sizeof(ignored));
        if (rc < 0) {
            return rc;
        }
        authority = span_skip(authority, user.len + 1);
    }
    if (span_begins(authority, "[")) {
        host = span_until(span_skip(authority, 1), "]");
        if (host.len + 1 == authority.len) {
            return fail(p, authority, "no closing bracket");
        }
        authority = span_skip(authority, host.len + 2);
        rc = parse_ipv6(p, host);
    } else {
        host = span_until(authority, ":");
        authority = span_skip(authority, host.len);
        rc = parse_host(p, host);
    }
    if (rc < 0 || authority.len == 0) {
        return rc;
    }
    if (authority.at[0] != ':') {
        return fail(p, authority, "only :PORT may follow the address");
    }
    return parse_port(p, span_skip(authority, 1));
}

static int
parse_socket(struct parser *p, struct span value)
{
    if (p->uri.scheme != URI_UNIX) {
        return fail(p, value,
                    "socket= needs the scheme nbd+unix or "
                    "nbds+unix");
    }
    if (p->has_socket) {
        return fail(p, value, "a second socket=");
    }
    if (value.len == 0) {
        return fail(p, value, "socket= is empty");
    }
    p->has_socket = true;
    return decode(p, value, PCHAR "/?", p->uri.socket, sizeof(p->uri.socket));
}

static int
parse_parameter(struct parser *p, struct span parameter)
{
    struct span key = span_until(parameter, "=");
    struct span value = span_skip(parameter,
                                  key.len + (key.len < parameter.len));
    char ignored[NBD_STRING_MAX + 1];

    if (span_is(key, "socket")) {
        return parse_socket(p, value);
    }
    if (span_begins(key, "x-") || span_begins(key, "tls-")) {
        return decode(p, parameter, PCHAR "/?", ignored, sizeof(ignored));
    }
    return fail(p, key, "unknown parameter");
}

static int
parse_query(struct parser *p)
{
    while (p->rest.len > 0) {
        struct span parameter = span_until(p->rest, "&");
        int rc = parameter.len > 0 ? parse_parameter(p, parameter) : 0;

        if (rc < 0) {
            return rc;
        }
        p->rest = span_skip(p->rest,
                            parameter.len + (parameter.len < p->rest.len));
    }
    return 0;
}

static int
parse_path(struct parser *p, struct span path)
{
    int rc;

    if (path.len == 0) {
        return 0;
    }
    if (path.at[0] != '/') {
        return fail(p, path,
                    "want // before the host, or / before the "
                    "export name");
    }
    path = span_skip(path, 1);
    rc = decode(p, path, PCHAR "/", p->uri.export, sizeof(p->uri.export));
    if (rc == 0 && !text_valid(p->uri.export, strlen(p->uri.export))) {
        rc = fail(p, path, "the export name is not UTF-8");
    }
    return rc;
}

int
uri_parse(const char *text, struct uri *ret, struct err *e)
{
    struct parser p = {.text = text, .rest = {text, strlen(text)}, .e = e};
    int rc = parse_scheme(&p);
    struct span part;

    if (rc < 0) {
        return rc;
    }
    part = span_until(p.rest, "#");
    if (part.len < p.rest.len) {
        return fail(&p, span_skip(p.rest, part.len),
                    "write # as %23; NBD knows no fragments");
    }
    if (p.uri.scheme == URI_TCP) {
        strcpy(p.uri.host, HOST_DEFAULT);
        p.uri.port = NBD_PORT;
    }
    if (span_begins(p.rest, "//")) {
        p.rest = span_skip(p.rest, 2);
        part = span_until(p.rest, "/?");
        p.rest = span_skip(p.rest, part.len);
        rc = parse_authority(&p, part);
    }
    if (rc == 0) {
        part = span_until(p.rest, "?");
        p.rest = span_skip(p.rest, part.len + (part.len < p.rest.len));
        rc = parse_path(&p, part);
    }
    if (rc == 0) {
        rc = parse_query(&p);
    }
    if (rc == 0) {
        *ret = p.uri;
    }
    return rc;
}

/* Text put into a buffer of fixed size, always NUL-terminated. */
struct writer {
    char *buf; /* borrowed */
    size_t cap;
    size_t len;
    bool full;
};

static void
write_char(struct writer *w, char c)
{
    if (w->len + 1 >= w->cap) {
        w->full = true;
        return;
    }
    w->buf[w->len++] = c;
    w->buf[w->len] = '\0';
}

static void
write_text(struct writer *w, const char *text)
{
    while (*text != '\0') {
        write_char(w, *text++);
    }
}

static void
write_escaped(struct writer *w, const char *text)
{
    static const char digits[] = "0123456789ABCDEF";

    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if (strchr(PLAIN, c) != NULL) {
            write_char(w, (char)c);
        } else {
            write_char(w, '%');
            write_char(w, digits[c >> 4]);
            write_char(w, digits[c & 15]);
        }
    }
}

static void
write_address(struct writer *w, const struct uri *u)
{
    bool ipv6 = strchr(u->host, ':') != NULL;
    char port[8];

    write_text(w, ipv6 ? "[" : "");
    write_escaped(w, u->host);
    write_text(w, ipv6 ? "]" : "");
    if (u->port != NBD_PORT) {
        snprintf(port, sizeof(port), ":%u", u->port);
        write_text(w, port);
    }
}

int
uri_format(const struct uri *u, char *buf, size_t cap)
{
    struct writer w = {.buf = buf, .cap = cap};

    if (cap == 0) {
        return -ENAMETOOLONG;
    }
    buf[0] = '\0';
    write_text(&w, u->tls ? "nbds" : "nbd");
    write_text(&w, u->scheme == URI_UNIX ? "+unix://" : "://");
    if (u->scheme == URI_TCP) {
        write_address(&w, u);
    }
    write_char(&w, '/');
    write_escaped(&w, u->export);
    if (u->scheme == URI_UNIX && u->socket[0] != '\0') {
        write_text(&w, "?socket=");
        write_escaped(&w, u->socket);
    }
    return w.full ? -ENAMETOOLONG : 0;
}
