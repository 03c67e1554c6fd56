/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line of `rewind serve` as data (cli/serve_options.h): what each
 * option sets, which image it is for, the defaults under both names, and what
 * is refused. No disk and no socket is touched. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cli/serve_options.h"
#include "nbd/proto.h"

#define WORDS_MAX 40

/* A command line in one string, split at spaces; '' is an empty word. */
struct line {
    char text[512];
    char *argv[WORDS_MAX];
    int argc;
    struct serve_options o;
    struct err e;
    int result;
};

static void
parse_as(struct line *l, bool as_qemu_nbd, unsigned activated, const char *text)
{
    char *rest = l->text, *word;

    memset(l, 0, sizeof(*l));
    assert_true(strlen(text) < sizeof(l->text));
    strcpy(l->text, text);
    l->argv[l->argc++] = (char *)"serve";
    while ((word = strsep(&rest, " ")) != NULL) {
        assert_true(l->argc < WORDS_MAX - 1);
        l->argv[l->argc++] = strcmp(word, "''") == 0 ? (char *)"" : word;
    }
    assert_int_equal(serve_options_init(&l->o, as_qemu_nbd, l->argc, &l->e), 0);
    l->result = opt_parse(serve_opts, serve_options_operand, l->argc, l->argv,
                          &l->o, &l->e);
    if (l->result >= 0) {
        assert_int_equal(l->result, l->argc);
        l->result = serve_options_finish(&l->o, activated, &l->e);
    }
}

/* Parses what must be right. */
static struct serve_options *
parse(struct line *l, const char *text)
{
    parse_as(l, false, 0, text);
    if (l->result != 0) {
        fail_msg("%s: %s", text, l->e.text);
    }
    return &l->o;
}

static struct serve_options *
parse_qemu(struct line *l, const char *text)
{
    parse_as(l, true, 0, text);
    if (l->result != 0) {
        fail_msg("%s: %s", text, l->e.text);
    }
    return &l->o;
}

static void
defaults_are_safe(void **state)
{
    struct line l;
    struct serve_options *o = parse(&l, "disk.img");

    (void)state;
    assert_int_equal(o->image_count, 1);
    assert_string_equal(o->images[0].path, "disk.img");
    assert_string_equal(o->images[0].name, "");
    assert_int_equal(o->images[0].format, IMAGE_FORMAT_UNSET);
    assert_int_equal(o->images[0].discard, DISCARD_UNMAP);
    assert_false(o->images[0].ephemeral);
    assert_false(o->images[0].read_only);
    assert_true(o->images[0].allocation_depth);
    assert_int_equal(o->listen_count, 1);
    assert_int_equal(o->listen[0].kind, LISTEN_PRIVATE);
    assert_int_equal(o->socket_mode, 0600);
    assert_int_equal(o->session_max, 0);
    assert_int_equal(o->handshake_s, 10);
    assert_int_equal(o->cache, CACHE_WRITEBACK);
    assert_int_equal(o->engine, IO_ENGINE_AUTO);
    assert_false(o->insecure);
    serve_options_clear(o);
}

