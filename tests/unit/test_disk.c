/* SPDX-License-Identifier: BSD-2-Clause */
/* Unit tests of blk/disk*.c: particular stacks, errors, and what is handed to
 * the writable top. Random stacks are in test_disk_chain.c. */
#include "fake_layer.h"

#include "blk/overlay.h"

static void
test_huge_disk(void **state)
{
    struct fake *layers[] = {fake_new(0, 64 * TIB), fake_new(1, 64 * TIB),
                             fake_new(2, 64 * TIB)};
    struct disk *d = disk_of(NULL, layers, 3, 64 * TIB, 64 * KIB);
    uint8_t buf[64];
    struct disk_usage usage;
    struct extent list[4];
    unsigned count;

    (void)state;
    fake_run(layers[2], 40 * TIB, SECTOR, EXTENT_DATA);
    disk_usage(d, &usage);
    assert_int_equal(usage.merged_map_bytes, 0);
    assert_int_equal(disk_extents(d, 0, 64 * TIB, list, 4, &count), 0);
    assert_int_equal(count, 3);
    assert_int_equal(list[0].len_bytes, 40 * TIB);
    assert_int_equal(list[0].depth, 0);
    assert_int_equal(list[0].kind, EXTENT_ZERO);
    assert_int_equal(list[1].len_bytes, SECTOR);
    assert_int_equal(list[1].depth, 3);
    assert_true(atomic_load(&layers[0]->asked) < 100);
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t off = i * 64 * MIB;

        assert_int_equal(disk_read(d, buf, off, sizeof(buf)), 0);
        assert_int_equal(buf[0], 0);
    }
    disk_usage(d, &usage);
    assert_in_range(usage.merged_map_bytes, 32 * KIB, 64 * KIB);
    assert_int_equal(disk_read(d, buf, 40 * TIB + 8, 8), 0);
    assert_int_equal(buf[3], content(2, 40 * TIB + 11));
    assert_int_equal(disk_read(d, buf, 64 * TIB - 64, 64), 0);
    disk_free(d);
}

static void
check_striped(const uint8_t *buf, uint64_t off, size_t len)
{
    for (uint64_t at = off; at < off + len; at++) {
        bool data = at / SECTOR % 2 == 0;

        if (*buf++ != (data ? content(1, at % (64 * KIB)) : 0)) {
            fail_msg("wrong byte at %llu", (unsigned long long)at);
        }
    }
}

/* A top with more extents than a step of a read holds. */
static void
dense_top(struct io_ctx *io)
{
    struct fake *top = fake_new(1, WINDOW);
    struct disk *d = disk_of(top, NULL, 0, WINDOW, DISK_MAP_BYTES_DEFAULT);
    static uint8_t buf[200 * KIB];

    top->stripe = SECTOR;
    top->want_pin = true;
    fake_store(top, 0, 64 * KIB, 0);
    assert_int_equal(disk_read(d, buf, 100, sizeof(buf)), 0);
    check_striped(buf, 100, sizeof(buf));
    assert_int_equal(disk_read_cached(d, buf, 1000, sizeof(buf)), 0);
    check_striped(buf, 1000, sizeof(buf));
    assert_int_equal(read_async(d, io, buf, WINDOW / 2, sizeof(buf)), 0);
    check_striped(buf, WINDOW / 2, sizeof(buf));
    disk_free(d);
}

static void
test_dense_top(void **state)
{
    (void)state;
    each_engine(dense_top);
}

