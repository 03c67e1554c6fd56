/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Strings of the protocol: which bytes may be one. No state, any thread.
 * Reference: proto.md "Conventions"; UTF-8 as in RFC 3629.
 */
#include "nbd/text.h"

#include <stdint.h>

#include "nbd/proto.h"

/* Length of the UTF-8 sequence at `p`, of which `left` bytes can be seen; 0 if
 * there is none. Overlong forms, surrogates and what lies beyond U+10FFFF are
 * told by the range of the second byte. */
static size_t
sequence_len(const uint8_t *p, size_t left)
{
    uint8_t first = p[0], low = 0x80, high = 0xbf;
    size_t len;

    if (first < 0x80) {
        return first != 0 ? 1 : 0;
    }
    if (first < 0xc2 || first > 0xf4) {
        return 0;
    }
    len = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (len > left) {
        return 0;
    }
    low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : low;
    high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : high;
    if (p[1] < low || p[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return len;
}

bool
text_valid(const void *bytes, size_t len_bytes)
{
    const uint8_t *p = bytes;

    if (len_bytes > NBD_STRING_MAX) {
        return false;
    }
    for (size_t at = 0; at < len_bytes;) {
        size_t len = sequence_len(p + at, len_bytes - at);

        if (len == 0) {
            return false;
        }
        at += len;
    }
    return true;
}