static void
qemu_nbd_defaults_are_its_own(void **state)
{
    struct line l;
    struct serve_options *o = parse_qemu(&l, "--snapshot -x myDisk Disk.img");

    (void)state;
    assert_int_equal(o->image_count, 1);
    assert_string_equal(o->images[0].name, "myDisk");
    assert_true(o->images[0].ephemeral);
    assert_int_equal(o->images[0].discard, DISCARD_IGNORE);
    assert_false(o->images[0].allocation_depth);
    assert_int_equal(o->listen_count, 1);
    assert_int_equal(o->listen[0].kind, LISTEN_TCP);
    assert_string_equal(o->listen[0].host, "0.0.0.0");
    assert_int_equal(o->listen[0].port, 10809);
    assert_int_equal(o->socket_mode, LISTEN_MODE_UMASK);
    assert_int_equal(o->session_max, 1);
    assert_false(o->persistent);
    serve_options_clear(o);

    /* A Unix socket stands instead of TCP, whatever -p says. */
    o = parse_qemu(&l, "-k /run/s -p 1 -e 5 -t -A d -x n --discard=on");
    assert_int_equal(o->listen_count, 1);
    assert_int_equal(o->listen[0].kind, LISTEN_UNIX);
    assert_string_equal(o->listen[0].path, "/run/s");
    assert_int_equal(o->session_max, 5);
    assert_true(o->persistent);
    assert_true(o->images[0].allocation_depth);
    assert_string_equal(o->images[0].name, "n");
    assert_int_equal(o->images[0].discard, DISCARD_UNMAP);
    serve_options_clear(o);

    o = parse_qemu(&l, "-b 127.0.0.1 -p 0 -e 0 d");
    assert_string_equal(o->listen[0].host, "127.0.0.1");
    assert_int_equal(o->listen[0].port, 0);
    assert_int_equal(o->session_max, 0);
    serve_options_clear(o);
}

/* With one image the place of an option does not matter. */
static void
one_image_takes_options_anywhere(void **state)
{
    static const char *const lines[] = {
        "-x N -D T -r -s -f raw -o 1M -l S --discard=off d.img",
        "d.img -x N -D T -r -s -f raw -o 1M -l S --discard=off",
        "-x N -D T d.img -r -s -f raw -o 1M -l S --discard=off",
        "-D T -r -x N -s -f raw d.img -o 0x100000 -l S --discard=ignore",
        "-xN -DT -rsfraw -o1M -lS --discard off -- d.img",
        "--export-name=N --description T --read-only --ephemeral "
        "--format qcow2 --offset 1024K --load-snapshot=S --disca=off d.img "
        "-fraw",
    };
    struct line l;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        const struct serve_image *x = parse(&l, lines[i])->images;

        assert_string_equal(x->path, "d.img");
        assert_string_equal(x->name, "N");
        assert_string_equal(x->description, "T");
        assert_string_equal(x->snapshot, "S");
        assert_int_equal(x->format, IMAGE_RAW);
        assert_int_equal(x->offset_bytes, MIB);
        assert_int_equal(x->discard, DISCARD_IGNORE);
        assert_true(x->read_only);
        assert_true(x->ephemeral);
        serve_options_clear(&l.o);
    }
}

static void
several_images_have_their_own(void **state)
{
    struct line l;
    struct serve_options *o =
        parse(&l, "-f qcow2 -s -x root root.qcow2 -x data -f raw -r data.img");

    (void)state;
    assert_int_equal(o->image_count, 2);
    assert_string_equal(o->images[0].name, "root");
    assert_int_equal(o->images[0].format, IMAGE_QCOW2);
    assert_true(o->images[0].ephemeral);
    assert_false(o->images[0].read_only);
    assert_string_equal(o->images[1].name, "data");
    assert_int_equal(o->images[1].format, IMAGE_RAW);
    assert_true(o->images[1].ephemeral);
    assert_true(o->images[1].read_only);
    serve_options_clear(o);

    /* Behind an -x, an option is that image's alone. */
    o = parse(&l, "-x a -r -f raw a.img -x b -s b.qcow2");
    assert_true(o->images[0].read_only);
    assert_false(o->images[0].ephemeral);
    assert_false(o->images[1].read_only);
    assert_true(o->images[1].ephemeral);
    assert_int_equal(o->images[1].format, IMAGE_FORMAT_UNSET);
    serve_options_clear(o);

    /* And so behind an image. */
    o = parse(&l, "-s one.img -r two.img three.img");
    assert_true(o->images[0].ephemeral && !o->images[0].read_only);
    assert_true(o->images[1].ephemeral && o->images[1].read_only);
    assert_true(o->images[2].ephemeral && !o->images[2].read_only);
    assert_string_equal(o->images[0].name, "one");
    assert_string_equal(o->images[1].name, "two");
    assert_string_equal(o->images[2].name, "three");
    serve_options_clear(o);
}

