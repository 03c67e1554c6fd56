/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Looks up internal snapshots in a qcow2 image's snapshot table
 * (docs/interop/qcow2 of QEMU, section "Snapshots"). Reads entry by entry and
 * keeps nothing.
 */
#include "blk/qcow2/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

/* The fixed part of an entry, and the extra data that we know. */
#define ENTRY_BYTES 40u
#define EXTRA_BYTES 16u

/* Bytes of all entries; QEMU's limit. */
#define TABLE_BYTES_MAX (64u << 20)

/* An ID or a name may be this long in the format. */
#define NAME_BYTES_MAX 65535u

#define ID_KEY "snapshot.id="
#define NAME_KEY "snapshot.name="

struct wanted {
    char *id;    /* owned; NULL: any */
    char *name;  /* owned; NULL: any */
    bool either; /* one string, which may be the ID or the name */
};

struct entry {
    struct qcow2_state state;
    uint64_t id_off; /* in the file; the name follows */
    uint16_t id_bytes, name_bytes;
    uint64_t end; /* where the next entry begins */
};

/* ---- what the user asks for ---- */

static void
wanted_clear(struct wanted *w)
{
    free(w->id);
    free(w->name);
}

/* Copies the value at *text, up to a single comma, to *ret; moves *text past
 * it. */
static int
take_value(const char **text, char **ret)
{
    const char *p = *text;
    char *value = malloc(strlen(p) + 1), *q = value;

    if (value == NULL) {
        return -ENOMEM;
    }
    for (; *p != '\0'; p++) {
        if (*p == ',' && *++p != ',') {
            break;
        }
        *q++ = *p;
    }
    *q = '\0';
    *text = p;
    free(*ret);
    *ret = value;
    return 0;
}

static int
wanted_parse(struct wanted *w, const char *spec)
{
    int err = 0;

    if (strncmp(spec, "snapshot.", strlen("snapshot.")) != 0) {
        w->either = true;
        w->id = strdup(spec);
        w->name = strdup(spec);
        return w->id != NULL && w->name != NULL ? 0 : -ENOMEM;
    }
    while (err == 0 && *spec != '\0') {
        char **value = NULL;

        if (strncmp(spec, ID_KEY, strlen(ID_KEY)) == 0) {
            spec += strlen(ID_KEY);
            value = &w->id;
        } else if (strncmp(spec, NAME_KEY, strlen(NAME_KEY)) == 0) {
            spec += strlen(NAME_KEY);
            value = &w->name;
        }
        err = value != NULL ? take_value(&spec, value) : -EINVAL;
    }
    return err == 0 && w->id == NULL && w->name == NULL ? -EINVAL : err;
}

/* ---- the table ---- */

static int
read_all(int fd, void *buf, size_t len, uint64_t off)
{
    ssize_t n = file_pread(fd, buf, len, off);

    if (n < 0) {
        return (int)n;
    }
    return (size_t)n == len ? 0 : -EINVAL;
}

/* The entry at `off`. -EINVAL if it reaches past the table's limit `end` or
 * the file's end. */
static int
read_entry(int fd, const struct qcow2_header *h, uint64_t off, uint64_t end,
           struct entry *ret)
{
    uint8_t bytes[ENTRY_BYTES + EXTRA_BYTES] = {0};
    struct reader r;
    uint32_t extra_bytes;
    uint64_t len;
    int err = -EINVAL;

    if (range_within(off, ENTRY_BYTES, end)) {
        err = read_all(fd, bytes, ENTRY_BYTES, off);
    }
    if (err != 0) {
        return err;
    }
    r = reader_of(bytes, sizeof(bytes));
    ret->state.l1_off = reader_u64(&r);
    ret->state.l1_count = reader_u32(&r);
    ret->id_bytes = reader_u16(&r);
    ret->name_bytes = reader_u16(&r);
    reader_take(&r, 20); /* times, and the size of the VM state */
    extra_bytes = reader_u32(&r);
    len = (uint64_t)ENTRY_BYTES + extra_bytes + ret->id_bytes + ret->name_bytes;
    if (!range_within(off, len, end)) {
        return -EINVAL;
    }
    ret->state.size_bytes = h->size_bytes;
    if (extra_bytes >= EXTRA_BYTES) {
        err = read_all(fd, bytes + ENTRY_BYTES, EXTRA_BYTES, off + ENTRY_BYTES);
        reader_take(&r, 8); /* the size of the VM state, again */
        ret->state.size_bytes = reader_u64(&r);
    }
    ret->id_off = off + ENTRY_BYTES + extra_bytes;
    /* The last entry's padding need not be in the file. */
    ret->end = off + round_up(len, 8);
    return err;
}