/* More extents in a window than the budget holds. */
static void
dense_window(struct io_ctx *io)
{
    static const uint64_t map_bytes[] = {64 * KIB, DISK_MAP_BYTES_DEFAULT};
    static uint8_t buf[1 * MIB];

    for (unsigned i = 0; i < ARRAY_LEN(map_bytes); i++) {
        struct fake *layers[] = {fake_new(0, WINDOW), fake_new(1, WINDOW)};
        struct disk *d = disk_of(NULL, layers, 2, WINDOW, map_bytes[i]);
        struct disk_usage usage;
        struct extent list[4];
        unsigned count;

        layers[1]->stripe = SECTOR;
        fake_store(layers[1], 0, 64 * KIB, 0);
        for (unsigned k = 0; k < 2; k++) {
            uint64_t off = WINDOW - sizeof(buf) - k * 1000;

            memset(buf, 0x55, sizeof(buf));
            assert_int_equal(k == 0 ? disk_read(d, buf, off, sizeof(buf))
                                    : read_async(d, io, buf, off, sizeof(buf)),
                             0);
            check_striped(buf, off, sizeof(buf));
        }
        /* Neither a kept window nor one that never is costs all of it again. */
        atomic_store(&layers[1]->told, 0);
        assert_int_equal(disk_read(d, buf, WINDOW / 2, 4096), 0);
        check_striped(buf, WINDOW / 2, 4096);
        assert_in_range(atomic_load(&layers[1]->told), 0, 10);
        disk_usage(d, &usage);
        assert_true(usage.merged_map_bytes <= map_bytes[i]);
        assert_int_equal(usage.merged_map_bytes > MIB, i == 1);
        assert_int_equal(
            disk_extents(d, SECTOR / 2, WINDOW - SECTOR, list, 4, &count), 0);
        assert_int_equal(count, 4);
        assert_int_equal(list[0].len_bytes, SECTOR / 2);
        disk_free(d);
    }
}

static void
test_dense_window(void **state)
{
    (void)state;
    each_engine(dense_window);
}

