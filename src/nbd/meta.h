/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_META_H
#define REWIND_NBD_META_H

#include <stdbool.h>

#include "base/bytes.h"
#include "nbd/proto.h"

/* The full name of a metadata context, as "base:allocation". */
const char *meta_context_name(enum nbd_context context);

/*
 * Reads the queries of NBD_OPT_LIST_META_CONTEXT (`listing`) or
 * NBD_OPT_SET_META_CONTEXT, which are the rest of `r`, and sets *ret_contexts
 * to those of `available` that they name: bits 1 << enum nbd_context. Only a
 * listing knows wildcards, "NAMESPACE:" or no query at all. Returns 0; -EINVAL
 * if the queries are malformed; -E2BIG if they are too many; with a sentence
 * for the client in *ret_problem.
 */
int meta_read_queries(struct reader *r, bool listing, unsigned available,
                      unsigned *ret_contexts, const char **ret_problem);

#endif