/* True if the `len` bytes at `off` are `text`, which NULL always is. */
static bool
is_text(int fd, uint64_t off, uint16_t len, const char *text, char *scratch)
{
    return text == NULL ||
           (strlen(text) == len && read_all(fd, scratch, len, off) == 0 &&
            memcmp(scratch, text, len) == 0);
}

/* How well an entry fits: 0 not at all, 2 best. */
static int
match(int fd, const struct entry *t, const struct wanted *w, char *scratch)
{
    bool id = is_text(fd, t->id_off, t->id_bytes, w->id, scratch);
    bool name = is_text(fd, t->id_off + t->id_bytes, t->name_bytes, w->name,
                        scratch);

    if (w->either) {
        return id ? 2 : name ? 1 : 0;
    }
    return id && name ? 2 : 0;
}

/* Sets *ret to the first of the best entries. -ENOENT if none fits. */
static int
search(int fd, const struct qcow2_header *h, const struct wanted *w,
       struct qcow2_state *ret)
{
    char *scratch = malloc(NAME_BYTES_MAX);
    uint64_t off = h->snapshots_off;
    uint64_t end = min_u64(h->file_bytes, off + TABLE_BYTES_MAX);
    int best = 0, err = scratch != NULL ? 0 : -ENOMEM;

    for (uint32_t i = 0; err == 0 && best < 2 && i < h->snapshot_count; i++) {
        struct entry t;

        err = read_entry(fd, h, off, end, &t);
        if (err == 0) {
            int fit = match(fd, &t, w, scratch);

            if (fit > best) {
                best = fit;
                *ret = t.state;
            }
            off = t.end;
        }
    }
    free(scratch);
    return err == 0 && best == 0 ? -ENOENT : err;
}

static int
check_state(const char *path, const struct qcow2_header *h,
            const struct qcow2_state *s, struct err *e)
{
    int err = qcow2_check_table(h, path, "the snapshot's L1 table", s->l1_off,
                                s->l1_count, 8, QCOW2_L1_BYTES_MAX, e);

    if (err == 0 && s->size_bytes > INT64_MAX) {
        return err_set(e, EFBIG,
                       "%s: the snapshot's disk of %llu bytes is too large",
                       path, (unsigned long long)s->size_bytes);
    }
    if (err == 0 &&
        !range_within(s->l1_off, (uint64_t)s->l1_count * 8, h->file_bytes)) {
        return err_set(e, EINVAL,
                       "%s: the file is cut short: the snapshot's L1 table "
                       "lies at 0x%llx, the file has %llu bytes",
                       path, (unsigned long long)s->l1_off,
                       (unsigned long long)h->file_bytes);
    }
    return err;
}

static int
explain(int err, const char *path, const char *spec, struct err *e)
{
    char quoted[256];

    log_quote(quoted, sizeof(quoted), spec, strlen(spec));
    switch (err) {
    case -ENOENT:
        return err_set(e, ENOENT,
                       "%s: no internal snapshot with the ID or name \"%s\"; "
                       "to see what there is: qemu-img snapshot -l",
                       path, quoted);
    case -EINVAL:
        return err_set(e, EINVAL, "%s: the snapshot table is damaged", path);
    default:
        return err_set(e, -err, "%s: snapshot \"%s\" can't be looked up: %s",
                       path, quoted, strerror(-err));
    }
}

int
qcow2_state_find(int fd, const char *path, const struct qcow2_header *h,
                 const char *spec, struct qcow2_state *ret, struct err *e)
{
    struct wanted w = {0};
    struct qcow2_state s = {.size_bytes = h->size_bytes,
                            .l1_off = h->l1_off,
                            .l1_count = h->l1_count};
    int err = 0;

    if (spec != NULL) {
        if ((h->incompatible & QCOW2_DATA_FILE) != 0) {
            return err_set(e, EINVAL,
                           "%s: an image with an external data file has no "
                           "internal snapshots",
                           path);
        }
        err = wanted_parse(&w, spec);
        if (err == -EINVAL) {
            err_set(e, EINVAL,
                    "\"%s\" names no snapshot; write NAME_OR_ID, or "
                    "snapshot.id=ID,snapshot.name=NAME",
                    spec);
        } else {
            err = err != 0 ? err : search(fd, h, &w, &s);
            err = err != 0 ? explain(err, path, spec, e)
                           : check_state(path, h, &s, e);
        }
        wanted_clear(&w);
    }
    if (err == 0) {
        *ret = s;
    }
    return err;
}
