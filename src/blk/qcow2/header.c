/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The qcow2 header, its extensions and the names of its features: read, put
 * against the specification (docs/interop/qcow2 of QEMU, sections "Header",
 * "Header extensions", "Feature name table") and against the file. Nothing is
 * kept but the caller's structs. Limits that the specification leaves open are
 * QEMU's.
 */
#include "blk/qcow2/header.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

#define V2_HEADER_BYTES 72u
#define V3_HEADER_BYTES 104u
/* With every field that we know, up to compression_type. */
#define KNOWN_HEADER_BYTES 105u

#define REFCOUNT_TABLE_BYTES_MAX (8u << 20)
#define SNAPSHOT_COUNT_MAX 65536u

/* Real images have up to six; it bounds the time a made-up one costs. */
#define EXTENSION_COUNT_MAX 1024u

/* An entry of the feature name table: type, bit number, 46 bytes of name. */
#define FEATURE_NAME_BYTES 48u
#define FEATURE_NAME_COUNT_MAX 1024u

#define KNOWN_INCOMPATIBLE                                                     \
    (QCOW2_DIRTY | QCOW2_CORRUPT | QCOW2_DATA_FILE | QCOW2_COMPRESSION |       \
     QCOW2_EXTENDED_L2)

/* What the checks below share. */
struct parse {
    int fd;                    /* borrowed */
    const char *path;          /* borrowed */
    struct qcow2_header *h;    /* borrowed */
    struct qcow2_names *names; /* borrowed */
    struct err *e;             /* borrowed, may be NULL */
};

static uint64_t
cluster_bytes(const struct qcow2_header *h)
{
    return UINT64_C(1) << h->cluster_bits;
}

/* Reads exactly `len` bytes; `what` names them. */
static int
read_all(const struct parse *p, const char *what, void *buf, size_t len,
         uint64_t off)
{
    ssize_t n = file_pread(p->fd, buf, len, off);

    if (n < 0) {
        return err_set(p->e, (int)-n, "%s: %s can't be read: %s", p->path, what,
                       strerror((int)-n));
    }
    if ((size_t)n < len) {
        return err_set(p->e, EINVAL, "%s: the file ends within %s", p->path,
                       what);
    }
    return 0;
}

/* ---- the fixed fields ---- */

static int
read_fields(struct parse *p)
{
    uint8_t bytes[KNOWN_HEADER_BYTES] = {0};
    struct qcow2_header *h = p->h;
    int64_t size = file_size(p->fd);
    int err;

    if (size < 0) {
        return err_set(p->e, (int)-size, "%s: its size can't be had: %s",
                       p->path, strerror((int)-size));
    }
    h->file_bytes = (uint64_t)size;
    err = read_all(
        p, "the header", bytes,
        (size_t)min_u64(sizeof(bytes), max_u64(h->file_bytes, V2_HEADER_BYTES)),
        0);
    if (err != 0) {
        return err;
    }
    struct reader r = reader_of(bytes, sizeof(bytes));

    if (reader_u32(&r) != QCOW2_MAGIC) {
        return err_set(p->e, EINVAL,
                       "%s: not a qcow2 image: it does not begin with QFI\\xfb",
                       p->path);
    }
    h->version = reader_u32(&r);
    h->backing_off = reader_u64(&r);
    h->backing_bytes = reader_u32(&r);
    h->cluster_bits = reader_u32(&r);
    h->size_bytes = reader_u64(&r);
    h->crypt_method = reader_u32(&r);
    h->l1_count = reader_u32(&r);
    h->l1_off = reader_u64(&r);
    h->refcount_table_off = reader_u64(&r);
    h->refcount_table_clusters = reader_u32(&r);
    h->snapshot_count = reader_u32(&r);
    h->snapshots_off = reader_u64(&r);
    h->refcount_order = 4;
    h->header_bytes = V2_HEADER_BYTES;
    if (h->version >= 3) {
        h->incompatible = reader_u64(&r);
        h->compatible = reader_u64(&r);
        h->autoclear = reader_u64(&r);
        h->refcount_order = reader_u32(&r);
        h->header_bytes = reader_u32(&r);
        /* A field is present if the header is longer than its offset. */
        if (h->header_bytes > V3_HEADER_BYTES) {
            h->compression = reader_u8(&r);
        }
    }
    return 0;
}

static int
check_version(struct parse *p)
{
    if (p->h->version != 2 && p->h->version != 3) {
        return err_set(p->e, ENOTSUP,
                       "%s: qcow version %u is not supported (2 and 3 are); "
                       "convert it: qemu-img convert -O qcow2",
                       p->path, p->h->version);
    }
    return 0;
}

