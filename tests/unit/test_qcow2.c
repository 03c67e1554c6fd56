/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of blk/qcow2: what the header, the extensions, the snapshot
 * table and the L1 and L2 tables mean, on images laid out here by hand.
 * Whole images of QEMU's are in tests/interop/qcow2_read.py, damaged ones in
 * tests/fault/bad_images.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "blk/qcow2/qcow2.h"

#define COPIED (UINT64_C(1) << 63)
#define PACKED (UINT64_C(1) << 62)
#define EXTENTS_MAX 64u

/* An image under construction: header cluster, refcount table, refcount
 * block, L1 in cluster 3, one L2 table in cluster 4. */
struct image {
    int fd;
    unsigned bits;
};

/* What extents() said. */
struct list {
    struct extent x[EXTENTS_MAX];
    unsigned count;
    unsigned stop_after; /* 0: never */
};

static uint64_t
cluster(const struct image *m, uint64_t n)
{
    return n << m->bits;
}

static void
put(const struct image *m, uint64_t off, const void *bytes, size_t len)
{
    assert_int_equal(file_pwrite(m->fd, bytes, len, off), 0);
}

static void
put64(const struct image *m, uint64_t off, uint64_t v)
{
    uint8_t b[8];

    store_be64(b, v);
    put(m, off, b, sizeof(b));
}

static void
put32(const struct image *m, uint64_t off, uint32_t v)
{
    uint8_t b[4];

    store_be32(b, v);
    put(m, off, b, sizeof(b));
}

static struct image
image_new(unsigned version, unsigned bits, uint64_t size, uint32_t l1_count)
{
    struct image m = {.bits = bits};
    uint8_t bytes[112] = {0};
    struct builder b = builder_of(bytes, version >= 3 ? 112 : 72);
    struct err e;
    const char *tmp = getenv("TMPDIR");

    m.fd = file_open_unnamed(tmp != NULL ? tmp : "/var/tmp", &e);
    assert_true(m.fd >= 0);
    builder_bytes(&b, "QFI\xfb", 4);
    builder_u32(&b, version);
    builder_u64(&b, 0); /* backing file */
    builder_u32(&b, 0);
    builder_u32(&b, bits);
    builder_u64(&b, size);
    builder_u32(&b, 0); /* encryption */
    builder_u32(&b, l1_count);
    builder_u64(&b, cluster(&m, 3));
    builder_u64(&b, cluster(&m, 1));
    builder_u32(&b, 1);
    builder_u32(&b, 0); /* snapshots */
    builder_u64(&b, 0);
    if (version >= 3) {
        builder_u64(&b, 0);
        builder_u64(&b, 0);
        builder_u64(&b, 0);
        builder_u32(&b, 4);
        builder_u32(&b, 112);
    }
    put(&m, 0, bytes, version >= 3 ? 112 : 72);
    put64(&m, cluster(&m, 3), cluster(&m, 4) | COPIED);
    assert_int_equal(ftruncate(m.fd, (off_t)cluster(&m, 32)), 0);
    return m;
}

static void
put_extension(struct image *m, uint64_t *off, uint32_t type, const void *data,
              uint32_t len)
{
    put32(m, *off, type);
    put32(m, *off + 4, len);
    put(m, *off + 8, data, len);
    *off += 8 + round_up(len, 8);
}

static void
put_l2(const struct image *m, unsigned i, uint64_t entry)
{
    put64(m, cluster(m, 4) + i * 8, entry);
}

static void
put_extended_l2(const struct image *m, unsigned i, uint64_t entry,
                uint32_t zero, uint32_t allocated)
{
    put64(m, cluster(m, 4) + i * 16, entry);
    put64(m, cluster(m, 4) + i * 16 + 8, (uint64_t)zero << 32 | allocated);
}

static struct layer *
open_image(const struct image *m, int data_fd, const char *snapshot)
{
    struct err e = {0};
    struct layer *l = qcow2_open(dup(m->fd), data_fd, "test", snapshot, &e);

    if (l == NULL) {
        fail_msg("%s", e.text);
    }
    return l;
}

static int
collect(void *arg, const struct extent *e)
{
    struct list *list = arg;

    assert_true(list->count < EXTENTS_MAX);
    list->x[list->count++] = *e;
    return list->count == list->stop_after ? 77 : 0;
}