static void
exports_are_named_by_their_files(void **state)
{
    struct line l;
    struct serve_options *o = parse(
        &l, "-r /a/b.c/disk.qcow2 plain .hidden dir/two.part.img -x '' e.img");

    (void)state;
    assert_string_equal(o->images[0].name, "disk");
    assert_string_equal(o->images[1].name, "plain");
    assert_string_equal(o->images[2].name, ".hidden");
    assert_string_equal(o->images[3].name, "two.part");
    assert_string_equal(o->images[4].name, "");
    serve_options_clear(o);
}

static void
snapshots_are_read_only_unless_ephemeral(void **state)
{
    struct line l;
    struct serve_options *o = parse(&l, "-l before d.qcow2");

    (void)state;
    assert_true(o->images[0].read_only);
    serve_options_clear(o);
    o = parse(&l, "-l before --ephemeral d.qcow2");
    assert_false(o->images[0].read_only);
    serve_options_clear(o);
    o = parse_qemu(&l, "-l before -s d.qcow2");
    assert_true(o->images[0].read_only);
    serve_options_clear(o);
}

static void
listens_where_it_is_told(void **state)
{
    struct line l;
    struct serve_options *o =
        parse(&l, "--listen unix:/run/a --listen ./b --listen [::1]:7 --listen "
                  "localhost --listen tcp:127.0.0.1:0 -k c -p 9 d");

    (void)state;
    assert_int_equal(o->listen_count, 7);
    assert_string_equal(o->listen[0].path, "/run/a");
    assert_string_equal(o->listen[1].path, "./b");
    assert_string_equal(o->listen[2].host, "::1");
    assert_int_equal(o->listen[2].port, 7);
    assert_string_equal(o->listen[3].host, "localhost");
    assert_int_equal(o->listen[3].port, NBD_PORT);
    assert_int_equal(o->listen[4].port, 0);
    assert_string_equal(o->listen[5].path, "c");
    assert_string_equal(o->listen[6].host, "localhost");
    assert_int_equal(o->listen[6].port, 9);
    serve_options_clear(o);

    o = parse(&l, "--insecure --listen *:1 --listen 0.0.0.0:2 -b :: d");
    assert_int_equal(o->listen_count, 3);
    assert_string_equal(o->listen[2].host, "::");
    serve_options_clear(o);

    o = parse(&l, "--inetd d");
    assert_int_equal(o->listen_count, 0);
    serve_options_clear(o);
}

static void
takes_the_rest(void **state)
{
    struct line l;
    struct serve_options *o =
        parse(&l, "-v -v --engine=threads --cache=unsafe --overlay-dir /o "
                  "--allow-path /a --allow-path /b --handshake-limit 0 "
                  "--socket-mode 660 --fork --pid-file p --stats=f -T x d");

    (void)state;
    assert_int_equal(o->verbose, 2);
    assert_int_equal(o->engine, IO_ENGINE_THREADS);
    assert_int_equal(o->cache, CACHE_UNSAFE);
    assert_string_equal(o->overlay_dir, "/o");
    assert_int_equal(o->allow_count, 2);
    assert_string_equal(o->allow_paths[1], "/b");
    assert_null(o->allow_paths[2]);
    assert_int_equal(o->handshake_s, 0);
    assert_int_equal(o->socket_mode, 0660);
    assert_true(o->fork);
    assert_string_equal(o->pid_file, "p");
    assert_true(o->stats);
    assert_string_equal(o->stats_file, "f");
    serve_options_clear(o);

    o = parse(&l, "--aio=io_uring --cache=writethrough --stats --json d");
    assert_int_equal(o->engine, IO_ENGINE_URING);
    assert_int_equal(o->cache, CACHE_WRITETHROUGH);
    assert_true(o->stats);
    assert_null(o->stats_file);
    assert_true(o->common.json);
    serve_options_clear(o);
}

