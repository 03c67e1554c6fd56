/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_ACTIVATE_H
#define REWIND_NBD_ACTIVATE_H

#include "base/err.h"

/* Sockets one start may hand over. */
#define ACTIVATE_SOCKETS_MAX 32u

/*
 * Socket activation: whoever started us listens already and hands the sockets
 * over. Puts their descriptors (CLOEXEC, the caller's from now on) into `fds`
 * and returns how many there are, 0 without activation, or -errno and `e`.
 *
 * systemd's way, sd_listen_fds(3): $LISTEN_PID is us and $LISTEN_FDS
 * descriptors follow from 3 on. These variables are taken out of the
 * environment. Before a fork, since they name a process. On macOS also
 * launchd's: the sockets called "Listeners" in the job's property list.
 */
int activate_sockets(int fds[ACTIVATE_SOCKETS_MAX], struct err *e);

/* The system's own way: launchd, or none. */
int activate_sockets_system(int fds[ACTIVATE_SOCKETS_MAX], struct err *e);

#endif
