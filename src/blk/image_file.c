/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Opening one file of a stack (image_file.h). No state.
 */
#include "blk/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

/* What to do about a failed open; NULL in `writable`: the same. */
static const struct way_out {
    int code;
    const char *reading;
    const char *writing;
} ways_out[] = {
    {ENOENT, "check the path", NULL},
    {ENOTDIR, "a part of the path is not a directory; check the path", NULL},
    {EACCES, "let this user read the file, or run as one who may",
     "let this user write to the file, or leave it as it is: --ephemeral or "
     "--read-only"},
    {EPERM, "let this user read the file, or run as one who may",
     "the file may be immutable; leave it as it is: --ephemeral or "
     "--read-only"},
    {EROFS, "check the path",
     "leave the file as it is: --ephemeral or --read-only"},
    {EMFILE, "every layer of the chain needs a descriptor: ulimit -n 4096",
     NULL},
    {ENFILE, "the system has no free descriptors", NULL},
    {ELOOP,
     "the path runs through too many symbolic links, or has changed "
     "just now",
     NULL},
    {ETXTBSY, "the file is in use; stop its user", NULL},
    {EBUSY, "the device is in use; unmount it or stop its user", NULL},
    {ENXIO, "no device is behind this name", NULL},
};

static int
explain_open(const struct image_file *f, int code, bool writable, struct err *e)
{
    for (size_t i = 0; i < ARRAY_LEN(ways_out); i++) {
        const struct way_out *w = &ways_out[i];

        if (w->code == code) {
            return err_set(e, code, "%s: %s; %s", f->label, strerror(code),
                           writable && w->writing != NULL ? w->writing
                                                          : w->reading);
        }
    }
    return err_set(e, code, "%s: can't be opened: %s", f->label,
                   strerror(code));
}

/* What a file that is no disk is. */
static const struct kind {
    mode_t mode;
    int code;
    const char *text;
} kinds[] = {
    {S_IFDIR, EISDIR, "is a directory; name the image file in it"},
    {S_IFIFO, EINVAL,
     "is a pipe; only regular files and block devices can hold a disk"},
    {S_IFSOCK, EINVAL,
     "is a socket; only regular files and block devices can hold a disk"},
    {S_IFCHR, EINVAL,
     "is a character device; only regular files and block devices can hold a "
     "disk"},
};

static int
check_kind(const struct image_file *f, const struct stat *st, struct err *e)
{
    if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode)) {
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if ((st->st_mode & S_IFMT) == kinds[i].mode) {
            return err_set(e, kinds[i].code, "%s: %s", f->label, kinds[i].text);
        }
    }
    return err_set(e, EINVAL, "%s: is neither a file nor a block device",
                   f->label);
}

/* Looks at the open file: kind, identity, size. */
static int
examine(struct image_file *f, struct err *e)
{
    struct stat st;
    int64_t size;
    int err;

    if (fstat(f->fd, &st) != 0) {
        return explain_open(f, errno, false, e);
    }
    err = check_kind(f, &st, e);
    if (err != 0) {
        return err;
    }
    /* Two nodes of one device are the same disk. */
    f->is_device = S_ISBLK(st.st_mode);
    f->dev = f->is_device ? st.st_rdev : st.st_dev;
    f->ino = f->is_device ? 0 : st.st_ino;
    size = file_size(f->fd);
    if (size < 0) {
        return err_set(e, (int)-size, "%s: its size can't be had: %s", f->label,
                       strerror((int)-size));
    }
    f->size_bytes = (uint64_t)size;
    return 0;
}

/* A directory on the way may have been replaced since the path was resolved,
 * and O_NOFOLLOW only looks at the last part. */
static int
check_place(const struct image_file *f, const char *path, struct err *e)
{
    char now[PATH_MAX];
    int err = file_path_of(f->fd, now, sizeof(now));

    if (err == -ENOTSUP || (err == 0 && strcmp(now, path) == 0)) {
        return 0;
    }
    return err_set(e, EPERM, "%s: was replaced while it was opened; try again",
                   f->label);
}

int
image_file_open(struct image_file *f, const char *path, const char *name,
                unsigned flags, struct err *e)
{
    bool writable = (flags & IMAGE_FILE_WRITABLE) != 0;
    int mode = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY |
               O_NONBLOCK |
               ((flags & IMAGE_FILE_RESOLVED) != 0 ? O_NOFOLLOW : 0);
    struct stat st;
    int err;

    *f = (struct image_file){.fd = -1};
    log_quote(f->label, sizeof(f->label), name, strlen(name));
    f->path = strdup(name);
    if (f->path == NULL) {
        return err_set(e, ENOMEM, "%s: out of memory", f->label);
    }
    if (stat(path, &st) != 0) {
        err = explain_open(f, errno, writable, e);
    } else {
        err = check_kind(f, &st, e);
    }
    if (err == 0) {
        f->fd = open(path, mode);
        err = f->fd < 0 ? explain_open(f, errno, writable, e) : examine(f, e);
    }
    if (err == 0 && (flags & IMAGE_FILE_RESOLVED) != 0) {
        err = check_place(f, path, e);
    }
    /* It kept a pipe that came in between from hanging us. A ring takes it for
     * a wish that reads of a file never wait. */
    if (err == 0 && fcntl(f->fd, F_SETFL, 0) != 0) {
        err = explain_open(f, errno, writable, e);
    }
    if (err != 0) {
        image_file_clear(f);
    }
    return err;
}

int
image_file_lock(const struct image_file *f, bool writable, struct err *e)
{
    return file_lock_image(f->fd, f->label,
                           writable ? FILE_LOCK_WRITE : FILE_LOCK_BASE, e);
}

int
image_file_take_fd(struct image_file *f)
{
    int fd = f->fd;

    f->fd = -1;
    return fd;
}

void
image_file_clear(struct image_file *f)
{
    file_close_ptr(&f->fd);
    free(f->path);
    f->path = NULL;
}

bool
image_file_same(const struct image_file *a, const struct image_file *b)
{
    return a->is_device == b->is_device && a->dev == b->dev && a->ino == b->ino;
}
