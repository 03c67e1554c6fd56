#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Which error a refused request gets, where the protocol names one: it decides
what a client does next. Reference: doc/proto.md, "Request types", "Error
values", "Size constraints".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch, shared
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 256 * MIB
TOP = 1 << 64


@shared
def server():
    return Server(raw_image(scratch("image"), SIZE))


@shared
def read_only_server():
    return Server(raw_image(scratch("ro"), SIZE, [(0, pattern(0, 65536))]),
                  ephemeral=False, read_only=True)


def sessions(get):
    if PEER:
        raise Skip("each has its own view of these")
    for mode in MODES:
        with get().open(mode) as s:
            yield s
            expect(len(s.read(0, 512)), 512, "goes on")
            s.disconnect()


def errors(s, command, offset, length, flags, payload=b""):
    if command == CMD_WRITE and s.mode == EXTENDED:
        flags |= F_PAYLOAD_LEN
    return s.call(command, offset, length, flags, payload).error


@case
def a_read_only_export_is_eperm_whatever_else_is_wrong():
    for s in sessions(read_only_server):
        largest = s.payload_max
        rows = [(CMD_WRITE, 0, n, flags) for n in (1, 4096, largest + 1)
                for flags in (0, F_FUA)]
        rows += [(CMD_WRITE, SIZE - 1, 4096, 0), (CMD_WRITE, TOP - 1, 1, 0)]
        for flags in (0, F_NO_HOLE, F_FAST_ZERO, F_FAST_ZERO | F_NO_HOLE,
                      F_FUA | F_FAST_ZERO, F_DF):
            rows += [(CMD_WRITE_ZEROES, 0, 4096, flags),
                     (CMD_WRITE_ZEROES, SIZE, 4096, flags)]
        rows += [(CMD_TRIM, 0, 4096, flags) for flags in (0, F_FUA, F_NO_HOLE)]
        rows += [(CMD_TRIM, SIZE - 1, 4096, 0)]
        for command, offset, length, flags in rows:
            found = errors(s, command, offset, length, flags,
                           bytes(length) if command == CMD_WRITE else b"")
            expect(found, EPERM, "%s of %d at %#x, flags %#x"
                   % (CMD_NAMES[command], length, offset, flags))
        expect_bytes(s.read(0, 65536), pattern(0, 65536), 0, "data")


@case
def a_write_larger_than_the_maximum_is_einval():
    for s in sessions(server):
        for extra in (1, MIB):
            found = errors(s, CMD_WRITE, 0, s.payload_max + extra, 0,
                           b"x" * (s.payload_max + extra))
            expect(found, EINVAL, "%d too much" % extra)
        expect(s.read(0, 4096), bytes(4096), "nothing is written")


@case
def a_read_larger_than_the_maximum():
    # EOVERFLOW needs structured replies ("NBD_CMD_READ").
    for s in sessions(server):
        found = errors(s, CMD_READ, 0, s.payload_max + 1, 0)
        expect(found, EINVAL if s.mode == SIMPLE else EOVERFLOW, s.mode)


@case
def past_the_end():
    for s in sessions(server):
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (TOP - 1, 1),
                               (TOP - 4096, 4096), (SIZE - 4096, 8192)):
            where = "at %#x +%d" % (offset, length)
            for flags in (0, F_FUA):
                expect(errors(s, CMD_WRITE, offset, length, flags,
                              bytes(length)), ENOSPC, "WRITE " + where)
                expect(errors(s, CMD_WRITE_ZEROES, offset, length, flags),
                       ENOSPC, "WRITE_ZEROES " + where)
            for command in (CMD_READ, CMD_TRIM, CMD_CACHE):
                expect(errors(s, command, offset, length, 0), EINVAL,
                       CMD_NAMES[command] + " " + where)


@case
def a_fast_zero_that_would_be_slow_is_enotsup():
    for s in sessions(server):
        if not s.flags & FLAG_SEND_FAST_ZERO:
            raise Skip("not offered")
        for length in (4096, MIB, 16 * MIB):
            expect(errors(s, CMD_WRITE_ZEROES, 0, length,
                          F_FAST_ZERO | F_NO_HOLE), ENOTSUP, "%d" % length)
            expect(errors(s, CMD_WRITE_ZEROES, 0, length, F_FAST_ZERO), OK,
                   "%d" % length)


main()
