/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The walk through L1 and L2 tables (map.h): docs/interop/qcow2 of QEMU,
 * sections "Cluster mapping" and "Extended L2 Entries". Any number of threads
 * walk at once; nothing is shared but the flag that damage has been told of.
 *
 * Every entry is checked before it is used (H1). What the format reserves must
 * be zero: an entry that breaks this is either damage or a feature that the
 * header failed to declare, and guessing would hand the guest wrong bytes.
 */
#include "blk/qcow2/map.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

/* Table entries read in one go. 8 KiB of an L2 table describe 64 MiB of disk
 * at the usual 64 KiB clusters. */
#define L1_STEP_ENTRIES 256u
#define L2_STEP_BYTES 8192u

/* L1 and L2 entries: bits 9 to 55 are an offset into the file, 63 says that
 * the refcount is one, 62 in L2 that the cluster is compressed. */
#define OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define COPIED (UINT64_C(1) << 63)
#define PACKED (UINT64_C(1) << 62)
#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)
#define L2_ZERO UINT64_C(1) /* reserved in version 2 and extended entries */

#define SUBCLUSTERS 32u

/* A walk under way: joins neighbours before it hands them on. */
struct walk {
    struct qcow2_map *m; /* borrowed */
    extent_fn *fn;
    void *arg; /* borrowed from the caller of extents */
    struct extent pending;
    bool has_pending;
    uint64_t entries; /* looked at so far */
};

/* Part of one guest cluster and what its L2 entry says. */
struct piece {
    uint64_t entry;
    uint64_t bitmap;    /* extended entries: 32 zero bits, 32 allocated bits */
    uint64_t entry_off; /* in the file, for messages */
    uint64_t guest_off;
    uint64_t len_bytes;
};

/* ---- damage ---- */

static int
damaged(struct qcow2_map *m, const char *table, uint64_t off, const char *what,
        uint64_t entry)
{
    if (!atomic_exchange(&m->told, true)) {
        log_warn("%s: the image is damaged: the %s entry at 0x%llx "
                 "(0x%016llx) %s; reads there fail. To see more: qemu-img "
                 "check",
                 m->path, table, (unsigned long long)off,
                 (unsigned long long)entry, what);
    }
    return -EIO;
}

static int
read_table(struct qcow2_map *m, const char *table, void *buf, size_t len,
           uint64_t off)
{
    ssize_t n = file_pread(m->fd, buf, len, off);

    if (n == (ssize_t)len) {
        return 0;
    }
    if (!atomic_exchange(&m->told, true)) {
        log_warn("%s: the %s table at 0x%llx can't be read: %s; reads there "
                 "fail",
                 m->path, table, (unsigned long long)off,
                 n < 0 ? strerror((int)-n) : "the file ends before");
    }
    return n < 0 ? (int)n : -EIO;
}

/* ---- handing on ---- */

static int
flush_pending(struct walk *w)
{
    bool had = w->has_pending;

    w->has_pending = false;
    return had ? w->fn(w->arg, &w->pending) : 0;
}

/* True if `next`, which follows `e` in the guest, continues it. */
static bool
continues(const struct extent *e, const struct extent *next)
{
    if (e->kind != next->kind || e->allocated != next->allocated) {
        return false;
    }
    switch (e->kind) {
    case EXTENT_BACKING:
    case EXTENT_ZERO:
        return true;
    case EXTENT_DATA:
        return e->host_off + e->len_bytes == next->host_off &&
               e->zero_past_eof == next->zero_past_eof;
    case EXTENT_PACKED:
        return false;
    }
    return false;
}

static int
emit(struct walk *w, const struct extent *e)
{
    int err;

    if (w->has_pending && continues(&w->pending, e)) {
        w->pending.len_bytes += e->len_bytes;
        return 0;
    }
    err = flush_pending(w);
    w->pending = *e;
    w->has_pending = true;
    return err;
}

static int
emit_plain(struct walk *w, enum extent_kind kind, uint64_t guest_off,
           uint64_t len, bool allocated)
{
    struct extent e = {
        .guest_off = guest_off,
        .len_bytes = len,
        .kind = kind,
        .allocated = allocated,
        .fd = -1,
    };

    return emit(w, &e);
}

/* What lay past the file's end when it was opened reads as zeroes; what has
 * gone since then is an error. */
