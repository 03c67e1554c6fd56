/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_IO_POOL_H
#define REWIND_IO_POOL_H

#include "io/engine.h"

/*
 * One bounded set of worker threads for the whole process. Threads start when
 * there is work and leave after some idle seconds. After fork() only a child
 * whose parent had not used the pool may use it.
 */

/* Takes the whole list. Each operation is run by one worker and handed to
 * io_inbox_post. Where not one thread can be had, they run right here. Any
 * thread. */
void pool_run(struct io_list *list);

/* Threads at this moment; for tests and statistics. */
unsigned pool_thread_count(void);

#endif
