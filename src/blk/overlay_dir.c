/* SPDX-License-Identifier: BSD-2-Clause */
/* Where overlays go (overlay_dir.h). Remembers only that it has warned. */
#include "blk/overlay_dir.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/log.h"

const char *
overlay_dir_choose(const char *asked)
{
    static atomic_bool told;
    const char *dir = asked;

    if (dir == NULL) {
        dir = getenv("TMPDIR");
    }
    if (dir == NULL || dir[0] == '\0') {
        dir = "/var/tmp";
    }
    if (overlay_dir_in_memory(dir) && !atomic_exchange(&told, true)) {
        log_warn("%s is kept in memory: what is written to an ephemeral disk "
                 "will take RAM; for a directory on a disk: --overlay-dir",
                 dir);
    }
    return dir;
}
