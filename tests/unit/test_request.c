/* SPDX-License-Identifier: BSD-2-Clause */
/* Requests: every rule of request.c as a row of a table. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "nbd/limits.h"
#include "nbd/request.h"

#define SIZE UINT64_C(1000448) /* a multiple of 512, not of 4096 */

enum mode { SIMPLE, STRUCTURED, EXTENDED };

struct row {
    const char *what;
    enum mode mode;
    bool read_only;
    uint32_t min_block;
    uint16_t flags, type;
    uint64_t off, len;
    uint32_t error;
    uint64_t payload;
};

#define FUA NBD_CMD_FLAG_FUA
#define PAY NBD_CMD_FLAG_PAYLOAD_LEN

static const struct row rows[] = {
    {"read", SIMPLE, 0, 1, 0, NBD_CMD_READ, 1, 2, 0, 0},
    {"read all", SIMPLE, 0, 1, 0, NBD_CMD_READ, 0, SIZE, 0, 0},
    {"read nothing at the end", SIMPLE, 0, 1, 0, NBD_CMD_READ, SIZE, 0, 0, 0},
    {"read past the end", SIMPLE, 0, 1, 0, NBD_CMD_READ, SIZE - 1, 2,
     NBD_EINVAL, 0},
    {"read that wraps", SIMPLE, 0, 1, 0, NBD_CMD_READ, UINT64_MAX, 2,
     NBD_EINVAL, 0},
    {"read with FUA", SIMPLE, 0, 1, FUA, NBD_CMD_READ, 0, 1, 0, 0},
    {"DF without structured", SIMPLE, 0, 1, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 1,
     NBD_EINVAL, 0},
    {"DF", STRUCTURED, 0, 1, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 1, 0, 0},
    {"read with NO_HOLE", STRUCTURED, 0, 1, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_READ,
     0, 1, NBD_EINVAL, 0},
    {"read too long", STRUCTURED, 0, 1, 0, NBD_CMD_READ, 0,
     LIMIT_PAYLOAD_BYTES + 1, NBD_EOVERFLOW, 0},
    {"read too long, simple", SIMPLE, 0, 1, 0, NBD_CMD_READ, 0,
     LIMIT_PAYLOAD_BYTES + 1, NBD_EINVAL, 0},
    {"write", SIMPLE, 0, 1, FUA, NBD_CMD_WRITE, 0, 512, 0, 512},
    {"write past the end", SIMPLE, 0, 1, 0, NBD_CMD_WRITE, SIZE, 512,
     NBD_ENOSPC, 512},
    {"write to read-only", SIMPLE, 1, 1, 0, NBD_CMD_WRITE, 0, 512, NBD_EPERM,
     512},
    {"extended write", EXTENDED, 0, 1, PAY, NBD_CMD_WRITE, 0, 512, 0, 512},
    {"extended write without payload flag", EXTENDED, 0, 1, 0, NBD_CMD_WRITE, 0,
     512, NBD_EINVAL, 0},
    {"payload flag without extended", STRUCTURED, 0, 1, PAY, NBD_CMD_WRITE, 0,
     512, NBD_EINVAL, 512},
    {"extended read with a payload", EXTENDED, 0, 1, PAY, NBD_CMD_READ, 0, 512,
     NBD_EINVAL, 512},
    {"flush", SIMPLE, 0, 1, 0, NBD_CMD_FLUSH, 0, 0, 0, 0},
    {"trim past the end", SIMPLE, 0, 1, 0, NBD_CMD_TRIM, 0, SIZE + 1,
     NBD_EINVAL, 0},
    {"trim on read-only", SIMPLE, 1, 1, 0, NBD_CMD_TRIM, 0, 512, NBD_EPERM, 0},
    {"zeroes", SIMPLE, 0, 1, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 0,
     SIZE, 0, 0},
    {"zeroes past the end", SIMPLE, 0, 1, 0, NBD_CMD_WRITE_ZEROES, SIZE, 1,
     NBD_ENOSPC, 0},
    {"fast zeroes", SIMPLE, 0, 1, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES,
     0, 1, 0, 0},
    {"zeroes on read-only", SIMPLE, 1, 1, 0, NBD_CMD_WRITE_ZEROES, 0, 1,
     NBD_EPERM, 0},
    {"cache", SIMPLE, 0, 1, 0, NBD_CMD_CACHE, 0, SIZE, 0, 0},
    {"status without contexts", STRUCTURED, 0, 1, 0, NBD_CMD_BLOCK_STATUS, 0, 1,
     NBD_EINVAL, 0},
    {"resize", EXTENDED, 0, 1, 0, NBD_CMD_RESIZE, 0, 0, NBD_EINVAL, 0},
    {"unknown command", SIMPLE, 0, 1, 0, 77, 0, 0, NBD_EINVAL, 0},
    {"unknown flag", SIMPLE, 0, 1, 1 << 9, NBD_CMD_READ, 0, 1, NBD_EINVAL, 0},
    {"unaligned", SIMPLE, 0, 512, 0, NBD_CMD_READ, 1, 512, NBD_EINVAL, 0},
    {"aligned", SIMPLE, 0, 512, 0, NBD_CMD_READ, 512, 512, 0, 0},
    {"extended trim of 64 bits", EXTENDED, 0, 1, 0, NBD_CMD_TRIM, 0, UINT64_MAX,
     NBD_EINVAL, 0},
};