static int
extents(struct layer *l, uint64_t off, uint64_t len, struct list *ret)
{
    uint64_t at = off;
    int err;

    *ret = (struct list){0};
    err = l->ops->extents(l, off, len, collect, ret);
    for (unsigned i = 0; i < ret->count; i++) {
        assert_int_equal(ret->x[i].guest_off, at);
        assert_true(ret->x[i].len_bytes > 0);
        at += ret->x[i].len_bytes;
    }
    if (err == 0) {
        assert_int_equal(at, off + len);
    }
    return err;
}

static void
expect_extent(const struct extent *x, enum extent_kind kind, uint64_t len,
              uint64_t host_off, bool allocated)
{
    assert_int_equal(x->kind, kind);
    assert_int_equal(x->len_bytes, len);
    assert_int_equal(x->allocated, allocated);
    if (kind == EXTENT_DATA) {
        assert_int_equal(x->host_off, host_off);
        /* Zeroes only where the file has already ended. */
        assert_int_equal(x->zero_past_eof,
                         (int64_t)x->host_off >= file_size(x->fd));
        assert_true(x->fd >= 0);
    }
}

static void
finish(struct layer *l, struct image *m)
{
    l->ops->close(l);
    close(m->fd);
}

/* ---- header ---- */

static void
test_is_header(void **state)
{
    (void)state;
    assert_true(qcow2_is_header("QFI\xfb\0\0\0\3", 8));
    assert_true(qcow2_is_header("QFI\xfb\0\0\0\2more", 12));
    assert_false(qcow2_is_header("QFI\xfb\0\0\0\1", 8));
    assert_false(qcow2_is_header("QFI\xfb\0\0\0\3", 7));
    assert_false(qcow2_is_header("QFI\xfa\0\0\0\3", 8));
    assert_false(qcow2_is_header("", 0));
}

static void
test_probe_says_what_the_header_names(void **state)
{
    static const char backing[] = "dir/base.raw\0\0";
    struct image m = image_new(3, 16, 5 * MIB + 512, 1);
    struct qcow2_names n;
    struct err e = {0};
    uint64_t off = 112;

    (void)state;
    put_extension(&m, &off, 0x11223344, "ignored", 7);
    put_extension(&m, &off, 0xe2792aca, "raw", 3);
    put_extension(&m, &off, 0x44415441, "data\0\0\0", 7);
    put_extension(&m, &off, 0, "", 0);
    /* After the end marker, and so nothing. */
    put_extension(&m, &off, 0xe2792aca, "wrong", 5);
    put(&m, off, backing, sizeof(backing));
    put64(&m, 8, off);
    put32(&m, 16, sizeof(backing));
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    assert_int_equal(n.size_bytes, 5 * MIB + 512);
    assert_true(n.has_backing);
    assert_string_equal(n.backing, "dir/base.raw");
    assert_string_equal(n.backing_format, "raw");
    assert_string_equal(n.data_file, "data");
    assert_false(n.has_data_file); /* the bit decides, not the name */

    put64(&m, 72, 4); /* external data file */
    put64(&m, 88, 1); /* autoclear: bitmaps, not raw data */
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    assert_true(n.has_data_file);
    assert_false(n.data_file_raw);
    put64(&m, 8, 0); /* no backing file */
    put64(&m, 88, 2);
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    assert_true(n.data_file_raw);
    assert_false(n.has_backing);
    close(m.fd);
}

/* Extensions may fill the space to the name or the cluster's end without an
 * end marker. */
static void
test_extensions_without_end(void **state)
{
    struct image m = image_new(3, 9, 512, 1);
    struct qcow2_names n;
    struct err e = {0};
    uint8_t filler[384] = {0};
    uint64_t off = 112;

    (void)state;
    put_extension(&m, &off, 0x55, filler, 384);
    assert_int_equal(off, 504);
    put_extension(&m, &off, 0x56, "", 0);
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    put32(&m, 508, 1); /* of which not even one byte fits */
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), -EINVAL);
    close(m.fd);
}

