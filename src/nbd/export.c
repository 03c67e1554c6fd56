/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Exports: the set that a server offers, and the transmission flags of each.
 * Built by one thread before the server starts, read without locks after.
 * Reference: proto.md "Transmission flags" and "Size constraints".
 */
#include "nbd/export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "nbd/limits.h"
#include "nbd/text.h"

/* What proto.md has a client assume when nobody says more. */
#define MIN_BLOCK_BYTES_DEFAULT 1u
#define PREF_BLOCK_BYTES_DEFAULT 4096u

static const struct export *
find_exact(const struct export_set *set, const void *name, size_t len_bytes)
{
    for (unsigned i = 0; i < set->count; i++) {
        const struct export *x = &set->exports[i];

        if (strlen(x->name) == len_bytes &&
            (len_bytes == 0 || memcmp(x->name, name, len_bytes) == 0)) {
            return x;
        }
    }
    return NULL;
}

const struct export *
export_set_find(const struct export_set *set, const void *name,
                size_t len_bytes)
{
    const struct export *x = find_exact(set, name, len_bytes);

    if (x == NULL && len_bytes == 0 && set->count > 0) {
        x = &set->exports[0];
    }
    return x;
}

static int
check_texts(const struct export_set *set, const char *name,
            const char *description, struct err *e)
{
    size_t len = strlen(name);
    char quoted[128];

    log_quote(quoted, sizeof(quoted), name, len);
    if (len > NBD_STRING_MAX) {
        return err_set(e, EINVAL,
                       "export name \"%s\" has %zu bytes; NBD allows %d",
                       quoted, len, NBD_STRING_MAX);
    }
    if (!text_valid(name, len)) {
        return err_set(e, EINVAL, "export name \"%s\" is not UTF-8", quoted);
    }
    if (find_exact(set, name, len) != NULL) {
        return err_set(e, EEXIST,
                       "export name \"%s\" is used twice; give each image "
                       "its own with -x",
                       quoted);
    }
    if (description != NULL && !text_valid(description, strlen(description))) {
        return err_set(e, EINVAL,
                       "the description of export \"%s\" is not UTF-8 of at "
                       "most %d bytes",
                       quoted, NBD_STRING_MAX);
    }
    return 0;
}

static void
export_clear(struct export *x)
{
    free(x->name);
    free(x->description);
    disk_free(x->disk);
}

struct export *
export_set_add(struct export_set *set, const char *name,
               const char *description, struct disk *disk, struct err *e)
{
    struct export x = {
        .disk = disk,
        .read_only = true,
        .min_block_bytes = MIN_BLOCK_BYTES_DEFAULT,
        .pref_block_bytes = PREF_BLOCK_BYTES_DEFAULT,
        .max_payload_bytes = LIMIT_PAYLOAD_BYTES,
        .contexts = 1u << NBD_CONTEXT_ALLOCATION,
    };
    struct export *grown;

    if (check_texts(set, name, description, e) < 0) {
        export_clear(&x);
        return NULL;
    }
    if (disk != NULL) {
        x.size_bytes = disk_size(disk);
        x.read_only = !disk_writable(disk);
    }
    x.name = strdup(name);
    x.description = description != NULL ? strdup(description) : NULL;
    grown = realloc(set->exports, ((size_t)set->count + 1) * sizeof(x));
    if (grown != NULL) {
        set->exports = grown;
    }
    if (x.name == NULL || (description != NULL && x.description == NULL) ||
        grown == NULL) {
        export_clear(&x);
        err_set(e, ENOMEM, "out of memory for an export");
        return NULL;
    }
    set->exports[set->count] = x;
    return &set->exports[set->count++];
}

void
export_set_free(struct export_set *set)
{
    for (unsigned i = 0; i < set->count; i++) {
        export_clear(&set->exports[i]);
    }
    free(set->exports);
    *set = (struct export_set){0};
}

uint16_t
export_flags(const struct export *x, bool structured, bool extended,
             unsigned contexts)
{
    /* Flush and FUA are taken on read-only exports too; they cost nothing
     * there. Multi-conn is true because a flush covers every session (S2);
     * with flushes ignored none does. */
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                     NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (!x->ignore_flush) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }

    if (x->read_only) {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    }
    if (structured || extended) {
        flags |= NBD_FLAG_SEND_DF;
    }
    if (extended && contexts != 0) {
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    }
    return (uint16_t)flags;
}
