/* SPDX-License-Identifier: BSD-2-Clause */
/* NBD URIs: what is read, what is refused and in which words, what is
 * written. Reference: doc/uri.md, RFC 3986. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "nbd/uri.h"

/* Accepted, and what it means. The canonical text is the one that comes out
 * again; NULL: the same. */
static const struct good {
    const char *text;
    const char *canonical;
    const char *host;
    uint16_t port; /* 0: NBD_PORT */
    const char *socket;
    const char *export;
    bool tls;
} goods[] = {
    /* doc/uri.md's own examples */
    {"nbd://example.com/disk", .host = "example.com", .export = "disk"},
    {"nbd+unix:///disk?socket=sock", .socket = "sock", .export = "disk"},
    {"nbd://example.com/", .host = "example.com"},
    {"nbd://example.com", "nbd://example.com/", .host = "example.com"},
    {"nbd://example.com//disk", .host = "example.com", .export = "/disk"},
    {"nbd://example.com/hello%20world", .host = "example.com",
     .export = "hello world"},
    {"nbd://example.com:10809/export", "nbd://example.com/export",
     .host = "example.com", .export = "export"},
    {"nbd+unix:///export?socket=nbd.sock", .socket = "nbd.sock",
     .export = "export"},
    /* schemes */
    {"nbds://h/x", .host = "h", .export = "x", .tls = true},
    {"nbds+unix:///x?socket=/s", .socket = "/s", .export = "x", .tls = true},
    {"NBD://h/x", "nbd://h/x", .host = "h", .export = "x"},
    {"Nbd+Unix:///x?socket=/s", "nbd+unix:///x?socket=/s", .socket = "/s",
     .export = "x"},
    /* the authority */
    {"nbd:///x", "nbd://localhost/x", .host = "localhost", .export = "x"},
    {"nbd://", "nbd://localhost/", .host = "localhost"},
    {"nbd:/x", "nbd://localhost/x", .host = "localhost", .export = "x"},
    {"nbd://:1/x", "nbd://localhost:1/x", .host = "localhost", .port = 1,
     .export = "x"},
    {"nbd://h:/x", "nbd://h/x", .host = "h", .export = "x"},
    {"nbd://h:65535/", .host = "h", .port = 65535},
    {"nbd://h:00022/", "nbd://h:22/", .host = "h", .port = 22},
    {"nbd://127.0.0.1:10810/", .host = "127.0.0.1", .port = 10810},
    {"nbd://[::1]/x", .host = "::1", .export = "x"},
    {"nbd://[::1]:99/x", .host = "::1", .port = 99, .export = "x"},
    {"nbd://[2001:db8::1:2]", "nbd://[2001:db8::1:2]/",
     .host = "2001:db8::1:2"},
    {"nbd://[::ffff:1.2.3.4]/", .host = "::ffff:1.2.3.4"},
    {"nbd://[fe80::1%25eth0]/", .host = "fe80::1%eth0"},
    {"nbd://alice:s%20t@h/x", "nbd://h/x", .host = "h", .export = "x"},
    {"nbd://my%2Dhost/", "nbd://my-host/", .host = "my-host"},
    {"nbd://h?x-a=b", "nbd://h/", .host = "h"},
    /* export names */
    {"nbd://h/a/b/c", .host = "h", .export = "a/b/c"},
    {"nbd://h/%c3%A9t%C3%A9", "nbd://h/%C3%A9t%C3%A9", .host = "h",
     .export = "\xc3\xa9t\xc3\xa9"},
    {"nbd://h/%25%3f%23%26", "nbd://h/%25%3F%23%26", .host = "h",
     .export = "%?#&"},
    {"nbd://h/a+b", "nbd://h/a%2Bb", .host = "h", .export = "a+b"},
    {"nbd://h/!$&'()*,;=:@", "nbd://h/%21%24%26%27%28%29%2A%2C%3B%3D:@",
     .host = "h", .export = "!$&'()*,;=:@"},
    {"nbd://h/%01%0a%7f", "nbd://h/%01%0A%7F", .host = "h",
     .export = "\x01\n\x7f"},
    /* parameters */
    {"nbd+unix:///", .socket = ""},
    {"nbd+unix:/x?socket=s", "nbd+unix:///x?socket=s", .socket = "s",
     .export = "x"},
    {"nbd+unix://?socket=s", "nbd+unix:///?socket=s", .socket = "s"},
    {"nbd+unix:///?socket=a%26b%3Dc=d?e/f",
     "nbd+unix:///?socket=a%26b%3Dc%3Dd%3Fe/f", .socket = "a&b=c=d?e/f"},
    {"nbd+unix:///?&x-one&socket=s&&x-two=%20&", "nbd+unix:///?socket=s",
     .socket = "s"},
    {"nbds://h/?tls-type=psk&tls-hostname=a&tls-verify-peer=0", "nbds://h/",
     .host = "h", .tls = true},
};

