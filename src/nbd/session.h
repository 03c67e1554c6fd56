/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_NBD_SESSION_H
#define REWIND_NBD_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk/disk.h"
#include "io/io.h"
#include "nbd/handshake.h"
#include "nbd/reply.h"
#include "nbd/request.h"
#include "nbd/splice.h"
#include "nbd/stats.h"
#include "nbd/stream.h"

/*
 * A session is one client connection after accept, and one thread. It takes
 * all requests that one receive brought, answers from the page cache at once,
 * gathers writes into one call, gives the rest to the I/O engine, and sends
 * all replies together.
 *
 * session.c owns the loop; commands.c, read.c, write.c and status.c carry
 * requests out, each through the functions below.
 */

struct session;

/* Input buffer: room for many small writes at once. A payload that does not
 * fit is taken piece by piece and never held whole. */
#define SESSION_IN_BYTES ((UINT32_C(1) << 20) + (UINT32_C(64) << 10))

/* Writes gathered for one call to the disk. */
#define SESSION_WRITES 64u

/* Requests that one sync may answer. */
#define SESSION_SYNCS 64u

/* Operations in the engine per session, and the memory their data may take;
 * beyond it the session stops reading requests until some have ended. */
#define SESSION_PENDING_MAX 256u
#define SESSION_PENDING_BYTES (UINT64_C(16) << 20)

/* The same over all sessions; beyond it each waits for its own reads. */
#define SESSION_PENDING_BYTES_ALL (UINT64_C(256) << 20)

/* Zeroes of one session that the pool may be busy with at a time. */
#define SESSION_ZEROES 2u

/*
 * Something the engine has done and the session has still to answer. The
 * engine's callback only notes it down (session_completed), so that it never
 * waits for the peer; `finish` runs from the session's loop.
 */
struct completion {
    struct completion *next;
    void (*finish)(struct session *s, struct completion *c);
};

/* FLUSH requests and writes with FUA that wait for one sync. */
struct sync_group {
    struct io_op op;
    struct completion completion;
    int result;
    struct session *session; /* borrowed */
    unsigned count;
    struct request request[SESSION_SYNCS];
};

struct session {
    /* Set by the creator. */
    struct stream stream;
    const struct handshake_options *handshake; /* borrowed */
    unsigned handshake_s;                      /* 0: no limit */
    enum io_engine_kind engine;
    _Atomic uint64_t *pending_bytes_all; /* borrowed: shared by all sessions */

    struct stats stats; /* written by this thread, read by any */

    /* The session's own. */
    struct negotiated neg;
    struct disk *disk; /* borrowed from the export */
    struct reply_queue out;
    struct splicer splicer;
    struct io_ctx *io; /* owned; NULL until something must wait */
    uint8_t *in;       /* owned, SESSION_IN_BYTES */
    size_t in_begin, in_end;
    bool in_used;           /* since the buffers were last given back */
    bool ended;             /* no further request is taken */
    int error;              /* why the session is dropped, 0 if it is not */
    uint64_t now_ns;        /* when the current batch was received */
    unsigned pending_count; /* submitted and not yet finished */
    uint64_t pending_bytes;
    unsigned zero_count; /* of which zeroes */
    struct completion *completed, **completed_end;

    unsigned write_count;
    struct layer_write write[SESSION_WRITES];
    struct request write_request[SESSION_WRITES];
    struct sync_group *sync; /* owned; being gathered, or NULL */
};

/* Runs the whole session: handshake, transmission, end. 0 if it ended in good
 * order, else -errno. Does not close the descriptors. */
int session_run(struct session *s);

/* ---- for the files that carry requests out ---- */

/* The engine's context, made at first need. NULL if there is none to be had
 * (then the caller waits in place). */
struct io_ctx *session_io(struct session *s);

/* Notes that `c` is to be finished. For the engine's callbacks. */
void session_completed(struct session *s, struct completion *c);

/* Waits until something under way has ended, and finishes what has. Sends what
 * is queued before it waits. */
void session_wait_one(struct session *s);

/* True once the server is to stop. */
bool session_stopping(const struct session *s);

/* True if `bytes` more may be under way; then they count as such until
 * session_pending_end. Waits for others to end where the session's own share
 * is used up. */
bool session_pending_begin(struct session *s, uint64_t bytes);
void session_pending_end(struct session *s, uint64_t bytes);

/* Answers a request without data, with the text fitting the error, and
 * counts it. `result` is 0 or -errno. */
void session_answer(struct session *s, const struct request *r, int result);

/* Counts a request whose reply has been queued by other means. */
void session_count(struct session *s, const struct request *r,
                   uint32_t wire_error);

/* As session_answer, once what was replied to or done before is durable (S1);
 * many share one sync. */
void session_answer_synced(struct session *s, const struct request *r);

/* Carries out what session_answer_synced and commands gathered. */
void session_submit_sync(struct session *s);

/* commands.c: carries out one request whose payload (if any, at most
 * SESSION_IN_BYTES) is at `payload`. */
void command_run(struct session *s, const struct request *r,
                 const uint8_t *payload);

/* read.c */
void read_run(struct session *s, const struct request *r);

/* write.c: `payload` stays valid until write_commit. */
void write_add(struct session *s, const struct request *r,
               const uint8_t *payload);
void write_commit(struct session *s);
/* Whether this request must be durable before its reply. */
bool write_must_sync(const struct session *s, const struct request *r);

/* status.c */
void status_run(struct session *s, const struct request *r,
                const uint8_t *payload);

#endif
