/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Metadata contexts: their names, and the queries that select them. No state,
 * any thread. Reference: proto.md "Metadata querying"; for the namespace
 * "qemu" QEMU's docs/interop/nbd.txt.
 */
#include "nbd/meta.h"

#include <errno.h>
#include <string.h>

#include "nbd/limits.h"

static const char *const names[NBD_CONTEXT_COUNT] = {
    [NBD_CONTEXT_ALLOCATION] = "base:allocation",
    [NBD_CONTEXT_DEPTH] = "qemu:allocation-depth",
};

const char *
meta_context_name(enum nbd_context context)
{
    return names[context];
}

/* True if the query's bytes name `name`, or with `wildcards` its namespace. */
static bool
query_matches(const uint8_t *query, size_t len, const char *name,
              bool wildcards)
{
    size_t namespace_len = (size_t)(strchr(name, ':') - name) + 1;

    if (len != strlen(name) && !(wildcards && len == namespace_len)) {
        return false;
    }
    return memcmp(query, name, len) == 0;
}

/* Adds what one query selects. Unknown namespaces and unknown leaves select
 * nothing, and that is no error. */
static int
read_query(struct reader *r, bool wildcards, unsigned *contexts,
           const char **ret_problem)
{
    uint32_t len = reader_u32(r);
    const uint8_t *query = reader_take(r, len);
    const uint8_t *colon;

    if (query == NULL) {
        *ret_problem = "a query is longer than the option that holds it";
        return -EINVAL;
    }
    if (len > NBD_STRING_MAX) {
        *ret_problem = "a query is longer than the 4096 bytes of a string";
        return -EINVAL;
    }
    colon = len > 0 ? memchr(query, ':', len) : NULL;
    if (colon == NULL || colon == query) {
        *ret_problem = "a query must begin with a namespace and a colon";
        return -EINVAL;
    }
    for (unsigned i = 0; i < NBD_CONTEXT_COUNT; i++) {
        if (query_matches(query, len, names[i], wildcards)) {
            *contexts |= 1u << i;
        }
    }
    return 0;
}

int
meta_read_queries(struct reader *r, bool listing, unsigned available,
                  unsigned *ret_contexts, const char **ret_problem)
{
    uint32_t count = reader_u32(r);
    unsigned contexts = 0;

    if (r->bad || count > r->left_bytes / sizeof(uint32_t)) {
        *ret_problem = "the option is too short for its queries";
        return -EINVAL;
    }
    if (count > LIMIT_QUERIES) {
        *ret_problem = "too many queries";
        return -E2BIG;
    }
    for (uint32_t i = 0; i < count; i++) {
        int rc = read_query(r, listing, &contexts, ret_problem);

        if (rc < 0) {
            return rc;
        }
    }
    if (r->left_bytes > 0) {
        *ret_problem = "the option is longer than its queries";
        return -EINVAL;
    }
    if (listing && count == 0) {
        contexts = available;
    }
    *ret_contexts = contexts & available;
    return 0;
}
