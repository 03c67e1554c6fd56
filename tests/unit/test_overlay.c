/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The volatile overlay against a byte array, and the promises that no byte
 * array shows: space given back, slots not reused under a reader, memory that
 * follows what was touched, threads that do not lose each other's bytes.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/overlay.h"
#include "blk/overlay_map.h"
#include "overlay_fixture.h"

/* ---- against a model ---- */

struct model {
    uint64_t size;
    uint8_t *bytes;
    struct layer *layer;
    uint64_t random;
};

static void
model_step(struct model *m)
{
    static const unsigned aligns[] = {1, 512, GRAIN, GRAIN * 16};
    unsigned align = aligns[random_next(&m->random) % 4];
    uint64_t off = round_down(random_next(&m->random) % m->size, align);
    uint64_t max = random_next(&m->random) % 5 == 0 ? 300000 : 20000;
    uint64_t len = round_up(1 + random_next(&m->random) % max, align);
    uint8_t buf[400000];

    len = min_u64(len, m->size - off);
    switch (random_next(&m->random) % 8) {
    case 0:
        assert_int_equal(m->layer->ops->zero(m->layer, off, len, 0), 0);
        memset(m->bytes + off, 0, len);
        break;
    case 1:
        assert_int_equal(
            m->layer->ops->zero(m->layer, off, len, LAYER_ZERO_NO_HOLE), 0);
        memset(m->bytes + off, 0, len);
        break;
    case 2: {
        uint64_t first = round_up(off, GRAIN);
        uint64_t end = off + len == m->size ? m->size
                                            : round_down(off + len, GRAIN);

        assert_int_equal(
            m->layer->ops->zero(m->layer, off, len, LAYER_ZERO_TRIM), 0);
        if (end > first) {
            memset(m->bytes + first, 0, end - first);
        }
        break;
    }
    default:
        for (uint64_t i = 0; i < len; i++) {
            buf[i] = (uint8_t)random_next(&m->random);
        }
        assert_int_equal(write_at(m->layer, off, buf, (uint32_t)len), 0);
        memcpy(m->bytes + off, buf, len);
        break;
    }
}

static void
model_compare(struct model *m)
{
    uint8_t *buf = malloc(m->size);

    read_at(m->layer, 0, buf, m->size);
    for (uint64_t i = 0; i < m->size; i++) {
        if (buf[i] != m->bytes[i]) {
            fail_msg("byte %llu: is %u, should be %u", (unsigned long long)i,
                     buf[i], m->bytes[i]);
        }
    }
    free(buf);
}

static void
run_model(uint64_t size, uint64_t slot_limit, uint64_t seed, unsigned steps)
{
    struct model m = {
        .size = size,
        .bytes = malloc(size),
        .layer = overlay_make(size, slot_limit),
        .random = seed,
    };

    read_below(NULL, m.bytes, 0, size);
    for (unsigned i = 0; i < steps; i++) {
        model_step(&m);
        if (i % 50 == 0) {
            model_compare(&m);
        }
    }
    model_compare(&m);
    m.layer->ops->close(m.layer);
    free(m.bytes);
}

static void
test_model(void **state)
{
    (void)state;
    run_model(3 << 20, 0, 1, 600);
    run_model((5 << 20) + 1234, 0, 2, 600); /* the last grain is not whole */
    run_model(777, 0, 3, 100);
}

/* Few slots: they are used again and again, punched in between. */
static void
test_model_reuse(void **state)
{
    (void)state;
    run_model(1 << 20, 256 + 16, 4, 3000);
}

static void
test_batch(void **state)
{
    enum { N = 700 };
    static uint8_t data[N][GRAIN];
    static struct layer_write w[N];
    struct layer *l = overlay_make(N * GRAIN, 0);
    uint8_t buf[GRAIN];

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        unsigned at = i * 37 % N; /* scattered over the disk */

        memset(data[i], (int)(at % 251) + 1, GRAIN);
        w[i] = (struct layer_write){
            .off = at * (uint64_t)GRAIN, .len_bytes = GRAIN, .buf = data[i]};
    }
    l->ops->write(l, w, N);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(w[i].result, 0);
        read_at(l, i * (uint64_t)GRAIN, buf, GRAIN);
        assert_int_equal(buf[0], i % 251 + 1);
        assert_int_equal(buf[GRAIN - 1], i % 251 + 1);
    }
    /* 4 KiB written cost 4 KiB: no more than a few blocks of the filesystem's
     * own on top. */
    assert_true(allocated(l) <= N * GRAIN + 64 * 1024);
    l->ops->close(l);
}