/* Byte 104 is a field only if the header is longer. */
static void
test_compression_type_needs_the_length(void **state)
{
    struct image m = image_new(3, 16, MIB, 1);
    struct qcow2_names n;
    struct err e = {0};

    (void)state;
    put32(&m, 100, 104);
    put32(&m, 104, 0x01000000); /* extension 0x01000000 of 0 bytes */
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    put32(&m, 100, 112);
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), -EINVAL);
    assert_non_null(strstr(e.text, "contradict"));
    close(m.fd);
}

static void
test_version_2(void **state)
{
    struct image m = image_new(2, 16, MIB, 1);
    struct qcow2_names n;
    struct err e = {0};
    uint64_t off = 72;

    (void)state;
    /* What would be feature bits in version 3 are extensions here. */
    put_extension(&m, &off, 0xe2792aca, "qcow2", 5);
    put_extension(&m, &off, 0, "", 0);
    put(&m, off, "b", 1);
    put64(&m, 8, off);
    put32(&m, 16, 1);
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    assert_string_equal(n.backing_format, "qcow2");
    assert_string_equal(n.backing, "b");
    close(m.fd);
}

static void
test_open_takes_descriptors_over(void **state)
{
    struct image m = image_new(3, 16, MIB, 1);
    struct err e = {0};
    int fd = dup(m.fd), data_fd = dup(m.fd);

    (void)state;
    /* No external data file, so this must fail, and close both. */
    assert_null(qcow2_open(fd, data_fd, "test", NULL, &e));
    assert_int_equal(e.code, EINVAL);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    assert_int_equal(fcntl(data_fd, F_GETFD), -1);
    finish(open_image(&m, -1, NULL), &m);
}

/* ---- the map ---- */

static void
test_extents_of_all_kinds(void **state)
{
    struct image m = image_new(3, 12, 16 * 4096, 1);
    struct layer *l;
    struct list x;

    (void)state;
    put_l2(&m, 0, cluster(&m, 10) | COPIED);
    put_l2(&m, 1, cluster(&m, 11));          /* the next one: joined */
    put_l2(&m, 2, cluster(&m, 13) | COPIED); /* not the next one */
    put_l2(&m, 3, 1);                        /* zero, plain */
    put_l2(&m, 4, 1);
    put_l2(&m, 5, cluster(&m, 14) | COPIED | 1); /* zero, space set aside */
    /* 6 and 7: nothing */
    put_l2(&m, 8, PACKED | UINT64_C(1) << 58 | 12345);
    put_l2(&m, 9, PACKED | UINT64_C(1) << 58 | 12345);
    put_l2(&m, 15, cluster(&m, 1000) | COPIED); /* beyond the file's end */
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 0, 16 * 4096, &x), 0);
    assert_int_equal(x.count, 9);
    expect_extent(&x.x[0], EXTENT_DATA, 8192, cluster(&m, 10), true);
    expect_extent(&x.x[1], EXTENT_DATA, 4096, cluster(&m, 13), true);
    expect_extent(&x.x[2], EXTENT_ZERO, 8192, 0, false);
    expect_extent(&x.x[3], EXTENT_ZERO, 4096, 0, true);
    expect_extent(&x.x[4], EXTENT_BACKING, 8192, 0, false);
    expect_extent(&x.x[5], EXTENT_PACKED, 4096, 0, true);
    expect_extent(&x.x[6], EXTENT_PACKED, 4096, 0, true);
    expect_extent(&x.x[7], EXTENT_BACKING, 5 * 4096, 0, false);
    expect_extent(&x.x[8], EXTENT_DATA, 4096, cluster(&m, 1000), true);
    assert_int_equal(x.x[5].packed, UINT64_C(1) << 58 | 12345);
    assert_int_equal(x.x[5].packed_off, 0);
    assert_ptr_equal(x.x[5].layer, l);

    /* From the middle of one cluster to the middle of another. */
    assert_int_equal(extents(l, 100, 4096, &x), 0);
    assert_int_equal(x.count, 1);
    expect_extent(&x.x[0], EXTENT_DATA, 4096, cluster(&m, 10) + 100, true);
    assert_int_equal(extents(l, 8 * 4096 + 7, 1, &x), 0);
    assert_int_equal(x.count, 1);
    assert_int_equal(x.x[0].packed_off, 7);

    /* The receiver may stop, and gets its own number back. */
    x = (struct list){.stop_after = 2};
    assert_int_equal(l->ops->extents(l, 0, 16 * 4096, collect, &x), 77);
    assert_int_equal(x.count, 2);
    finish(l, &m);
}

