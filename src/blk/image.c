/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Opening a disk (image.h): decides formats, follows names by the policy of
 * image_name.c, opens and locks files through image_file.c, stacks the layers
 * and puts the volatile overlay on top. One thread, at start; what it builds
 * is handed to the disk whole, or not at all.
 */
#include "blk/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "blk/image_file.h"
#include "blk/image_name.h"
#include "blk/overlay.h"
#include "blk/overlay_dir.h"
#include "blk/probe.h"
#include "blk/qcow2/qcow2.h"
#include "blk/raw.h"
#include "blk/window.h"

#define SECTOR_BYTES 512u

/* A chain while it is opened, from the top down. */
struct chain {
    const struct image_options *options; /* borrowed */
    struct layer **layers;               /* owned, top first */
    struct image_file *files; /* owned; every file so far, to see loops.
                                 Their descriptors are the layers' */
    unsigned layer_count, file_count;
    struct layer *top;   /* borrowed from layers */
    uint64_t size_bytes; /* the top's */
    struct name_policy policy;
    bool writable; /* the top takes writes in place */
    bool guard;    /* it was probed as raw */
    struct err *e; /* borrowed, may be NULL */
};

/* The next image to open: nothing, or what a header names. */
struct next {
    bool more;
    enum image_format format;
    struct image_file file;
};

static const struct {
    const char *name;
    enum image_format format;
} format_names[] = {
    {"raw", IMAGE_RAW},
    {"qcow2", IMAGE_QCOW2},
};

bool
image_format_parse(const char *name, enum image_format *ret)
{
    for (size_t i = 0; i < ARRAY_LEN(format_names); i++) {
        if (strcmp(name, format_names[i].name) == 0) {
            *ret = format_names[i].format;
            return true;
        }
    }
    return false;
}

/* ---- the chain as a list ---- */

/* Takes over `l`, also on failure. */
static int
push_layer(struct chain *c, struct layer *l)
{
    struct layer **layers =
        realloc(c->layers, (c->layer_count + 1) * sizeof(struct layer *));

    if (layers == NULL) {
        l->ops->close(l);
        return err_set(c->e, ENOMEM, "out of memory");
    }
    if (c->layer_count == 0) {
        struct layer_info info;

        l->ops->info(l, &info);
        c->top = l;
        c->size_bytes = info.size_bytes;
    }
    c->layers = layers;
    c->layers[c->layer_count++] = l;
    return 0;
}

/* Remembers which file `f` is. -ELOOP if it is in the chain already. */
static int
remember_file(struct chain *c, const struct image_file *f)
{
    struct image_file *files;

    for (unsigned i = 0; i < c->file_count; i++) {
        if (image_file_same(&c->files[i], f)) {
            return err_set(c->e, ELOOP,
                           "%s: is already part of this chain, as %s: the "
                           "images name each other in a circle",
                           f->label, c->files[i].label);
        }
    }
    files = realloc(c->files, (c->file_count + 1) * sizeof(*files));
    if (files == NULL) {
        return err_set(c->e, ENOMEM, "out of memory");
    }
    c->files = files;
    c->files[c->file_count] = *f;
    c->files[c->file_count].fd = -1;
    c->files[c->file_count].path = NULL;
    c->file_count++;
    return 0;
}

static void
chain_clear(struct chain *c)
{
    for (unsigned i = 0; i < c->layer_count; i++) {
        c->layers[i]->ops->close(c->layers[i]);
    }
    free(c->layers);
    free(c->files);
    name_policy_clear(&c->policy);
}

/* ---- files that images name ---- */

/*
 * Opens the file that the image in `from` names as its `role` ("backing
 * file"), locked for reading.
 */
static int
follow(struct chain *c, const struct image_file *from, const char *role,
       const char *name, struct image_file *ret)
{
    char *path = NULL, *real = NULL;
    char quoted[256];
    int err = 0;

    /* What looks like qcow2 may be a raw disk whose guest wrote a header, to
     * be shown other people's files at the next start. */
    if (c->options->format == IMAGE_FORMAT_UNSET &&
        !c->options->probe_writable) {
        return err_set(c->e, EPERM,
                       "%s: looks like a qcow2 image with a %s; a raw disk's "
                       "guest could have made it so. If it is qcow2, say so: "
                       "-f qcow2",
                       from->label, role);
    }
    if (c->policy.roots == NULL) {
        err = name_policy_init(&c->policy, c->options->path,
                               c->options->allow_paths, c->e);
        if (err != 0) {
            return err;
        }
    }
    err = name_policy_follow(&c->policy, from->path, name, &path, &real, c->e);
    if (err == 0) {
        err = image_file_open(ret, real, path, IMAGE_FILE_RESOLVED, c->e);
    }
    if (err == 0) {
        if (ret->is_device && !name_policy_is_allowed(&c->policy, real)) {
            err = err_set(c->e, EPERM,
                          "%s: is a device; if you trust this image, allow it: "
                          "--allow-path DIRECTORY",
                          ret->label);
        }
        if (err == 0) {
            err = remember_file(c, ret);
        }
        if (err == 0) {
            err = image_file_lock(ret, false, c->e);
        }
        if (err != 0) {
            image_file_clear(ret);
        }
    }
    free(path);
    free(real);
    if (err != 0) {
        log_quote(quoted, sizeof(quoted), name, strlen(name));
        err_prefix(c->e, "%s: its %s \"%s\"", from->label, role, quoted);
    }
    return err;
}