static int
check_encryption(struct parse *p)
{
    static const char *const names[] = {"", "AES", "LUKS"};
    uint32_t method = p->h->crypt_method;

    if (method == 0) {
        return 0;
    }
    return err_set(
        p->e, ENOTSUP,
        "%s: the image is encrypted (%s), which is not supported; "
        "make a plain copy of it with qemu-img convert and its key",
        p->path, method < ARRAY_LEN(names) ? names[method] : "unknown method");
}

static int
check_geometry(struct parse *p)
{
    struct qcow2_header *h = p->h;

    if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
        h->cluster_bits > QCOW2_CLUSTER_BITS_MAX) {
        return err_set(p->e, EINVAL,
                       "%s: %u cluster bits; a cluster has 9 to 21 (512 bytes "
                       "to 2 MiB)",
                       p->path, h->cluster_bits);
    }
    if (h->version >= 3 &&
        (h->header_bytes < V3_HEADER_BYTES || h->header_bytes % 8 != 0 ||
         h->header_bytes > cluster_bytes(h))) {
        return err_set(p->e, EINVAL,
                       "%s: a header length of %u bytes; it must be a multiple "
                       "of 8 from 104 to the cluster size",
                       p->path, h->header_bytes);
    }
    if (h->refcount_order > 6) {
        return err_set(p->e, EINVAL,
                       "%s: a reference count of 2^%u bits; 2^6 is the largest",
                       p->path, h->refcount_order);
    }
    return 0;
}

/* ---- header extensions ---- */

/*
 * A name of `len` bytes at `off`. NULs at its end are padding; within it they
 * would make different readers see different names.
 */
static int
read_name(const struct parse *p, const char *what, uint64_t off, uint64_t len,
          char *ret, size_t cap)
{
    int err;

    if (len >= cap) {
        return err_set(p->e, EINVAL, "%s: %s has %llu bytes; at most %zu fit",
                       p->path, what, (unsigned long long)len, cap - 1);
    }
    err = read_all(p, what, ret, (size_t)len, off);
    if (err != 0) {
        return err;
    }
    while (len > 0 && ret[len - 1] == '\0') {
        len--;
    }
    ret[len] = '\0';
    if (strlen(ret) != len) {
        return err_set(p->e, EINVAL, "%s: %s has a NUL byte in it", p->path,
                       what);
    }
    return 0;
}

static int
on_backing_format(struct parse *p, uint64_t off, uint32_t len)
{
    return read_name(p, "the backing file's format", off, len,
                     p->names->backing_format,
                     sizeof(p->names->backing_format));
}

static int
on_data_file(struct parse *p, uint64_t off, uint32_t len)
{
    return read_name(p, "the external data file's name", off, len,
                     p->names->data_file, sizeof(p->names->data_file));
}

static int
on_feature_names(struct parse *p, uint64_t off, uint32_t len)
{
    p->h->feature_names_off = off;
    p->h->feature_names_bytes = len;
    return 0;
}

/* Extensions that matter to a reader; the others may be skipped. */
static const struct extension {
    uint32_t type;
    int (*handler)(struct parse *p, uint64_t off, uint32_t len);
} extensions[] = {
    {UINT32_C(0xe2792aca), on_backing_format},
    {UINT32_C(0x44415441), on_data_file},
    {UINT32_C(0x6803f857), on_feature_names},
};

static int
handle_extension(struct parse *p, uint32_t type, uint64_t off, uint32_t len)
{
    for (size_t i = 0; i < ARRAY_LEN(extensions); i++) {
        if (extensions[i].type == type) {
            return extensions[i].handler(p, off, len);
        }
    }
    return 0;
}

/* They lie between the header and the backing file's name, or the end of the
 * first cluster. */
static int
read_extensions(struct parse *p)
{
    uint64_t off = p->h->header_bytes;
    uint64_t end = cluster_bytes(p->h);

    if (p->h->backing_off != 0) {
        end = min_u64(end, p->h->backing_off);
    }
    end = min_u64(end, p->h->file_bytes);
    for (unsigned i = 0; off <= end && end - off >= 8; i++) {
        uint8_t bytes[8];
        int err = read_all(p, "the header extensions", bytes, 8, off);
        uint32_t type = load_be32(bytes), len = load_be32(bytes + 4);

        if (err != 0 || type == 0) {
            return err;
        }
        off += 8;
        if (len > end - off || i == EXTENSION_COUNT_MAX) {
            return err_set(p->e, EINVAL,
                           "%s: header extension 0x%08x of %u bytes does not "
                           "fit in the header",
                           p->path, type, len);
        }
        err = handle_extension(p, type, off, len);
        if (err != 0) {
            return err;
        }
        off += round_up(len, 8);
    }
    return 0;
}

