/* SPDX-License-Identifier: BSD-2-Clause */
/* What doctor asks of Linux (host.h). No state. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "cli/host.h"

/* statfs(2)'s f_type; the headers have only some of them. */
static const struct {
    uint32_t magic;
    const char *name;
} filesystems[] = {
    {0xef53, "ext4"},      {0x58465342, "xfs"},   {0x9123683e, "btrfs"},
    {0x01021994, "tmpfs"}, {0x858458f6, "ramfs"}, {0x794c7630, "overlayfs"},
    {0x2fc12fc1, "zfs"},   {0xf2f52010, "f2fs"},  {0xca451a4e, "bcachefs"},
    {0x6969, "nfs"},       {0xff534d42, "cifs"},  {0xfe534d42, "smb2"},
    {0x65735546, "fuse"},  {0x01021997, "9p"},    {0x4d44, "vfat"},
    {0x2011bab0, "exfat"}, {0x00c36400, "ceph"},  {0x5346544e, "ntfs"},
};

void
host_filesystem(const char *dir, char *buf, size_t cap)
{
    struct statfs fs;

    if (statfs(dir, &fs) != 0) {
        snprintf(buf, cap, "unknown");
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(filesystems); i++) {
        if (filesystems[i].magic == (uint32_t)fs.f_type) {
            snprintf(buf, cap, "%s", filesystems[i].name);
            return;
        }
    }
    snprintf(buf, cap, "type 0x%x", (unsigned)fs.f_type);
}

int
host_try_clone(const char *dir)
{
    cleanup_fd int from = file_open_unnamed(dir, NULL);
    cleanup_fd int to = file_open_unnamed(dir, NULL);
    char block[4096] = {1};

    if (from < 0 || to < 0) {
        return from < 0 ? from : to;
    }
    int r = file_pwrite(from, block, sizeof(block), 0);

    if (r == 0 && ioctl(to, FICLONE, from) != 0) {
        /* They have as many words for it as there are file systems. */
        r = errno == EINVAL || errno == ENOTTY || errno == ENOSYS ? -EOPNOTSUPP
                                                                  : -errno;
    }
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
    return "KVM";
}

#if defined(__x86_64__) || defined(__i386__)
/* /dev/kvm can be there without the processor's help; then Linux guests do not
 * run, or slower than under emulation. */
static bool
cpu_has_virtualization(void)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[8192];
    bool found = false;

    while (f != NULL && !found && fgets(line, sizeof(line), f) != NULL) {
        found = strncmp(line, "flags", 5) == 0 &&
                (strstr(line, " vmx") != NULL || strstr(line, " svm") != NULL);
    }
    if (f != NULL) {
        fclose(f);
    }
    return found;
}
#else
/* Where the kernel has KVM, the processor can do it. */
static bool
cpu_has_virtualization(void)
{
    return true;
}
#endif

int
host_try_hypervisor(struct err *e)
{
    cleanup_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        return err_set(e, errno, "cannot open /dev/kvm: %s%s", strerror(errno),
                       errno == EACCES ? " (is your user in the group kvm?)"
                                       : "");
    }
    if (!cpu_has_virtualization()) {
        return err_set(e, ENODEV,
                       "/dev/kvm is there, but the processor shows "
                       "neither vmx nor svm");
    }
    return 0;
}
