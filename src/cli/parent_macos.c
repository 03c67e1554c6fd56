/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A thread waits in kqueue(2) for the parent's end, and is there until the
 * process ends: EVFILT_PROC with NOTE_EXIT.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/event.h>
#include <unistd.h>

#include "cli/parent.h"

static void *
wait_for_parent(void *arg)
{
    const int queue = (int)(intptr_t)arg;
    struct kevent event;
    sigset_t all;
    int n;

    /* Signals are for the thread that waits for them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    do {
        n = kevent(queue, NULL, 0, &event, 1, NULL);
    } while (n < 0 && errno == EINTR);
    close(queue);
    kill(getpid(), SIGTERM);
    return NULL;
}

int
parent_watch(struct err *e)
{
    const pid_t parent = getppid();
    const int queue = kqueue();
    struct kevent event;
    pthread_t thread;
    int r;

    if (queue < 0) {
        return err_set(e, errno, "cannot watch the parent process: %s",
                       strerror(errno));
    }
    EV_SET(&event, (uintptr_t)parent, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    if (parent == 1 || kevent(queue, &event, 1, NULL, 0, NULL) != 0) {
        r = parent == 1 ? ESRCH : errno;
        close(queue);
        if (r == ESRCH) { /* it has ended already */
            kill(getpid(), SIGTERM);
            return 0;
        }
        return err_set(e, r, "cannot watch the parent process: %s",
                       strerror(r));
    }
    r = pthread_create(&thread, NULL, wait_for_parent, (void *)(intptr_t)queue);
    if (r != 0) {
        close(queue);
        return err_set(e, r, "cannot start a thread: %s", strerror(r));
    }
    pthread_detach(thread);
    return 0;
}