/* The host's page cache is used whatever they say; what they promise of
 * durability is kept. */
static void
takes_direct_caches(void **state)
{
    static const struct {
        const char *line;
        enum serve_cache cache;
        bool direct_asked;
    } lines[] = {
        {"--cache=none d", CACHE_WRITEBACK, true},
        {"--cache=off d", CACHE_WRITEBACK, true},
        {"-n --aio=native d", CACHE_WRITEBACK, true},
        {"--nocache d", CACHE_WRITEBACK, true},
        {"--cache=directsync d", CACHE_WRITETHROUGH, true},
        {"--cache=writethrough d", CACHE_WRITETHROUGH, false},
        {"--cache=none --cache=unsafe d", CACHE_UNSAFE, false},
    };
    struct line l;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        for (int as_qemu_nbd = 0; as_qemu_nbd < 2; as_qemu_nbd++) {
            parse_as(&l, as_qemu_nbd != 0, 0, lines[i].line);
            if (l.result != 0) {
                fail_msg("%s: %s", lines[i].line, l.e.text);
            }
            assert_int_equal(l.o.cache, lines[i].cache);
            assert_int_equal(l.o.direct_asked, lines[i].direct_asked);
            serve_options_clear(&l.o);
        }
    }
}

static void
lists_another_server(void **state)
{
    struct line l;
    struct serve_options *o = parse(&l, "--list nbd://host/");

    (void)state;
    assert_true(o->list);
    assert_string_equal(o->list_uri, "nbd://host/");
    serve_options_clear(o);
    o = parse(&l, "-L -b host -p 7 --json");
    assert_string_equal(o->bind_host, "host");
    assert_int_equal(o->port, 7);
    serve_options_clear(o);
    o = parse_qemu(&l, "-L -k /run/s");
    assert_string_equal(o->socket_path, "/run/s");
    serve_options_clear(o);
}

static const struct {
    const char *line;
    const char *advice; /* what the message must hold */
} refusals[] = {
    {"-r", "no image"},
    {"''", "empty"},
    {"--bogus d", "--bogus"},
    {"--snapshto d", "--snapshot"},
    {"-Z d", "-Z"},
    {"-x", "NAME"},
    {"--format", "FORMAT"},
    {"--fork=yes d", "no value"},
    {"-f vmdk d", "qemu-img convert"},
    {"-o 1KB d", "1KB"},
    {"-o -1 d", "-1"},
    {"-p 65536 d", "65535"},
    {"-p nbd d", "nbd"},
    {"-e -1 d", "--shared"},
    {"--handshake-limit x d", "--handshake-limit"},
    {"--socket-mode 888 d", "octal"},
    {"--socket-mode 1777 d", "octal"},
    {"--listen 10809 d", "localhost:10809"},
    {"--listen ::1 d", "[::1]:10809"},
    {"--listen [::1 d", "bracket"},
    {"--listen host:x d", "port"},
    {"--listen [::1]x d", ":PORT"},
    {"--listen nbd://h/ d", "URI"},
    {"--listen unix: d", "empty"},
    {"--listen '' d", "empty"},
    {"--listen 0.0.0.0:1 d", "--insecure"},
    {"--listen *:1 d", "--insecure"},
    {"--listen :1 d", "--insecure"},
    {"--listen [::]:1 d", "--insecure"},
    {"-b 0.0.0.0 d", "--insecure"},
    {"-b 192.0.2.1 -p 7 d", "--insecure"},
    {"-k '' d", "empty"},
    {"--discard=maybe d", "ignore"},
    {"--detect-zeroes=unmap --discard=ignore d", "--discard=unmap"},
    {"--cache=fast d", "unsafe"},
    {"--aio=x d", "io_uring"},
    {"--engine=x d", "threads"},
    {"--tls-creds=t d", "ssh"},
    {"--tls-authz=t d", "ssh"},
    {"--tls-hostname=t d", "ssh"},
    {"--object secret,id=s d", "qemu-img convert"},
    {"-B map d", "qemu-nbd"},
    {"--image-opts d", "--format"},
    {"--selinux-label=x d", "runcon"},
    {"-c /dev/nbd0 d", "nbd-client -unix"},
    {"-d /dev/nbd0", "nbd-client -d"},
    {"a.img a.qcow2", "-x"},
    {"-x n a.img -x n b.img", "-x"},
    {"a.img b.img -r", "before"},
    {"a.img b.img -x c", "before"},
    {"--inetd -p 1 d", "--inetd"},
    {"--inetd --listen ./s d", "--inetd"},
    {"--inetd --fork d", "--fork"},
    {"--fork --exit-with-parent d", "--exit-with-parent"},
    {"--fork --stats d", "--stats=FILE"},
    {"-L d", "--list"},
    {"-L nbd://a nbd://b", "--list"},
    {"-L -r", "--list"},
    {"-L -x n", "--list"},
    {"-L --fork", "--list"},
    {"-L -n", "--list"},
    {"-L --listen ./s", "--list"},
    {"-L nbd://a -p 7", "--port"},
    {"--overlay-dir= d", "directory"},
    {"--allow-path= d", "directory"},
    {"--pid-file= d", "file"},
};

