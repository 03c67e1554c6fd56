/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Writes: those that arrived together go to the disk together, and those that
 * must be durable share one sync with the flushes around them. None of them
 * has been replied to before, so their order is free (proto.md "Ordering of
 * messages and writes").
 */
#include "nbd/session.h"

bool
write_must_sync(const struct session *s, const struct request *r)
{
    const struct export *x = s->neg.export;

    return !x->ignore_flush &&
           (x->write_through || (r->flags & NBD_CMD_FLAG_FUA) != 0);
}

void
write_commit(struct session *s)
{
    unsigned count = s->write_count;

    if (count == 0) {
        return;
    }
    disk_write(s->disk, s->write, count);
    s->write_count = 0;
    for (unsigned i = 0; i < count; i++) {
        const struct request *r = &s->write_request[i];

        if (s->write[i].result == 0 && write_must_sync(s, r)) {
            session_answer_synced(s, r);
        } else {
            session_answer(s, r, s->write[i].result);
        }
    }
}

void
write_add(struct session *s, const struct request *r, const uint8_t *payload)
{
    if (r->len_bytes == 0) {
        session_answer(s, r, 0);
        return;
    }
    s->write[s->write_count] = (struct layer_write){
        .off = r->off,
        .len_bytes = (uint32_t)r->len_bytes,
        .buf = payload,
    };
    s->write_request[s->write_count] = *r;
    s->write_count++;
    if (s->write_count == SESSION_WRITES) {
        write_commit(s);
    }
}
