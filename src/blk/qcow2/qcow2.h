/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_QCOW2_QCOW2_H
#define REWIND_BLK_QCOW2_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/layer.h"

/*
 * Reading qcow2, all versions and features the specification allows
 * (docs/interop/qcow2 of QEMU). Opening is in two steps, because the header
 * names other files and this module never opens a path: qcow2_probe reads and
 * checks the header, the caller opens what the header names according to its
 * policy, qcow2_open makes the layer.
 */

#define QCOW2_NAME_MAX 1023u /* bytes in a backing file name */

struct qcow2_names {
    uint64_t size_bytes; /* of the disk, or of the snapshot asked for */
    bool has_backing;
    char backing[QCOW2_NAME_MAX + 1];   /* as stored */
    char backing_format[64];            /* "" if not declared */
    bool has_data_file;                 /* incompatible bit 2 */
    char data_file[QCOW2_NAME_MAX + 1]; /* "" if not stored */
    bool data_file_raw;                 /* autoclear bit 1 */
};

/* True if the first bytes of a file are a qcow2 header's. */
bool qcow2_is_header(const void *bytes, size_t len_bytes);

/*
 * Reads and checks everything about the image that is needed to open it:
 * header, extensions, feature bits (unknown incompatible ones refused by name),
 * encryption refused, corrupt bit (allowed for reading, warned about), tables
 * within bounds, and `snapshot` (NULL: the active state) looked up by id or
 * name as described in image_options.
 */
int qcow2_probe(int fd, const char *path, const char *snapshot,
                struct qcow2_names *ret, struct err *e);

/*
 * A read-only layer. Takes over `fd` and `data_fd` (-1 unless has_data_file),
 * also on failure. Does the checks of qcow2_probe again on what it reads.
 */
struct layer *qcow2_open(int fd, int data_fd, const char *path,
                         const char *snapshot, struct err *e);

#endif
