/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Unit tests of blk/disk*.c: random stacks of layers against a model, read in
 * every way, over both engines, by one thread and by many, with room in the
 * map and without.
 */
#include "fake_layer.h"

/* ---- a random chain and its model ---- */

#define ZONES 3u
#define ZONE_BYTES (256 * KIB)

struct model {
    struct disk *disk;
    struct fake *layers[64];
    unsigned count;
    uint64_t size_bytes;
    uint64_t zones[ZONES]; /* where the extents are */
};

static void
fill_randomly(struct model *m, struct fake *f)
{
    for (unsigned z = 0; z < ZONES; z++) {
        uint64_t at = m->zones[z], end = m->zones[z] + ZONE_BYTES;

        for (unsigned i = 0; i < 8; i++) {
            enum extent_kind kind = (enum extent_kind)(1 + rnd(3));
            uint64_t len;

            at += rnd(96) * rnd(2) * SECTOR;
            len = (1 + rnd(i % 4 == 0 ? 128 : 16)) * SECTOR;
            if (at + len > min_u64(end, f->size_bytes)) {
                break;
            }
            fake_run(f, at, len, kind);
            at += len;
        }
    }
}

static void
model_make(struct model *m, unsigned depth, uint64_t map_bytes, bool with_top)
{
    struct layer *layers[64];
    struct err e = {0};

    memset(m, 0, sizeof(*m));
    m->count = depth;
    m->size_bytes = 2 * WINDOW + 512 * KIB + rnd(100) * SECTOR;
    m->zones[0] = 0;
    m->zones[1] = WINDOW - ZONE_BYTES / 2;
    m->zones[2] = m->size_bytes - ZONE_BYTES;
    for (unsigned i = 0; i < depth; i++) {
        uint64_t size = m->size_bytes;

        if (rnd(3) == 0 && !(with_top && i == 0)) {
            size += rnd(2) * 64 * SECTOR;
            size -= rnd(1000) * SECTOR;
        }
        if (i > 0 && rnd(20) == 0) {
            size = WINDOW + 37 * SECTOR;
        }
        m->layers[i] = fake_new(i, size);
        m->layers[i]->want_pin = with_top && i == 0;
        fill_randomly(m, m->layers[i]);
        layers[i] = &m->layers[i]->layer;
    }
    m->disk = with_top
                  ? disk_new(layers[0], layers + 1, depth - 1, m->size_bytes,
                             map_bytes, &e)
                  : disk_new(NULL, layers, depth, m->size_bytes, map_bytes, &e);
    assert_non_null(m->disk);
    assert_int_equal(disk_size(m->disk), m->size_bytes);
    assert_ptr_equal(disk_layer(m->disk, depth - 1), layers[depth - 1]);
    assert_null(disk_layer(m->disk, depth));
}

static void
model_free(struct model *m)
{
    disk_free(m->disk);
    assert_int_equal(atomic_load(&layers_open), 0);
}

/* Who has the byte at `off`: NULL and *ret_depth 0 if nobody. */
static struct fake *
owner(struct model *m, uint64_t off, enum extent_kind *ret_kind,
      unsigned *ret_depth)
{
    for (unsigned i = 0; i < m->count; i++) {
        struct fake *f = m->layers[i];
        struct extent e = {.kind = EXTENT_ZERO};

        if (off < f->size_bytes) {
            e = fake_at(f, off, 1);
        }
        if (e.kind != EXTENT_BACKING) {
            *ret_kind = e.kind;
            *ret_depth = i + 1;
            return f;
        }
    }
    *ret_kind = EXTENT_ZERO;
    *ret_depth = 0;
    return NULL;
}

/* Everything is whole sectors, but the request need not be. */
static bool
model_matches(struct model *m, const uint8_t *buf, uint64_t off, size_t len)
{
    struct fake *f = NULL;
    enum extent_kind kind = EXTENT_ZERO;
    unsigned depth;

    for (size_t i = 0; i < len; i++) {
        if (i == 0 || (off + i) % SECTOR == 0) {
            f = owner(m, off + i, &kind, &depth);
        }
        if (buf[i] != (kind == EXTENT_ZERO ? 0 : content(f->number, off + i))) {
            return false;
        }
    }
    return true;
}

