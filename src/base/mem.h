/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_BASE_MEM_H
#define REWIND_BASE_MEM_H

#include <stddef.h>

/*
 * Large buffers that cost memory only as far as they are used: address space
 * is reserved, pages come when touched, in the system's smallest size, so that
 * hundreds of idle sessions stay small. Contents begin as zeroes.
 */

/* NULL if there is no address space. */
void *mem_reserve(size_t len);

/* NULL is fine. */
void mem_release(void *p, size_t len);

/* Gives the pages back; the contents are undefined afterwards. */
void mem_forget(void *p, size_t len);

#endif
