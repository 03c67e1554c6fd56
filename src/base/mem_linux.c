/* SPDX-License-Identifier: BSD-2-Clause */
/* Linux: a transparent huge page would make a touched byte cost 2 MiB. */
#include <sys/mman.h>

#include "base/mem_system.h"

void
mem_system_small_pages(void *p, size_t len)
{
    (void)madvise(p, len, MADV_NOHUGEPAGE);
}

void
mem_system_forget(void *p, size_t len)
{
    (void)madvise(p, len, MADV_DONTNEED);
}
