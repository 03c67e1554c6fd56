/* SPDX-License-Identifier: BSD-2-Clause */
/* File systems in memory, as macOS names them: statfs(2). A RAM disk with a
 * real file system on it is not recognised. No state. */
#include <string.h>
#include <sys/mount.h>
#include <sys/param.h>

#include "blk/overlay_dir.h"

bool
overlay_dir_in_memory(const char *dir)
{
    struct statfs fs;

    return statfs(dir, &fs) == 0 && strcmp(fs.f_fstypename, "tmpfs") == 0;
}
