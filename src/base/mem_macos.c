/* SPDX-License-Identifier: BSD-2-Clause */
/* macOS has no huge pages to refuse; MADV_FREE lets it take pages back. */
#include <sys/mman.h>

#include "base/mem_system.h"

void
mem_system_small_pages(void *p, size_t len)
{
    (void)p;
    (void)len;
}

void
mem_system_forget(void *p, size_t len)
{
    (void)madvise(p, len, MADV_FREE);
}
