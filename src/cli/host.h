/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_HOST_H
#define REWIND_CLI_HOST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* What doctor asks that each system answers in its own way. */

/* The name of the file system that `dir` is on, as people know it. */
void host_filesystem(const char *dir, char *buf, size_t cap);

/* Whether a file in `dir` can be cloned so that both share blocks: 0, or
 * -EOPNOTSUPP, or -errno if that could not be found out. */
int host_try_clone(const char *dir);

/* Whether `fd`'s file can be locked in the way QEMU locks images. */
bool host_has_locks(int fd);

/* What a program that we start is to inherit. */
char **host_environment(void);

/* The hypervisor's name ("KVM"), and 0 if machines run at full speed with it;
 * else -errno and `e` says why not. */
const char *host_hypervisor(void);
int host_try_hypervisor(struct err *e);

#endif