static int
emit_data(struct walk *w, uint64_t guest_off, uint64_t len, uint64_t cluster)
{
    uint64_t in_cluster = guest_off & ((UINT64_C(1) << w->m->cluster_bits) - 1);
    uint64_t host_off = cluster + in_cluster;
    uint64_t inside = w->m->data_bytes - min_u64(host_off, w->m->data_bytes);
    struct extent e = {
        .guest_off = guest_off,
        .len_bytes = len,
        .kind = EXTENT_DATA,
        .allocated = true,
        .fd = w->m->data_fd,
        .host_off = host_off,
    };
    int err = 0;

    if (inside < len && inside > 0) {
        e.len_bytes = inside;
        err = emit(w, &e);
        e.guest_off += inside;
        e.host_off += inside;
        e.len_bytes = len - inside;
    }
    e.zero_past_eof = inside < len;
    return err != 0 ? err : emit(w, &e);
}

/* ---- one guest cluster ---- */

static int
describe_packed(struct walk *w, const struct piece *p)
{
    struct qcow2_map *m = w->m;
    unsigned offset_bits = 62 - (m->cluster_bits - 8);
    uint64_t host = p->entry & ((UINT64_C(1) << offset_bits) - 1);
    struct extent e = {
        .guest_off = p->guest_off,
        .len_bytes = p->len_bytes,
        .kind = EXTENT_PACKED,
        .allocated = true,
        .fd = -1,
        .layer = m->layer,
        .packed = p->entry & ~(COPIED | PACKED),
        .packed_off = p->guest_off & ((UINT64_C(1) << m->cluster_bits) - 1),
    };

    if (m->external) {
        return damaged(m, "L2", p->entry_off,
                       "is compressed, which an external data file excludes",
                       p->entry);
    }
    if (host >> 56 != 0) {
        return damaged(m, "L2", p->entry_off, "has an offset beyond 2^56",
                       p->entry);
    }
    return emit(w, &e);
}

enum subcluster { SUB_BACKING, SUB_DATA, SUB_ZERO };

static enum subcluster
subcluster_at(uint64_t bitmap, unsigned i)
{
    if ((bitmap >> i & 1) != 0) {
        return SUB_DATA;
    }
    return (bitmap >> (32 + i) & 1) != 0 ? SUB_ZERO : SUB_BACKING;
}

/* A cluster of 32 parts, each with its own state. `cluster` is its place in
 * the file if it has one. */
static int
describe_subclusters(struct walk *w, const struct piece *p, uint64_t cluster,
                     bool allocated)
{
    struct qcow2_map *m = w->m;
    unsigned bits = m->cluster_bits - 5;
    uint64_t first = round_down(p->guest_off, UINT64_C(1) << m->cluster_bits);
    uint64_t off = p->guest_off, end = p->guest_off + p->len_bytes;

    if ((p->bitmap >> 32 & p->bitmap & UINT32_MAX) != 0) {
        return damaged(m, "L2", p->entry_off,
                       "has a subcluster that is both data and zero",
                       p->bitmap);
    }
    if ((p->bitmap & UINT32_MAX) != 0 && !allocated) {
        return damaged(m, "L2", p->entry_off,
                       "has allocated subclusters but no cluster", p->bitmap);
    }
    while (off < end) {
        unsigned i = (unsigned)((off - first) >> bits);
        enum subcluster kind = subcluster_at(p->bitmap, i);
        uint64_t to;
        int err;

        do {
            i++;
        } while (i < SUBCLUSTERS && subcluster_at(p->bitmap, i) == kind);
        to = min_u64(end, first + ((uint64_t)i << bits));
        if (kind == SUB_DATA) {
            err = emit_data(w, off, to - off, cluster);
        } else {
            err = emit_plain(w, kind == SUB_ZERO ? EXTENT_ZERO : EXTENT_BACKING,
                             off, to - off, kind == SUB_ZERO && allocated);
        }
        if (err != 0) {
            return err;
        }
        off = to;
    }
    return 0;
}

static int
describe(struct walk *w, const struct piece *p)
{
    struct qcow2_map *m = w->m;
    uint64_t cluster = p->entry & OFFSET_MASK;
    uint64_t cluster_mask = (UINT64_C(1) << m->cluster_bits) - 1;
    uint64_t reserved = L2_RESERVED;
    bool allocated;

    if ((p->entry & PACKED) != 0) {
        return describe_packed(w, p);
    }
    if (m->version < 3 || m->extended_l2) {
        reserved |= L2_ZERO;
    }
    if ((p->entry & reserved) != 0) {
        return damaged(m, "L2", p->entry_off, "has reserved bits set",
                       p->entry);
    }
    if ((cluster & cluster_mask) != 0) {
        return damaged(m, "L2", p->entry_off, "is not the offset of a cluster",
                       p->entry);
    }
    /* Offset 0 of an external data file is a place like any other. */
    allocated = cluster != 0 || (m->external && (p->entry & COPIED) != 0);
    if (allocated && m->external && cluster != (p->guest_off & ~cluster_mask)) {
        return damaged(m, "L2", p->entry_off,
                       "is not the guest's own offset, as an external data "
                       "file demands",
                       p->entry);
    }
    if (m->extended_l2) {
        return describe_subclusters(w, p, cluster, allocated);
    }
    if ((p->entry & L2_ZERO) != 0) {
        return emit_plain(w, EXTENT_ZERO, p->guest_off, p->len_bytes,
                          allocated);
    }
    if (!allocated) {
        return emit_plain(w, EXTENT_BACKING, p->guest_off, p->len_bytes, false);
    }
    return emit_data(w, p->guest_off, p->len_bytes, cluster);
}