/* A flat layer is read without asking for its holes, and ends the chain. */
static void
test_flat(void **state)
{
    struct fake *layers[] = {fake_new(0, MIB), fake_new(1, MIB + SECTOR),
                             fake_new(2, 2 * MIB)};
    uint64_t size = MIB + 4 * SECTOR, host_off;
    struct extent list[8];
    uint8_t buf[8 * SECTOR];
    struct disk *d;
    unsigned count;
    int fd;

    (void)state;
    /* Half of the flat layer's last sector is not in the file. */
    fake_run(layers[1], 0, MIB + SECTOR, EXTENT_DATA);
    layers[1]->runs[0].len = MIB + SECTOR / 2;
    layers[1]->flat = true;
    layers[1]->runs[0].host_off = 0;
    assert_int_equal(ftruncate(layers[1]->fd, MIB + SECTOR / 2), 0);
    fake_store(layers[1], 0, MIB + SECTOR / 2, 0);
    fake_run(layers[2], 0, 2 * MIB, EXTENT_DATA);
    /* First alone on top, then below another. */
    d = disk_of(NULL, layers + 1, 2, size, DISK_MAP_BYTES_DEFAULT);
    assert_int_equal(disk_read(d, buf, MIB, 4 * SECTOR), 0);
    for (unsigned i = 0; i < 4 * SECTOR; i++) {
        assert_int_equal(buf[i], i < SECTOR / 2 ? content(1, MIB + i) : 0);
    }
    assert_int_equal(atomic_load(&layers[1]->asked), 0);
    assert_true(disk_immutable_range(d, 4096, 8192, &fd, &host_off));
    assert_int_equal(fd, layers[1]->fd);
    assert_int_equal(host_off, 4096);
    assert_false(disk_immutable_range(d, MIB, SECTOR, &fd, &host_off));
    assert_int_equal(disk_extents(d, 0, size, list, 8, &count), 0);
    assert_true(atomic_load(&layers[1]->asked) > 0);
    /* The file shrinks: an error in band, but not in the tail. */
    assert_int_equal(ftruncate(layers[1]->fd, MIB / 2), 0);
    assert_int_equal(disk_read(d, buf, MIB / 2 - 512, 512), 0);
    assert_int_equal(disk_read(d, buf, MIB / 2 - 512, 1024), -EIO);
    assert_int_equal(disk_read_cached(d, buf, MIB / 2, 512), -EIO);
    assert_int_equal(disk_read(d, buf, MIB + SECTOR / 2, 512), 0);
    assert_false(disk_immutable_range(d, MIB / 2, 512, &fd, &host_off));
    disk_free(d);

    layers[1] = fake_new(1, MIB + SECTOR);
    fake_run(layers[1], 0, MIB, EXTENT_ZERO); /* holes may lie */
    layers[1]->flat = true;
    fake_store(layers[1], 0, MIB + SECTOR / 2, 0);
    fake_run(layers[0], 4096, 512, EXTENT_ZERO);
    d = disk_of(NULL, layers, 2, size, DISK_MAP_BYTES_DEFAULT);
    assert_int_equal(disk_read(d, buf, 4096, 1024), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(buf[512], content(1, 4608));
    assert_int_equal(disk_read(d, buf, MIB, 1024), 0);
    assert_int_equal(buf[0], 0); /* the top is shorter: hidden */
    assert_int_equal(atomic_load(&layers[1]->asked), 0);
    disk_free(d);
}

/* ---- errors ---- */

static void
errors(struct io_ctx *io)
{
    struct fake *layers[] = {fake_new(0, WINDOW), fake_new(1, WINDOW)};
    struct disk *d;
    uint8_t *buf = malloc(MIB);
    uint64_t bad = 16 * MIB;
    struct extent list[8];
    unsigned count;

    fake_run(layers[0], bad, 8 * SECTOR, EXTENT_ZERO);
    layers[1]->fail_off = bad;
    layers[1]->fail_end = bad + 64 * KIB;
    fake_run(layers[1], 0, 64 * KIB, EXTENT_DATA);
    fake_run(layers[1], 64 * KIB, 64 * KIB, EXTENT_DATA);
    layers[1]->runs[1].zero_past_eof = true;
    layers[1]->runs[1].host_off = layers[1]->host_end + MIB;
    fake_run(layers[1], bad, 64 * KIB, EXTENT_DATA);
    d = disk_of(NULL, layers, 2, WINDOW, DISK_MAP_BYTES_DEFAULT);

    /* A bad table hurts only what needs it. */
    assert_int_equal(disk_read(d, buf, bad, 4096), 0);
    assert_int_equal(disk_read(d, buf, bad + 4096, 512), -EIO);
    assert_int_equal(read_async(d, io, buf, bad, 4097), -EIO);
    assert_int_equal(read_async(d, io, buf, bad - 512, 512), 0);
    assert_int_equal(disk_extents(d, bad + 4096, 512, list, 8, &count), -EIO);
    assert_int_equal(disk_extents(d, 0, WINDOW, list, 8, &count), 0);
    assert_int_equal(list[0].kind, EXTENT_DATA);
    /* Better now; nothing was kept of the trouble. */
    layers[1]->fail_end = layers[1]->fail_off;
    assert_int_equal(disk_read(d, buf, bad + 4096, 512), 0);
    assert_int_equal(buf[0], content(1, bad + 4096));

    /* Files that end early. */
    assert_int_equal(ftruncate(layers[1]->fd, 1000), 0);
    memset(buf, 0x55, MIB);
    assert_int_equal(disk_read(d, buf, 64 * KIB, 4096), 0);
    assert_int_equal(buf[4095], 0);
    assert_int_equal(disk_read(d, buf, 512, 1024), -EIO);
    assert_int_equal(disk_read_cached(d, buf, 512, 1024), -EIO);
    memset(buf, 0x55, MIB);
    assert_int_equal(read_async(d, io, buf, 64 * KIB, 4096), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(buf[4095], 0);
    assert_int_equal(read_async(d, io, buf, 0, 128 * KIB), -EIO);
    disk_free(d);
    free(buf);
}

static void
test_errors(void **state)
{
    (void)state;
    each_engine(errors);
}

/* A damaged table that a layer above hides may be read across. */
static void
test_hidden_damage(void **state)
{
    struct fake *layers[] = {fake_new(0, WINDOW), fake_new(1, WINDOW)};
    struct disk *d = disk_of(NULL, layers, 2, WINDOW, DISK_MAP_BYTES_DEFAULT);
    uint8_t buf[16384];
    uint64_t bad = MIB;

    (void)state;
    fake_run(layers[0], bad, 4096, EXTENT_ZERO);
    fake_run(layers[1], bad - 64 * KIB, 128 * KIB, EXTENT_DATA);
    layers[1]->runs[0].len = 64 * KIB;
    layers[1]->runs[1] = layers[1]->runs[0];
    layers[1]->runs[1].off += 64 * KIB;
    layers[1]->runs[1].host_off += 64 * KIB;
    layers[1]->run_count = 2;
    layers[1]->fail_off = bad;
    layers[1]->fail_end = bad + 4096;
    assert_int_equal(disk_read(d, buf, bad - 4096, sizeof(buf)), 0);
    assert_int_equal(buf[0], content(1, bad - 4096));
    assert_int_equal(buf[4096], 0);
    assert_int_equal(buf[8192], content(1, bad + 4096));
    disk_free(d);
}

static void
packed_error(struct io_ctx *io)
{
    uint64_t off = 666 * 64 * KIB;
    struct fake *layers[] = {fake_new(0, 2 * WINDOW)};
    struct disk *d = disk_of(NULL, layers, 1, 2 * WINDOW,
                             DISK_MAP_BYTES_DEFAULT);
    uint8_t buf[4096];

    fake_run(layers[0], off - 64 * KIB, 192 * KIB, EXTENT_PACKED);
    assert_int_equal(disk_read(d, buf, off, 512), -EIO);
    assert_int_equal(read_async(d, io, buf, off - 2048, 4096), -EIO);
    assert_int_equal(disk_read_cached(d, buf, off - 512, 512), -EAGAIN);
    assert_int_equal(read_async(d, io, buf, off - 2048, 2048), 0);
    assert_int_equal(buf[2047], content(0, off - 1));
    disk_free(d);
}

static void
test_packed_error(void **state)
{
    (void)state;
    each_engine(packed_error);
}

/* ---- writing ---- */

static void
test_read_only(void **state)
{
    struct fake *layers[] = {fake_new(0, MIB)};
    struct disk *d = disk_of(NULL, layers, 1, MIB, DISK_MAP_BYTES_DEFAULT);
    struct layer_write w[2] = {{.len_bytes = 1}, {.len_bytes = 1}};

    (void)state;
    assert_false(disk_writable(d));
    disk_write(d, w, 2);
    assert_int_equal(w[0].result, -EPERM);
    assert_int_equal(w[1].result, -EPERM);
    assert_int_equal(disk_zero(d, 0, 512, 0), -EPERM);
    assert_int_equal(disk_flush_fd(d), -1);
    assert_int_equal(disk_flush(d), 0);
    disk_free(d);
}

static void
test_flush_is_sticky(void **state)
{
    struct fake *top = fake_new(0, MIB);
    struct disk *d = disk_of(top, NULL, 0, MIB, DISK_MAP_BYTES_DEFAULT);
    struct layer_write w = {.len_bytes = 1};
    uint8_t byte = 1;

    (void)state;
    assert_int_equal(disk_read(d, &byte, 5, 1), 0);
    assert_int_equal(byte, 0); /* nothing below the top */
    assert_int_equal(disk_flush_fd(d), top->fd);
    assert_int_equal(disk_flush(d), 0);

    /* A pipe in the file's place can't be synced. */
    int saved = dup(top->fd), ends[2];

    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[0], top->fd), top->fd);
    assert_int_equal(disk_flush(d), -EINVAL);
    assert_int_equal(dup2(saved, top->fd), top->fd);
    assert_int_equal(disk_flush(d), -EINVAL);
    close(saved);
    close(ends[0]);
    close(ends[1]);
    disk_write(d, &w, 1);
    assert_int_equal(w.result, -ENOSPC);
    assert_int_equal(disk_zero(d, 0, 512, 0), 0);
    assert_int_equal(disk_zero(d, 0, 512, LAYER_ZERO_FAST), -ENOTSUP);
    disk_free(d);
}

