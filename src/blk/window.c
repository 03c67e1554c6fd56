/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The window layer (window.h): owns the layer behind it and moves guest
 * offsets, nothing else. No state after open; any thread.
 */
#include "blk/window.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"

struct window {
    struct layer layer;
    struct layer *inner; /* owned */
    uint64_t offset_bytes;
};

/* Hands extents on at the guest offsets of the window. */
struct shift {
    uint64_t offset_bytes;
    extent_fn *fn;
    void *arg; /* borrowed from the caller of extents */
};

static struct window *
window_of(struct layer *l)
{
    return container_of(l, struct window, layer);
}

static void
window_info(struct layer *l, struct layer_info *ret)
{
    struct window *w = window_of(l);

    w->inner->ops->info(w->inner, ret);
    ret->size_bytes = max_u64(ret->size_bytes, w->offset_bytes) -
                      w->offset_bytes;
    ret->writable = false;
    ret->flush_fd = -1;
}

static int
shift_extent(void *arg, const struct extent *extent)
{
    const struct shift *s = arg;
    struct extent shifted = *extent;

    shifted.guest_off -= s->offset_bytes;
    return s->fn(s->arg, &shifted);
}

static int
window_extents(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
               void *arg)
{
    struct window *w = window_of(l);
    struct shift s = {.offset_bytes = w->offset_bytes, .fn = fn, .arg = arg};

    return w->inner->ops->extents(w->inner, w->offset_bytes + off, len,
                                  shift_extent, &s);
}

/* An extent names the inner layer, so this serves only callers that know the
 * layer from the stack. */
static int
window_read_packed(struct layer *l, const struct extent *e, void *buf,
                   size_t len)
{
    struct window *w = window_of(l);

    if (w->inner->ops->read_packed == NULL) {
        return -EIO;
    }
    return w->inner->ops->read_packed(w->inner, e, buf, len);
}

static bool
window_flat(struct layer *l, struct extent *ret)
{
    struct window *w = window_of(l);

    if (w->inner->ops->flat == NULL || !w->inner->ops->flat(w->inner, ret)) {
        return false;
    }
    ret->host_off += w->offset_bytes;
    ret->len_bytes = max_u64(ret->len_bytes, w->offset_bytes) - w->offset_bytes;
    return true;
}

static void
window_close(struct layer *l)
{
    struct window *w = window_of(l);

    w->inner->ops->close(w->inner);
    free(w);
}

static const struct layer_ops window_ops = {
    .format = "window",
    .info = window_info,
    .extents = window_extents,
    .read_packed = window_read_packed,
    .flat = window_flat,
    .close = window_close,
};

struct layer *
window_open(struct layer *inner, uint64_t offset_bytes, struct err *e)
{
    struct window *w = calloc(1, sizeof(*w));

    if (w == NULL) {
        inner->ops->close(inner);
        err_set(e, ENOMEM, "out of memory");
        return NULL;
    }
    w->layer.ops = &window_ops;
    w->inner = inner;
    w->offset_bytes = offset_bytes;
    return &w->layer;
}