static void
test_extents_of_subclusters(void **state)
{
    struct image m = image_new(3, 16, 8 * 65536, 1);
    struct layer *l;
    struct list x;

    (void)state;
    put64(&m, 72, 16); /* extended L2 entries */
    put_extended_l2(&m, 0, cluster(&m, 10) | COPIED, 0, UINT32_MAX);
    put_extended_l2(&m, 1, cluster(&m, 11) | COPIED, 0x0000ff00, 0x000000ff);
    put_extended_l2(&m, 2, 0, 0x80000001, 0);
    put_extended_l2(&m, 3, cluster(&m, 12), 0, 0); /* set aside, not used */
    put_extended_l2(&m, 4, PACKED | 12345, UINT32_MAX, UINT32_MAX);
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 0, 8 * 65536, &x), 0);
    assert_int_equal(x.count, 9);
    /* 32 subclusters of the first, 8 of the second, in a row in the file. */
    expect_extent(&x.x[0], EXTENT_DATA, 40 * 2048, cluster(&m, 10), true);
    expect_extent(&x.x[1], EXTENT_ZERO, 8 * 2048, 0, true);
    expect_extent(&x.x[2], EXTENT_BACKING, 16 * 2048, 0, false);
    expect_extent(&x.x[3], EXTENT_ZERO, 2048, 0, false);
    expect_extent(&x.x[4], EXTENT_BACKING, 30 * 2048, 0, false);
    expect_extent(&x.x[5], EXTENT_ZERO, 2048, 0, false);
    expect_extent(&x.x[6], EXTENT_BACKING, 65536, 0, false);
    /* A compressed cluster's bitmap says nothing. */
    assert_int_equal(x.x[7].kind, EXTENT_PACKED);
    finish(l, &m);
}

static void
test_extents_within_subclusters(void **state)
{
    struct image m = image_new(3, 16, 8 * 65536, 1);
    struct layer *l;
    struct list x;

    (void)state;
    put64(&m, 72, 16);
    put_extended_l2(&m, 1, cluster(&m, 11), 0, 0x2);
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 65536 + 3000, 600, &x), 0);
    assert_int_equal(x.count, 1);
    expect_extent(&x.x[0], EXTENT_DATA, 600, cluster(&m, 11) + 3000, true);
    assert_int_equal(extents(l, 65536 + 2047, 2050, &x), 0);
    assert_int_equal(x.count, 3);
    expect_extent(&x.x[0], EXTENT_BACKING, 1, 0, false);
    expect_extent(&x.x[1], EXTENT_DATA, 2048, cluster(&m, 11) + 2048, true);
    expect_extent(&x.x[2], EXTENT_BACKING, 1, 0, false);
    finish(l, &m);
}

/* Many L1 entries, most of them empty, and L2 tables longer than one step. */
static void
test_extents_across_tables(void **state)
{
    struct image m = image_new(3, 16, 1000 * (512 * MIB), 1000);
    uint64_t span = 512 * MIB;
    struct layer *l;
    struct list x;

    (void)state;
    put64(&m, cluster(&m, 3), 0);
    put64(&m, cluster(&m, 3) + 999 * 8, cluster(&m, 4) | COPIED);
    put64(&m, cluster(&m, 3) + 500 * 8, cluster(&m, 4) | COPIED);
    put_l2(&m, 0, cluster(&m, 10) | COPIED);
    put_l2(&m, 8191, cluster(&m, 11) | COPIED);
    put_l2(&m, 1024, 1); /* the first entry of the second step */
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 0, 1000 * span, &x), 0);
    assert_int_equal(x.count, 12);
    expect_extent(&x.x[0], EXTENT_BACKING, 500 * span, 0, false);
    expect_extent(&x.x[1], EXTENT_DATA, 65536, cluster(&m, 10), true);
    expect_extent(&x.x[2], EXTENT_BACKING, 1023 * 65536, 0, false);
    expect_extent(&x.x[3], EXTENT_ZERO, 65536, 0, false);
    expect_extent(&x.x[5], EXTENT_DATA, 65536, cluster(&m, 11), true);
    expect_extent(&x.x[6], EXTENT_BACKING, 498 * span, 0, false);
    expect_extent(&x.x[11], EXTENT_DATA, 65536, cluster(&m, 11), true);
    /* The end of one table and the start of the next. */
    assert_int_equal(extents(l, 501 * span - 10, 20, &x), 0);
    assert_int_equal(x.count, 2);
    expect_extent(&x.x[0], EXTENT_DATA, 10, cluster(&m, 12) - 10, true);
    finish(l, &m);
}

