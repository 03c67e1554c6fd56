/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzz target: a qcow2 image. The input is the file. It is probed and opened,
 * in its active state and as the snapshot "one"; the map of its beginning and
 * its end is walked, and the compressed clusters found there are read. An
 * external data file is the image itself. What must hold for any input: no
 * crash, and extents that tile what was asked for.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "blk/qcow2/qcow2.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of the disk, looked at from either end. */
#define WINDOW_BYTES (2 * MIB)

/* Read in one input; unpacking is what takes time. */
#define PACKED_MAX 24u
#define READ_BYTES 3000u

struct walk {
    uint64_t at;
    struct extent packed[PACKED_MAX];
    unsigned packed_count;
};

static int image_fd;

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_setup(LOG_ERROR, "fuzz");
    image_fd = memfd_create("image", MFD_CLOEXEC);
    if (image_fd < 0) {
        abort();
    }
    return 0;
}

static int
take(void *arg, const struct extent *e)
{
    struct walk *w = arg;

    if (e->guest_off != w->at || e->len_bytes == 0 ||
        (e->kind == EXTENT_DATA && (e->fd < 0 || e->host_off >> 57 != 0))) {
        abort();
    }
    w->at += e->len_bytes;
    if (e->kind == EXTENT_PACKED && w->packed_count < PACKED_MAX) {
        w->packed[w->packed_count++] = *e;
    }
    return 0;
}

static void
look(struct layer *l, uint64_t off, uint64_t len)
{
    static uint8_t buf[READ_BYTES];
    struct walk w = {.at = off};
    int err = l->ops->extents(l, off, len, take, &w);

    if (w.at > off + len || (err == 0 && w.at != off + len)) {
        abort();
    }
    for (unsigned i = 0; i < w.packed_count; i++) {
        l->ops->read_packed(l, &w.packed[i], buf,
                            min_u64(w.packed[i].len_bytes, sizeof(buf)));
    }
}

static void
try(const char *snapshot)
{
    struct qcow2_names names;
    struct layer_info info;
    struct layer *l;
    struct err e;
    uint64_t part;

    if (qcow2_probe(image_fd, "image", snapshot, &names, &e) != 0) {
        return;
    }
    if (strlen(names.backing) > QCOW2_NAME_MAX ||
        names.has_backing != (names.backing[0] != '\0')) {
        abort();
    }
    l = qcow2_open(dup(image_fd), names.has_data_file ? dup(image_fd) : -1,
                   "image", snapshot, &e);
    if (l == NULL) {
        abort(); /* the same checks passed a moment ago */
    }
    l->ops->info(l, &info);
    if (info.size_bytes != names.size_bytes) {
        abort();
    }
    part = min_u64(info.size_bytes, WINDOW_BYTES);
    look(l, 0, part);
    look(l, info.size_bytes - part, part);
    l->ops->close(l);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (ftruncate(image_fd, 0) != 0 ||
        file_pwrite(image_fd, data, size, 0) != 0) {
        abort();
    }
    try(NULL);
    try("one");
    return 0;
}
