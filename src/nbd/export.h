/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_EXPORT_H
#define REWIND_NBD_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/disk.h"
#include "nbd/proto.h"

/*
 * An export is a named disk offered over NBD. A set of them is built before
 * the server starts and does not change while it runs, so sessions read it
 * without locks. (clang-format takes the name for C++'s keyword.)
 */
/* clang-format off */
struct export {
    char *name;        /* owned; "" is the default export's own name */
    char *description; /* owned, may be NULL */
    struct disk *disk; /* owned */
    uint64_t size_bytes;
    bool read_only;
    bool write_through; /* every write is durable before its reply */
    bool ignore_flush;  /* flush and FUA promise nothing (cache=unsafe) */
    uint32_t min_block_bytes;  /* 1 by default */
    uint32_t pref_block_bytes; /* 4096 by default */
    uint32_t max_payload_bytes;
    unsigned contexts; /* bit 1 << enum nbd_context: what may be selected */
};
/* clang-format on */

struct export_set {
    struct export *exports; /* owned */
    unsigned count;
};

/*
 * Adds an export and takes over `disk` (also on failure). `name` is UTF-8
 * without NUL, at most NBD_STRING_MAX bytes, and new in the set. Fields not
 * given here get their defaults. NULL and `e` on failure. The pointer is
 * valid until the next add.
 */
struct export *export_set_add(struct export_set *set, const char *name,
                              const char *description, struct disk *disk,
                              struct err *e);

void export_set_free(struct export_set *set);

/*
 * The export called `name` (not NUL-terminated). The empty name means the
 * default export: the one so named, else the first. NULL if there is none.
 */
const struct export *export_set_find(const struct export_set *set,
                                     const void *name, size_t len_bytes);

/* Transmission flags for a session with or without structured replies or
 * extended headers and with `contexts` selected (proto.md "Transmission
 * flags"). */
uint16_t export_flags(const struct export *x, bool structured, bool extended,
                      unsigned contexts);

#endif