static void
test_external_data_file(void **state)
{
    struct image m = image_new(3, 16, 4 * 65536, 1);
    int data_fd = dup(m.fd);
    struct layer *l;
    struct list x;

    (void)state;
    put64(&m, 72, 4);
    put_l2(&m, 0, COPIED);         /* at offset 0, which is valid here */
    put_l2(&m, 1, 65536 | COPIED); /* as in the guest */
    put_l2(&m, 2, 2 * 65536 | COPIED | 1);
    put_l2(&m, 3, 0);
    l = open_image(&m, data_fd, NULL);
    assert_int_equal(extents(l, 0, 4 * 65536, &x), 0);
    assert_int_equal(x.count, 3);
    expect_extent(&x.x[0], EXTENT_DATA, 2 * 65536, 0, true);
    assert_int_equal(x.x[0].fd, data_fd);
    expect_extent(&x.x[1], EXTENT_ZERO, 65536, 0, true);
    expect_extent(&x.x[2], EXTENT_BACKING, 65536, 0, false);
    put_l2(&m, 1, 2 * 65536 | COPIED);
    assert_int_equal(extents(l, 0, 4 * 65536, &x), -EIO);
    finish(l, &m);
}

/* Damage hurts those who need the entry, and nobody else. */
static void
test_damage_is_local(void **state)
{
    struct image m = image_new(3, 12, 4 * 4096, 1);
    struct layer *l;
    struct list x;

    (void)state;
    put_l2(&m, 1, cluster(&m, 10) + 512);
    put_l2(&m, 2, cluster(&m, 11));
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 0, 4096, &x), 0);
    assert_int_equal(extents(l, 4096, 1, &x), -EIO);
    assert_int_equal(extents(l, 4095, 2, &x), -EIO);
    assert_int_equal(extents(l, 8192, 8192, &x), 0);
    expect_extent(&x.x[0], EXTENT_DATA, 4096, cluster(&m, 11), true);
    /* The file loses its tables while it is open. */
    assert_int_equal(ftruncate(m.fd, (off_t)cluster(&m, 4)), 0);
    assert_int_equal(extents(l, 0, 4096, &x), -EIO);
    assert_int_equal(ftruncate(m.fd, 0), 0);
    assert_int_equal(extents(l, 0, 4096, &x), -EIO);
    finish(l, &m);
}

/* ---- compressed clusters ---- */

#define TEXT_BYTES 4096u

static void
fill_text(uint8_t *p, unsigned salt)
{
    for (unsigned i = 0; i < TEXT_BYTES; i++) {
        p[i] = (uint8_t)(i / 7 + salt);
    }
}

/* Puts a compressed cluster at `off`; returns its L2 entry for 4 KiB. */
static uint64_t
put_packed(const struct image *m, uint64_t off, unsigned salt)
{
    uint8_t text[TEXT_BYTES], out[2 * TEXT_BYTES];
    z_stream z = {.next_in = text,
                  .avail_in = TEXT_BYTES,
                  .next_out = out,
                  .avail_out = sizeof(out)};
    uint64_t sectors;

    fill_text(text, salt);
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -12, 8, 0), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    put(m, off, out, z.total_out);
    sectors = (off % 512 + z.total_out - 1) / 512;
    deflateEnd(&z);
    return PACKED | sectors << 58 | off;
}

static void
test_read_packed(void **state)
{
    struct image m = image_new(3, 12, 64 * 4096, 1);
    uint8_t text[TEXT_BYTES], buf[TEXT_BYTES];
    struct layer *l;
    struct list x;

    (void)state;
    for (unsigned i = 0; i < 60; i++) { /* more than the cache holds */
        put_l2(&m, i, put_packed(&m, cluster(&m, 8) + i * 1201, i));
    }
    l = open_image(&m, -1, NULL);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 60; i++) {
            fill_text(text, i);
            assert_int_equal(extents(l, i * 4096 + 50, 1000, &x), 0);
            assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 1000), 0);
            assert_memory_equal(buf, text + 50, 1000);
            assert_int_equal(extents(l, i * 4096, 4096, &x), 0);
            assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 4096), 0);
            assert_memory_equal(buf, text, 4096);
        }
    }
    /* Past the end of the unpacked cluster: never. */
    x.x[0].packed_off = 1;
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 4096), -EIO);
    x.x[0].packed_off = UINT64_MAX;
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 1), -EIO);
    finish(l, &m);
}

