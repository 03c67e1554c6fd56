/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Feeds bytes to the client that lists exports, as a server would send them.
 * What it asks goes nowhere. A list that it returns must be whole.
 *
 * If the first byte is odd, the rest is the server's bytes as they are. If it
 * is even, the rest is a series of replies, which get their greeting and their
 * headers here: one byte for the option, one for the type (the top bit makes
 * it an error), two for the length, and the payload.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "nbd/client.h"

/* As much as a corpus may hold of one input, framed. */
#define INPUT_BYTES (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int in_fd, out_fd;

static void
require(bool what)
{
    if (!what) {
        abort();
    }
}

static void
check_list(const struct export_list *list)
{
    for (unsigned i = 0; i < list->count; i++) {
        const struct listed_export *x = &list->exports[i];

        require(x->name != NULL && strlen(x->name) <= NBD_STRING_MAX);
        require(x->description == NULL ||
                strlen(x->description) <= NBD_STRING_MAX);
        for (unsigned k = 0; k < x->context_count; k++) {
            require(strlen(x->contexts[k]) <= NBD_STRING_MAX);
        }
    }
}

/* Puts one reply together; false at the end of the input. */
static bool
frame(struct reader *r, struct builder *b)
{
    uint8_t option = reader_u8(r), type = reader_u8(r);
    uint16_t len = reader_u16(r);
    const uint8_t *payload;

    if (r->bad) {
        return false;
    }
    len = len < r->left_bytes ? len : (uint16_t)r->left_bytes;
    payload = reader_take(r, len);
    builder_u64(b, NBD_OPTION_REPLY_MAGIC);
    builder_u32(b, option);
    builder_u32(b, (type & 0x80) != 0 ? NBD_REP_ERR_BIT | (type & 0x7f) : type);
    builder_u32(b, len);
    builder_bytes(b, payload, len);
    return !b->full;
}

/* Puts what the server says into the input's file. */
static void
script(const uint8_t *data, size_t size)
{
    static uint8_t buf[INPUT_BYTES];
    struct builder b = builder_of(buf, sizeof(buf));
    struct reader r = reader_of(data, size);

    if ((reader_u8(&r) & 1) != 0) {
        builder_bytes(&b, r.at, r.left_bytes);
    } else {
        builder_bytes(&b, "NBDMAGICIHAVEOPT\0\3", 18);
        while (frame(&r, &b)) {
        }
    }
    require(ftruncate(in_fd, 0) == 0);
    require(pwrite(in_fd, buf, b.len_bytes, 0) == (ssize_t)b.len_bytes);
    require(lseek(in_fd, 0, SEEK_SET) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct export_list list = {0};
    struct stream s;
    struct err e = {0};
    int rc;

    if (out_fd == 0) {
        in_fd = memfd_create("input", MFD_CLOEXEC);
        out_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
        require(in_fd > 0 && out_fd > 0);
    }
    script(data, size);
    s = (struct stream){.in_fd = in_fd, .out_fd = out_fd};
    rc = client_list_stream(&s, &list, &e);
    require(rc == 0 || (rc < 0 && e.code == -rc && e.text[0] != '\0'));
    check_list(&list);
    export_list_free(&list);
    return 0;
}
