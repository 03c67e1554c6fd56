/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Compressed clusters (packed.h): docs/interop/qcow2 of QEMU, "Compressed
 * Clusters Descriptor". The cache is a handful of slots under one lock, which
 * is never held while anything is read or unpacked: a slot is first marked as
 * loading, and whoever wants the same cluster meanwhile waits for it rather
 * than unpack it again.
 */
#include "blk/qcow2/packed.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/checked.h"
#include "base/file.h"

/* Unpacked clusters kept by one layer: as many as fit in this, but no fewer
 * than 2 and no more than SLOTS. A chain may have hundreds of layers. */
#define CACHE_BYTES (512 * KIB)
#define SLOTS 32u

#define SECTOR_BYTES 512u

/* zlib's windowBits for deflate data without a header, any window. */
#define RAW_DEFLATE (-15)

/* What a zstd frame may make us keep: zstd's own recommendation for readers,
 * 8 MiB, four times the largest cluster. */
#define ZSTD_WINDOW_LOG_MAX 23

struct slot {
    uint64_t descriptor;
    uint8_t *data; /* owned; one cluster, or NULL before the first use */
    uint64_t used; /* p->clock at the last use */
    unsigned readers;
    bool loading;
    bool valid;
};

struct qcow2_packed {
    int fd; /* borrowed from the layer */
    unsigned cluster_bits;
    enum qcow2_compression compression;
    unsigned slot_count;

    pthread_mutex_t lock; /* guards all below; slots being loaded or read are
                             left alone by others */
    pthread_cond_t loaded;
    uint64_t clock;
    ZSTD_DCtx *spare; /* owned; one that is not in use, or NULL */
    struct slot slots[SLOTS];
};

/* ---- unpacking ---- */

static int
unpack_deflate(const void *in, size_t in_len, void *out, size_t out_len)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_len,
        .next_out = out,
        .avail_out = (uInt)out_len,
    };

    if (inflateInit2(&z, RAW_DEFLATE) != Z_OK) {
        return -ENOMEM;
    }
    /* The data may go on after the cluster is complete; nothing is read from
     * there, so the result of a last call says little. */
    inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return z.avail_out == 0 ? 0 : -EIO;
}

static ZSTD_DCtx *
take_context(struct qcow2_packed *p)
{
    ZSTD_DCtx *context;

    pthread_mutex_lock(&p->lock);
    context = p->spare;
    p->spare = NULL;
    pthread_mutex_unlock(&p->lock);
    if (context == NULL) {
        context = ZSTD_createDCtx();
        if (context != NULL) {
            ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax,
                                   ZSTD_WINDOW_LOG_MAX);
        }
    }
    return context;
}

static void
give_context(struct qcow2_packed *p, ZSTD_DCtx *context)
{
    pthread_mutex_lock(&p->lock);
    if (p->spare == NULL) {
        p->spare = context;
        context = NULL;
    }
    pthread_mutex_unlock(&p->lock);
    ZSTD_freeDCtx(context);
}

static int
unpack_zstd(struct qcow2_packed *p, const void *in, size_t in_len, void *out,
            size_t out_len)
{
    ZSTD_inBuffer from = {.src = in, .size = in_len};
    ZSTD_outBuffer to = {.dst = out, .size = out_len};
    ZSTD_DCtx *context = take_context(p);

    if (context == NULL) {
        return -ENOMEM;
    }
    ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
    while (to.pos < to.size) {
        size_t from_before = from.pos, to_before = to.pos;

        if (ZSTD_isError(ZSTD_decompressStream(context, &to, &from)) ||
            (from.pos == from_before && to.pos == to_before)) {
            break;
        }
    }
    give_context(p, context);
    return to.pos == to.size ? 0 : -EIO;
}

/* Reads and unpacks a cluster into `out`, which holds one. */
static int
unpack(struct qcow2_packed *p, uint64_t descriptor, void *out)
{
    size_t cluster = (size_t)1 << p->cluster_bits;
    unsigned offset_bits = 62 - (p->cluster_bits - 8);
    uint64_t off = descriptor & ((UINT64_C(1) << offset_bits) - 1);
    /* At most 2^(cluster_bits - 8) sectors: two clusters. */
    uint64_t sectors = (descriptor & ((UINT64_C(1) << 62) - 1)) >> offset_bits;
    size_t len = (size_t)(sectors + 1) * SECTOR_BYTES - off % SECTOR_BYTES;
    uint8_t *in = malloc(len);
    ssize_t n;
    int err;

    if (in == NULL) {
        return -ENOMEM;
    }
    /* The last sector may reach past the file's end. */
    n = file_pread(p->fd, in, len, off);
    if (n <= 0) {
        err = n < 0 ? (int)n : -EIO;
    } else if (p->compression == QCOW2_ZSTD) {
        err = unpack_zstd(p, in, (size_t)n, out, cluster);
    } else {
        err = unpack_deflate(in, (size_t)n, out, cluster);
    }
    free(in);
    return err;
}