/* ---- feature bits ---- */

/* The name that the image has for incompatible feature `bit`, quoted, or "bit
 * N". */
static void
feature_name(const struct parse *p, unsigned bit, char *ret, size_t cap)
{
    uint64_t count = min_u64(p->h->feature_names_bytes / FEATURE_NAME_BYTES,
                             FEATURE_NAME_COUNT_MAX);

    for (uint64_t i = 0; i < count; i++) {
        uint8_t entry[FEATURE_NAME_BYTES];
        uint64_t off = p->h->feature_names_off + i * FEATURE_NAME_BYTES;
        ssize_t n = file_pread(p->fd, entry, sizeof(entry), off);

        if (n == (ssize_t)sizeof(entry) && entry[0] == 0 && entry[1] == bit &&
            entry[2] != 0) {
            char name[4 * FEATURE_NAME_BYTES];
            size_t len = strnlen((char *)entry + 2, sizeof(entry) - 2);

            log_quote(name, sizeof(name), entry + 2, len);
            snprintf(ret, cap, "\"%s\" (bit %u)", name, bit);
            return;
        }
    }
    snprintf(ret, cap, "bit %u", bit);
}

static int
check_features(struct parse *p)
{
    uint64_t unknown = p->h->incompatible & ~(uint64_t)KNOWN_INCOMPATIBLE;
    char list[512] = "";
    size_t used = 0;

    if (unknown == 0) {
        return 0;
    }
    for (unsigned bit = 0; bit < 64 && used < sizeof(list); bit++) {
        char name[256];

        if ((unknown >> bit & 1) != 0) {
            feature_name(p, bit, name, sizeof(name));
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s",
                                     used > 0 ? ", " : "", name);
        }
    }
    return err_set(p->e, ENOTSUP,
                   "%s: the image needs features that are not supported: %s",
                   p->path, list);
}

static int
check_compression(struct parse *p)
{
    struct qcow2_header *h = p->h;
    bool declared = (h->incompatible & QCOW2_COMPRESSION) != 0;

    if (h->compression != QCOW2_ZLIB && h->compression != QCOW2_ZSTD) {
        return err_set(p->e, ENOTSUP,
                       "%s: compression type %u is not supported (zlib and "
                       "zstd are)",
                       p->path, (unsigned)h->compression);
    }
    if (declared != (h->compression != QCOW2_ZLIB)) {
        return err_set(p->e, EINVAL,
                       "%s: the compression feature bit and compression type "
                       "%u contradict each other",
                       p->path, (unsigned)h->compression);
    }
    return 0;
}

static int
check_extended_l2(struct parse *p)
{
    if ((p->h->incompatible & QCOW2_EXTENDED_L2) != 0 &&
        p->h->cluster_bits < 14) {
        return err_set(p->e, EINVAL,
                       "%s: extended L2 entries need clusters of at least "
                       "16 KiB, the image has %llu bytes",
                       p->path, (unsigned long long)cluster_bytes(p->h));
    }
    return 0;
}

/* ---- tables ---- */

int
qcow2_check_table(const struct qcow2_header *h, const char *path,
                  const char *what, uint64_t off, uint64_t count,
                  unsigned entry_bytes, uint64_t max_bytes, struct err *e)
{
    if (count > max_bytes / entry_bytes) {
        return err_set(e, EFBIG,
                       "%s: %s has %llu entries; at most %llu are allowed",
                       path, what, (unsigned long long)count,
                       (unsigned long long)(max_bytes / entry_bytes));
    }
    if (off % cluster_bytes(h) != 0 || off >> 56 != 0) {
        return err_set(e, EINVAL,
                       "%s: %s lies at 0x%llx, which is not the offset of a "
                       "cluster",
                       path, what, (unsigned long long)off);
    }
    return 0;
}

