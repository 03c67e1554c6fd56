/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A disk (disk.h): owns the layers, and hands each request to the one that
 * serves it. Reads are in disk_read.c, the merged map of the immutable layers
 * in disk_map.c and disk_build.c, block status in disk_extents.c. What is here
 * has no state but what is fixed at the start and the first failed flush.
 */
#include "blk/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "blk/disk_impl.h"
#include "blk/overlay.h"

/* ---- life ---- */

static void
layer_close(struct layer *l)
{
    if (l != NULL) {
        l->ops->close(l);
    }
}

/* What the top says of itself, and what it needs from below. */
static int
attach_top(struct disk *d, struct layer *top, struct err *e)
{
    struct layer_info info;

    top->ops->info(top, &info);
    if (info.size_bytes < d->size_bytes || top->ops->write == NULL) {
        return err_set(e, EINVAL, "%s: can't take the writes to the disk",
                       info.path);
    }
    disk_source_init(&d->top, top);
    d->has_top = true;
    d->flush_fd = info.flush_fd;
    d->top_is_overlay = strcmp(info.format, "overlay") == 0;
    if (d->top_is_overlay) {
        overlay_set_below(top, disk_read_below, d);
    }
    return 0;
}

static int
disk_init(struct disk *d, struct layer *top, struct layer **layers,
          unsigned layer_count, uint64_t map_bytes, struct err *e)
{
    if (layer_count > DISK_LAYERS_MAX || (layer_count == 0 && top == NULL)) {
        return err_set(e, EINVAL, "a disk can't have %u layers", layer_count);
    }
    if (disk_map_init(&d->map, layers, layer_count, d->size_bytes, map_bytes,
                      e) != 0) {
        return -1;
    }
    return top != NULL ? attach_top(d, top, e) : 0;
}

static void
flush_destroy(struct disk *d)
{
    pthread_cond_destroy(&d->flush_done);
    pthread_mutex_destroy(&d->flush_lock);
}

struct disk *
disk_new(struct layer *top, struct layer **layers, unsigned layer_count,
         uint64_t size_bytes, uint64_t map_bytes, struct err *e)
{
    struct disk *d = calloc(1, sizeof(*d));

    if (d == NULL) {
        err_set(e, ENOMEM, "out of memory");
    } else {
        d->size_bytes = size_bytes;
        d->flush_fd = -1;
        pthread_mutex_init(&d->flush_lock, NULL);
        pthread_cond_init(&d->flush_done, NULL);
        if (disk_init(d, top, layers, layer_count, map_bytes, e) == 0) {
            return d;
        }
        disk_map_destroy(&d->map);
        flush_destroy(d);
        free(d);
    }
    layer_close(top);
    for (unsigned i = 0; i < layer_count; i++) {
        layer_close(layers[i]);
    }
    return NULL;
}

void
disk_free(struct disk *d)
{
    if (d == NULL) {
        return;
    }
    if (d->has_top) {
        layer_close(d->top.layer);
    }
    for (unsigned i = 0; i < d->map.source_count; i++) {
        layer_close(d->map.sources[i].layer);
    }
    disk_map_destroy(&d->map);
    flush_destroy(d);
    free(d);
}

uint64_t
disk_size(const struct disk *d)
{
    return d->size_bytes;
}

bool
disk_writable(const struct disk *d)
{
    return d->has_top;
}

struct layer *
disk_layer(const struct disk *d, unsigned idx)
{
    if (d->has_top && idx == 0) {
        return d->top.layer;
    }
    idx -= d->has_top;
    return idx < d->map.source_count ? d->map.sources[idx].layer : NULL;
}

/* ---- writing ---- */

void
disk_write(struct disk *d, struct layer_write *w, unsigned count)
{
    if (d->has_top) {
        d->top.layer->ops->write(d->top.layer, w, count);
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        w[i].result = -EPERM;
    }
}

int
disk_zero(struct disk *d, uint64_t off, uint64_t len, unsigned flags)
{
    if (!d->has_top) {
        return -EPERM;
    }
    return d->top.layer->ops->zero(d->top.layer, off, len, flags);
}

