/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_QCOW2_PACKED_H
#define REWIND_BLK_QCOW2_PACKED_H

#include <stddef.h>
#include <stdint.h>

#include "blk/qcow2/header.h"

/*
 * Compressed clusters: reads and unpacks them, and keeps the last few unpacked
 * ones, because a guest reads a cluster in several requests. Any thread.
 */
struct qcow2_packed;

/* `fd` is borrowed for its life. Takes no memory to speak of before the first
 * read. NULL if there is none. */
struct qcow2_packed *qcow2_packed_new(int fd, unsigned cluster_bits,
                                      enum qcow2_compression compression);

/* Nobody is reading any more. NULL is fine. */
void qcow2_packed_free(struct qcow2_packed *p);

/*
 * Reads `len` bytes at `off` of the cluster whose L2 entry has `descriptor` in
 * bits 0 to 61. 0; -EIO if it can't be unpacked to a whole cluster; another
 * -errno.
 */
int qcow2_packed_read(struct qcow2_packed *p, uint64_t descriptor, uint64_t off,
                      void *buf, size_t len);

#endif