/* A range that is likely to touch extents. */
static void
random_range(struct model *m, size_t max, uint64_t *ret_off, size_t *ret_len)
{
    uint64_t off = m->zones[rnd(ZONES)] + rnd(ZONE_BYTES);

    if (rnd(8) == 0) {
        off = rnd(m->size_bytes);
    }
    if (rnd(2) == 0) {
        off = round_down(off, 4096);
    }
    *ret_off = off;
    *ret_len = min_u64(rnd(2) == 0 ? 4096 : 1 + rnd(max), m->size_bytes - off);
}

/* ---- tests of random chains ---- */

#define READ_MAX (192 * KIB)

static void
check_extents(struct model *m, uint64_t off, uint64_t len)
{
    struct extent list[40];
    unsigned max = 1 + (unsigned)rnd(ARRAY_LEN(list)), count;
    uint64_t at = off;

    assert_int_equal(disk_extents(m->disk, off, len, list, max, &count), 0);
    assert_in_range(count, 1, max);
    for (unsigned i = 0; i < count; i++) {
        const struct extent *e = &list[i];

        assert_int_equal(e->guest_off, at);
        assert_true(e->len_bytes > 0 && e->len_bytes <= off + len - at);
        if (i > 0 && e[-1].kind == e->kind && e[-1].depth == e->depth) {
            assert_true(e[-1].allocated != e->allocated);
        }
        /* Long ones are looked at in a few places, and at both ends. */
        for (uint64_t k = 0; k<e->len_bytes; k += e->len_bytes> MIB
                                 ? e->len_bytes / 50
                                 : SECTOR) {
            enum extent_kind kind;
            unsigned depth;

            owner(m, at + k, &kind, &depth);
            assert_int_equal(e->kind, kind);
            assert_int_equal(e->depth, depth);
            owner(m, at + e->len_bytes - 1, &kind, &depth);
            assert_int_equal(e->depth, depth);
        }
        at += e->len_bytes;
    }
    assert_true(count == max || at == off + len);
}

static void
check_immutable(struct model *m, uint64_t off, size_t len)
{
    static uint8_t buf[READ_MAX];
    uint64_t host_off;
    enum extent_kind kind;
    unsigned depth;
    int fd;

    if (!disk_immutable_range(m->disk, off, len, &fd, &host_off)) {
        return;
    }
    assert_int_equal(file_pread(fd, buf, len, host_off), (ssize_t)len);
    assert_true(model_matches(m, buf, off, len));
    owner(m, off, &kind, &depth);
    assert_true(depth > (disk_writable(m->disk) ? 1 : 0));
}

static void
check_reads(struct model *m, struct io_ctx *io)
{
    static uint8_t buf[READ_MAX];

    for (unsigned i = 0; i < 60; i++) {
        uint64_t off;
        size_t len;
        int err;

        random_range(m, sizeof(buf), &off, &len);
        memset(buf, 0x55, len);
        err = disk_read_cached(m->disk, buf, off, len);
        assert_true(err == 0 || err == -EAGAIN);
        assert_true(err != 0 || model_matches(m, buf, off, len));
        memset(buf, 0x55, len);
        err = rnd(2) == 0 ? disk_read(m->disk, buf, off, len)
                          : read_async(m->disk, io, buf, off, len);
        assert_int_equal(err, 0);
        assert_true(model_matches(m, buf, off, len));
        check_immutable(m, off, len);
        check_extents(m, off, len);
    }
    check_extents(m, 0, m->size_bytes);
}

static void
random_chains(struct io_ctx *io)
{
    static const uint64_t map_bytes[] = {DISK_MAP_BYTES_DEFAULT, 0, 6 * KIB};

    for (unsigned i = 0; i < 18; i++) {
        struct model m;
        struct disk_usage usage;
        unsigned depth = i % 6 == 5 ? 50 : 1 + (unsigned)rnd(12);
        bool with_top = rnd(2) == 0;

        model_make(&m, depth, map_bytes[i % 3], with_top);
        check_reads(&m, io);
        disk_will_need(m.disk, 0, m.size_bytes);
        disk_usage(m.disk, &usage);
        assert_true(usage.merged_map_bytes <= map_bytes[i % 3]);
        assert_int_equal(usage.top_bytes, with_top ? 12345 : 0);
        assert_int_equal(atomic_load(&m.layers[0]->pinned), 0);
        model_free(&m);
    }
}

static void
test_random_chains(void **state)
{
    (void)state;
    each_engine(random_chains);
}

