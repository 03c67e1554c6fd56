/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The raw layer (raw.h): owns one descriptor of a regular file or a block
 * device. There is no state but what is fixed at open, so any thread may call
 * anything at any time; only the guard of the first sector takes a lock, and
 * only for requests that touch that sector.
 */
#include "blk/raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "blk/probe.h"

/* Pieces of a batch joined in one system call: below every system's IOV_MAX,
 * and small enough for the stack. */
#define IOV_COUNT 64u

/* Zeroes that are written where the file system has no quick way, once in
 * memory and up to IOV_COUNT times in a system call. */
#define ZEROES_BYTES (64 * KIB)

/* Block devices zero whole logical blocks only, 4096 at the most; regular
 * files trim whole file system blocks only, mostly of that size too. */
#define BLOCK_BYTES UINT64_C(4096)

struct raw {
    struct layer layer;
    int fd;     /* owned */
    char *path; /* owned */
    uint64_t offset_bytes;
    uint64_t size_bytes;
    uint64_t stored_bytes; /* of size_bytes, those in the file at open */
    bool is_block_device;
    bool writable;
    bool ignore_trim;
    bool guard_first_sector;
    atomic_bool guard_told;
    pthread_mutex_t guard_lock; /* writes that touch the guarded sector */
};

static struct raw *
raw_of(struct layer *l)
{
    return container_of(l, struct raw, layer);
}

static void
raw_info(struct layer *l, struct layer_info *ret)
{
    struct raw *r = raw_of(l);
    struct stat st;

    *ret = (struct layer_info){
        .format = "raw",
        .path = r->path,
        .size_bytes = r->size_bytes,
        .allocated_bytes = r->size_bytes,
        .writable = r->writable,
        .flush_fd = r->writable ? r->fd : -1,
    };
    if (!r->is_block_device && fstat(r->fd, &st) == 0) {
        ret->allocated_bytes = (uint64_t)st.st_blocks * 512;
    }
}

/* ---- reading: where things are ---- */

/* The guest offset at which the file ends now, at most `stored_bytes`. */
static int
stored_now(const struct raw *r, uint64_t *ret)
{
    int64_t size;

    *ret = r->stored_bytes;
    if (r->is_block_device) {
        return 0;
    }
    size = file_size(r->fd);
    if (size < 0) {
        return (int)size;
    }
    *ret = min_u64(max_u64((uint64_t)size, r->offset_bytes) - r->offset_bytes,
                   r->stored_bytes);
    return 0;
}

/*
 * The extent at `off`, within `len`. What the file has lost since it was
 * opened is data, whose read then fails: it must not look like a hole. `now`
 * is where the file ends.
 */
static int
extent_at(const struct raw *r, uint64_t off, uint64_t len, uint64_t now,
          struct extent *ret)
{
    bool data = true;
    int err = 0;

    if (off >= r->stored_bytes) {
        data = false;
    } else if (off >= now) {
        len = min_u64(len, r->stored_bytes - off);
    } else {
        uint64_t run = 0;

        len = min_u64(len, now - off);
        err = file_extent_at(r->fd, r->offset_bytes + off,
                             r->offset_bytes + off + len, &data, &run);
        len = min_u64(len, run);
    }
    *ret = (struct extent){
        .guest_off = off,
        .len_bytes = len,
        .kind = data ? EXTENT_DATA : EXTENT_ZERO,
        .allocated = data,
        .fd = data ? r->fd : -1,
        .host_off = data ? r->offset_bytes + off : 0,
    };
    return err;
}

static int
raw_extents(struct layer *l, uint64_t off, uint64_t len, extent_fn *fn,
            void *arg)
{
    struct raw *r = raw_of(l);
    uint64_t now;
    int err = stored_now(r, &now);

    while (err == 0 && len > 0) {
        struct extent e;

        err = extent_at(r, off, len, now, &e);
        if (err == 0) {
            err = fn(arg, &e);
            off += e.len_bytes;
            len -= e.len_bytes;
        }
    }
    return err;
}

/* Reads find holes by themselves. */
static bool
raw_flat(struct layer *l, struct extent *ret)
{
    const struct raw *r = raw_of(l);

    *ret = (struct extent){
        .len_bytes = r->stored_bytes,
        .kind = EXTENT_DATA,
        .fd = r->fd,
        .host_off = r->offset_bytes,
    };
    return true;
}

/* ---- the guard of the first sector ---- */

static bool
is_guarded(const struct raw *r, uint64_t off, uint64_t len)
{
    return r->guard_first_sector && len > 0 && off < PROBE_BYTES;
}

