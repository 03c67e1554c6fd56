/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of blk/image*.c: what image_open makes of its options, whom its
 * locks shut out, what a base that changes does to its readers, and the policy
 * for names. Hostile names are in tests/fault/bad_images.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "blk/image.h"
#include "blk/image_name.h"

static char folder[256];

static const char *
path_of(const char *name)
{
    static char paths[16][512];
    static unsigned next;
    char *p = paths[next++ % 16];

    snprintf(p, sizeof(paths[0]), "%s/%s", folder, name);
    return p;
}

static int
make_folder(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(folder, sizeof(folder), "%s/image-XXXXXX",
             tmp != NULL ? tmp : "/var/tmp");
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int
remove_folder(void **state)
{
    char command[300];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

static const char *
make_raw(const char *name, uint64_t size, uint8_t byte)
{
    const char *path = path_of(name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    char *p = malloc(size);

    assert_true(fd >= 0);
    assert_non_null(p);
    memset(p, byte, size);
    assert_int_equal(file_pwrite(fd, p, size, 0), 0);
    free(p);
    close(fd);
    return path;
}

/* A qcow2 image of 1 MiB without data over `backing`. */
static const char *
make_qcow2(const char *name, const char *backing, const char *format)
{
    uint8_t bytes[4 * 4096] = {0};
    const char *path = path_of(name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    memcpy(bytes, "QFI\xfb", 4);
    store_be32(bytes + 4, 2);
    store_be64(bytes + 8, 512);
    store_be32(bytes + 16, (uint32_t)strlen(backing));
    store_be32(bytes + 20, 12);
    store_be64(bytes + 24, MIB);
    store_be32(bytes + 36, 1);
    store_be64(bytes + 40, 3 * 4096);
    store_be64(bytes + 48, 4096);
    store_be32(bytes + 56, 1);
    store_be32(bytes + 72, 0xe2792aca);
    store_be32(bytes + 76, (uint32_t)strlen(format));
    memcpy(bytes + 80, format, strlen(format));
    memcpy(bytes + 512, backing, strlen(backing));
    assert_int_equal(file_pwrite(fd, bytes, sizeof(bytes), 0), 0);
    close(fd);
    return path;
}

static struct disk *
open_well(struct image_options o)
{
    struct err e = {0};
    struct disk *d;

    o.overlay_dir = folder;
    d = image_open(&o, &e);
    if (d == NULL) {
        fail_msg("%s", e.text);
    }
    return d;
}

static void
open_badly(struct image_options o, int code, const char *part)
{
    struct err e = {0};
    struct disk *d;

    o.overlay_dir = o.overlay_dir != NULL ? o.overlay_dir : folder;
    d = image_open(&o, &e);
    assert_null(d);
    if (e.code != code || strstr(e.text, part) == NULL) {
        fail_msg("\"%s\" (%d) instead of \"%s\" (%d)", e.text, e.code, part,
                 code);
    }
    /* Who does not want to know why is not told. */
    assert_null(image_open(&o, NULL));
}

static uint8_t
byte_at(struct disk *d, uint64_t off)
{
    uint8_t b;

    assert_int_equal(disk_read(d, &b, off, 1), 0);
    return b;
}

static int
put_byte(struct disk *d, uint64_t off, uint8_t b)
{
    struct layer_write w = {
        .off = off, .len_bytes = 1, .result = -1, .buf = &b};

    disk_write(d, &w, 1);
    return w.result;
}

/* ---- options ---- */

static void
test_format_names(void **state)
{
    enum image_format f = IMAGE_FORMAT_UNSET;

    (void)state;
    assert_true(image_format_parse("raw", &f));
    assert_int_equal(f, IMAGE_RAW);
    assert_true(image_format_parse("qcow2", &f));
    assert_int_equal(f, IMAGE_QCOW2);
    assert_false(image_format_parse("qcow", &f));
    assert_false(image_format_parse("", &f));
    assert_int_equal(f, IMAGE_QCOW2);
}

static void
test_read_only(void **state)
{
    const char *path = make_raw("ro", MIB + 100, 1);
    struct disk *d =
        open_well((struct image_options){.path = path, .read_only = true});

    (void)state;
    assert_int_equal(disk_size(d), MIB + 512);
    assert_false(disk_writable(d));
    assert_int_equal(byte_at(d, MIB + 99), 1);
    assert_int_equal(byte_at(d, MIB + 100), 0);
    assert_int_equal(put_byte(d, 0, 2), -EPERM);
    disk_free(d);
    /* Read-only goes before ephemeral. */
    d = open_well((struct image_options){
        .path = path, .read_only = true, .ephemeral = true});
    assert_false(disk_writable(d));
    disk_free(d);
}

static void
test_ephemeral_leaves_the_image_alone(void **state)
{
    const char *path = make_raw("base", MIB, 1);
    struct image_options o = {.path = path, .ephemeral = true};
    struct disk *d;

    (void)state;
    assert_int_equal(chmod(path, 0400), 0);
    d = open_well(o);
    assert_true(disk_writable(d));
    assert_int_equal(put_byte(d, 5, 2), 0);
    assert_int_equal(byte_at(d, 5), 2);
    assert_int_equal(byte_at(d, 6), 1);
    disk_free(d);
    d = open_well(o);
    assert_int_equal(byte_at(d, 5), 1);
    disk_free(d);
}

static void
test_writable_in_place(void **state)
{
    const char *path = make_raw("rw", MIB + 100, 1);
    struct image_options o = {.path = path, .format = IMAGE_RAW};
    struct disk *d = open_well(o);

    (void)state;
    assert_int_equal(disk_size(d), MIB + 100); /* exactly the file's */
    assert_int_equal(put_byte(d, MIB + 99, 2), 0);
    assert_true(disk_flush_fd(d) >= 0);
    assert_int_equal(disk_flush(d), 0);
    disk_free(d);
    o.offset_bytes = MIB + 99;
    d = open_well(o);
    assert_int_equal(disk_size(d), 1);
    assert_int_equal(byte_at(d, 0), 2);
    disk_free(d);
    if (geteuid() != 0) {
        assert_int_equal(chmod(path, 0400), 0);
        open_badly(o, EACCES, "--ephemeral or --read-only");
    }
}

static void
test_probed_and_writable(void **state)
{
    const char *path = make_raw("probed", MIB, 0);
    struct image_options o = {.path = path};
    struct layer_write w = {
        .off = 0, .len_bytes = 8, .result = -1, .buf = "QFI\xfb\0\0\0\3"};
    struct disk *d;

    (void)state;
    open_badly(o, EPERM, "-f raw");
    o.probe_writable = true;
    d = open_well(o);
    disk_write(d, &w, 1);
    assert_int_equal(w.result, -EPERM);
    assert_int_equal(put_byte(d, 0, 'Q'), 0);
    disk_free(d);
    o.format = IMAGE_RAW;
    d = open_well(o);
    disk_write(d, &w, 1);
    assert_int_equal(w.result, 0);
    disk_free(d);
}

static void
test_no_overlay_dir(void **state)
{
    const char *path = make_raw("x", MIB, 0);

    (void)state;
    open_badly((struct image_options){.path = path,
                                      .ephemeral = true,
                                      .overlay_dir = "/nonexistent/dir"},
               ENOENT, "/nonexistent/dir");
}

/* Every failure above and below gives all descriptors back. */
static unsigned
open_descriptors(void)
{
    unsigned n = 0;

    for (int fd = 0; fd < 1024; fd++) {
        n += fcntl(fd, F_GETFD) != -1;
    }
    return n;
}

static void
test_failures_leak_nothing(void **state)
{
    unsigned before = open_descriptors();
    const char *top;

    (void)state;
    make_raw("leak.raw", MIB, 0);
    make_qcow2("leak-mid", "gone.raw", "raw");
    top = make_qcow2("leak-top", "leak-mid", "qcow2");
    open_badly((struct image_options){.path = top,
                                      .format = IMAGE_QCOW2,
                                      .read_only = true},
               ENOENT, "its backing file \"gone.raw\"");
    make_qcow2("leak-mid", "leak.raw", "raw");
    open_badly((struct image_options){.path = top,
                                      .format = IMAGE_QCOW2,
                                      .ephemeral = true,
                                      .overlay_dir = "/nonexistent"},
               ENOENT, "/nonexistent");
    open_badly((struct image_options){.path = top,
                                      .format = IMAGE_QCOW2,
                                      .read_only = true,
                                      .offset_bytes = MIB},
               EINVAL, "beyond");
    assert_int_equal(open_descriptors(), before);
    disk_free(open_well((struct image_options){
        .path = top, .format = IMAGE_QCOW2, .ephemeral = true}));
    assert_int_equal(open_descriptors(), before);
}

/* ---- locks ---- */

static void
test_who_shuts_whom_out(void **state)
{
    const char *path = make_raw("locked", MIB, 1);
    struct image_options rw = {.path = path, .format = IMAGE_RAW};
    struct image_options ro = {.path = path, .read_only = true};
    struct image_options eph = {.path = path, .ephemeral = true};
    struct disk *a, *b, *c;

    (void)state;
    /* Readers share, and keep writers out. */
    a = open_well(ro);
    b = open_well(eph);
    c = open_well(eph);
    open_badly(rw, EBUSY, "in use");
    disk_free(a);
    open_badly(rw, EBUSY, "in use");
    disk_free(b);
    disk_free(c);
    /* A writer is alone. */
    a = open_well(rw);
    open_badly(rw, EBUSY, "in use");
    open_badly(ro, EBUSY, "in use");
    open_badly(eph, EBUSY, "in use");
    disk_free(a);
    disk_free(open_well(ro));
}

static void
test_backing_files_are_locked_too(void **state)
{
    const char *base, *top;
    struct image_options rw;
    struct disk *d;

    (void)state;
    base = make_raw("lb.raw", MIB, 3);
    top = make_qcow2("lb.qcow2", "lb.raw", "raw");
    rw = (struct image_options){.path = base, .format = IMAGE_RAW};
    d = open_well((struct image_options){
        .path = top, .format = IMAGE_QCOW2, .ephemeral = true});
    assert_int_equal(byte_at(d, 1000), 3);
    open_badly(rw, EBUSY, "in use");
    disk_free(d);
    d = open_well(rw);
    open_badly((struct image_options){.path = top,
                                      .format = IMAGE_QCOW2,
                                      .ephemeral = true},
               EBUSY, "its backing file \"lb.raw\"");
    disk_free(d);
}

/* ---- a base that changes under its readers ---- */

static void
expect_shrunken(struct disk *d)
{
    uint8_t buf[4096];

    assert_int_equal(byte_at(d, 10), 3);
    assert_int_equal(disk_read(d, buf, MIB - 4096, 4096), -EIO);
    assert_int_equal(disk_read(d, buf, 64 * KIB - 2048, 4096), -EIO);
    assert_int_equal(byte_at(d, 64 * KIB - 1), 3);
}

static void
test_base_that_shrinks(void **state)
{
    const char *base, *top;
    struct disk *d, *through;

    (void)state;
    base = make_raw("shrink.raw", MIB, 3);
    top = make_qcow2("shrink.qcow2", "shrink.raw", "raw");
    d = open_well((struct image_options){.path = base, .ephemeral = true});
    through = open_well((struct image_options){
        .path = top, .format = IMAGE_QCOW2, .ephemeral = true});
    assert_int_equal(truncate(base, 64 * KIB), 0);
    expect_shrunken(d);
    expect_shrunken(through);
    /* What was written meanwhile is there. */
    assert_int_equal(put_byte(d, 10, 9), 0);
    assert_int_equal(byte_at(d, 10), 9);
    /* It comes back, larger; the disk stays as it was. */
    assert_int_equal(truncate(base, 2 * (off_t)MIB), 0);
    assert_int_equal(byte_at(d, MIB - 1), 0);
    assert_int_equal(disk_size(d), MIB);
    disk_free(d);
    disk_free(through);
}

static void
test_base_that_vanishes(void **state)
{
    const char *base, *top;
    struct disk *d;

    (void)state;
    base = make_raw("vanish.raw", MIB, 3);
    top = make_qcow2("vanish.qcow2", "vanish.raw", "raw");
    d = open_well((struct image_options){
        .path = top, .format = IMAGE_QCOW2, .ephemeral = true});
    assert_int_equal(unlink(base), 0);
    assert_int_equal(unlink(top), 0);
    assert_int_equal(byte_at(d, MIB - 1), 3);
    assert_int_equal(put_byte(d, 0, 1), 0);
    disk_free(d);
}

static void
test_table_that_shrinks(void **state)
{
    const char *top;
    struct disk *d;
    uint8_t b;

    (void)state;
    make_raw("t.raw", MIB, 3);
    top = make_qcow2("t.qcow2", "t.raw", "raw");
    d = open_well((struct image_options){
        .path = top, .format = IMAGE_QCOW2, .read_only = true});
    assert_int_equal(truncate(top, 0), 0);
    assert_int_equal(disk_read(d, &b, 0, 1), -EIO);
    disk_free(d);
}

/* ---- names ---- */

static void
test_protocols(void **state)
{
    static const struct {
        const char *name;
        bool protocol;
    } rows[] = {
        {"json:{}", true}, {"nbd://x", true}, {"a b:c", true},
        {":x", true},      {"", false},       {"base.raw", false},
        {"./a:b", false},  {"/a:b", false},   {"dir/a:b", false},
        {"../x:y", false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        assert_int_equal(name_is_protocol(rows[i].name), rows[i].protocol);
    }
}

static int
follow(const struct name_policy *p, const char *from, const char *name,
       struct err *e)
{
    char *path, *real;
    int err = name_policy_follow(p, from, name, &path, &real, e);

    if (err == 0) {
        free(path);
        free(real);
    }
    return err;
}

/* A folder's name that begins like the allowed one's is another folder. */
static void
test_policy_borders(void **state)
{
    const char *allow[] = {NULL, NULL};
    const char *top, *missing[] = {"/nonexistent/dir", NULL};
    struct name_policy p;
    struct err e;

    (void)state;
    assert_int_equal(mkdir(path_of("in"), 0700), 0);
    assert_int_equal(mkdir(path_of("in/sub"), 0700), 0);
    assert_int_equal(mkdir(path_of("inside"), 0700), 0);
    make_raw("in/sub/a", 512, 1);
    make_raw("inside/b", 512, 1);
    top = make_raw("in/top", 512, 1);
    assert_int_equal(name_policy_init(&p, top, NULL, &e), 0);
    assert_int_equal(follow(&p, top, "sub/a", &e), 0);
    assert_int_equal(follow(&p, top, path_of("in/sub/a"), &e), 0);
    assert_int_equal(follow(&p, top, "../inside/b", &e), -EPERM);
    assert_non_null(strstr(e.text, "--allow-path"));
    assert_int_equal(follow(&p, top, "..", &e), -EPERM);
    assert_int_equal(follow(&p, top, "sub/gone", &e), -ENOENT);
    name_policy_clear(&p);

    allow[0] = path_of("inside");
    assert_int_equal(name_policy_init(&p, top, allow, &e), 0);
    assert_int_equal(follow(&p, top, "../inside/b", &e), 0);
    name_policy_clear(&p);
    allow[0] = "/";
    assert_int_equal(name_policy_init(&p, top, allow, &e), 0);
    assert_int_equal(follow(&p, top, "../inside/b", &e), 0);
    name_policy_clear(&p);
    assert_int_equal(name_policy_init(&p, top, missing, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/nonexistent/dir"));
}

/* The folder is that of the image's own file, not of a link to it. */
static void
test_policy_of_a_link(void **state)
{
    const char *top, *linked;
    struct name_policy p;
    struct err e;

    (void)state;
    assert_int_equal(mkdir(path_of("store"), 0700), 0);
    assert_int_equal(mkdir(path_of("links"), 0700), 0);
    top = make_raw("store/top", 512, 1);
    make_raw("store/base", 512, 1);
    make_raw("links/secret", 512, 1);
    linked = path_of("links/top");
    assert_int_equal(symlink(top, linked), 0);
    assert_int_equal(name_policy_init(&p, linked, NULL, &e), 0);
    assert_int_equal(follow(&p, linked, "secret", &e), -EPERM);
    assert_int_equal(follow(&p, linked, "base", &e), -ENOENT);
    assert_int_equal(symlink("../store/base", path_of("links/base")), 0);
    assert_int_equal(follow(&p, linked, "base", &e), 0);
    name_policy_clear(&p);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_names),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_ephemeral_leaves_the_image_alone),
        cmocka_unit_test(test_writable_in_place),
        cmocka_unit_test(test_probed_and_writable),
        cmocka_unit_test(test_no_overlay_dir),
        cmocka_unit_test(test_failures_leak_nothing),
        cmocka_unit_test(test_who_shuts_whom_out),
        cmocka_unit_test(test_backing_files_are_locked_too),
        cmocka_unit_test(test_base_that_shrinks),
        cmocka_unit_test(test_base_that_vanishes),
        cmocka_unit_test(test_table_that_shrinks),
        cmocka_unit_test(test_protocols),
        cmocka_unit_test(test_policy_borders),
        cmocka_unit_test(test_policy_of_a_link),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
