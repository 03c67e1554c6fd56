/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The volatile overlay (overlay.h): a layer over an unnamed file. The map
 * (overlay_map.c) says where each grain lies, the space (overlay_space.c) who
 * may use which slot and for how long.
 *
 * Concurrent requests that overlap: NBD leaves their order open, and so do we,
 * but what is stored is always one of the orders, and bytes that do not
 * overlap never disturb each other. That rests on one rule: a grain's data is
 * complete in its slot before the entry that names the slot is published, and
 * publishing is a compare-and-swap. A writer that loses the race finds the
 * winner's slot and writes its own bytes, and only those, into it.
 *
 * A flush has nothing to do: the file has no name, so no data outlives the
 * process, synced or not (docs/decisions/0001-volatile-flush.md).
 */
#include "blk/overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "blk/overlay_map.h"
#include "blk/overlay_space.h"

#define GRAIN OVERLAY_GRAIN_BYTES

/* First writes gathered for one system call; more are cut into several. Below
 * every system's IOV_MAX. */
#define FRESH_MAX 256u

/* Bytes of zeroes that NO_HOLE writes at a time. */
#define ZERO_CHUNK_BYTES (UINT64_C(256) << 10)

/* Memory the map may take for zeroes where nothing was written; what is
 * written pays with disk for its share of the map, at most this much a slot
 * (a leaf and a node for one grain). */
#define ZERO_MAP_BYTES (UINT64_C(64) << 20)
#define SLOT_MAP_BYTES (sizeof(struct map_leaf) + sizeof(struct map_node))

/* Entries are 32 bits, two values are taken. 2^32 slots are 16 TiB of data
 * in one overlay, which is also where ext4 ends a file. */
#define SLOT_LIMIT_DEFAULT (UINT32_MAX - MAP_SLOT)

struct overlay {
    struct layer layer;
    int fd; /* owned */
    uint64_t size_bytes;
    overlay_below_fn *below;
    void *below_arg; /* borrowed */
    struct overlay_map map;
    struct overlay_space space;
};

static struct overlay *
overlay_of(struct layer *l)
{
    return container_of(l, struct overlay, layer);
}

static uint64_t
slot_off(uint32_t entry)
{
    return (uint64_t)(entry - MAP_SLOT) * GRAIN;
}

/* ---- reading: where things are ---- */

static int
overlay_extents(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
                void *arg)
{
    struct overlay *o = overlay_of(l);

    while (len > 0) {
        uint64_t grain = off / GRAIN, within = off % GRAIN;
        uint64_t grains = (within + len + GRAIN - 1) / GRAIN;
        uint32_t entry;
        uint64_t run = overlay_map_run(&o->map, grain, grains, &entry);
        struct extent e = {
            .guest_off = off,
            .len_bytes = min_u64(run * GRAIN - within, len),
            .kind = entry == MAP_BELOW ? EXTENT_BACKING : EXTENT_ZERO,
            .fd = -1,
        };

        if (entry >= MAP_SLOT) {
            e.kind = EXTENT_DATA;
            e.allocated = true;
            e.fd = o->fd;
            e.host_off = slot_off(entry) + within;
        }
        int err = fn(arg, &e);

        if (err != 0) {
            return err;
        }
        off += e.len_bytes;
        len -= e.len_bytes;
    }
    return 0;
}

static unsigned
overlay_pin(struct layer *l)
{
    return overlay_space_pin(&overlay_of(l)->space);
}

static void
overlay_unpin(struct layer *l, unsigned pin)
{
    overlay_space_unpin(&overlay_of(l)->space, pin);
}

/* ---- writing ---- */

/* Whole grains that the overlay does not hold yet. */
struct fresh {
    uint64_t grain;
    uint32_t count;
    uint32_t seen; /* the entry it had: MAP_BELOW or MAP_ZERO */
    const uint8_t *buf;
    struct layer_write *write;
};

struct batch {
    struct overlay *overlay;
    unsigned count;
    uint64_t grains;
    struct fresh fresh[FRESH_MAX];
};

static void
fail(struct layer_write *w, int err)
{
    if (w->result == 0) {
        w->result = err;
    }
}

/* Slots that were taken in vain. */
static void
give_back(struct overlay *o, uint32_t first, uint32_t count)
{
    overlay_space_give(&o->space, first, count);
    overlay_space_reclaim_later(&o->space);
}

/*
 * Makes the slots from `first_slot` on, which hold `count` grains of `f` from
 * `skip` on, what the map says. Where another writer was first, its slot gets
 * our bytes.
 */
