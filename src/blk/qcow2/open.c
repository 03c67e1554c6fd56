/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The qcow2 layer (qcow2.h): owns the image's descriptor and that of its
 * external data file, and joins header, snapshot, map and packed clusters.
 * Nothing changes after open but the cache of packed clusters, which has its
 * own lock; any thread may call anything.
 */
#include "blk/qcow2/qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "blk/qcow2/header.h"
#include "blk/qcow2/map.h"
#include "blk/qcow2/packed.h"
#include "blk/qcow2/snapshot.h"

struct qcow2 {
    struct layer layer;
    int fd;      /* owned */
    int data_fd; /* owned; -1 without an external data file */
    char *path;  /* owned */
    struct qcow2_map map;
    struct qcow2_packed *packed; /* owned */
};

static struct qcow2 *
qcow2_of(struct layer *l)
{
    return container_of(l, struct qcow2, layer);
}

static uint64_t
allocated_bytes(int fd)
{
    struct stat st;

    return fd >= 0 && fstat(fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static void
qcow2_info(struct layer *l, struct layer_info *ret)
{
    struct qcow2 *q = qcow2_of(l);

    *ret = (struct layer_info){
        .format = "qcow2",
        .path = q->path,
        .size_bytes = q->map.state.size_bytes,
        .allocated_bytes = allocated_bytes(q->fd) + allocated_bytes(q->data_fd),
        .writable = false,
        .flush_fd = -1,
    };
}

static int
qcow2_extents(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
              void *arg)
{
    return qcow2_map_extents(&qcow2_of(l)->map, off, len, fn, arg);
}

static int
qcow2_read_packed(struct layer *l, const struct extent *e, void *buf,
                  size_t len)
{
    return qcow2_packed_read(qcow2_of(l)->packed, e->packed, e->packed_off, buf,
                             len);
}

static void
qcow2_close(struct layer *l)
{
    struct qcow2 *q = qcow2_of(l);

    qcow2_packed_free(q->packed);
    file_close_ptr(&q->fd);
    file_close_ptr(&q->data_fd);
    free(q->path);
    free(q);
}

static const struct layer_ops qcow2_ops = {
    .format = "qcow2",
    .info = qcow2_info,
    .extents = qcow2_extents,
    .read_packed = qcow2_read_packed,
    .close = qcow2_close,
};

bool
qcow2_is_header(const void *bytes, size_t len_bytes)
{
    struct reader r = reader_of(bytes, len_bytes);

    return reader_u32(&r) == QCOW2_MAGIC && reader_u32(&r) >= 2 && !r.bad;
}

int
qcow2_probe(int fd, const char *path, const char *snapshot,
            struct qcow2_names *ret, struct err *e)
{
    struct qcow2_names names;
    struct qcow2_header h;
    struct qcow2_state state;
    int err = qcow2_header_read(fd, path, &h, &names, e);

    if (err == 0) {
        err = qcow2_state_find(fd, path, &h, snapshot, &state, e);
    }
    if (err != 0) {
        return err;
    }
    if ((h.incompatible & QCOW2_CORRUPT) != 0) {
        log_warn("%s: the image is marked as corrupt; what is read from it may "
                 "be wrong. To repair it: qemu-img check -r all",
                 path);
    }
    names.size_bytes = state.size_bytes;
    *ret = names;
    return 0;
}

/* Sets up `q`, whose descriptors are there, from the image. */
static int
set_up(struct qcow2 *q, const char *path, const char *snapshot, struct err *e)
{
    struct qcow2_names names;
    struct qcow2_header h;
    int err = qcow2_header_read(q->fd, path, &h, &names, e);

    if (err == 0) {
        err = qcow2_state_find(q->fd, path, &h, snapshot, &q->map.state, e);
    }
    if (err != 0) {
        return err;
    }
    if (names.has_data_file != (q->data_fd >= 0)) {
        return err_set(e, EINVAL,
                       "%s: the image %s an external data file, which was not "
                       "so a moment ago",
                       path, names.has_data_file ? "has" : "has not");
    }
    q->path = strdup(path);
    q->packed = qcow2_packed_new(q->fd, h.cluster_bits, h.compression);
    if (q->path == NULL || q->packed == NULL) {
        return err_set(e, ENOMEM, "%s: out of memory", path);
    }
    q->map.fd = q->fd;
    q->map.data_fd = q->data_fd >= 0 ? q->data_fd : q->fd;
    int64_t data_bytes = file_size(q->map.data_fd);

    if (data_bytes < 0) {
        return err_set(e, (int)-data_bytes, "%s: its size can't be had: %s",
                       path, strerror((int)-data_bytes));
    }
    q->map.data_bytes = (uint64_t)data_bytes;
    q->map.path = q->path;
    q->map.layer = &q->layer;
    q->map.external = names.has_data_file;
    q->map.extended_l2 = (h.incompatible & QCOW2_EXTENDED_L2) != 0;
    q->map.version = h.version;
    q->map.cluster_bits = h.cluster_bits;
    q->map.l1_span_bits = qcow2_l1_span_bits(&h);
    return 0;
}

struct layer *
qcow2_open(int fd, int data_fd, const char *path, const char *snapshot,
           struct err *e)
{
    struct qcow2 *q = calloc(1, sizeof(*q));

    if (q == NULL) {
        file_close_ptr(&fd);
        file_close_ptr(&data_fd);
        err_set(e, ENOMEM, "%s: out of memory", path);
        return NULL;
    }
    q->layer.ops = &qcow2_ops;
    q->fd = fd;
    q->data_fd = data_fd;
    if (set_up(q, path, snapshot, e) != 0) {
        qcow2_close(&q->layer);
        return NULL;
    }
    return &q->layer;
}
