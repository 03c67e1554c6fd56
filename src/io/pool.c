/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The worker pool: see pool.h for the contract. All state is under pool.lock.
 * Two queues: reads, which are short and which a guest waits for, and the
 * rest (datasync, calls), which may take long and so may never occupy every
 * worker.
 */
#include "io/pool.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>

#include "base/checked.h"
#include "base/file.h"

/* Enough to keep a disk's queue busy and few enough that their stacks do not
 * count. Each may be blocked in one system call. */
#define THREADS_MAX 16u
/* Four workers stay for reads however many flushes wait. */
#define LONG_MAX_RUNNING 12u
/* Longer than the pauses of a guest at work. */
#define IDLE_SECONDS 5

static struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct io_list reads;
    struct io_list longs;
    unsigned reads_queued;
    unsigned longs_queued;
    unsigned longs_running;
    unsigned threads;
    unsigned idle; /* waiting for `work`, or on their way to the queues */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .reads = {NULL, &pool.reads.head},
    .longs = {NULL, &pool.longs.head},
};

/* All or nothing, and never -EAGAIN: a file that says so here (it is
 * non-blocking and no regular file) cannot be served. */
static int64_t
run_read(struct io_op *op)
{
    ssize_t n = file_pread(op->fd, (char *)op->buf + op->done_bytes,
                           op->len_bytes - op->done_bytes,
                           op->off + op->done_bytes);

    if (n < 0) {
        return n == -EAGAIN ? -EIO : n;
    }
    return (int64_t)op->done_bytes + n;
}

static int64_t
run_datasync(struct io_op *op)
{
    return file_datasync(op->fd);
}

static int64_t
run_call(struct io_op *op)
{
    return op->call(op->arg);
}

static int64_t (*const run_kind[])(struct io_op *op) = {
    [IO_OP_READ] = run_read,
    [IO_OP_DATASYNC] = run_datasync,
    [IO_OP_CALL] = run_call,
};

static void
run(struct io_op *op)
{
    op->result = run_kind[op->kind](op);
    io_inbox_post(op);
}

/* Operations that a further worker could start now. */
static unsigned
runnable_locked(void)
{
    return pool.reads_queued +
           (unsigned)min_u64(pool.longs_queued,
                             LONG_MAX_RUNNING - pool.longs_running);
}

/* Long ones first: they are bounded, so reads always have their workers, and
 * a stream of reads cannot hold up a flush for ever. */
static struct io_op *
next_locked(void)
{
    if (pool.longs_queued > 0 && pool.longs_running < LONG_MAX_RUNNING) {
        pool.longs_queued--;
        pool.longs_running++;
        return io_list_pop(&pool.longs);
    }
    if (pool.reads_queued > 0) {
        pool.reads_queued--;
        return io_list_pop(&pool.reads);
    }
    return NULL;
}

/* Waits for work. False if none came for a while. */
static bool
wait_locked(void)
{
    struct timespec until;
    int r = 0;

    /* The realtime clock, because macOS has no other for this; if it is set,
     * an idle thread leaves sooner or later, no more. */
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += IDLE_SECONDS;
    pool.idle++;
    while (runnable_locked() == 0 && r == 0) {
        r = pthread_cond_timedwait(&pool.work, &pool.lock, &until);
    }
    pool.idle--;
    return runnable_locked() > 0;
}

static void *
worker(void *arg)
{
    struct io_op *op;

    (void)arg;
    pthread_mutex_lock(&pool.lock);
    pool.idle--;
    do {
        while ((op = next_locked()) != NULL) {
            bool is_long = op->kind != IO_OP_READ;

            pthread_mutex_unlock(&pool.lock);
            run(op); /* not ours any more */
            pthread_mutex_lock(&pool.lock);
            if (is_long) {
                pool.longs_running--;
            }
        }
    } while (wait_locked());
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Signals are for the program's own threads. */
static bool
start_thread(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all;
    sigset_t before;
    int r;

    if (pthread_attr_init(&attr) != 0) {
        return false;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&thread, &attr, worker, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return r == 0;
}

static void
enqueue_locked(struct io_list *list)
{
    struct io_op *op;

    while ((op = io_list_pop(list)) != NULL) {
        if (op->kind == IO_OP_READ) {
            io_list_push(&pool.reads, op);
            pool.reads_queued++;
        } else {
            io_list_push(&pool.longs, op);
            pool.longs_queued++;
        }
    }
}

/*
 * Wakes the idle and starts threads for what they cannot take. One that was
 * signalled or has just been started counts as idle until it runs, as its
 * operation counts as runnable: the comparison stays right.
 */
static void
staff_locked(void)
{
    unsigned runnable = runnable_locked();
    unsigned signals = (unsigned)min_u64(runnable, pool.idle);

    for (unsigned i = 0; i < signals; i++) {
        pthread_cond_signal(&pool.work);
    }
    while (pool.idle < runnable && pool.threads < THREADS_MAX) {
        if (!start_thread()) {
            break;
        }
        pool.threads++;
        pool.idle++;
    }
}

void
pool_run(struct io_list *list)
{
    struct io_list here;
    struct io_op *op;

    if (list->head == NULL) {
        return;
    }
    io_list_init(&here);
    pthread_mutex_lock(&pool.lock);
    enqueue_locked(list);
    staff_locked();
    if (pool.threads == 0) {
        io_list_take_all(&here, &pool.reads);
        io_list_take_all(&here, &pool.longs);
        pool.reads_queued = 0;
        pool.longs_queued = 0;
    }
    pthread_mutex_unlock(&pool.lock);
    while ((op = io_list_pop(&here)) != NULL) {
        run(op);
    }
}

unsigned
pool_thread_count(void)
{
    unsigned n;

    pthread_mutex_lock(&pool.lock);
    n = pool.threads;
    pthread_mutex_unlock(&pool.lock);
    return n;
}
