/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Signals on a thread (signals.h). The thread owns `stop_count`; `over` is set
 * by signals_end, which then wakes it with a signal of its own.
 */
#include "cli/signals.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/checked.h"

static const int stop_signals[] = {SIGTERM, SIGINT};

static const int report_signals[] = {
    SIGUSR1,
#ifdef SIGINFO
    SIGINFO,
#endif
};

static bool
is_report(int number)
{
    for (size_t i = 0; i < ARRAY_LEN(report_signals); i++) {
        if (report_signals[i] == number) {
            return true;
        }
    }
    return false;
}

/* Never runs: the signal is blocked. But a signal that is ignored, or by
 * default would be, some systems drop even while it is blocked; and a shell
 * starts background processes with SIGINT ignored. */
static void
nothing(int number)
{
    (void)number;
}

static bool
hangup_is_ignored(void)
{
    struct sigaction old;

    return sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler == SIG_IGN;
}

void
signals_block(struct signals *s, bool ignore_hangup)
{
    sigemptyset(&s->set);
    for (size_t i = 0; i < ARRAY_LEN(stop_signals); i++) {
        sigaddset(&s->set, stop_signals[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(report_signals); i++) {
        sigaddset(&s->set, report_signals[i]);
    }
    if (ignore_hangup) {
        signal(SIGHUP, SIG_IGN);
    } else if (!hangup_is_ignored()) {
        sigaddset(&s->set, SIGHUP);
    }
    pthread_sigmask(SIG_BLOCK, &s->set, NULL);
    for (size_t i = 0; i < ARRAY_LEN(stop_signals); i++) {
        signal(stop_signals[i], nothing);
    }
    for (size_t i = 0; i < ARRAY_LEN(report_signals); i++) {
        signal(report_signals[i], nothing);
    }
}

static void *
signals_thread(void *arg)
{
    struct signals *s = arg;
    unsigned stop_count = 0;
    int number;

    while (sigwait(&s->set, &number) == 0) {
        if (atomic_load(&s->over)) {
            break;
        }
        if (is_report(number)) {
            s->report(s->arg);
        } else {
            s->stop(s->arg, ++stop_count);
        }
    }
    return NULL;
}

int
signals_start(struct signals *s, struct err *e)
{
    int r;

    atomic_store(&s->over, false);
    r = pthread_create(&s->thread, NULL, signals_thread, s);
    if (r != 0) {
        return err_set(e, r, "cannot start a thread: %s", strerror(r));
    }
    s->running = true;
    return 0;
}

void
signals_end(struct signals *s)
{
    if (!s->running) {
        return;
    }
    atomic_store(&s->over, true);
    pthread_kill(s->thread, SIGUSR1);
    pthread_join(s->thread, NULL);
    s->running = false;
}