/* ---- tables ---- */

/* Walks [off, end), which one L2 table, at `l2_off`, describes. */
static int
walk_l2(struct walk *w, uint64_t l2_off, uint64_t off, uint64_t end)
{
    struct qcow2_map *m = w->m;
    unsigned entry_bits = m->extended_l2 ? 4 : 3;
    uint64_t table_mask = (UINT64_C(1) << (m->cluster_bits - entry_bits)) - 1;
    uint8_t buf[L2_STEP_BYTES];

    while (off < end) {
        uint64_t first = off >> m->cluster_bits;
        uint64_t count = min_u64(((end - 1) >> m->cluster_bits) - first + 1,
                                 sizeof(buf) >> entry_bits);
        uint64_t at = l2_off + ((first & table_mask) << entry_bits);
        int err = read_table(m, "L2", buf, (size_t)count << entry_bits, at);

        w->entries += count;
        for (uint64_t i = 0; err == 0 && i < count; i++) {
            const uint8_t *bytes = buf + (i << entry_bits);
            uint64_t to = min_u64(end, (first + i + 1) << m->cluster_bits);
            struct piece p = {
                .entry = load_be64(bytes),
                .bitmap = m->extended_l2 ? load_be64(bytes + 8) : 0,
                .entry_off = at + (i << entry_bits),
                .guest_off = off,
                .len_bytes = to - off,
            };

            err = describe(w, &p);
            off = to;
        }
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

/* Walks [off, end), which the L1 entry read from `entry_off` describes. */
static int
walk_l1_entry(struct walk *w, uint64_t entry, uint64_t entry_off, uint64_t off,
              uint64_t end)
{
    struct qcow2_map *m = w->m;
    uint64_t l2_off = entry & OFFSET_MASK;

    if ((entry & L1_RESERVED) != 0) {
        return damaged(m, "L1", entry_off, "has reserved bits set", entry);
    }
    if ((l2_off & ((UINT64_C(1) << m->cluster_bits) - 1)) != 0) {
        return damaged(m, "L1", entry_off, "is not the offset of a cluster",
                       entry);
    }
    if (l2_off == 0) {
        return emit_plain(w, EXTENT_BACKING, off, end - off, false);
    }
    return walk_l2(w, l2_off, off, end);
}

static int
walk_l1(struct walk *w, uint64_t off, uint64_t end)
{
    struct qcow2_map *m = w->m;
    uint8_t buf[L1_STEP_ENTRIES * 8];

    while (off < end && w->entries < QCOW2_WALK_ENTRIES) {
        uint64_t first = off >> m->l1_span_bits;
        uint64_t count = ((end - 1) >> m->l1_span_bits) - first + 1;
        uint64_t at = m->state.l1_off + first * 8;
        int err;

        if (first >= m->state.l1_count) {
            return emit_plain(w, EXTENT_BACKING, off, end - off, false);
        }
        count = min_u64(count, m->state.l1_count - first);
        count = min_u64(count, L1_STEP_ENTRIES);
        err = read_table(m, "L1", buf, (size_t)count * 8, at);
        w->entries += count;
        for (uint64_t i = 0; err == 0 && i < count; i++) {
            uint64_t to = min_u64(end, (first + i + 1) << m->l1_span_bits);

            if (i > 0 && w->entries >= QCOW2_WALK_ENTRIES) {
                break;
            }
            err = walk_l1_entry(w, load_be64(buf + i * 8), at + i * 8, off, to);
            off = to;
        }
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

int
qcow2_map_extents(struct qcow2_map *m, uint64_t off, uint64_t len,
                  extent_fn *fn, void *arg)
{
    struct walk w = {.m = m, .fn = fn, .arg = arg};
    int err = walk_l1(&w, off, off + len);

    return err != 0 ? err : flush_pending(&w);
}
