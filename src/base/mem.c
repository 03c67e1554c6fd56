/* SPDX-License-Identifier: BSD-2-Clause */
/* Reserved buffers; see mem.h. What a system needs besides mmap is in
 * mem_linux.c and mem_macos.c. */
#include "base/mem.h"

#include <sys/mman.h>

#include "base/mem_system.h"

void *
mem_reserve(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        return NULL;
    }
    mem_system_small_pages(p, len);
    return p;
}

void
mem_release(void *p, size_t len)
{
    if (p != NULL) {
        munmap(p, len);
    }
}

void
mem_forget(void *p, size_t len)
{
    mem_system_forget(p, len);
}