static void
test_accepted(void **state)
{
    char text[2048];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(goods); i++) {
        const struct good *g = &goods[i];
        struct err e = {0};
        struct uri u, again;

        if (uri_parse(g->text, &u, &e) != 0) {
            fail_msg("%s: %s", g->text, e.text);
        }
        assert_int_equal(u.scheme, g->socket != NULL ? URI_UNIX : URI_TCP);
        assert_int_equal(u.tls, g->tls);
        assert_string_equal(u.host, g->host != NULL ? g->host : "");
        assert_string_equal(u.socket, g->socket != NULL ? g->socket : "");
        assert_string_equal(u.export, g->export != NULL ? g->export : "");
        assert_int_equal(u.port, g->port != 0      ? g->port
                                 : g->host != NULL ? NBD_PORT
                                                   : 0);
        assert_int_equal(uri_format(&u, text, sizeof(text)), 0);
        assert_string_equal(text,
                            g->canonical != NULL ? g->canonical : g->text);
        assert_int_equal(uri_parse(text, &again, &e), 0);
        assert_int_equal(again.scheme, u.scheme);
        assert_int_equal(again.tls, u.tls);
        assert_int_equal(again.port, u.port);
        assert_string_equal(again.host, u.host);
        assert_string_equal(again.socket, u.socket);
        assert_string_equal(again.export, u.export);
    }
}

/* Refused, and a part of the message. */
static const struct bad {
    const char *text;
    const char *says;
} bads[] = {
    {"", "no scheme"},
    {"disk.img", "no scheme"},
    {"//h/x", "no scheme"},
    {"/nbd://h/x", "no scheme"},
    {"http://h/x", "\"http\": unknown scheme"},
    {"nbdx://h/x", "\"nbdx\": unknown scheme"},
    {"nb://h/x", "\"nb\": unknown scheme"},
    {"://h/x", "unknown scheme"},
    {"nbd+vsock://2/x", "\"nbd+vsock\": this transport is not supported"},
    {"nbds+vsock://2/x", "\"nbds+vsock\": this transport is not supported"},
    {"nbd+ssh://-oProxyCommand=x/", "\"nbd+ssh\": this transport"},
    {"nbds+ssh://h/", "\"nbds+ssh\": this transport"},
    {"nbd:h:10809", "want // before the host"},
    {"nbd:unix:/path", "want // before the host"},
    {"nbd://h:0/", "\"0\": bad port"},
    {"nbd://h:65536/", "\"65536\": bad port"},
    {"nbd://h:99999999999999999999/", "bad port"},
    {"nbd://h:-1/", "\"-1\": bad port"},
    {"nbd://h:80a/", "\"80a\": bad port"},
    {"nbd://h:1:2/", "\"1:2\": bad port"},
    {"nbd://h:%38/", "bad port"},
    {"nbd://::1/", "bad port"},
    {"nbd://[::1/x", "no closing bracket"},
    {"nbd://[]/", "not an IPv6 address"},
    {"nbd://[1.2.3.4]/", "not an IPv6 address"},
    {"nbd://[::g]/", "not an IPv6 address"},
    {"nbd://[fe80::1%25]/", "not an IPv6 address"},
    {"nbd://[fe80::1%eth0]/", "bad escape"},
    {"nbd://[v1.x]/", "not an IPv6 address"},
    {"nbd://[::1]x/", "only :PORT may follow"},
    {"nbd://a b/", "\" b\": this character must be written as %XX"},
    {"nbd://a%20b/", "not a host name"},
    {"nbd://a%2Fb/", "not a host name"},
    {"nbd://a%3A1/", "not a host name"},
    {"nbd://a%00b/", "NUL"},
    {"nbd://a@b@c/", "must be written as %XX"},
    {"nbd+unix://h/x?socket=s", "\"h\": a Unix socket has no host"},
    {"nbd://h/%", "bad escape"},
    {"nbd://h/%4", "bad escape"},
    {"nbd://h/%4g", "\"%4g\": bad escape"},
    {"nbd://h/%g4", "bad escape"},
    {"nbd://h/a%", "\"%\": bad escape"},
    {"nbd://h/a%00b", "NUL"},
    {"nbd://h/a b", "must be written as %XX"},
    {"nbd://h/a\"b", "must be written as %XX"},
    {"nbd://h/a\nb", "\"\\x0ab\": this character"},
    {"nbd://h/\xc3\xa9", "must be written as %XX"},
    {"nbd://h/[x]", "must be written as %XX"},
    {"nbd://h/%ff", "not UTF-8"},
    {"nbd://h/%C3", "not UTF-8"},
    {"nbd://h/%ED%A0%80", "not UTF-8"},
    {"nbd://h/x#y", "\"#y\": write # as %23"},
    {"nbd+unix:///x?socket=s#", "write # as %23"},
    {"nbd://h/?socket=s", "socket= needs the scheme nbd+unix"},
    {"nbd+unix:///?socket=", "socket= is empty"},
    {"nbd+unix:///?socket", "socket= is empty"},
    {"nbd+unix:///?socket=a&socket=b", "\"b\": a second socket="},
    {"nbd+unix:///?socket=%00abstract", "abstract sockets are not supported"},
    {"nbd+unix:///?socket=a%zz", "bad escape"},
    {"nbd+unix:///?Socket=a", "\"Socket\": unknown parameter"},
    {"nbd+unix:///?socket=a&foo=1", "\"foo\": unknown parameter"},
    {"nbd://h/?=", "unknown parameter"},
    {"nbd://h/?x=1", "\"x\": unknown parameter"},
    {"nbd://h/?tls=1", "\"tls\": unknown parameter"},
    {"nbd://h/?x-a=%", "bad escape"},
    {"nbd://h/?x-a=b c", "must be written as %XX"},
};

