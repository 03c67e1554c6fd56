/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_QCOW2_MAP_H
#define REWIND_BLK_QCOW2_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blk/layer.h"
#include "blk/qcow2/snapshot.h"

/* L2 entries one call looks at, about: with 512-byte clusters 128 MiB of guest
 * space, more than LAYER_EXTENTS_WHOLE. A file may name one table a million
 * times over, so its size does not bound the work. */
#define QCOW2_WALK_ENTRIES (UINT64_C(1) << 18)

/*
 * Where one state's guest clusters lie: the walk through its L1 and L2 tables.
 * Nothing of them is kept in memory, because the merged map above keeps the
 * outcome; each call reads the entries it needs.
 */
struct qcow2_map {
    int fd;              /* borrowed from the layer: the image */
    int data_fd;         /* borrowed from the layer: where guest data is */
    uint64_t data_bytes; /* its size when it was opened */
    const char *path;    /* borrowed from the layer */
    struct layer *layer; /* borrowed: whom PACKED extents name */
    bool external;       /* data_fd is an external data file */
    bool extended_l2;
    unsigned version;
    unsigned cluster_bits;
    unsigned l1_span_bits; /* guest bytes an L1 entry covers, as a power */
    struct qcow2_state state;
    atomic_bool told; /* about damage; once is enough */
};

/* As layer_ops.extents: ends early after QCOW2_WALK_ENTRIES entries. Damage
 * found in the tables is -EIO. */
int qcow2_map_extents(struct qcow2_map *m, uint64_t off, uint64_t len,
                      extent_fn *fn, void *arg);

#endif
