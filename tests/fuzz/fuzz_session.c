/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Fuzz target: the request stream. A valid handshake, chosen by the first
 * byte (reply style, contexts), and then the input as what a client sends; the
 * session runs on it to its end. The disk is a small raw file under an
 * overlay, so that every command does real work.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "blk/disk.h"
#include "blk/overlay.h"
#include "blk/raw.h"
#include "nbd/session.h"

#define DISK_BYTES (UINT64_C(300) << 10)

static struct export_set exports;
static int null_fd;

/* Once: the export that all inputs share. What one input leaves on the disk
 * the next one finds; no answer depends on it. */
static void
set_up(void)
{
    struct err e = {0};
    int fd = memfd_create("base", MFD_CLOEXEC);
    struct raw_options raw = {.path = "base", .size_bytes = DISK_BYTES};
    struct overlay_options over = {.dir = "/tmp", .size_bytes = DISK_BYTES};
    struct layer *below, *top;
    struct disk *disk;

    if (fd < 0 || ftruncate(fd, (off_t)DISK_BYTES) != 0 ||
        pwrite(fd, "rewind", 6, 70000) != 6) {
        abort();
    }
    below = raw_open(fd, &raw, &e);
    top = overlay_new(&over, &e);
    if (below == NULL || top == NULL) {
        abort();
    }
    disk = disk_new(top, &below, 1, DISK_BYTES, DISK_MAP_BYTES_DEFAULT, &e);
    if (disk == NULL ||
        export_set_add(&exports, "", "fuzz", disk, &e) == NULL) {
        abort();
    }
    null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
}

static void
put_option(struct builder *b, uint32_t option, const void *data, size_t len)
{
    builder_u64(b, NBD_OPTION_MAGIC);
    builder_u32(b, option);
    builder_u32(b, (uint32_t)len);
    builder_bytes(b, data, len);
}

static void
put_handshake(struct builder *b, uint8_t how)
{
    uint8_t set[64];
    struct builder s = builder_of(set, sizeof(set));

    builder_u32(b, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    if (how & 1) {
        put_option(b, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    }
    if (how & 2) {
        put_option(b, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    }
    if (how & 3) {
        builder_u32(&s, 0);
        builder_u32(&s, 1);
        builder_u32(&s, 15);
        builder_bytes(&s, "base:allocation", 15);
        put_option(b, NBD_OPT_SET_META_CONTEXT, set, s.len_bytes);
    }
    put_option(b, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static _Atomic uint64_t pending;
    static bool stopping;
    uint8_t hello[512];
    struct builder b = builder_of(hello, sizeof(hello));
    struct handshake_options handshake = {&exports, &stopping};
    struct session *s;
    int fd;

    if (exports.count == 0) {
        set_up();
    }
    if (size == 0) {
        return 0;
    }
    put_handshake(&b, data[0]);
    fd = memfd_create("in", MFD_CLOEXEC);
    s = calloc(1, sizeof(*s));
    if (fd < 0 || s == NULL ||
        write(fd, hello, b.len_bytes) != (ssize_t)b.len_bytes ||
        write(fd, data + 1, size - 1) != (ssize_t)size - 1 ||
        lseek(fd, 0, SEEK_SET) != 0) {
        abort();
    }
    s->stream = (struct stream){.in_fd = fd, .out_fd = null_fd};
    s->handshake = &handshake;
    s->engine = IO_ENGINE_THREADS;
    s->pending_bytes_all = &pending;
    (void)session_run(s);
    if (s->pending_count != 0 || atomic_load(&pending) != 0) {
        abort();
    }
    free(s);
    close(fd);
    return 0;
}
