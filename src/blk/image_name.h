/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BLK_IMAGE_NAME_H
#define REWIND_BLK_IMAGE_NAME_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/*
 * What an image may say about other files. A name in an image is hostile: it
 * is followed only to a file that lies, after all symbolic links, in the
 * folder of the top image's own file, in a folder below it, or in a directory
 * that the user allows.
 *
 * A relative name starts at the directory of the path by which the naming
 * image was reached, as in QEMU; symbolic links are not resolved before.
 */
struct name_policy {
    char **roots; /* owned; resolved; the image's own folder is the first */
    size_t root_count;
};

/* `path` is the top image's, which exists; `allow_paths` as in image_options.
 * 0 or -errno with `e` set. */
int name_policy_init(struct name_policy *p, const char *path,
                     const char *const *allow_paths, struct err *e);
void name_policy_clear(struct name_policy *p);

/*
 * Where `name`, found in the image reached by `from`, leads. Sets
 * *ret_path (to reach it by) and *ret_real (without symbolic links), both
 * owned by the caller. 0 or -errno with `e` set: a protocol, a missing file, a
 * place that the policy forbids.
 */
int name_policy_follow(const struct name_policy *p, const char *from,
                       const char *name, char **ret_path, char **ret_real,
                       struct err *e);

/* True if `real`, without symbolic links, lies in a directory that the user
 * has allowed; the image's own folder does not count. */
bool name_policy_is_allowed(const struct name_policy *p, const char *real);

/* A name like "json:{...}" or "nbd://host": letters before a colon, as QEMU
 * sees it. Write ./a:b for a file of such a name. */
bool name_is_protocol(const char *name);

#endif
