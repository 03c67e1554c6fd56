/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_IMAGE_FILE_H
#define REWIND_BLK_IMAGE_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* An open file that holds an image or an image's data. */
struct image_file {
    int fd;          /* owned, CLOEXEC */
    char *path;      /* owned; what names in it start from */
    char label[512]; /* the path, safe to print */
    dev_t dev;       /* with ino: which file it is, by any name */
    ino_t ino;
    bool is_device;
    uint64_t size_bytes;
};

enum image_file_flags {
    IMAGE_FILE_WRITABLE = 1 << 0,
    IMAGE_FILE_RESOLVED = 1 << 1, /* the path has no symbolic link; if it has
                                     got one since, refuse it */
};

/*
 * Opens `path`, reached by the name `name` (copied). Only regular files and
 * block devices are accepted; nothing else is even opened, because that may
 * hang or have effects. Does not lock. 0 or -errno with `e` set: file, cause,
 * way out.
 */
int image_file_open(struct image_file *f, const char *path, const char *name,
                    unsigned flags, struct err *e);

/* The lock for reading only or for writing (S6). */
int image_file_lock(const struct image_file *f, bool writable, struct err *e);

/* Hands the descriptor over. */
int image_file_take_fd(struct image_file *f);

/* Closes and frees what is left; a zeroed struct with fd -1 is fine. */
void image_file_clear(struct image_file *f);

bool image_file_same(const struct image_file *a, const struct image_file *b);

#endif