static void
refuses_with_advice(void **state)
{
    struct line l;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refusals); i++) {
        parse_as(&l, false, 0, refusals[i].line);
        if (l.result >= 0) {
            fail_msg("taken: %s", refusals[i].line);
        }
        if (strstr(l.e.text, refusals[i].advice) == NULL) {
            fail_msg("%s: no \"%s\" in: %s", refusals[i].line,
                     refusals[i].advice, l.e.text);
        }
        serve_options_clear(&l.o);
    }
}

static void
qemu_nbd_takes_one_image(void **state)
{
    struct line l;

    (void)state;
    parse_as(&l, true, 0, "a.img b.img");
    assert_int_equal(l.result, -EINVAL);
    serve_options_clear(&l.o);
    parse_as(&l, true, 0, "-L nbd://host");
    assert_int_equal(l.result, -EINVAL);
    serve_options_clear(&l.o);
}

/* Whoever started us has chosen the sockets. */
static void
activation_replaces_addresses(void **state)
{
    static const char *const clashes[] = {
        "--listen ./s d", "-k s d", "-p 1 d", "-b ::1 d", "--inetd d", "-L",
    };
    struct line l;

    (void)state;
    parse_as(&l, false, 2, "-x a d");
    assert_int_equal(l.result, 0);
    assert_int_equal(l.o.listen_count, 0);
    serve_options_clear(&l.o);
    parse_as(&l, true, 1, "d");
    assert_int_equal(l.result, 0);
    assert_int_equal(l.o.listen_count, 0);
    serve_options_clear(&l.o);
    for (size_t i = 0; i < ARRAY_LEN(clashes); i++) {
        parse_as(&l, false, 1, clashes[i]);
        assert_int_equal(l.result, -EINVAL);
        assert_non_null(strstr(l.e.text, "socket activation"));
        serve_options_clear(&l.o);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_safe),
        cmocka_unit_test(qemu_nbd_defaults_are_its_own),
        cmocka_unit_test(one_image_takes_options_anywhere),
        cmocka_unit_test(several_images_have_their_own),
        cmocka_unit_test(exports_are_named_by_their_files),
        cmocka_unit_test(snapshots_are_read_only_unless_ephemeral),
        cmocka_unit_test(listens_where_it_is_told),
        cmocka_unit_test(takes_the_rest),
        cmocka_unit_test(takes_direct_caches),
        cmocka_unit_test(lists_another_server),
        cmocka_unit_test(refuses_with_advice),
        cmocka_unit_test(qemu_nbd_takes_one_image),
        cmocka_unit_test(activation_replaces_addresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