/* Many reads at once over one context. */
static void
many_at_once(struct io_ctx *io)
{
    struct job jobs[48];
    struct model m;

    model_make(&m, 20, 6 * KIB, true);
    for (unsigned i = 0; i < ARRAY_LEN(jobs); i++) {
        uint64_t off;
        size_t len;

        random_range(&m, READ_MAX, &off, &len);
        job_start(&jobs[i], m.disk, io, off, len);
    }
    while (io_pending(io) > 0) {
        io_reap(io, true);
    }
    for (unsigned i = 0; i < ARRAY_LEN(jobs); i++) {
        assert_true(jobs[i].entered);
        assert_int_equal(jobs[i].result, 0);
        assert_true(model_matches(&m, jobs[i].buf, jobs[i].off, jobs[i].len));
        free(jobs[i].buf);
    }
    assert_int_equal(atomic_load(&m.layers[0]->pinned), 0);
    model_free(&m);
}

static void
test_many_at_once(void **state)
{
    (void)state;
    each_engine(many_at_once);
}

/* Once its window is there, a read of cached bytes asks no layer anything. */
static void
test_lookup_asks_nobody(void **state)
{
    static uint8_t buf[4096];
    struct model m;

    (void)state;
    model_make(&m, 30, DISK_MAP_BYTES_DEFAULT, false);
    assert_int_equal(disk_read_cached(m.disk, buf, 0, 1), -EAGAIN);
    assert_int_equal(atomic_load(&m.layers[0]->asked), 0);
    assert_int_equal(disk_read(m.disk, buf, 0, 1), 0);
    for (unsigned i = 0; i < m.count; i++) {
        assert_true(atomic_load(&m.layers[i]->asked) <= 1);
        atomic_store(&m.layers[i]->asked, 0);
    }
    for (uint64_t off = 0; off < WINDOW; off += 64 * KIB + 512) {
        int err = disk_read_cached(m.disk, buf, off, 512);
        enum extent_kind kind;
        unsigned depth;

        owner(&m, off, &kind, &depth);
        assert_true(err == 0 || err == -EAGAIN);
        assert_true(err == 0 || kind != EXTENT_ZERO);
        assert_true(err != 0 || model_matches(&m, buf, off, 512));
    }
    for (unsigned i = 0; i < m.count; i++) {
        assert_int_equal(atomic_load(&m.layers[i]->asked), 0);
    }
    model_free(&m);
}

/* ---- concurrency ---- */

#define READERS 4u

static atomic_uint mismatches;

struct reader_job {
    struct model *model;
    uint64_t seed;
};

static void *
reader_main(void *arg)
{
    struct reader_job *job = arg;
    struct model *m = job->model;
    uint64_t x = job->seed;
    uint8_t *buf = malloc(16 * KIB);

    for (unsigned i = 0; i < 250; i++) {
        uint64_t off;
        size_t len;

        x = x * UINT64_C(6364136223846793005) + 1442695040888963407u;
        off = m->zones[(x >> 33) % ZONES] + (x >> 40) % (ZONE_BYTES - 16 * KIB);
        len = 1 + (x >> 20) % (16 * KIB);
        if (disk_read_cached(m->disk, buf, off, len) != 0 &&
            disk_read(m->disk, buf, off, len) != 0) {
            atomic_fetch_add(&mismatches, 1);
        }
        if (!model_matches(m, buf, off, len)) {
            atomic_fetch_add(&mismatches, 1);
        }
        if (i % 16 == 0) {
            struct extent list[8];
            unsigned count;

            disk_extents(m->disk, off, len, list, 8, &count);
        }
    }
    free(buf);
    return NULL;
}

static void
test_readers_while_evicting(void **state)
{
    static const uint64_t map_bytes[] = {10 * KIB, 3 * KIB,
                                         DISK_MAP_BYTES_DEFAULT};

    (void)state;
    atomic_store(&mismatches, 0);
    for (unsigned i = 0; i < ARRAY_LEN(map_bytes); i++) {
        pthread_t threads[READERS];
        struct reader_job jobs[READERS];
        struct model m;

        model_make(&m, 8, map_bytes[i], i == 1);
        for (unsigned k = 0; k < READERS; k++) {
            jobs[k] = (struct reader_job){&m, 77 + k};
            assert_int_equal(
                pthread_create(&threads[k], NULL, reader_main, &jobs[k]), 0);
        }
        for (unsigned k = 0; k < READERS; k++) {
            pthread_join(threads[k], NULL);
        }
        model_free(&m);
    }
    assert_int_equal(atomic_load(&mismatches), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_chains),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_lookup_asks_nobody),
        cmocka_unit_test(test_readers_while_evicting),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