/* ---- the cache ---- */

static struct slot *
find_slot_locked(struct qcow2_packed *p, uint64_t descriptor)
{
    for (unsigned i = 0; i < p->slot_count; i++) {
        struct slot *s = &p->slots[i];

        if ((s->valid || s->loading) && s->descriptor == descriptor) {
            return s;
        }
    }
    return NULL;
}

/* The slot that was not used for the longest time, with memory; NULL if all
 * are busy or memory is short. */
static struct slot *
free_slot_locked(struct qcow2_packed *p)
{
    struct slot *oldest = NULL;

    for (unsigned i = 0; i < p->slot_count; i++) {
        struct slot *s = &p->slots[i];

        if (s->readers == 0 && !s->loading &&
            (oldest == NULL || s->used < oldest->used)) {
            oldest = s;
        }
    }
    if (oldest != NULL && oldest->data == NULL) {
        oldest->data = malloc((size_t)1 << p->cluster_bits);
        if (oldest->data == NULL) {
            return NULL;
        }
    }
    return oldest;
}

/* Fills `s` with a cluster; drops the lock meanwhile. */
static int
load_locked(struct qcow2_packed *p, struct slot *s, uint64_t descriptor)
{
    int err;

    s->descriptor = descriptor;
    s->valid = false;
    s->loading = true;
    pthread_mutex_unlock(&p->lock);
    err = unpack(p, descriptor, s->data);
    pthread_mutex_lock(&p->lock);
    s->loading = false;
    s->valid = err == 0;
    pthread_cond_broadcast(&p->loaded);
    return err;
}

/*
 * A slot that holds the cluster, with one more reader, in *ret; NULL there if
 * no slot can be had. A failure is told to whoever loaded; those who waited
 * try on their own, so each reports its own cause.
 */
static int
acquire(struct qcow2_packed *p, uint64_t descriptor, bool load,
        struct slot **ret)
{
    struct slot *s;
    int err = 0;

    pthread_mutex_lock(&p->lock);
    while ((s = find_slot_locked(p, descriptor)) != NULL && s->loading) {
        pthread_cond_wait(&p->loaded, &p->lock);
    }
    if (s == NULL && load) {
        s = free_slot_locked(p);
        if (s != NULL) {
            err = load_locked(p, s, descriptor);
        }
    }
    if (s != NULL && err == 0) {
        s->readers++;
        s->used = ++p->clock;
    }
    pthread_mutex_unlock(&p->lock);
    *ret = err == 0 ? s : NULL;
    return err;
}

static void
release(struct qcow2_packed *p, struct slot *s)
{
    pthread_mutex_lock(&p->lock);
    s->readers--;
    pthread_mutex_unlock(&p->lock);
}

/* Without the cache. */
static int
read_alone(struct qcow2_packed *p, uint64_t descriptor, uint64_t off, void *buf,
           size_t len)
{
    size_t cluster = (size_t)1 << p->cluster_bits;
    uint8_t *data;
    int err;

    if (len == cluster) {
        return unpack(p, descriptor, buf);
    }
    data = malloc(cluster);
    if (data == NULL) {
        return -ENOMEM;
    }
    err = unpack(p, descriptor, data);
    if (err == 0) {
        memcpy(buf, data + off, len);
    }
    free(data);
    return err;
}

int
qcow2_packed_read(struct qcow2_packed *p, uint64_t descriptor, uint64_t off,
                  void *buf, size_t len)
{
    uint64_t cluster = UINT64_C(1) << p->cluster_bits;
    struct slot *s;
    int err;

    if (!range_within(off, len, cluster)) {
        return -EIO;
    }
    /* Who reads it whole will not come back for the rest. */
    err = acquire(p, descriptor, len < cluster, &s);
    if (err != 0) {
        return err;
    }
    if (s == NULL) {
        return read_alone(p, descriptor, off, buf, len);
    }
    memcpy(buf, s->data + off, len);
    release(p, s);
    return 0;
}

/* ---- life ---- */

struct qcow2_packed *
qcow2_packed_new(int fd, unsigned cluster_bits,
                 enum qcow2_compression compression)
{
    struct qcow2_packed *p = calloc(1, sizeof(*p));

    if (p == NULL) {
        return NULL;
    }
    p->fd = fd;
    p->cluster_bits = cluster_bits;
    p->compression = compression;
    p->slot_count = (unsigned)min_u64(max_u64(CACHE_BYTES >> cluster_bits, 2),
                                      SLOTS);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->loaded, NULL);
    return p;
}

void
qcow2_packed_free(struct qcow2_packed *p)
{
    if (p == NULL) {
        return;
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        free(p->slots[i].data);
    }
    ZSTD_freeDCtx(p->spare);
    pthread_cond_destroy(&p->loaded);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
