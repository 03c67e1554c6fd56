/* SPDX-License-Identifier: BSD-2-Clause */
/* Resource limits of the process (limits.h). */
#include "cli/limits.h"

#include <sys/resource.h>

/* Some systems say "no limit" and then refuse more than this (OPEN_MAX on
 * macOS). */
#define FILES_SURE 10240

void
limits_raise_files(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        limit.rlim_cur == limit.rlim_max) {
        return;
    }
    const rlim_t before = limit.rlim_cur;

    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 || before >= FILES_SURE) {
        return;
    }
    limit.rlim_cur = FILES_SURE;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

uint64_t
limits_files(void)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}