static void
test_refused(void **state)
{
    struct layer *layers[] = {&fake_new(0, MIB)->layer};
    struct fake *top = fake_new(1, MIB - 1);
    struct err e = {0};

    (void)state;
    /* A top that is too small; all is closed all the same. */
    assert_null(disk_new(&top->layer, layers, 1, MIB, 0, &e));
    assert_int_equal(e.code, EINVAL);
    assert_null(disk_new(NULL, NULL, 0, MIB, 0, &e));
    assert_int_equal(atomic_load(&layers_open), 0);
    disk_free(NULL);
}

/* The real overlay copies from the layers below what a small write leaves. */
static void
over_overlay(struct io_ctx *io)
{
    struct overlay_options options = {.dir = tmp_dir(), .size_bytes = MIB};
    struct fake *base = fake_new(0, MIB);
    struct layer *layers[] = {&base->layer};
    struct layer *top = overlay_new(&options, NULL);
    struct layer_write w = {.off = 8192 + 100, .len_bytes = 50, .buf = "x"};
    static char fifty[50];
    uint8_t buf[12288];
    struct extent list[4];
    struct disk_usage usage;
    uint64_t host_off;
    unsigned count;
    struct disk *d;
    int fd;

    fake_run(base, 0, MIB, EXTENT_DATA);
    d = disk_new(top, layers, 1, MIB, DISK_MAP_BYTES_DEFAULT, NULL);
    assert_non_null(d);
    memset(fifty, 'x', sizeof(fifty));
    w.buf = fifty;
    disk_write(d, &w, 1);
    assert_int_equal(w.result, 0);
    for (unsigned k = 0; k < 3; k++) {
        int err = k == 0   ? disk_read(d, buf, 4096, sizeof(buf))
                  : k == 1 ? read_async(d, io, buf, 4096, sizeof(buf))
                           : disk_read_cached(d, buf, 4096, sizeof(buf));

        assert_true(err == 0 || (k == 2 && err == -EAGAIN));
        for (unsigned i = 0; i < sizeof(buf) && err == 0; i++) {
            bool written = i >= 4096 + 100 && i < 4096 + 150;

            assert_int_equal(buf[i], written ? 'x' : content(0, 4096 + i));
        }
    }
    assert_true(disk_immutable_range(d, 4096, 4096, &fd, &host_off));
    assert_false(disk_immutable_range(d, 4096, 4097, &fd, &host_off));
    assert_int_equal(disk_zero(d, 0, 4096, 0), 0);
    assert_int_equal(disk_extents(d, 0, MIB, list, 4, &count), 0);
    assert_int_equal(count, 4);
    assert_int_equal(list[0].kind, EXTENT_ZERO);
    assert_int_equal(list[0].depth, 1);
    assert_int_equal(list[1].depth, 2);
    assert_int_equal(list[2].depth, 1);
    assert_int_equal(list[3].len_bytes, MIB - 12288);
    disk_usage(d, &usage);
    assert_true(usage.top_bytes >= 4096 && usage.top_map_bytes > 0);
    assert_int_equal(disk_flush_fd(d), -1);
    disk_free(d);
}

static void
test_over_overlay(void **state)
{
    (void)state;
    each_engine(over_overlay);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_huge_disk),
        cmocka_unit_test(test_dense_top),
        cmocka_unit_test(test_dense_window),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_hidden_damage),
        cmocka_unit_test(test_packed_error),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_flush_is_sticky),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_over_overlay),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