static void
test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct row *w = &rows[i];
        struct export x = {
            .name = (char *)"",
            .size_bytes = SIZE,
            .read_only = w->read_only,
            .min_block_bytes = w->min_block,
            .pref_block_bytes = 4096,
            .max_payload_bytes = LIMIT_PAYLOAD_BYTES,
        };
        struct negotiated n = {
            .export = &x,
            .structured = w->mode != SIMPLE,
            .extended = w->mode == EXTENDED,
        };
        uint8_t bytes[NBD_EXTENDED_REQUEST_BYTES];
        struct builder b = builder_of(bytes, sizeof(bytes));
        struct request r;

        n.flags = export_flags(&x, n.structured, n.extended, 0);
        builder_u32(&b, n.extended ? NBD_EXTENDED_REQUEST_MAGIC
                                   : NBD_REQUEST_MAGIC);
        builder_u16(&b, w->flags);
        builder_u16(&b, w->type);
        builder_u64(&b, 0x1122334455667788);
        builder_u64(&b, w->off);
        if (n.extended) {
            builder_u64(&b, w->len);
        } else {
            builder_u32(&b, (uint32_t)w->len);
        }
        assert_true(request_decode(bytes, &n, &r));
        if (r.error != w->error || r.payload_bytes != w->payload) {
            fail_msg("%s: error %u, payload %llu", w->what, r.error,
                     (unsigned long long)r.payload_bytes);
        }
        assert_true(r.cookie == 0x1122334455667788);
        assert_true((r.error != 0) == (r.why != NULL));

        bytes[0] ^= 1;
        assert_false(request_decode(bytes, &n, &r));
    }
}

static void
test_wire_errors(void **state)
{
    (void)state;
    assert_int_equal(request_wire_error(0, false), 0);
    assert_int_equal(request_wire_error(-EDQUOT, false), NBD_ENOSPC);
    assert_int_equal(request_wire_error(-EFBIG, false), NBD_ENOSPC);
    assert_int_equal(request_wire_error(-EROFS, false), NBD_EPERM);
    assert_int_equal(request_wire_error(-ENOTSUP, false), NBD_EINVAL);
    assert_int_equal(request_wire_error(-ENOTSUP, true), NBD_ENOTSUP);
    assert_int_equal(request_wire_error(-EBADF, false), NBD_EIO);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_wire_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