static int
check_l1(struct parse *p)
{
    struct qcow2_header *h = p->h;
    unsigned span_bits = qcow2_l1_span_bits(h);
    uint64_t wanted;
    int err;

    if (h->size_bytes > INT64_MAX) {
        return err_set(p->e, EFBIG, "%s: a disk of %llu bytes is too large",
                       p->path, (unsigned long long)h->size_bytes);
    }
    err = qcow2_check_table(h, p->path, "the L1 table", h->l1_off, h->l1_count,
                            8, QCOW2_L1_BYTES_MAX, p->e);
    if (err != 0) {
        return err;
    }
    wanted = (h->size_bytes >> span_bits) +
             ((h->size_bytes & ((UINT64_C(1) << span_bits) - 1)) != 0);
    if (h->l1_count < wanted) {
        return err_set(p->e, EINVAL,
                       "%s: the L1 table has %u entries; the disk's %llu bytes "
                       "need %llu",
                       p->path, h->l1_count, (unsigned long long)h->size_bytes,
                       (unsigned long long)wanted);
    }
    if (!range_within(h->l1_off, wanted * 8, h->file_bytes)) {
        return err_set(p->e, EINVAL,
                       "%s: the file is cut short: its L1 table lies at "
                       "0x%llx, the file has %llu bytes",
                       p->path, (unsigned long long)h->l1_off,
                       (unsigned long long)h->file_bytes);
    }
    return 0;
}

static int
check_refcount_table(struct parse *p)
{
    struct qcow2_header *h = p->h;

    if (h->refcount_table_clusters == 0) {
        return err_set(p->e, EINVAL, "%s: the image has no refcount table",
                       p->path);
    }
    return qcow2_check_table(
        h, p->path, "the refcount table", h->refcount_table_off,
        (uint64_t)h->refcount_table_clusters << (h->cluster_bits - 3), 8,
        REFCOUNT_TABLE_BYTES_MAX, p->e);
}

static int
check_snapshot_table(struct parse *p)
{
    struct qcow2_header *h = p->h;
    int err = qcow2_check_table(h, p->path, "the snapshot table",
                                h->snapshot_count != 0 ? h->snapshots_off : 0,
                                h->snapshot_count, 1, SNAPSHOT_COUNT_MAX, p->e);

    if (err == 0 && h->snapshot_count != 0 &&
        h->snapshots_off >= h->file_bytes) {
        return err_set(p->e, EINVAL,
                       "%s: the file is cut short: its snapshot table lies at "
                       "0x%llx, the file has %llu bytes",
                       p->path, (unsigned long long)h->snapshots_off,
                       (unsigned long long)h->file_bytes);
    }
    return err;
}

/* ---- other files ---- */

static int
read_backing_name(struct parse *p)
{
    struct qcow2_header *h = p->h;
    int err;

    if (h->backing_off == 0) {
        return 0;
    }
    if (!range_within(h->backing_off, h->backing_bytes, cluster_bytes(h))) {
        return err_set(p->e, EINVAL,
                       "%s: the backing file's name (%u bytes at 0x%llx) lies "
                       "outside of the first cluster",
                       p->path, h->backing_bytes,
                       (unsigned long long)h->backing_off);
    }
    err = read_name(p, "the backing file's name", h->backing_off,
                    h->backing_bytes, p->names->backing,
                    sizeof(p->names->backing));
    p->names->has_backing = err == 0 && p->names->backing[0] != '\0';
    return err;
}

static int
check_data_file(struct parse *p)
{
    struct qcow2_names *names = p->names;

    names->has_data_file = (p->h->incompatible & QCOW2_DATA_FILE) != 0;
    names->data_file_raw = names->has_data_file &&
                           (p->h->autoclear & QCOW2_DATA_FILE_RAW) != 0;
    if (names->data_file_raw && names->has_backing) {
        return err_set(p->e, EINVAL,
                       "%s: the image has both a raw external data file and a "
                       "backing file, which exclude each other",
                       p->path);
    }
    return 0;
}

/* In this order: each may rely on those before it. */
static int (*const steps[])(struct parse *p) = {
    read_fields,          check_version,        check_encryption,
    check_geometry,       read_extensions,      check_features,
    check_compression,    check_extended_l2,    check_l1,
    check_refcount_table, check_snapshot_table, read_backing_name,
    check_data_file,
};

int
qcow2_header_read(int fd, const char *path, struct qcow2_header *ret,
                  struct qcow2_names *ret_names, struct err *e)
{
    struct qcow2_header h = {0};
    struct qcow2_names names = {0};
    struct parse p = {.fd = fd, .path = path, .h = &h, .names = &names, .e = e};

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        int err = steps[i](&p);

        if (err != 0) {
            return err;
        }
    }
    names.size_bytes = h.size_bytes;
    *ret = h;
    *ret_names = names;
    return 0;
}
