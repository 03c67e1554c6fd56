/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The policy for names in images (image_name.h): resolves them, opens nothing.
 * CVE-2024-4467 and CVE-2024-32498 are what it is against. A local user who
 * may write to the image's folder can swap a link between check and open; so
 * the opener refuses a link where the resolved path has none.
 */
#include "blk/image_name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* How to change a name in an image. */
#define STORE_PATH                                                             \
    "(qemu-img rebase -u -b PATH -F FORMAT, or for a data "                    \
    "file qemu-img amend -o data_file=PATH)"

bool
name_is_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

/* The directory part of `path`, with its slash at the end; "" if it has
 * none. Sets *ret_len. */
static size_t
dir_bytes(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? (size_t)(slash - path) + 1 : 0;
}

static int
add_root(struct name_policy *p, char *root)
{
    char **roots = realloc(p->roots, (p->root_count + 1) * sizeof(*roots));

    if (roots == NULL || root == NULL) {
        free(root);
        p->roots = roots != NULL ? roots : p->roots;
        return -ENOMEM;
    }
    p->roots = roots;
    p->roots[p->root_count++] = root;
    return 0;
}

/* The folder of the file behind `path`. */
static int
add_own_folder(struct name_policy *p, const char *path)
{
    char *real = realpath(path, NULL);
    size_t len;

    if (real == NULL) {
        return -errno;
    }
    len = dir_bytes(real);
    real[len > 1 ? len - 1 : len] = '\0';
    return add_root(p, real);
}

int
name_policy_init(struct name_policy *p, const char *path,
                 const char *const *allow_paths, struct err *e)
{
    int err;

    *p = (struct name_policy){0};
    err = add_own_folder(p, path);
    if (err != 0) {
        err_set(e, -err, "%s: its folder can't be found: %s", path,
                strerror(-err));
    }
    for (size_t i = 0; err == 0 && allow_paths != NULL && allow_paths[i]; i++) {
        char *real = realpath(allow_paths[i], NULL);

        err = real != NULL ? add_root(p, real) : -errno;
        if (err != 0) {
            err_set(e, -err, "%s: this allowed path can't be used: %s",
                    allow_paths[i], strerror(-err));
        }
    }
    if (err != 0) {
        name_policy_clear(p);
    }
    return err;
}

void
name_policy_clear(struct name_policy *p)
{
    for (size_t i = 0; i < p->root_count; i++) {
        free(p->roots[i]);
    }
    free(p->roots);
    *p = (struct name_policy){0};
}

static bool
is_inside(const char *root, const char *real)
{
    size_t len = strlen(root);

    if (len > 0 && root[len - 1] == '/') {
        len--;
    }
    return strncmp(root, real, len) == 0 && real[len] == '/';
}

/* The path of `name` as seen from the image at `from`. NULL without memory. */
static char *
join(const char *from, const char *name)
{
    size_t dir = name[0] == '/' ? 0 : dir_bytes(from);
    size_t len = strlen(name) + 1;
    char *path = malloc(dir + len);

    if (path != NULL) {
        memcpy(path, from, dir);
        memcpy(path + dir, name, len);
    }
    return path;
}

/* Fills in what is to be said of `real` lying outside. */
static int
refuse_outside(const struct name_policy *p, char *real, struct err *e)
{
    char quoted[400], folder[400];

    log_quote(quoted, sizeof(quoted), real, strlen(real));
    real[dir_bytes(real)] = '\0';
    log_quote(folder, sizeof(folder), real, strlen(real));
    return err_set(e, EPERM,
                   "leads to %s, which lies outside of the image's folder %s; "
                   "if you trust this image, allow it: --allow-path %s",
                   quoted, p->roots[0], folder);
}

bool
name_policy_is_allowed(const struct name_policy *p, const char *real)
{
    for (size_t i = 1; i < p->root_count; i++) {
        if (is_inside(p->roots[i], real)) {
            return true;
        }
    }
    return false;
}

int
name_policy_follow(const struct name_policy *p, const char *from,
                   const char *name, char **ret_path, char **ret_real,
                   struct err *e)
{
    char quoted[400];
    char *path, *real;
    int err;

    if (name_is_protocol(name)) {
        return err_set(e, EPERM,
                       "names a protocol, not a file, and is not followed; if "
                       "it is a file's name, store it as ./NAME " STORE_PATH);
    }
    path = join(from, name);
    if (path == NULL) {
        return err_set(e, ENOMEM, "out of memory");
    }
    real = realpath(path, NULL);
    if (real == NULL) {
        err = -errno;
        log_quote(quoted, sizeof(quoted), path, strlen(path));
        err_set(e, -err,
                "can't be found at %s: %s; put it there, or store where it "
                "is " STORE_PATH,
                quoted, strerror(-err));
        free(path);
        return err;
    }
    for (size_t i = 0; i < p->root_count; i++) {
        if (is_inside(p->roots[i], real)) {
            *ret_path = path;
            *ret_real = real;
            return 0;
        }
    }
    err = refuse_outside(p, real, e);
    free(path);
    free(real);
    return err;
}
