/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_MEM_SYSTEM_H
#define REWIND_BASE_MEM_SYSTEM_H

#include <stddef.h>

/* mem.c's part that differs by system. Hints: neither can fail. */
void mem_system_small_pages(void *p, size_t len);
void mem_system_forget(void *p, size_t len);

#endif