/* The format that `f` declares for its backing file; never guessed. */
static int
backing_format(struct chain *c, const struct image_file *f,
               const struct qcow2_names *names, enum image_format *ret)
{
    char name[256], format[256];

    if (image_format_parse(names->backing_format, ret)) {
        return 0;
    }
    log_quote(name, sizeof(name), names->backing, strlen(names->backing));
    if (names->backing_format[0] == '\0') {
        return err_set(c->e, EPERM,
                       "%s: it does not say which format its backing file "
                       "\"%s\" has, and guessing would let a guest choose. "
                       "Declare it: qemu-img rebase -u -F raw|qcow2 -b '%s' "
                       "'%s'",
                       f->label, name, name, f->label);
    }
    log_quote(format, sizeof(format), names->backing_format,
              strlen(names->backing_format));
    return err_set(c->e, ENOTSUP,
                   "%s: its backing file \"%s\" is declared to have the format "
                   "\"%s\"; raw and qcow2 are supported. Convert it (qemu-img "
                   "convert -O qcow2), or correct the declaration (qemu-img "
                   "rebase -u -F FORMAT -b FILE)",
                   f->label, name, format);
}

static int
follow_backing(struct chain *c, const struct image_file *f,
               const struct qcow2_names *names, struct next *ret)
{
    int err;

    ret->more = false;
    if (!names->has_backing) {
        return 0;
    }
    if (c->layer_count >= IMAGE_DEPTH_MAX) {
        return err_set(c->e, ELOOP,
                       "%s: more than %u images on top of each other", f->label,
                       IMAGE_DEPTH_MAX);
    }
    err = backing_format(c, f, names, &ret->format);
    if (err == 0) {
        err = follow(c, f, "backing file", names->backing, &ret->file);
    }
    ret->more = err == 0;
    return err;
}

/* ---- layers ---- */

/* A layer has failed to open and has said why. */
static int
open_failed(const struct chain *c)
{
    return c->e->code > 0 ? -c->e->code : -EIO;
}

static int
add_raw(struct chain *c, struct image_file *f)
{
    bool top = c->layer_count == 0;
    uint64_t offset = c->options->offset_bytes;
    struct raw_options options = {
        .path = f->label,
        .offset_bytes = offset,
        .size_bytes = max_u64(f->size_bytes, offset) - offset,
        .writable = top && c->writable,
        .ignore_trim = c->options->ignore_trim,
        .guard_first_sector = top && c->guard,
    };
    struct layer *l;

    l = raw_open(image_file_take_fd(f), &options, c->e);
    return l != NULL ? push_layer(c, l) : open_failed(c);
}

static int
open_data_file(struct chain *c, const struct image_file *f,
               const struct qcow2_names *names, struct image_file *ret)
{
    *ret = (struct image_file){.fd = -1};
    if (!names->has_data_file) {
        return 0;
    }
    if (names->data_file[0] == '\0') {
        return err_set(c->e, EINVAL,
                       "%s: its data lies in an external file that it does "
                       "not name; store the name in it: qemu-img amend -o "
                       "data_file=NAME",
                       f->label);
    }
    return follow(c, f, "data file", names->data_file, ret);
}

/* Adds the layer of `f` and opens what lies below it. */
static int
add_qcow2(struct chain *c, struct image_file *f, struct next *ret)
{
    const char *snapshot = c->layer_count == 0 ? c->options->snapshot : NULL;
    uint64_t offset = c->options->offset_bytes;
    struct image_file data_file;
    struct qcow2_names names;
    struct layer *l;
    int err = qcow2_probe(f->fd, f->label, snapshot, &names, c->e);

    if (err == 0) {
        err = open_data_file(c, f, &names, &data_file);
    }
    if (err != 0) {
        return err;
    }
    l = qcow2_open(image_file_take_fd(f), image_file_take_fd(&data_file),
                   f->label, snapshot, c->e);
    image_file_clear(&data_file);
    if (l != NULL && offset != 0) {
        l = window_open(l, offset, c->e);
    }
    if (l == NULL) {
        return open_failed(c);
    }
    err = push_layer(c, l);
    return err != 0 ? err : follow_backing(c, f, &names, ret);
}

/* ---- the top ---- */

/* What the bytes of the top image look like. */
static int
probe_top(struct chain *c, const struct image_file *f, enum image_format *ret)
{
    uint8_t bytes[PROBE_BYTES];
    ssize_t n = file_pread(f->fd, bytes, sizeof(bytes), 0);
    const struct probe_format *format;

    if (n < 0) {
        return err_set(c->e, (int)-n, "%s: can't be read: %s", f->label,
                       strerror((int)-n));
    }
    format = probe_format_of(bytes, (size_t)n);
    if (format == NULL || format->qcow2) {
        *ret = format == NULL ? IMAGE_RAW : IMAGE_QCOW2;
        return 0;
    }
    if (format->way_out != NULL) {
        return err_set(c->e, ENOTSUP, "%s: is %s, which is not supported; %s",
                       f->label, format->name, format->way_out);
    }
    return err_set(c->e, ENOTSUP,
                   "%s: is %s, which is not supported; convert it: qemu-img "
                   "convert -O qcow2 '%s' NEW.qcow2",
                   f->label, format->name, f->label);
}

