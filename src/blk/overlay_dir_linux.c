/* SPDX-License-Identifier: BSD-2-Clause */
/* File systems in memory, as Linux names them: statfs(2). No state. */
#include <sys/vfs.h>

#include "blk/overlay_dir.h"

#define TMPFS 0x01021994
#define RAMFS 0x858458f6

bool
overlay_dir_in_memory(const char *dir)
{
    struct statfs fs;

    return statfs(dir, &fs) == 0 &&
           ((unsigned)fs.f_type == TMPFS || (unsigned)fs.f_type == RAMFS);
}
