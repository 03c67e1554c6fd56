/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_QCOW2_HEADER_H
#define REWIND_BLK_QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/qcow2/qcow2.h"

/* qcow2's magic number, "QFI\xfb". */
#define QCOW2_MAGIC UINT32_C(0x514649fb)

/* The least and the largest cluster: the specification's and QEMU's. */
#define QCOW2_CLUSTER_BITS_MIN 9u
#define QCOW2_CLUSTER_BITS_MAX 21u

/* Bytes of an L1 table; QEMU's limit, 2 EiB of disk at the largest cluster. */
#define QCOW2_L1_BYTES_MAX (32u << 20)

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

/* The header's fields, checked against the specification and the file. */
struct qcow2_header {
    uint64_t file_bytes; /* of the file, when it was read */
    uint32_t version;    /* 2 or 3 */
    unsigned cluster_bits;
    uint64_t size_bytes;
    uint64_t l1_off;
    uint32_t l1_count; /* entries */
    uint32_t snapshot_count;
    uint64_t snapshots_off;
    uint64_t incompatible; /* feature bits */
    uint64_t compatible;
    uint64_t autoclear;
    enum qcow2_compression compression;

    /* Wanted only while the header is read. */
    uint64_t backing_off;
    uint32_t backing_bytes;
    uint32_t crypt_method;
    uint64_t refcount_table_off;
    uint32_t refcount_table_clusters;
    uint32_t refcount_order;
    uint32_t header_bytes;
    uint64_t feature_names_off; /* 0: the image has no such table */
    uint32_t feature_names_bytes;
};

enum { /* incompatible feature bits */
       QCOW2_DIRTY = 1 << 0,
       QCOW2_CORRUPT = 1 << 1,
       QCOW2_DATA_FILE = 1 << 2,
       QCOW2_COMPRESSION = 1 << 3,
       QCOW2_EXTENDED_L2 = 1 << 4,
};

enum { /* autoclear feature bits */
       QCOW2_DATA_FILE_RAW = 1 << 1,
};

/*
 * Reads and checks the header and its extensions. `path` is for messages. 0
 * or -errno with `e` set.
 */
int qcow2_header_read(int fd, const char *path, struct qcow2_header *ret,
                      struct qcow2_names *ret_names, struct err *e);

/* Guest bytes that one L1 entry covers, as a power of two. */
static inline unsigned
qcow2_l1_span_bits(const struct qcow2_header *h)
{
    unsigned entry_bits = (h->incompatible & QCOW2_EXTENDED_L2) != 0 ? 4 : 3;

    return h->cluster_bits + h->cluster_bits - entry_bits;
}

/*
 * Checks that a table of `count` entries of `entry_bytes` at `off` is aligned,
 * not longer than `max_bytes`, and representable. `what` names it.
 */
int qcow2_check_table(const struct qcow2_header *h, const char *path,
                      const char *what, uint64_t off, uint64_t count,
                      unsigned entry_bytes, uint64_t max_bytes, struct err *e);

#endif