/* The same grain twice in one batch: one of the two is there, not a mix. */
static void
test_batch_overlap(void **state)
{
    struct layer *l = overlay_make(1 << 20, 0);
    uint8_t a[2 * GRAIN], b[2 * GRAIN], buf[2 * GRAIN];

    (void)state;
    memset(a, 'a', sizeof(a));
    memset(b, 'b', sizeof(b));

    struct layer_write w[2] = {
        {.off = 0, .len_bytes = sizeof(a), .buf = a},
        {.off = 0, .len_bytes = sizeof(b), .buf = b},
    };

    l->ops->write(l, w, 2);
    read_at(l, 0, buf, sizeof(buf));
    assert_true(memcmp(buf, a, sizeof(a)) == 0 ||
                memcmp(buf, b, sizeof(b)) == 0);
    l->ops->close(l);
}

/* ---- space and memory ---- */

static void
test_space_returns(void **state)
{
    const uint64_t size = 64 << 20;
    struct layer *l = overlay_make(size, 0);
    uint8_t *buf = malloc(1 << 20);

    (void)state;
    memset(buf, 5, 1 << 20);
    for (uint64_t off = 0; off < size; off += 1 << 20) {
        assert_int_equal(write_at(l, off, buf, 1 << 20), 0);
    }
    assert_true(allocated(l) >= size);
    assert_int_equal(l->ops->zero(l, 0, size / 2, LAYER_ZERO_TRIM), 0);
    assert_true(allocated(l) <= size / 2 + (1 << 20));
    assert_int_equal(l->ops->zero(l, 0, size, 0), 0);
    assert_true(allocated(l) <= 1 << 20);
    free(buf);
    l->ops->close(l);
}

static void
test_huge(void **state)
{
    const uint64_t size = UINT64_C(64) << 40;
    struct layer *l = overlay_make(size, 0);
    uint8_t buf[GRAIN];

    (void)state;
    assert_int_equal(overlay_map_bytes(l), 0);
    for (unsigned i = 0; i < 64; i++) {
        memset(buf, (int)i + 1, sizeof(buf));
        assert_int_equal(write_at(l, i * (size / 64), buf, GRAIN), 0);
    }
    assert_true(overlay_map_bytes(l) < 4 << 20);
    read_at(l, 63 * (size / 64), buf, GRAIN);
    assert_int_equal(buf[7], 64);
    assert_int_equal(l->ops->zero(l, 0, size, LAYER_ZERO_TRIM), 0);
    assert_int_equal(overlay_map_bytes(l), 0);
    read_at(l, 63 * (size / 64), buf, GRAIN);
    assert_int_equal(buf[7], 0);
    /* All but the ends, which are not at any node's border. */
    assert_int_equal(l->ops->zero(l, GRAIN, size - 3 * GRAIN, 0), 0);
    assert_true(overlay_map_bytes(l) < 1 << 20);
    l->ops->close(l);
}

static void
test_full(void **state)
{
    struct layer *l = overlay_make(1 << 20, 8);
    uint8_t buf[16 * GRAIN];

    (void)state;
    memset(buf, 9, sizeof(buf));
    assert_int_equal(write_at(l, 0, buf, 8 * GRAIN), 0);
    assert_int_equal(write_at(l, 100 * GRAIN, buf, GRAIN), -ENOSPC);
    assert_int_equal(write_at(l, 100 * GRAIN + 1, buf, 5), -ENOSPC);
    /* What it holds can still be rewritten, and given back. */
    assert_int_equal(write_at(l, 0, buf, 8 * GRAIN), 0);
    assert_int_equal(l->ops->zero(l, 0, 2 * GRAIN, 0), 0);
    assert_int_equal(write_at(l, 100 * GRAIN, buf, GRAIN), 0);
    assert_int_equal(write_at(l, 101 * GRAIN + 1, buf, 5), 0);
    assert_int_equal(write_at(l, 102 * GRAIN, buf, GRAIN), -ENOSPC);
    l->ops->close(l);
}

/* ---- S4: storage given up is not reused under somebody who looks at it ----
 */

static int
note_host_off(void *arg, const struct extent *e)
{
    *(struct extent *)arg = *e;
    return 0;
}

static void
test_pin_holds_slots(void **state)
{
    struct layer *l = overlay_make(1 << 20, 1); /* one slot in all */
    uint8_t buf[GRAIN];
    struct extent e;

    (void)state;
    memset(buf, 'x', sizeof(buf));
    assert_int_equal(write_at(l, 0, buf, GRAIN), 0);

    unsigned pin = l->ops->pin(l);

    assert_int_equal(l->ops->extents(l, 0, GRAIN, note_host_off, &e), 0);
    assert_int_equal(l->ops->zero(l, 0, GRAIN, LAYER_ZERO_TRIM), 0);
    /* The reader still finds its bytes, and nobody gets the slot. */
    assert_int_equal(file_pread(e.fd, buf, GRAIN, e.host_off), GRAIN);
    assert_int_equal(buf[0], 'x');
    assert_int_equal(write_at(l, 8 * GRAIN, buf, GRAIN), -ENOSPC);
    l->ops->unpin(l, pin);
    assert_int_equal(write_at(l, 8 * GRAIN, buf, GRAIN), 0);
    l->ops->close(l);
}

