/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_IMAGE_H
#define REWIND_BLK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/disk.h"

/*
 * Images are named, opened and locked here and nowhere else: a format gets
 * descriptors, never paths. What a file says about other files (backing file,
 * external data file) is hostile until it has passed the policy below.
 */

enum image_format { IMAGE_FORMAT_UNSET, IMAGE_RAW, IMAGE_QCOW2 };

/* "raw", "qcow2"; false if `name` is neither. */
bool image_format_parse(const char *name, enum image_format *ret);

/* Layers one chain may have; beyond it lies a loop or an attack. */
#define IMAGE_DEPTH_MAX 1024u

struct image_options {
    const char *path;
    enum image_format format; /* UNSET: by the first bytes (read-only use
                                 or behind an overlay). An image whose format
                                 was not declared may name no other file, but
                                 see probe_writable */
    bool ephemeral;           /* a volatile overlay takes the writes */
    bool read_only;           /* refuses writes */
    bool probe_writable;      /* qemu-nbd's way: a writable image without a
                                 format is probed, with a warning, and if it
                                 is raw its first sector is kept from turning
                                 into another format's header; and what is
                                 probed may name other files */
    bool ignore_trim;         /* --discard=ignore on a raw top */
    const char *overlay_dir;  /* NULL: $TMPDIR, else /var/tmp */
    const char *const *allow_paths; /* directories that backing and data files
                                       may lie in besides the image's own;
                                       NULL-terminated, NULL: none */
    const char *snapshot;           /* -l: "NAME_OR_ID", or
                                       "snapshot.id=ID,snapshot.name=NAME" */
    uint64_t offset_bytes;          /* -o: the export starts there */
    uint64_t map_bytes;             /* 0: DISK_MAP_BYTES_DEFAULT */
};

/*
 * Opens the image, its whole chain and its overlay, and locks what must be
 * locked (S6). NULL and `e` set on failure; the message names the file, the
 * cause and the way out. A fork between open and use is fine.
 */
struct disk *image_open(const struct image_options *options, struct err *e);

#endif
