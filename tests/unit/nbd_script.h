/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef REWIND_TESTS_UNIT_NBD_SCRIPT_H
#define REWIND_TESTS_UNIT_NBD_SCRIPT_H

/*
 * A small language for the bytes of the NBD handshake, of either side, and a
 * compiler for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "nbd/proto.h"
#include "nbd/text.h"

/* Room for any conversation: an option that is just skipped, and more. */
#define BUF_BYTES (34u << 20)

/* --- the language of conversations ------------------------------------------
 *
 *   g             the greeting             fN        client flags
 *   oN{...}       an option with its data  oN=LEN    only its header
 *   rN:T{...}     a reply to option N      eN:T      an error reply, any text
 *   bN wN lN qN   8, 16, 32, 64 bits       *N:B      N bytes of value B
 *   "text"        bytes                    n"text"   length and bytes
 */
struct script {
    const char *at;
    const uint8_t *actual; /* what eN:T is matched with; NULL: it may not be */
    size_t actual_bytes;
    struct builder out;
};

static void script_run(struct script *s);

static uint64_t
number(struct script *s)
{
    char *end;
    uint64_t v = strtoull(s->at, &end, 0);

    assert_ptr_not_equal(s->at, end);
    s->at = end;
    return v;
}

static void
skip_char(struct script *s, char c)
{
    assert_int_equal(*s->at, c);
    s->at++;
}

/* "{...}" with its length in front. */
static void
braces(struct script *s)
{
    uint8_t *len = builder_room(&s->out, 4);
    size_t start = s->out.len_bytes;

    skip_char(s, '{');
    script_run(s);
    skip_char(s, '}');
    assert_non_null(len);
    store_be32(len, (uint32_t)(s->out.len_bytes - start));
}

static void
option_token(struct script *s)
{
    builder_u64(&s->out, NBD_OPTION_MAGIC);
    builder_u32(&s->out, (uint32_t)number(s));
    if (*s->at == '=') {
        s->at++;
        builder_u32(&s->out, (uint32_t)number(s));
    } else {
        braces(s);
    }
}

static void
reply_token(struct script *s, bool error)
{
    const size_t start = s->out.len_bytes;

    builder_u64(&s->out, NBD_OPTION_REPLY_MAGIC);
    builder_u32(&s->out, (uint32_t)number(s));
    skip_char(s, ':');
    builder_u32(&s->out, (uint32_t)number(s) | (error ? NBD_REP_ERR_BIT : 0));
    if (!error) {
        braces(s);
        return;
    }
    assert_non_null(s->actual);
    if (s->actual_bytes >= start + NBD_OPTION_REPLY_BYTES) {
        uint32_t len = load_be32(s->actual + start + 16);
        const uint8_t *text = s->actual + start + NBD_OPTION_REPLY_BYTES;

        builder_u32(&s->out, len);
        assert_in_range(len, 1, 600);
        assert_true(len <= s->actual_bytes - start - NBD_OPTION_REPLY_BYTES);
        assert_true(text_valid(text, len));
        builder_bytes(&s->out, text, len);
    }
}

static void
text_token(struct script *s)
{
    const char *end;

    skip_char(s, '"');
    end = strchr(s->at, '"');
    assert_non_null(end);
    builder_bytes(&s->out, s->at, (size_t)(end - s->at));
    s->at = end + 1;
}

static void
repeat_token(struct script *s)
{
    size_t count = number(s);
    uint8_t *room = builder_room(&s->out, count);

    skip_char(s, ':');
    assert_non_null(room);
    memset(room, (int)number(s), count);
}

static void
token(struct script *s, char c)
{
    uint8_t *len;

    switch (c) {
    case 'g':
        builder_bytes(&s->out, "NBDMAGICIHAVEOPT\0\3", 18);
        break;
    case 'b':
        builder_bytes(&s->out, &(uint8_t){(uint8_t)number(s)}, 1);
        break;
    case 'w':
        builder_u16(&s->out, (uint16_t)number(s));
        break;
    case 'f':
    case 'l':
        builder_u32(&s->out, (uint32_t)number(s));
        break;
    case 'q':
        builder_u64(&s->out, number(s));
        break;
    case 'o':
        option_token(s);
        break;
    case 'r':
    case 'e':
        reply_token(s, c == 'e');
        break;
    case '*':
        repeat_token(s);
        break;
    case 'n':
        len = builder_room(&s->out, 4);
        assert_non_null(len);
        store_be32(len, (uint32_t)strcspn(s->at + 1, "\""));
        text_token(s);
        break;
    default:
        fail_msg("unknown token %c%s", c, s->at);
    }
}

static void
script_run(struct script *s)
{
    while (*s->at != '\0' && *s->at != '}') {
        if (*s->at == ' ') {
            s->at++;
        } else if (*s->at == '"') {
            text_token(s);
        } else {
            token(s, *s->at++);
        }
    }
    assert_false(s->out.full);
}

static size_t
compile(const char *text, uint8_t *buf, const uint8_t *actual,
        size_t actual_bytes)
{
    struct script s = {
        .at = text,
        .actual = actual,
        .actual_bytes = actual_bytes,
        .out = builder_of(buf, BUF_BYTES),
    };

    script_run(&s);
    assert_int_equal(*s.at, '\0');
    return s.out.len_bytes;
}

#endif
