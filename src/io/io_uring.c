/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The ring engine (Linux 5.6 and later): reads and datasyncs go to the kernel
 * through io_uring, calls to the worker pool; an eventfd tells of both. What
 * the ring hands back undone goes on in the pool, and if the kernel takes no
 * requests any more, all of it does. A ring is its context's thread's alone;
 * only the probe's errors are read by others. Reference: io_uring_setup(2),
 * io_uring_enter(2).
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "io/engine.h"
#include "io/pool.h"
#include "io/tsan.h"

/* Requests per system call. More of them wait for the next one, at once; a
 * small queue keeps an idle context small. */
#define SQ_MAX 64u
/* A request's length has 32 bits; the kernel cuts reads at 2 GiB anyway. */
#define READ_MAX_BYTES ((size_t)1 << 30)

struct ring {
    struct io_uring uring;
    struct io_list prepared; /* in the submission queue, not yet taken */
    unsigned in_kernel;      /* taken, not yet completed */
    bool broken;             /* the kernel takes no more: use the pool */
};

/* --- opening ------------------------------------------------------------ */

static int
setup(struct io_uring *uring, unsigned depth, unsigned flags)
{
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = (unsigned)max_u64(depth, SQ_MAX),
    };

    return io_uring_queue_init_params((unsigned)min_u64(depth, SQ_MAX), uring,
                                      &params);
}

/* The sysctl's digit, or '?' where there is none. */
static char
sysctl_disabled(void)
{
    cleanup_fd int fd = open("/proc/sys/kernel/io_uring_disabled",
                             O_RDONLY | O_CLOEXEC);
    char digit = '?';

    if (fd >= 0 && read(fd, &digit, 1) != 1) {
        digit = '?';
    }
    return digit;
}

static const char *
refusal(int code)
{
    char disabled;

    switch (code) {
    case ENOSYS:
        return "this kernel has no io_uring, or a seccomp filter hides it";
    case EPERM:
    case EACCES:
        disabled = sysctl_disabled();
        if (disabled == '2') {
            return "io_uring is switched off on this host (sysctl "
                   "kernel.io_uring_disabled=2)";
        }
        if (disabled == '1') {
            return "io_uring is only for privileged processes and the group "
                   "kernel.io_uring_group (sysctl kernel.io_uring_disabled=1)";
        }
        return "a security policy refuses io_uring (seccomp, as in a "
               "container)";
    case ENOMEM:
        return "not enough memory for a ring, or a limit on locked memory "
               "that is too low (ulimit -l)";
    case EOPNOTSUPP:
        return "this kernel's io_uring is too old (Linux 5.6 or later is "
               "needed)";
    }
    return strerror(code);
}

static int
refuse(struct err *e, int code)
{
    return err_set(e, code, "io_uring cannot be used: %s", refusal(code));
}

/* Flags that only save interrupts are left out where they are unknown (before
 * Linux 5.19). 0 or -errno. */
static int
ring_open(struct io_uring *uring, unsigned depth, int bell_fd)
{
    int r = setup(uring, depth,
                  IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN);

    if (r == -EINVAL) {
        r = setup(uring, depth, 0);
    }
    if (r == -EINVAL) {
        r = -EOPNOTSUPP; /* no IORING_SETUP_CQSIZE: before 5.5 */
    }
    if (r != 0) {
        return r;
    }
    r = io_uring_register_eventfd(uring, bell_fd);
    if (r != 0) {
        io_uring_queue_exit(uring);
    }
    return r;
}

static int
check_opcodes(struct io_uring *uring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(uring);
    bool found = probe != NULL &&
                 io_uring_opcode_supported(probe, IORING_OP_READ) &&
                 io_uring_opcode_supported(probe, IORING_OP_FSYNC);

    io_uring_free_probe(probe);
    return found ? 0 : -EOPNOTSUPP;
}

/* One request that does nothing: a filter may allow a ring and not its use. */
static int
check_round_trip(struct io_uring *uring)
{
    struct io_uring_cqe *cqe;
    int r;

    io_uring_prep_nop(io_uring_get_sqe(uring));
    do {
        r = io_uring_submit(uring);
    } while (r == -EINTR);
    if (r < 0) {
        return r;
    }
    do {
        r = io_uring_wait_cqe(uring, &cqe);
    } while (r == -EINTR);
    if (r == 0) {
        io_uring_cqe_seen(uring, cqe);
    }
    return r;
}

int
io_uring_try(struct err *why)
{
    struct io_uring uring;
    struct wake bell;
    int r = wake_open(&bell);

    if (r != 0) {
        return refuse(why, -r);
    }
    r = ring_open(&uring, 1, bell.fd);
    if (r == 0) {
        r = check_opcodes(&uring);
        if (r == 0) {
            r = check_round_trip(&uring);
        }
        io_uring_queue_exit(&uring);
    }
    wake_close(&bell);
    return r == 0 ? 0 : refuse(why, -r);
}