/* ---- threads ---- */

enum { THREADS = 4, ROUNDS = 300, GRAINS = 48 };

struct shared {
    struct layer *layer;
    _Atomic bool stop;
};

struct worker {
    struct shared *shared;
    unsigned number;
    pthread_t thread;
};

/* cmocka's own checks jump out of the test, which only its thread may do. */
#define CHECK(condition, ...)                                                  \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, __VA_ARGS__);                                      \
            abort();                                                           \
        }                                                                      \
    } while (0)

/* Few slots, so that they are reused; then a slot may be waiting for a thread
 * that was put to sleep with a pin, and the disk is full for that long. */
static void
write_patiently(struct layer *l, uint64_t off, const void *buf, uint32_t len)
{
    int err;

    for (unsigned i = 0; (err = write_at(l, off, buf, len)) == -ENOSPC; i++) {
        CHECK(i < 100000, "the slots never came back\n");
        usleep(100);
    }
    CHECK(err == 0, "write: %d\n", err);
}

/* Each thread owns one quarter of every grain, and writes only that. */
static void *
write_quarters(void *arg)
{
    struct worker *w = arg;
    struct layer *l = w->shared->layer;
    uint8_t buf[GRAIN / THREADS];

    for (unsigned round = 1; round <= ROUNDS; round++) {
        memset(buf, (int)(round % 200 + w->number), sizeof(buf));
        for (unsigned g = 0; g < GRAINS; g++) {
            uint64_t off = (uint64_t)g * GRAIN + w->number * sizeof(buf);

            write_patiently(l, off, buf, sizeof(buf));
        }
    }
    return NULL;
}

/* Trims and writes a far range all the time, so that slots move around. */
static void *
churn(void *arg)
{
    struct shared *s = arg;
    uint8_t buf[4 * GRAIN];

    memset(buf, 0xcc, sizeof(buf));
    while (!atomic_load(&s->stop)) {
        write_patiently(s->layer, 100 * GRAIN, buf, sizeof(buf));
        int err = s->layer->ops->zero(s->layer, 100 * GRAIN, sizeof(buf),
                                      LAYER_ZERO_TRIM);

        CHECK(err == 0, "trim: %d\n", err);
    }
    return NULL;
}

/* Reads never show another place's bytes. */
static void *
watch(void *arg)
{
    struct shared *s = arg;
    uint8_t buf[4 * GRAIN];

    while (!atomic_load(&s->stop)) {
        read_at(s->layer, 100 * GRAIN, buf, sizeof(buf));
        for (unsigned i = 0; i < sizeof(buf); i += 64) {
            CHECK(buf[i] == 0 || buf[i] == 0xcc ||
                      buf[i] == below_byte(100 * GRAIN + i),
                  "a reader saw byte %u at %u\n", buf[i], i);
        }
    }
    return NULL;
}

static void
test_threads(void **state)
{
    struct shared shared = {.layer = overlay_make(1 << 20, 1024)};
    struct worker workers[THREADS];
    pthread_t churner, watcher;
    uint8_t buf[GRAIN];

    (void)state;
    for (unsigned g = 0; g < GRAINS; g++) { /* half of them begin as zeroes */
        if (g % 2 == 0) {
            shared.layer->ops->zero(shared.layer, (uint64_t)g * GRAIN, GRAIN,
                                    0);
        }
    }
    pthread_create(&churner, NULL, churn, &shared);
    pthread_create(&watcher, NULL, watch, &shared);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.shared = &shared, .number = i};
        pthread_create(&workers[i].thread, NULL, write_quarters, &workers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    atomic_store(&shared.stop, true);
    pthread_join(churner, NULL);
    pthread_join(watcher, NULL);
    for (unsigned g = 0; g < GRAINS; g++) {
        read_at(shared.layer, (uint64_t)g * GRAIN, buf, GRAIN);
        for (unsigned i = 0; i < GRAIN; i++) {
            unsigned owner = i / (GRAIN / THREADS);

            if (buf[i] != ROUNDS % 200 + owner) {
                fail_msg("grain %u byte %u: %u", g, i, buf[i]);
            }
        }
    }
    shared.layer->ops->close(shared.layer);
}