/* A cluster that was unpacked is not unpacked again for its other parts. */
static void
test_packed_is_kept(void **state)
{
    struct image m = image_new(3, 12, 4 * 4096, 1);
    uint8_t text[TEXT_BYTES], buf[TEXT_BYTES], junk[TEXT_BYTES];
    struct layer *l;
    struct list x;

    (void)state;
    put_l2(&m, 0, put_packed(&m, cluster(&m, 8), 3));
    fill_text(text, 3);
    l = open_image(&m, -1, NULL);
    assert_int_equal(extents(l, 0, 100, &x), 0);
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 100), 0);
    memset(junk, 0xff, sizeof(junk));
    put(&m, cluster(&m, 8), junk, sizeof(junk));
    x.x[0].packed_off = 2000;
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 100), 0);
    assert_memory_equal(buf, text + 2000, 100);
    x.x[0].packed ^= 1; /* another cluster: the damage shows, also next time */
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 100), -EIO);
    assert_int_equal(l->ops->read_packed(l, &x.x[0], buf, 100), -EIO);
    finish(l, &m);
}

struct reading {
    struct layer *layer;
    unsigned first;
    bool bad;
};

static void *
read_many(void *arg)
{
    struct reading *r = arg;

    for (unsigned i = 0; i < 400 && !r->bad; i++) {
        unsigned n = (r->first + i / 4) % 60;
        uint8_t text[TEXT_BYTES], buf[1024];
        struct list x = {0};

        fill_text(text, n);
        r->bad = r->layer->ops->extents(r->layer, n * 4096 + i % 4 * 1024, 1024,
                                        collect, &x) != 0 ||
                 r->layer->ops->read_packed(r->layer, &x.x[0], buf, 1024) !=
                     0 ||
                 memcmp(buf, text + i % 4 * 1024, 1024) != 0;
    }
    return NULL;
}