/* --- handing over ------------------------------------------------------- */

static void
prepare(struct ring *ring, struct io_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);

    if (op->kind == IO_OP_DATASYNC) {
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
    } else {
        size_t left = op->len_bytes - op->done_bytes;

        io_uring_prep_read(sqe, op->fd, (char *)op->buf + op->done_bytes,
                           (unsigned)min_u64(left, READ_MAX_BYTES),
                           op->off + op->done_bytes);
    }
    io_uring_sqe_set_data(sqe, op);
    io_tsan_release(op);
    io_list_push(&ring->prepared, op);
}

/* Fills the submission queue; what is for the pool goes to `pool`. */
static void
fill(struct io_ctx *ctx, struct ring *ring, struct io_list *pool)
{
    while (ring->broken || io_uring_sq_space_left(&ring->uring) > 0) {
        struct io_op *op = io_next_waiting(ctx);

        if (op == NULL) {
            return;
        }
        if (ring->broken || op->kind == IO_OP_CALL) {
            io_list_push(pool, op);
        } else {
            prepare(ring, op);
        }
    }
}

/*
 * One system call. False if the kernel takes nothing now: either a completion
 * that is to come will let us try again, or nothing ever will, and the ring
 * is given up. Then what it has not taken goes to the pool; the entries stay
 * in the submission queue, which nobody submits any more.
 */
static bool
submit_prepared(struct ring *ring, struct io_list *pool)
{
    int r;

    do {
        r = io_uring_submit(&ring->uring);
    } while (r == -EINTR);
    for (int i = 0; i < r; i++) {
        (void)io_list_pop(&ring->prepared);
        ring->in_kernel++;
    }
    if (r > 0) {
        return true;
    }
    if ((r == 0 || r == -EAGAIN || r == -EBUSY) && ring->in_kernel > 0) {
        return false;
    }
    log_warn("the io_uring engine fails (%s): going on with threads",
             strerror(-r));
    ring->broken = true;
    io_list_take_all(pool, &ring->prepared);
    return false;
}

static void
uring_kick(struct io_ctx *ctx)
{
    struct ring *ring = ctx->ring;
    struct io_list pool;

    io_list_init(&pool);
    do {
        fill(ctx, ring, &pool);
    } while (ring->prepared.head != NULL && submit_prepared(ring, &pool));
    fill(ctx, ring, &pool);
    pool_run(&pool);
}

/* --- coming back -------------------------------------------------------- */

/* The request was not carried out, for reasons of the ring's. A datasync that
 * was interrupted may have been: that one is never repeated (S8). */
static bool
undone(const struct io_op *op, int res)
{
    return res == -EAGAIN || res == -ECANCELED ||
           (res == -EINTR && op->kind == IO_OP_READ);
}

/* Returns how many callbacks ran: 1, or 0 if the operation goes on. */
static unsigned
finish(struct io_ctx *ctx, struct io_op *op, int res, struct io_list *pool)
{
    if (undone(op, res)) {
        io_list_push(pool, op);
        return 0;
    }
    if (res > 0) {
        op->done_bytes += (size_t)res;
        if (op->done_bytes < op->len_bytes) {
            io_continue(ctx, op);
            return 0;
        }
    }
    io_complete(ctx, op, res < 0 ? res : (int64_t)op->done_bytes);
    return 1;
}

static unsigned
uring_drain(struct io_ctx *ctx)
{
    struct ring *ring = ctx->ring;
    struct io_uring_cqe *cqe;
    struct io_list pool;
    unsigned n = 0;

    io_list_init(&pool);
    while (io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
        struct io_op *op = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&ring->uring, cqe);
        io_tsan_acquire(op);
        ring->in_kernel--;
        n += finish(ctx, op, res, &pool);
    }
    pool_run(&pool);
    return n;
}

static void
uring_release(struct io_ctx *ctx)
{
    struct ring *ring = ctx->ring;

    io_uring_queue_exit(&ring->uring);
    free(ring);
}

static const struct io_engine uring_engine = {
    .kick = uring_kick,
    .drain = uring_drain,
    .release = uring_release,
};

int
io_uring_start(struct io_ctx *ctx, struct err *e)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    int r;

    if (ring == NULL) {
        return refuse(e, ENOMEM);
    }
    io_list_init(&ring->prepared);
    r = ring_open(&ring->uring, ctx->depth, ctx->wake.fd);
    if (r != 0) {
        free(ring);
        return refuse(e, -r);
    }
    ctx->ring = ring;
    ctx->engine = &uring_engine;
    return 0;
}
