/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A module for LD_PRELOAD: the first fdatasync of the process fails, as it
 * does on a disk that has lost what it was given; those after it succeed, as
 * they do then too. When it fails is up to the test: it writes the file
 * "began" into the directory $FAIL_SYNC_DIR, waits there for the file "go" (a
 * minute at most), and fails with EIO. For fault/sync_fails.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WAIT_STEP_US 5000
#define WAIT_STEPS 12000

static const char *
file_path(char *buf, size_t cap, const char *name)
{
    const char *dir = getenv("FAIL_SYNC_DIR");

    (void)snprintf(buf, cap, "%s/%s", dir != NULL ? dir : ".", name);
    return buf;
}

int
fdatasync(int fd)
{
    static atomic_bool has_failed;
    char path[4096];

    if (atomic_exchange(&has_failed, true)) {
        return fsync(fd);
    }
    int began = open(file_path(path, sizeof(path), "began"),
                     O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    if (began >= 0) {
        close(began);
    }
    file_path(path, sizeof(path), "go");
    for (int i = 0; i < WAIT_STEPS && access(path, F_OK) != 0; i++) {
        usleep(WAIT_STEP_US);
    }
    errno = EIO;
    return -1;
}
