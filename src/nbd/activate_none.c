/* SPDX-License-Identifier: BSD-2-Clause */
/* Systems with no way of their own to hand over sockets (activate.h). */
#include "nbd/activate.h"

int
activate_sockets_system(int fds[ACTIVATE_SOCKETS_MAX], struct err *e)
{
    (void)fds, (void)e;
    return 0;
}
