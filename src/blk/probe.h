/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_PROBE_H
#define REWIND_BLK_PROBE_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Which image format the first bytes of a file look like, ours and the ones
 * that other programs would take it for.
 */

/* Bytes that are looked at. It is also how much of a probed raw image its
 * guard protects. */
#define PROBE_BYTES 512u

struct probe_format {
    const char *name;    /* with its article: "a VMDK image" */
    bool qcow2;          /* one we read */
    const char *way_out; /* how to get at its contents; NULL: qemu-img
                            convert */
};

/* The format of a file that begins with these bytes; NULL if no format has
 * such a header, so that it can only be raw. */
const struct probe_format *probe_format_of(const void *bytes, size_t len_bytes);

#endif
