/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_IO_WAKE_H
#define REWIND_IO_WAKE_H

/*
 * A bell: any thread rings it, one thread polls its descriptor and silences
 * it. An eventfd on Linux (wake_linux.c), a pipe elsewhere (wake_pipe.c); the
 * build chooses.
 */
struct wake {
    int fd;       /* polls readable after a signal; owned */
    int write_fd; /* owned; the same as fd for an eventfd */
};

/* 0 or -errno. Both descriptors are non-blocking and CLOEXEC. */
int wake_open(struct wake *w);
void wake_close(struct wake *w);

/* Safe on any thread; keeps errno. */
void wake_signal(struct wake *w);

/* Forgets all signals so far. */
void wake_clear(struct wake *w);

#endif
