/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_DISK_BUILD_H
#define REWIND_BLK_DISK_BUILD_H

#include <stdint.h>

#include "blk/disk_map.h"

/*
 * Merging: the layers' extents over a stretch of guest space, at most a
 * window, become one sorted array. Private to disk*.c.
 */

/* An extent ends where the next begins: no stretch has a gap. */
struct map_entry {
    uint64_t start : 25;      /* from the start of the stretch */
    uint64_t packed_off : 23; /* PACKED */
    uint64_t file : 13;       /* DATA and PACKED: source * 2 + file */
    uint64_t kind : 2;        /* never BACKING */
    uint64_t zero_past_eof : 1;
    uint64_t host_off; /* DATA: in the file; PACKED: the descriptor */
};
_Static_assert(sizeof(struct map_entry) == 16, "two words an extent");
_Static_assert(DISK_WINDOW_BYTES <= UINT64_C(1) << 25, "starts fit");
_Static_assert(DISK_LAYERS_MAX *DISK_SOURCE_FILES < 1u << 13, "files fit");

/* Entries one build may hold at a time. A window of 512-byte clusters, the
 * smallest there are, has a quarter of this. */
#define DISK_BUILD_ENTRIES_MAX (1u << 18)

/*
 * Merges [base, base + len), len <= DISK_WINDOW_BYTES, within the disk. Reads
 * the layers' tables, so it may wait. Sets *ret (the caller frees it) and
 * *ret_count >= 1. -E2BIG if there are too many extents: ask for less.
 */
int disk_build(struct disk_map *m, uint64_t base, uint64_t len,
               struct map_entry **ret, unsigned *ret_count);

#endif