static void
test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bads); i++) {
        struct err e = {0};
        struct uri u, before;

        memset(&u, 0x5a, sizeof(u));
        before = u;
        if (uri_parse(bads[i].text, &u, &e) != -EINVAL || e.code != EINVAL ||
            strstr(e.text, bads[i].says) == NULL) {
            fail_msg("%s: \"%s\", want \"%s\"", bads[i].text, e.text,
                     bads[i].says);
        }
        assert_memory_equal(&u, &before, sizeof(u));
        assert_int_equal(uri_parse(bads[i].text, &u, NULL), -EINVAL);
    }
}

/* "PREFIX", `count` times "x", "SUFFIX"; the caller frees it. */
static char *
stretched(const char *prefix, size_t count, const char *suffix)
{
    char *text = malloc(strlen(prefix) + count + strlen(suffix) + 1);
    char *at = text;

    assert_non_null(text);
    at = stpcpy(at, prefix);
    memset(at, 'x', count);
    strcpy(at + count, suffix);
    return text;
}

static int
parse_stretched(const char *prefix, size_t count, const char *suffix,
                struct uri *u)
{
    char *text = stretched(prefix, count, suffix);
    struct err e = {0};
    int rc = uri_parse(text, u, &e);

    if (rc < 0) {
        assert_non_null(strstr(e.text, "too long"));
    }
    free(text);
    return rc;
}

static void
test_lengths(void **state)
{
    static const size_t sizes[] = {4097, 65536, 1u << 20};
    struct uri u;

    (void)state;
    assert_int_equal(parse_stretched("nbd://h/", 4096, "", &u), 0);
    assert_int_equal(strlen(u.export), 4096);
    assert_int_equal(parse_stretched("nbd://", 255, "/", &u), 0);
    assert_int_equal(strlen(u.host), 255);
    assert_int_equal(parse_stretched("nbd://", 256, "/", &u), -EINVAL);
    assert_int_equal(parse_stretched("nbd+unix:///?socket=", 1023, "", &u), 0);
    assert_int_equal(strlen(u.socket), 1023);
    assert_int_equal(parse_stretched("nbd+unix:///?socket=", 1024, "", &u),
                     -EINVAL);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        size_t n = sizes[i];

        assert_int_equal(parse_stretched("nbd://h/", n, "", &u), -EINVAL);
        assert_int_equal(parse_stretched("nbd://", n, "/", &u), -EINVAL);
        assert_int_equal(parse_stretched("nbd://", n, "@h/", &u), -EINVAL);
        assert_int_equal(parse_stretched("nbd://h/?x-", n, "", &u), -EINVAL);
    }
}

static void
test_format_keeps_to_its_buffer(void **state)
{
    struct uri u = {.scheme = URI_TCP, .host = "::1", .port = 12345};
    const char *want = "nbd://[::1]:12345/a%20b";
    char buf[64];

    (void)state;
    strcpy(u.export, "a b");
    assert_int_equal(uri_format(&u, buf, 0), -ENAMETOOLONG);
    for (size_t cap = 1; cap <= sizeof(buf); cap++) {
        memset(buf, 'Z', sizeof(buf));
        assert_int_equal(uri_format(&u, buf, cap),
                         cap > strlen(want) ? 0 : -ENAMETOOLONG);
        assert_true(strlen(buf) < cap);
        assert_memory_equal(buf, want, strlen(buf));
        for (size_t i = cap; i < sizeof(buf); i++) {
            assert_int_equal(buf[i], 'Z');
        }
    }
    assert_string_equal(buf, want);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_format_keeps_to_its_buffer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