int
disk_flush_fd(const struct disk *d)
{
    return d->flush_fd;
}

int
disk_flush(struct disk *d)
{
    if (d->flush_fd < 0) {
        return 0;
    }
    pthread_mutex_lock(&d->flush_lock);
    /* The next one to begin covers all that was written before this call; one
     * that runs already may not. */
    uint64_t mine = d->flush_begun + 1;

    while (d->flush_error == 0 && d->flush_finished < mine) {
        if (d->flush_begun > d->flush_finished) {
            pthread_cond_wait(&d->flush_done, &d->flush_lock);
            continue;
        }
        d->flush_begun++;
        pthread_mutex_unlock(&d->flush_lock);
        int err = file_datasync(d->flush_fd);

        pthread_mutex_lock(&d->flush_lock);
        d->flush_finished = d->flush_begun;
        /* Once it failed, nobody knows what of the page cache is lost: a
         * later success would say nothing (S8). */
        if (d->flush_error == 0) {
            d->flush_error = err;
        }
        pthread_cond_broadcast(&d->flush_done);
    }
    int result = d->flush_error;

    pthread_mutex_unlock(&d->flush_lock);
    return result;
}

/* ---- hints and shortcuts ---- */

static int
backing_only(void *arg, const struct extent *e)
{
    (void)arg;
    return e->kind == EXTENT_BACKING ? 0 : 1;
}

/* True if the immutable layers alone answer for the range. */
static bool
is_below_top(struct disk *d, uint64_t off, uint64_t len)
{
    struct layer *top = d->top.layer;
    unsigned pin;
    int err;

    if (!d->has_top) {
        return true;
    }
    if (d->top.flat) {
        return false;
    }
    pin = disk_pin(d);
    err = top->ops->extents(top, off, len, backing_only, NULL);
    disk_unpin(d, pin);
    return err == 0;
}

bool
disk_immutable_range(struct disk *d, uint64_t off, uint64_t len, int *ret_fd,
                     uint64_t *ret_host_off)
{
    const struct disk_piece *piece = NULL;
    struct disk_plan plan;
    int64_t size;
    int fd;

    if (len == 0 || !is_below_top(d, off, len)) {
        return false;
    }
    disk_plan_init(&plan);
    if (disk_map_plan(&d->map, off, len, false, &plan) != 0) {
        return false;
    }
    piece = &plan.pieces[0];
    if (plan.covered_bytes != len || plan.count != 1 ||
        piece->kind != EXTENT_DATA) {
        return false;
    }
    fd = disk_file_fd(piece->file);
    size = file_size(fd);
    if (size < 0 || !range_within(piece->host_off, len, (uint64_t)size)) {
        return false; /* a read knows how to fill in or to fail */
    }
    *ret_fd = fd;
    *ret_host_off = piece->host_off;
    return true;
}

void
disk_will_need(struct disk *d, uint64_t off, uint64_t len)
{
    unsigned pin = disk_pin(d);
    struct disk_plan plan;

    len = min_u64(len, DISK_HINT_BYTES);
    while (len > 0 && disk_plan(d, off, len, true, &plan) == 0) {
        for (unsigned i = 0; i < plan.count; i++) {
            const struct disk_piece *piece = &plan.pieces[i];

            if (piece->kind == EXTENT_DATA) {
                file_will_need(disk_file_fd(piece->file), piece->host_off,
                               piece->len_bytes);
            }
        }
        off += plan.covered_bytes;
        len -= plan.covered_bytes;
    }
    disk_unpin(d, pin);
}

void
disk_usage(struct disk *d, struct disk_usage *ret)
{
    struct layer_info info;

    *ret = (struct disk_usage){.merged_map_bytes = disk_map_bytes(&d->map)};
    if (d->has_top) {
        d->top.layer->ops->info(d->top.layer, &info);
        ret->top_bytes = info.allocated_bytes;
    }
    if (d->top_is_overlay) {
        ret->top_map_bytes = overlay_map_bytes(d->top.layer);
    }
}