static void
test_packed_by_many_threads(void **state)
{
    struct image m = image_new(3, 12, 64 * 4096, 1);
    struct reading r[6];
    pthread_t threads[6];
    struct layer *l;

    (void)state;
    for (unsigned i = 0; i < 60; i++) {
        put_l2(&m, i, put_packed(&m, cluster(&m, 8) + i * 1201, i));
    }
    l = open_image(&m, -1, NULL);
    for (unsigned i = 0; i < 6; i++) {
        r[i] = (struct reading){.layer = l, .first = i / 2 * 20};
        assert_int_equal(pthread_create(&threads[i], NULL, read_many, &r[i]),
                         0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        assert_false(r[i].bad);
    }
    finish(l, &m);
}

/* ---- snapshots ---- */

static uint64_t
put_snapshot(const struct image *m, uint64_t off, uint64_t l1_off,
             const char *id, const char *name, uint64_t size)
{
    uint8_t bytes[256] = {0};
    struct builder b = builder_of(bytes, sizeof(bytes));

    builder_u64(&b, l1_off);
    builder_u32(&b, 1);
    builder_u16(&b, (uint16_t)strlen(id));
    builder_u16(&b, (uint16_t)strlen(name));
    builder_u64(&b, 0); /* when */
    builder_u64(&b, 0);
    builder_u32(&b, 0);
    builder_u32(&b, size != 0 ? 24 : 0); /* the last 8 of it unknown to us */
    if (size != 0) {
        builder_u64(&b, 0);
        builder_u64(&b, size);
        builder_u64(&b, UINT64_MAX);
    }
    builder_bytes(&b, id, strlen(id));
    builder_bytes(&b, name, strlen(name));
    assert_false(b.full);
    put(m, off, bytes, b.len_bytes);
    return off + round_up(b.len_bytes, 8);
}

static void
test_snapshots(void **state)
{
    struct image m = image_new(3, 16, MIB, 1);
    struct qcow2_names n;
    struct err e = {0};
    uint64_t off = cluster(&m, 20);
    static const struct {
        const char *spec;
        uint64_t size; /* 0: not found */
    } rows[] = {
        {"a", 2 * MIB},
        {"one", 2 * MIB},
        {"snapshot.id=a", 2 * MIB},
        {"snapshot.name=one", 2 * MIB},
        {"snapshot.name=one,snapshot.id=a", 2 * MIB},
        {"snapshot.name=one,snapshot.id=b", 0},
        {"b", 3 * MIB}, /* the ID before the name of an earlier one */
        {"snapshot.name=b", 4 * MIB},
        {"x,y", MIB}, /* without extra data: the active state's size */
        {"snapshot.name=x,,y", MIB},
        {"", 0},
        {"A", 0},
        {"on", 0},
        {"onee", 0},
        {"snapshot.id=one", 0},
    };

    (void)state;
    off = put_snapshot(&m, off, cluster(&m, 3), "a", "one", 2 * MIB);
    off = put_snapshot(&m, off, cluster(&m, 3), "c", "b", 4 * MIB);
    off = put_snapshot(&m, off, cluster(&m, 3), "b", "two", 3 * MIB);
    off = put_snapshot(&m, off, cluster(&m, 3), "d", "x,y", 0);
    put32(&m, 60, 4);
    put64(&m, 64, cluster(&m, 20));
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        int err = qcow2_probe(m.fd, "test", rows[i].spec, &n, &e);

        assert_int_equal(err, rows[i].size != 0 ? 0 : -ENOENT);
        if (err == 0) {
            assert_int_equal(n.size_bytes, rows[i].size);
        }
    }
    assert_int_equal(qcow2_probe(m.fd, "test", "snapshot.foo=1", &n, &e),
                     -EINVAL);
    assert_int_equal(qcow2_probe(m.fd, "test", NULL, &n, &e), 0);
    assert_int_equal(n.size_bytes, MIB);
    close(m.fd);
}

static void
test_snapshot_has_its_own_tables(void **state)
{
    struct image m = image_new(3, 16, MIB, 1);
    struct layer_info info;
    struct layer *l;
    struct list x;

    (void)state;
    /* Its L1 table, in cluster 21, has one entry; its disk needs three. */
    put64(&m, cluster(&m, 21), cluster(&m, 22));
    put64(&m, cluster(&m, 22), cluster(&m, 23));
    put_snapshot(&m, cluster(&m, 20), cluster(&m, 21), "1", "s", 1200 * MIB);
    put32(&m, 60, 1);
    put64(&m, 64, cluster(&m, 20));
    l = open_image(&m, -1, "s");
    l->ops->info(l, &info);
    assert_int_equal(info.size_bytes, 1200 * MIB);
    assert_string_equal(info.format, "qcow2");
    assert_string_equal(info.path, "test");
    assert_false(info.writable);
    assert_int_equal(info.flush_fd, -1);
    assert_int_equal(extents(l, 0, 1200 * MIB, &x), 0);
    assert_int_equal(x.count, 2);
    expect_extent(&x.x[0], EXTENT_DATA, 65536, cluster(&m, 23), true);
    expect_extent(&x.x[1], EXTENT_BACKING, 1200 * MIB - 65536, 0, false);
    finish(l, &m);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_is_header),
        cmocka_unit_test(test_probe_says_what_the_header_names),
        cmocka_unit_test(test_extensions_without_end),
        cmocka_unit_test(test_compression_type_needs_the_length),
        cmocka_unit_test(test_version_2),
        cmocka_unit_test(test_open_takes_descriptors_over),
        cmocka_unit_test(test_extents_of_all_kinds),
        cmocka_unit_test(test_extents_of_subclusters),
        cmocka_unit_test(test_extents_within_subclusters),
        cmocka_unit_test(test_extents_across_tables),
        cmocka_unit_test(test_external_data_file),
        cmocka_unit_test(test_damage_is_local),
        cmocka_unit_test(test_read_packed),
        cmocka_unit_test(test_packed_is_kept),
        cmocka_unit_test(test_packed_by_many_threads),
        cmocka_unit_test(test_snapshots),
        cmocka_unit_test(test_snapshot_has_its_own_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