static void
publish(struct overlay *o, const struct fresh *f, uint32_t skip,
        uint32_t first_slot, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t expected = f->seen;
        int err;

        do {
            err = overlay_map_swap(&o->map, f->grain + skip + i, &expected,
                                   first_slot + i + MAP_SLOT);
        } while (err == -EAGAIN && expected < MAP_SLOT);
        if (err == -EAGAIN) {
            err = file_pwrite(o->fd, f->buf + (size_t)(skip + i) * GRAIN, GRAIN,
                              slot_off(expected));
            give_back(o, first_slot + i, 1);
        } else if (err != 0) {
            give_back(o, first_slot + i, 1);
        }
        if (err != 0) {
            fail(f->write, err);
        }
    }
}

/* pwritev of all; *ret_done is how many bytes went before an error. */
static int
write_vector(int fd, struct iovec *iov, unsigned count, uint64_t off,
             uint64_t *ret_done)
{
    *ret_done = 0;
    while (count > 0) {
        ssize_t n = pwritev(fd, iov, (int)count, (off_t)(off + *ret_done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        *ret_done += (uint64_t)n;
        while (count > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

/*
 * Writes `got` grains, `*skip` grains into the fresh piece *idx, to the slots
 * from `first` on in one go, publishes what was written and gives back the
 * rest. Moves *idx and *skip past what was written, and counts it off.
 */
static int
write_slots(struct batch *b, unsigned *idx, uint32_t *skip, uint32_t first,
            uint32_t got)
{
    struct overlay *o = b->overlay;
    struct iovec iov[FRESH_MAX];
    unsigned iov_count = 0;
    uint32_t left = got, from = *skip;
    uint64_t done;

    for (unsigned i = *idx; left > 0; i++, from = 0) {
        const struct fresh *f = &b->fresh[i];
        uint32_t n = (uint32_t)min_u64(left, f->count - from);

        iov[iov_count++] =
            (struct iovec){(void *)(uintptr_t)(f->buf + (size_t)from * GRAIN),
                           (size_t)n * GRAIN};
        left -= n;
    }
    int err = write_vector(o->fd, iov, iov_count, (uint64_t)first * GRAIN,
                           &done);
    uint32_t good = (uint32_t)(done / GRAIN);

    if (good < got) {
        give_back(o, first + good, got - good);
        if (err == -EFBIG) {
            overlay_space_limit(&o->space, first + good);
        }
    }
    b->grains -= good;
    while (good > 0) {
        const struct fresh *f = &b->fresh[*idx];
        uint32_t n = (uint32_t)min_u64(good, f->count - *skip);

        publish(o, f, *skip, first, n);
        first += n;
        good -= n;
        *skip += n;
        if (*skip == f->count) {
            *skip = 0;
            ++*idx;
        }
    }
    return err;
}

/* Writes all that was gathered. A write that finds no room fails alone. */
static void
flush_fresh(struct batch *b)
{
    unsigned idx = 0;
    uint32_t skip = 0;

    while (b->grains > 0) {
        uint32_t first;
        uint32_t got = overlay_space_take(
            &b->overlay->space, (uint32_t)min_u64(b->grains, UINT32_MAX),
            &first);
        int err = -ENOSPC;

        if (got > 0) {
            err = write_slots(b, &idx, &skip, first, got);
        }
        /* Past the longest file there can be, other slots may be free. */
        if (err != 0 && !(err == -EFBIG && got > 0)) {
            fail(b->fresh[idx].write, err);
            b->grains -= b->fresh[idx].count - skip;
            skip = 0;
            idx++;
        }
    }
    b->count = 0;
    b->grains = 0;
}

/* Writes less than a grain, copying the rest of it from below if the overlay
 * does not hold it yet. `len` > 0, all within one grain. */
static int
write_part(struct overlay *o, uint64_t off, const void *buf, size_t len)
{
    uint64_t grain = off / GRAIN, grain_off = grain * GRAIN;
    size_t within = (size_t)(off - grain_off);
    uint8_t whole[GRAIN];
    uint32_t entry, slot;
    int err;

    overlay_map_run(&o->map, grain, 1, &entry);
    while (entry < MAP_SLOT) {
        size_t below = (size_t)min_u64(GRAIN, o->size_bytes - grain_off);

        memset(whole, 0, sizeof(whole));
        if (entry == MAP_BELOW &&
            (err = o->below(o->below_arg, whole, grain_off, below)) != 0) {
            return err;
        }
        memcpy(whole + within, buf, len);
        if (overlay_space_take(&o->space, 1, &slot) == 0) {
            return -ENOSPC;
        }
        err = file_pwrite(o->fd, whole, GRAIN, (uint64_t)slot * GRAIN);
        if (err == 0) {
            err = overlay_map_swap(&o->map, grain, &entry, slot + MAP_SLOT);
        }
        if (err == 0) {
            return 0;
        }
        give_back(o, slot, 1);
        if (err == -EFBIG) {
            overlay_space_limit(&o->space, slot);
        } else if (err != -EAGAIN) {
            return err;
        }
    }
    return file_pwrite(o->fd, buf, len, slot_off(entry) + within);
}

/* The whole grains of a write: in place where the overlay has them, gathered
 * in the batch where not. */
static void
write_grains(struct batch *b, struct layer_write *w, uint64_t grain,
             uint64_t count, const uint8_t *buf)
{
    struct overlay *o = b->overlay;

    while (count > 0) {
        uint32_t entry;
        uint64_t run = overlay_map_run(&o->map, grain, count, &entry);

        if (entry >= MAP_SLOT) {
            int err = file_pwrite(o->fd, buf, run * GRAIN, slot_off(entry));

            if (err != 0) {
                fail(w, err);
            }
        } else {
            b->fresh[b->count++] = (struct fresh){
                .grain = grain,
                .count = (uint32_t)run,
                .seen = entry,
                .buf = buf,
                .write = w,
            };
            b->grains += run;
            if (b->count == FRESH_MAX) {
                flush_fresh(b);
            }
        }
        grain += run;
        count -= run;
        buf += run * GRAIN;
    }
}

static void
write_one(struct batch *b, struct layer_write *w)
{
    const uint8_t *buf = w->buf;
    uint64_t off = w->off, len = w->len_bytes;
    uint64_t head = min_u64(round_up(off, GRAIN) - off, len);
    int err;

    w->result = 0;
    if (head > 0) {
        err = write_part(b->overlay, off, buf, head);
        if (err != 0) {
            fail(w, err);
            return;
        }
        off += head;
        buf += head;
        len -= head;
    }
    write_grains(b, w, off / GRAIN, len / GRAIN, buf);
    if (len % GRAIN != 0) {
        err = write_part(b->overlay, round_down(off + len, GRAIN),
                         buf + round_down(len, GRAIN), len % GRAIN);
        if (err != 0) {
            fail(w, err);
        }
    }
}

static void
overlay_write(struct layer *l, struct layer_write *w, unsigned count)
{
    struct overlay *o = overlay_of(l);
    unsigned pin = overlay_space_pin(&o->space);
    struct batch b;

    b.overlay = o;
    b.count = 0;
    b.grains = 0;
    for (unsigned i = 0; i < count; i++) {
        write_one(&b, &w[i]);
    }
    flush_fresh(&b);
    overlay_space_unpin(&o->space, pin);
}

/* ---- zeroes ---- */

static const uint8_t zeroes[ZERO_CHUNK_BYTES];

static void
cut_slot(void *arg, uint32_t slot)
{
    overlay_space_give(arg, slot, 1);
}

static void
cut_branch(void *arg, void *branch, unsigned level)
{
    overlay_space_give_branch(arg, branch, level);
}

/* Zeroes with space set aside: an ordinary write of zeroes. */
static int
zero_by_writing(struct layer *l, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct layer_write w = {
            .off = off,
            .len_bytes = (uint32_t)min_u64(len, ZERO_CHUNK_BYTES),
            .buf = zeroes,
        };

        overlay_write(l, &w, 1);
        if (w.result != 0) {
            return w.result;
        }
        off += w.len_bytes;
        len -= w.len_bytes;
    }
    return 0;
}

/* Zeroes less than a grain. */
static int
zero_part(struct overlay *o, uint64_t off, uint64_t len)
{
    uint32_t entry;

    if (len == 0) {
        return 0;
    }
    overlay_map_run(&o->map, off / GRAIN, 1, &entry);
    return entry == MAP_ZERO ? 0 : write_part(o, off, zeroes, len);
}

/* The grains wholly inside [off, off + len); the disk's last grain counts as
 * whole if the range reaches the disk's end. */
static void
whole_grains(const struct overlay *o, uint64_t off, uint64_t len,
             uint64_t *ret_first, uint64_t *ret_end)
{
    uint64_t end = off + len;

    *ret_first = (off + GRAIN - 1) / GRAIN;
    *ret_end = end == o->size_bytes ? o->map.grain_count : end / GRAIN;
    if (*ret_end < *ret_first) {
        *ret_end = *ret_first;
    }
}

/* Whether zeroes may still make nodes of the map: many small ones, far apart,
 * would otherwise fill memory without costing the peer anything. */
static bool
map_may_grow(struct overlay *o)
{
    uint64_t held = atomic_load_explicit(&o->space.held_slots,
                                         memory_order_relaxed);

    return overlay_map_bytes(&o->layer) <
           ZERO_MAP_BYTES + held * SLOT_MAP_BYTES;
}

static int
overlay_zero(struct layer *l, uint64_t off, uint64_t len, unsigned flags)
{
    struct overlay *o = overlay_of(l);
    struct map_cut cut = {cut_slot, cut_branch, &o->space};
    uint64_t first, end;
    int err = 0;

    if (flags & LAYER_ZERO_NO_HOLE) {
        return flags & LAYER_ZERO_FAST ? -ENOTSUP
                                       : zero_by_writing(l, off, len);
    }
    whole_grains(o, off, len, &first, &end);

    unsigned pin = overlay_space_pin(&o->space);

    if (!(flags & LAYER_ZERO_TRIM)) {
        uint64_t head = min_u64(first * GRAIN, off + len) - off;

        err = zero_part(o, off, head);
        if (err == 0 && off + head < off + len && end * GRAIN < off + len) {
            uint64_t tail = max_u64(end * GRAIN, off + head);

            err = zero_part(o, tail, off + len - tail);
        }
    }
    if (err == 0) {
        err = overlay_map_zero(&o->map, first, end - first, map_may_grow(o),
                               &cut);
        if (err == -ENOSPC && (flags & LAYER_ZERO_TRIM)) {
            err = 0; /* a trim need not do anything */
        }
    }
    overlay_space_unpin(&o->space, pin);
    overlay_space_reclaim(&o->space);
    return err;
}

/* ---- life ---- */

static void
overlay_info(struct layer *l, struct layer_info *ret)
{
    struct overlay *o = overlay_of(l);
    struct stat st;

    *ret = (struct layer_info){
        .format = "overlay",
        .path = "(overlay)",
        .size_bytes = o->size_bytes,
        .writable = true,
        .flush_fd = -1,
    };
    if (fstat(o->fd, &st) == 0) {
        ret->allocated_bytes = (uint64_t)st.st_blocks * 512;
    }
}

static void
overlay_close(struct layer *l)
{
    struct overlay *o = overlay_of(l);

    overlay_space_destroy(&o->space);
    overlay_map_destroy(&o->map);
    file_close_ptr(&o->fd);
    free(o);
}

static const struct layer_ops overlay_ops = {
    .format = "overlay",
    .info = overlay_info,
    .extents = overlay_extents,
    .pin = overlay_pin,
    .unpin = overlay_unpin,
    .write = overlay_write,
    .zero = overlay_zero,
    .close = overlay_close,
};

struct layer *
overlay_new(const struct overlay_options *options, struct err *e)
{
    uint32_t limit = SLOT_LIMIT_DEFAULT;

    if (options->size_bytes > OVERLAY_SIZE_MAX) {
        err_set(e, EFBIG, "the disk is larger than an overlay can cover");
        return NULL;
    }
    if (options->slot_limit != 0 && options->slot_limit < limit) {
        limit = (uint32_t)options->slot_limit;
    }
    int fd = file_open_unnamed(options->dir, e);

    if (fd < 0) {
        return NULL;
    }
    struct overlay *o = calloc(1, sizeof(*o));

    if (o == NULL) {
        file_close_ptr(&fd);
        err_set(e, ENOMEM, "out of memory");
        return NULL;
    }
    o->layer.ops = &overlay_ops;
    o->fd = fd;
    o->size_bytes = options->size_bytes;
    overlay_map_init(&o->map, (o->size_bytes + GRAIN - 1) / GRAIN);
    overlay_space_init(&o->space, fd, &o->map, limit);
    return &o->layer;
}

void
overlay_set_below(struct layer *l, overlay_below_fn *fn, void *arg)
{
    struct overlay *o = overlay_of(l);

    o->below = fn;
    o->below_arg = arg;
}

uint64_t
overlay_map_bytes(struct layer *l)
{
    return atomic_load_explicit(&overlay_of(l)->map.memory_bytes,
                                memory_order_relaxed);
}
