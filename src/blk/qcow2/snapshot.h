/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_QCOW2_SNAPSHOT_H
#define REWIND_BLK_QCOW2_SNAPSHOT_H

#include <stdint.h>

#include "base/err.h"
#include "blk/qcow2/header.h"

/* One state of the disk: the active one, or an internal snapshot's. */
struct qcow2_state {
    uint64_t size_bytes;
    uint64_t l1_off;
    uint32_t l1_count; /* a snapshot's may be too few for its size: what lies
                          beyond is unallocated */
};

/*
 * The state that `spec` asks for: NULL the active one, else an internal
 * snapshot by "snapshot.id=ID,snapshot.name=NAME" (one or both, ",," stands
 * for a comma), or by "ID_OR_NAME", where an ID goes before a name. 0 or
 * -errno with `e` set.
 */
int qcow2_state_find(int fd, const char *path, const struct qcow2_header *h,
                     const char *spec, struct qcow2_state *ret, struct err *e);

#endif
