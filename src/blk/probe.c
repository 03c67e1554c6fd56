/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The signatures of image formats (probe.h). No state. A signature is judged
 * by its constant bytes alone, whatever follows, because a guard that is too
 * wide refuses a write that no guest makes, while one that is too narrow lets
 * a guest choose the files that the next program opens (CVE-2008-2004,
 * CVE-2013-1922).
 */
#include "blk/probe.h"

#include <string.h>

#include "base/checked.h"

struct signature {
    size_t off;
    const char *bytes;
    size_t len_bytes;
    struct probe_format format;
};

#define SIGNATURE(at, text, ...)                                               \
    {                                                                          \
        .off = (at), .bytes = (text), .len_bytes = sizeof(text) - 1,           \
        .format = {__VA_ARGS__},                                               \
    }

static const struct signature signatures[] = {
    /* Version 1, another format, has the same four bytes. */
    SIGNATURE(0, "QFI\xfb\0\0\0\1", .name = "a qcow (version 1) image"),
    SIGNATURE(0, "QFI\xfb", .name = "a qcow2 image", .qcow2 = true),
    SIGNATURE(0, "QED\0", .name = "a QED image"),
    SIGNATURE(0, "KDMV", .name = "a VMDK image"),
    SIGNATURE(0, "COWD", .name = "a VMDK image"),
    SIGNATURE(0, "\xbe\xba\xfe\xca\0\0\0\0", .name = "a VMDK (seSparse) image"),
    SIGNATURE(0, "# Disk DescriptorFile", .name = "a VMDK descriptor"),
    SIGNATURE(64, "\x7f\x10\xda\xbe", .name = "a VDI image"),
    SIGNATURE(0, "vhdxfile", .name = "a VHDX image"),
    SIGNATURE(0, "conectix", .name = "a VHD image"),
    SIGNATURE(0, "WithoutFreeSpace", .name = "a Parallels image"),
    SIGNATURE(0, "WithouFreSpacExt", .name = "a Parallels image"),
    SIGNATURE(0, "Bochs Virtual HD Image", .name = "a Bochs image"),
    SIGNATURE(0, "#!/bin/sh\n#V2.0 Format\n", .name = "a cloop image"),
    SIGNATURE(0, "LUKS\xba\xbe", .name = "a LUKS (encrypted) image",
              .way_out = "decrypt it with qemu-img convert and --object "
                         "secret,..., or, if the guest itself holds the key, "
                         "declare it: -f raw"),
    SIGNATURE(0, "shdw", .name = "an ASIF image",
              .way_out = "convert it on macOS with diskutil image"),
};

static const struct probe_format vmdk_text = {.name = "a VMDK descriptor"};

/* QEMU takes a text for a VMDK descriptor if, after comments and blank lines,
 * it says version=1, 2 or 3. */
static bool
is_vmdk_text(const char *p, size_t len)
{
    static const char key[] = "version=";
    const char *end = p + len;

    if (len == 0 || *p != '#') {
        return false;
    }
    while (p < end) {
        const char *line_end = memchr(p, '\n', (size_t)(end - p));
        const char *q = p;

        if (line_end == NULL) {
            line_end = end;
        }
        while (q < line_end && (*q == ' ' || *q == '\r')) {
            q++;
        }
        if (*p != '#' && q < line_end) {
            return (size_t)(line_end - p) >= sizeof(key) &&
                   memcmp(p, key, sizeof(key) - 1) == 0 &&
                   p[sizeof(key) - 1] >= '1' && p[sizeof(key) - 1] <= '3';
        }
        p = line_end < end ? line_end + 1 : end;
    }
    return false;
}

const struct probe_format *
probe_format_of(const void *bytes, size_t len_bytes)
{
    const char *p = bytes;

    if (len_bytes > PROBE_BYTES) {
        len_bytes = PROBE_BYTES;
    }
    for (size_t i = 0; i < ARRAY_LEN(signatures); i++) {
        const struct signature *s = &signatures[i];

        if (range_within(s->off, s->len_bytes, len_bytes) &&
            memcmp(p + s->off, s->bytes, s->len_bytes) == 0) {
            return &s->format;
        }
    }
    return is_vmdk_text(p, len_bytes) ? &vmdk_text : NULL;
}
