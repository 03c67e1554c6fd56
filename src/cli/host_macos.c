/* SPDX-License-Identifier: BSD-2-Clause */
/* What doctor asks of macOS (host.h). No state. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/clonefile.h>
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/sysctl.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/host.h"

/* Declared by no header there; environ(7). */
extern char **environ;

#ifndef F_OFD_GETLK /* not in every SDK's headers */
#define F_OFD_GETLK 92
#endif

void
host_filesystem(const char *dir, char *buf, size_t cap)
{
    struct statfs fs;

    snprintf(buf, cap, "%s",
             statfs(dir, &fs) == 0 ? fs.f_fstypename : "unknown");
}

/* clonefile(2) wants names. */
int
host_try_clone(const char *dir)
{
    cleanup_fd int fd = -1;
    char from[PATH_MAX], to[PATH_MAX + 8];
    int r = 0;

    if (snprintf(from, sizeof(from), "%s/rewind-doctor.XXXXXX", dir) >=
        (int)sizeof(from)) {
        return -ENAMETOOLONG;
    }
    fd = mkstemp(from);
    if (fd < 0) {
        return -errno;
    }
    snprintf(to, sizeof(to), "%s.clone", from);
    if (clonefile(from, to, 0) != 0) {
        r = errno == ENOTSUP ? -EOPNOTSUPP : -errno;
    } else {
        (void)unlink(to);
    }
    (void)unlink(from);
    return r;
}

bool
host_has_locks(int fd)
{
    struct flock lock = {
        .l_type = F_RDLCK,
        .l_whence = SEEK_SET,
        .l_start = 100,
        .l_len = 1,
    };

    return fcntl(fd, F_OFD_GETLK, &lock) == 0;
}

char **
host_environment(void)
{
    return environ;
}

const char *
host_hypervisor(void)
{
    return "Hypervisor.framework";
}

int
host_try_hypervisor(struct err *e)
{
    int has = 0;
    size_t len = sizeof(has);

    if (sysctlbyname("kern.hv_support", &has, &len, NULL, 0) != 0 || !has) {
        return err_set(e, ENODEV,
                       "sysctl kern.hv_support says that this Mac "
                       "cannot");
    }
    return 0;
}
