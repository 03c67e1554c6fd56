/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * QEMU's image locks: see file.h for the contract. No state here; the locks
 * belong to the open file description and go with it. Whoever wants a
 * permission first takes its bytes, shared, and then looks whether anybody
 * holds an opposite one; so two that exclude each other may both be refused,
 * but never both let in. Works on Linux (since 3.15) and macOS alike.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"

#ifndef F_OFD_SETLK /* macOS headers that hide them; old kernels say EINVAL */
#define F_OFD_SETLK 90
#define F_OFD_GETLK 92
#endif

/* First byte of "I use permission p" and of "nobody else may". */
#define USED_BYTE 100
#define DENIED_BYTE 200

enum {
    PERM_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_WRITE_UNCHANGED = 1 << 2,
    PERM_RESIZE = 1 << 3,
    PERM_COUNT = 4,
};

static const struct lock_rule {
    unsigned used;
    unsigned denied; /* to others */
} lock_rules[] = {
    [FILE_LOCK_BASE] = {PERM_READ, PERM_WRITE | PERM_RESIZE},
    [FILE_LOCK_WRITE] = {PERM_READ | PERM_WRITE | PERM_RESIZE,
                         PERM_WRITE | PERM_RESIZE},
};

static int
lock_byte(int fd, int command, short type, off_t byte, short *ret_type)
{
    struct flock lock = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = byte,
        .l_len = 1,
    };
    int r;

    do {
        r = fcntl(fd, command, &lock);
    } while (r != 0 && errno == EINTR);
    if (r != 0) {
        return -errno;
    }
    if (ret_type != NULL) {
        *ret_type = lock.l_type;
    }
    return 0;
}

/* Locks or unlocks the bytes of all permissions in `perms`. */
static int
set_bytes(int fd, unsigned perms, off_t first, short type)
{
    for (unsigned p = 0; p < PERM_COUNT; p++) {
        int r = 0;

        if ((perms & (1u << p)) != 0) {
            r = lock_byte(fd, F_OFD_SETLK, type, first + p, NULL);
        }
        if (r != 0) {
            return r;
        }
    }
    return 0;
}

/* -EBUSY if anyone else holds one of these bytes. Our own locks do not count:
 * they belong to the same open file description. */
static int
test_bytes(int fd, unsigned perms, off_t first)
{
    for (unsigned p = 0; p < PERM_COUNT; p++) {
        short found = F_UNLCK;
        int r = 0;

        if ((perms & (1u << p)) != 0) {
            r = lock_byte(fd, F_OFD_GETLK, F_WRLCK, first + p, &found);
        }
        if (r != 0) {
            return r;
        }
        if (found != F_UNLCK) {
            return -EBUSY;
        }
    }
    return 0;
}

static const char why_alone[] =
    "another process has it for itself alone; stop that process, or use a "
    "copy of the file";
static const char why_written[] =
    "another process has it open for writing (a running virtual machine, or "
    "one of QEMU's tools); stop that process first, or use a copy of the file";
static const char why_read[] =
    "another process reads it and relies on it not to change; stop that "
    "process first, or do not write to the file (an ephemeral disk leaves it "
    "as it is)";

/* 0 or -errno; if another process is in the way, *ret_why says how. */
static int
take(int fd, const struct lock_rule *rule, const char **ret_why)
{
    int r = set_bytes(fd, rule->used, USED_BYTE, F_RDLCK);

    *ret_why = why_alone;
    if (r == 0) {
        r = set_bytes(fd, rule->denied, DENIED_BYTE, F_RDLCK);
    }
    if (r != 0) {
        return r;
    }
    r = test_bytes(fd, rule->denied, USED_BYTE);
    if (r != 0) {
        *ret_why = why_written;
        return r;
    }
    if ((rule->used & PERM_WRITE) != 0) {
        *ret_why = why_read;
    }
    return test_bytes(fd, rule->used, DENIED_BYTE);
}

static bool
locks_unknown(int code)
{
    return code == EINVAL || code == ENOLCK || code == ENOSYS ||
           code == ENOTSUP || code == EOPNOTSUPP || code == ENOTTY;
}

int
file_lock_image(int fd, const char *path, enum file_lock lock, struct err *e)
{
    const struct lock_rule *rule = &lock_rules[lock];
    const char *why;
    int r = take(fd, rule, &why);

    if (r == 0) {
        return 0;
    }
    (void)set_bytes(fd, rule->used, USED_BYTE, F_UNLCK);
    (void)set_bytes(fd, rule->denied, DENIED_BYTE, F_UNLCK);
    if (locks_unknown(-r)) {
        return 0;
    }
    if (r == -EBUSY || r == -EAGAIN || r == -EACCES) {
        return err_set(e, EBUSY, "%s: in use: %s", path, why);
    }
    return err_set(e, -r, "%s: cannot lock it: %s", path, strerror(-r));
}