/*
 * Would the file, with `len` bytes of `buf` (NULL: zeroes) at `off`, begin
 * like another format's image? guard_lock is held, so that two writes can't
 * each be harmless and together make a header. 0 or -errno.
 */
static int
guard_check_locked(struct raw *r, const void *buf, uint64_t off, uint64_t len)
{
    uint8_t sector[PROBE_BYTES] = {0};
    size_t cut = (size_t)min_u64(len, PROBE_BYTES - off);
    ssize_t n = file_pread(r->fd, sector, sizeof(sector), 0);
    const struct probe_format *format;

    if (n < 0) {
        return (int)n;
    }
    if (buf != NULL) {
        memcpy(sector + off, buf, cut);
    } else {
        memset(sector + off, 0, cut);
    }
    format = probe_format_of(sector, sizeof(sector));
    if (format == NULL) {
        return 0;
    }
    if (!atomic_exchange(&r->guard_told, true)) {
        log_warn("%s: refused a write that would make the raw image look like "
                 "%s; to allow it, declare the format: -f raw",
                 r->path, format->name);
    }
    return -EPERM;
}

/* ---- writing ---- */

/* Writes all of `iov` at `off`, changing `iov`. Adds to *done_bytes. */
static int
write_vector(int fd, struct iovec *iov, unsigned count, uint64_t off,
             uint64_t *done_bytes)
{
    while (count > 0) {
        ssize_t n;

        if (iov->iov_len == 0) {
            iov++;
            count--;
            continue;
        }
        n = pwritev(fd, iov, (int)count, (off_t)off);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n == 0 ? -EIO : -errno;
        }
        off += (uint64_t)n;
        *done_bytes += (uint64_t)n;
        while (count > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (n > 0 && count > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

/* Pieces from w[0] on that lie one after the other. */
static unsigned
count_adjacent(const struct layer_write *w, unsigned count)
{
    unsigned n = 1;

    while (n < count && n < IOV_COUNT &&
           w[n].off == w[n - 1].off + w[n - 1].len_bytes) {
        n++;
    }
    return n;
}

/* Writes adjacent pieces; returns how many of them have a result now, which
 * is at least one: after an error, the rest may still succeed. */
static unsigned
write_adjacent(struct raw *r, struct layer_write *w, unsigned count)
{
    struct iovec iov[IOV_COUNT];
    uint64_t done_bytes = 0;
    int err;

    for (unsigned i = 0; i < count; i++) {
        iov[i].iov_base = (void *)(uintptr_t)w[i].buf;
        iov[i].iov_len = w[i].len_bytes;
    }
    err = write_vector(r->fd, iov, count, r->offset_bytes + w[0].off,
                       &done_bytes);
    for (unsigned i = 0; i < count; i++) {
        if (err != 0 && w[i].len_bytes > done_bytes) {
            w[i].result = err;
            return i + 1;
        }
        w[i].result = 0;
        done_bytes -= w[i].len_bytes;
    }
    return count;
}

static void
write_guarded(struct raw *r, struct layer_write *w)
{
    int err;

    pthread_mutex_lock(&r->guard_lock);
    err = guard_check_locked(r, w->buf, w->off, w->len_bytes);
    if (err == 0) {
        write_adjacent(r, w, 1);
    } else {
        w->result = err;
    }
    pthread_mutex_unlock(&r->guard_lock);
}

static void
raw_write(struct layer *l, struct layer_write *w, unsigned count)
{
    struct raw *r = raw_of(l);

    while (count > 0) {
        unsigned n = 1;

        if (is_guarded(r, w->off, w->len_bytes)) {
            write_guarded(r, w);
        } else {
            n = write_adjacent(r, w, count_adjacent(w, count));
        }
        w += n;
        count -= n;
    }
}

/* ---- zeroes ---- */

static int
write_zeroes(struct raw *r, uint64_t off, uint64_t len)
{
    static const uint8_t zeroes[ZEROES_BYTES];

    while (len > 0) {
        struct iovec iov[IOV_COUNT];
        uint64_t step = 0, done_bytes = 0;
        unsigned n = 0;
        int err;

        for (; n < IOV_COUNT && step < len; n++) {
            iov[n].iov_base = (void *)(uintptr_t)zeroes;
            iov[n].iov_len = (size_t)min_u64(ZEROES_BYTES, len - step);
            step += iov[n].iov_len;
        }
        err = write_vector(r->fd, iov, n, r->offset_bytes + off, &done_bytes);
        if (err != 0) {
            return err;
        }
        off += step;
        len -= step;
    }
    return 0;
}

/* Drops whole blocks; it is a hint, so doing nothing is fine. */
static int
trim(struct raw *r, uint64_t off, uint64_t len)
{
    uint64_t from = round_up(r->offset_bytes + off, BLOCK_BYTES);
    uint64_t to = round_down(r->offset_bytes + off + len, BLOCK_BYTES);
    int err;

    if (r->ignore_trim || from >= to) {
        return 0;
    }
    err = file_punch_hole(r->fd, from, to - from);
    return err == -EOPNOTSUPP ? 0 : err;
}

static int
zero(struct raw *r, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t from = r->offset_bytes + off, to = from + len;
    uint64_t head = 0, tail = 0;
    int err = 0;

    if (r->is_block_device) {
        head = min_u64(len, round_up(from, BLOCK_BYTES) - from);
        tail = min_u64(len - head, to - round_down(to, BLOCK_BYTES));
    }
    if (head + tail < len) {
        err = file_zero_range(r->fd, from + head, len - head - tail,
                              (flags & LAYER_ZERO_NO_HOLE) != 0);
    }
    if (err == -EOPNOTSUPP) {
        if ((flags & LAYER_ZERO_FAST) != 0) {
            return -ENOTSUP;
        }
        return write_zeroes(r, off, len);
    }
    /* The ends of a range on a device: a few KiB, quick enough. */
    if (err == 0) {
        err = write_zeroes(r, off, head);
    }
    return err != 0 ? err : write_zeroes(r, off + len - tail, tail);
}

static int
raw_zero(struct layer *l, uint64_t off, uint64_t len, unsigned flags)
{
    struct raw *r = raw_of(l);
    bool guarded = is_guarded(r, off, len);
    int err = 0;

    if (guarded) {
        pthread_mutex_lock(&r->guard_lock);
        err = guard_check_locked(r, NULL, off, len);
    }
    if (err == 0) {
        err = (flags & LAYER_ZERO_TRIM) != 0 ? trim(r, off, len)
                                             : zero(r, off, len, flags);
    }
    if (guarded) {
        pthread_mutex_unlock(&r->guard_lock);
    }
    return err;
}

/* ---- opening and closing ---- */

static void
raw_close(struct layer *l)
{
    struct raw *r = raw_of(l);

    pthread_mutex_destroy(&r->guard_lock);
    file_close_ptr(&r->fd);
    free(r->path);
    free(r);
}

static const struct layer_ops raw_ops = {
    .format = "raw",
    .info = raw_info,
    .extents = raw_extents,
    .flat = raw_flat,
    .write = raw_write,
    .zero = raw_zero,
    .close = raw_close,
};

/* Checks the range against the file; sets what depends on the file. */
static int
look_at_file(struct raw *r, struct err *e)
{
    struct stat st;
    int64_t size = file_size(r->fd);

    if (size < 0 || fstat(r->fd, &st) != 0) {
        int code = size < 0 ? (int)-size : errno;

        return err_set(e, code, "%s: its size can't be had: %s", r->path,
                       strerror(code));
    }
    r->is_block_device = S_ISBLK(st.st_mode);
    r->stored_bytes = 0;
    if ((uint64_t)size > r->offset_bytes) {
        r->stored_bytes = min_u64((uint64_t)size - r->offset_bytes,
                                  r->size_bytes);
    }
    if (r->size_bytes - r->stored_bytes >= 512 ||
        (r->writable && r->size_bytes > r->stored_bytes)) {
        return err_set(e, EINVAL,
                       "%s: the file's %lld bytes do not hold %llu bytes "
                       "from offset %llu on",
                       r->path, (long long)size,
                       (unsigned long long)r->size_bytes,
                       (unsigned long long)r->offset_bytes);
    }
    return 0;
}

struct layer *
raw_open(int fd, const struct raw_options *options, struct err *e)
{
    struct raw *r = calloc(1, sizeof(*r));

    if (r == NULL) {
        close(fd);
        err_set(e, ENOMEM, "%s: out of memory", options->path);
        return NULL;
    }
    r->layer.ops = &raw_ops;
    r->fd = fd;
    r->path = strdup(options->path);
    r->offset_bytes = options->offset_bytes;
    r->size_bytes = options->size_bytes;
    r->writable = options->writable;
    r->ignore_trim = options->ignore_trim;
    /* With an offset the guest can't reach what a probe looks at. */
    r->guard_first_sector = options->guard_first_sector &&
                            options->offset_bytes == 0;
    pthread_mutex_init(&r->guard_lock, NULL);
    if (r->path == NULL) {
        err_set(e, ENOMEM, "%s: out of memory", options->path);
        raw_close(&r->layer);
        return NULL;
    }
    if (look_at_file(r, e) != 0) {
        raw_close(&r->layer);
        return NULL;
    }
    return &r->layer;
}
