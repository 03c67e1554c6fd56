/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_CLI_SIGNALS_H
#define REWIND_CLI_SIGNALS_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/err.h"

/*
 * Signals as calls on a thread of their own, which waits for them with
 * sigwait; so the handlers may do anything a thread may.
 */
struct signals {
    /* SIGTERM, SIGINT, SIGHUP; `count` is 1 for the first of them, and so
     * on. */
    void (*stop)(void *arg, unsigned count);
    /* SIGUSR1, and SIGINFO (control-T) where there is one. */
    void (*report)(void *arg);
    void *arg;

    sigset_t set;
    pthread_t thread;
    bool running;
    atomic_bool over;
};

/*
 * Before any thread is started, so that all of them leave these signals
 * alone. From here on they wait until signals_start. A SIGHUP that was ignored
 * (nohup) stays ignored; with `ignore_hangup` it is from now on.
 */
void signals_block(struct signals *s, bool ignore_hangup);

/* stop, report and arg have been set. */
int signals_start(struct signals *s, struct err *e);

/* After it returns no handler runs any more. Fine if it was not started. */
void signals_end(struct signals *s);

#endif