/* Format and use of the top must fit (H4). */
static int
decide_top(struct chain *c, const struct image_file *f, enum image_format *ret)
{
    bool declared = c->options->format != IMAGE_FORMAT_UNSET;
    int err = 0;

    *ret = c->options->format;
    if (!declared) {
        err = probe_top(c, f, ret);
    }
    if (err != 0) {
        return err;
    }
    if (*ret != IMAGE_QCOW2 && c->options->snapshot != NULL) {
        return err_set(c->e, EINVAL,
                       "%s: a raw image has no internal snapshots", f->label);
    }
    if (!c->writable) {
        return 0;
    }
    if (*ret == IMAGE_QCOW2) {
        return err_set(c->e, ENOTSUP,
                       "%s: writing to a qcow2 image in place is not "
                       "supported; add --ephemeral (writes are thrown away at "
                       "the end) or --read-only",
                       f->label);
    }
    if (declared) {
        return 0;
    }
    if (!c->options->probe_writable) {
        return err_set(c->e, EPERM,
                       "%s: the format of a writable image must be declared, "
                       "because a guest could change what it looks like: add "
                       "-f raw, or --ephemeral or --read-only",
                       f->label);
    }
    c->guard = true;
    log_warn("%s: no format was given and it looks raw; writes that would make "
             "its first sector look like another format are refused. To "
             "declare it: -f raw",
             f->label);
    return 0;
}

static int
open_top(struct chain *c, struct next *ret)
{
    const struct image_options *o = c->options;
    /* A qcow2 image, or one of undeclared format, is refused anyway; opening
     * it for reading only lets that be said of a read-only file too. */
    bool rw = c->writable &&
              (o->format == IMAGE_RAW ||
               (o->format == IMAGE_FORMAT_UNSET && o->probe_writable));
    int err = image_file_open(&ret->file, o->path, o->path,
                              rw ? IMAGE_FILE_WRITABLE : 0, c->e);

    if (err != 0) {
        if (err == -ENOENT && name_is_protocol(o->path)) {
            err_prefix(c->e, "only files and block devices can be served");
        }
        return err;
    }
    err = decide_top(c, &ret->file, &ret->format);
    if (err == 0) {
        err = remember_file(c, &ret->file);
    }
    if (err == 0) {
        err = image_file_lock(&ret->file, c->writable, c->e);
    }
    if (err != 0) {
        image_file_clear(&ret->file);
    }
    ret->more = err == 0;
    return err;
}

static int
open_chain(struct chain *c)
{
    struct next next = {.more = false};
    int err = open_top(c, &next);

    if (err != 0) {
        return err;
    }
    do {
        struct image_file file = next.file;

        next.more = false;
        err = next.format == IMAGE_RAW ? add_raw(c, &file)
                                       : add_qcow2(c, &file, &next);
        image_file_clear(&file);
    } while (err == 0 && next.more);
    return err;
}

/* ---- the disk ---- */

/* Hands the chain's layers over to a disk. */
static struct disk *
make_disk(struct chain *c)
{
    const struct image_options *o = c->options;
    uint64_t map_bytes = o->map_bytes != 0 ? o->map_bytes
                                           : DISK_MAP_BYTES_DEFAULT;
    uint64_t size = c->size_bytes;
    unsigned first = 0, count = c->layer_count;
    struct layer *top = NULL;

    if (c->writable) {
        top = c->top;
        first = 1;
    } else {
        /* Zeroes fill up the last sector. */
        size = round_up(size, SECTOR_BYTES);
    }
    if (o->ephemeral && !o->read_only) {
        struct overlay_options overlay = {
            .dir = overlay_dir_choose(o->overlay_dir), .size_bytes = size};

        top = overlay_new(&overlay, c->e);
        if (top == NULL) {
            return NULL;
        }
    }
    c->layer_count = 0;
    return disk_new(top, c->layers + first, count - first, size, map_bytes,
                    c->e);
}

struct disk *
image_open(const struct image_options *options, struct err *e)
{
    struct err scratch;
    struct chain c = {
        .options = options,
        .writable = !options->ephemeral && !options->read_only &&
                    options->snapshot == NULL,
        .e = e != NULL ? e : &scratch,
    };
    struct disk *d = NULL;
    int err = open_chain(&c);

    if (err == 0 && options->offset_bytes != 0 && c.size_bytes == 0) {
        err = err_set(c.e, EINVAL,
                      "%s: an offset of %llu bytes is beyond the disk's end",
                      options->path, (unsigned long long)options->offset_bytes);
    }
    if (err == 0) {
        d = make_disk(&c);
    }
    chain_clear(&c);
    return d;
}