/* Threads that meet in grains which nobody has written yet: the one that comes
 * second must not lose the first one's bytes. A barrier a grain makes them
 * meet. */
enum { MEETINGS = 3000 };

static pthread_barrier_t meeting;

static void *
write_first(void *arg)
{
    struct worker *w = arg;
    uint8_t buf[GRAIN / THREADS];

    memset(buf, (int)w->number + 1, sizeof(buf));
    for (unsigned g = 0; g < MEETINGS; g++) {
        uint64_t off = (uint64_t)g * GRAIN + w->number * sizeof(buf);

        pthread_barrier_wait(&meeting);
        write_patiently(w->shared->layer, off, buf, sizeof(buf));
    }
    return NULL;
}

static void
test_first_writes_meet(void **state)
{
    struct shared shared = {.layer = overlay_make(MEETINGS * GRAIN, 0)};
    struct worker workers[THREADS];
    uint8_t buf[GRAIN];

    (void)state;
    pthread_barrier_init(&meeting, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.shared = &shared, .number = i};
        pthread_create(&workers[i].thread, NULL, write_first, &workers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    for (unsigned g = 0; g < MEETINGS; g++) {
        read_at(shared.layer, (uint64_t)g * GRAIN, buf, GRAIN);
        for (unsigned i = 0; i < GRAIN; i++) {
            if (buf[i] != i / (GRAIN / THREADS) + 1) {
                fail_msg("grain %u byte %u: %u", g, i, buf[i]);
            }
        }
    }
    pthread_barrier_destroy(&meeting);
    shared.layer->ops->close(shared.layer);
}

/* Threads that write and trim grains of their own, which share leaves and a
 * node of the map: those are cut off again and again just when somebody writes
 * into them. Each finds what it wrote itself. */
enum { COLLAPSE_ROUNDS = 15000 };

static void
check_own(struct layer *l, uint64_t off, uint8_t want)
{
    uint8_t buf[GRAIN];

    read_at(l, off, buf, sizeof(buf));
    for (unsigned i = 0; i < sizeof(buf); i += 255) {
        CHECK(buf[i] == want, "%llu: %u instead of %u\n",
              (unsigned long long)off, buf[i], want);
    }
}

static void *
write_and_trim_own(void *arg)
{
    struct worker *w = arg;
    struct layer *l = w->shared->layer;
    uint64_t random = w->number;
    uint8_t buf[GRAIN];

    for (unsigned round = 1; round <= COLLAPSE_ROUNDS; round++) {
        /* Two threads in each of two leaves. */
        uint64_t grain = (w->number / 2) * MAP_FANOUT + w->number % 2 * 256 +
                         random_next(&random) % 256;
        uint64_t off = grain * GRAIN;
        uint8_t mark = (uint8_t)(1 + round % 250);

        memset(buf, mark, sizeof(buf));
        if (round % 2 == 0) { /* whole, or in two parts */
            write_patiently(l, off, buf, GRAIN);
        } else {
            write_patiently(l, off, buf, 1000);
            write_patiently(l, off + 1000, buf, GRAIN - 1000);
        }
        check_own(l, off, mark);
        int err = l->ops->zero(l, off, GRAIN,
                               round % 3 == 0 ? LAYER_ZERO_TRIM : 0);

        CHECK(err == 0, "zero: %d\n", err);
        check_own(l, off, 0);
    }
    return NULL;
}

static void
test_collapse_meets_writers(void **state)
{
    /* One node with a full set of leaves, all of them zero. */
    const uint64_t size = (uint64_t)MAP_FANOUT * MAP_FANOUT * GRAIN;
    struct shared shared = {.layer = overlay_make(size, 4096)};
    struct worker workers[THREADS];

    (void)state;
    assert_int_equal(
        shared.layer->ops->zero(shared.layer, 0, size, LAYER_ZERO_TRIM), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.shared = &shared, .number = i};
        pthread_create(&workers[i].thread, NULL, write_and_trim_own,
                       &workers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    /* Nothing was left behind either. */
    assert_int_equal(
        shared.layer->ops->zero(shared.layer, 0, size, LAYER_ZERO_TRIM), 0);
    for (unsigned i = 0; overlay_map_bytes(shared.layer) > 0 ||
                         allocated(shared.layer) > 1 << 20;
         i++) {
        assert_true(i < 60000);
        usleep(1000);
    }
    shared.layer->ops->close(shared.layer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_model_reuse),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_batch_overlap),
        cmocka_unit_test(test_space_returns),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_pin_holds_slots),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_first_writes_meet),
        cmocka_unit_test(test_collapse_meets_writers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
