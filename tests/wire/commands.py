#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Every command, in every reply mode, with every flag and beyond every edge.

Reference: doc/proto.md, "Request types", "Command flags", "Error values".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (Skip, case, expect, expect_bytes, main, scratch,
                     shared)
from images import GIB, KIB, MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 8 * MIB
TOP = 1 << 64
BASE = "base:allocation"


@shared
def server():
    image = raw_image(scratch("image"), SIZE, [(0, pattern(0, SIZE))])
    return Server(image)


@shared
def read_only_server():
    image = raw_image(scratch("image-ro"), SIZE, [(0, pattern(0, SIZE))])
    return Server(image, ephemeral=False, read_only=True)


@shared
def huge_server():
    """Much larger than 32 bits, and nothing in it."""
    return Server(raw_image(scratch("huge"), 64 * GIB))


def sessions(srv=None, modes=MODES):
    """A fresh session for each mode; with contexts where there can be."""
    for mode in (m for m in modes if m in MODES):
        contexts = () if mode == SIMPLE else [BASE]
        with (srv or server()).open(mode, contexts) as s:
            yield s
            s.disconnect()


def payload_for(command, length):
    return b"w" * length if command == CMD_WRITE else b""


def send_one(s, command, offset, length, flags=0):
    """A request with the payload that its header promises."""
    payload = payload_for(command, length)
    if command == CMD_WRITE and s.mode == EXTENDED:
        flags |= F_PAYLOAD_LEN
    return s.call(command, offset, length, flags, payload)


# --- doing what they are for ------------------------------------------------

@case
def reads():
    for s in sessions(read_only_server()):
        for offset, length in ((0, 1), (0, 512), (1, 511), (4095, 2),
                               (4096, 4096), (12345, 67890), (0, MIB),
                               (SIZE - 1, 1), (SIZE - 4097, 4097),
                               (0, SIZE)):
            expect_bytes(s.read(offset, length), pattern(offset, length),
                         offset, "%s read" % s.mode)


@case
def writes():
    for n, s in enumerate(sessions()):
        model = bytearray(s.read(0, MIB))
        for i, (offset, length) in enumerate((
                (0, 4096), (4096, 1), (8191, 2), (12288, 512),
                (20000, 10000), (65535, 65538), (300001, 3), (524288, MIB
                                                              - 524288))):
            data = pattern(offset, length, 10 * n + i + 1)
            s.write(offset, data)
            model[offset:offset + length] = data
            expect_bytes(s.read(offset, length), data, offset, "read back")
        expect_bytes(s.read(0, MIB), bytes(model), 0, s.mode)


@case
def write_zeroes():
    flags = (0, F_NO_HOLE, F_FUA, F_NO_HOLE | F_FUA)
    for s in sessions():
        for flag in flags:
            for offset, length in ((MIB, 1), (MIB, 4096), (MIB + 1, 4094),
                                   (MIB + 4095, 2), (MIB, 100000),
                                   (MIB + 777, 65536)):
                s.write(MIB, pattern(MIB, 128 * KIB, 5))
                s.zero(offset, length, flag)
                model = bytearray(pattern(MIB, 128 * KIB, 5))
                model[offset - MIB:offset - MIB + length] = bytes(length)
                expect_bytes(s.read(MIB, 128 * KIB), bytes(model), MIB,
                             "%s, zeroes at %#x +%d flags %d"
                             % (s.mode, offset, length, flag))


@case
def fast_zero():
    for s in sessions():
        if not s.flags & FLAG_SEND_FAST_ZERO:
            raise Skip("not offered")
        for flags in (F_FAST_ZERO, F_FAST_ZERO | F_NO_HOLE):
            for offset, length in ((MIB, 65536), (MIB + 1, 4000)):
                data = pattern(MIB, 128 * KIB, 6)
                s.write(MIB, data)
                p = s.call(CMD_WRITE_ZEROES, offset, length, flags)
                expect(p.error, {OK, ENOTSUP}, "error")
                model = bytearray(data)
                if not p.error:
                    model[offset - MIB:offset - MIB + length] = bytes(length)
                expect_bytes(s.read(MIB, 128 * KIB), bytes(model), MIB,
                             "after " + ERROR_NAMES[p.error])


@case
def trim():
    for s in sessions():
        data = pattern(MIB, 256 * KIB, 7)
        s.write(MIB, data)
        s.trim(MIB + 64 * KIB, 128 * KIB)
        s.trim(MIB + 1, 1000)
        found = s.read(MIB, 256 * KIB)
        # What is trimmed is unknown, what lies beside it is not.
        expect_bytes(found[:1], data[:1], MIB, "before")
        expect_bytes(found[1001:65536], data[1001:65536], MIB + 1001,
                     "between")
        expect_bytes(found[192 * KIB:], data[192 * KIB:], MIB + 192 * KIB,
                     "after")
        s.write(MIB + 64 * KIB, data[64 * KIB:192 * KIB])
        expect_bytes(s.read(MIB + 64 * KIB, 128 * KIB),
                     data[64 * KIB:192 * KIB], MIB + 64 * KIB, "rewritten")


@case
def flush_and_cache():
    for s in sessions():
        s.flush()
        s.write(0, pattern(0, 512))
        s.flush()
        for offset, length in ((0, 1), (0, SIZE), (4095, 123456)):
            s.ok(CMD_CACHE, offset, length)
        expect_bytes(s.read(0, 512), pattern(0, 512), 0, "data")


@case
def dont_fragment():
    for s in sessions(read_only_server(), (STRUCTURED, EXTENDED)):
        for length in (1, 512, 65535, 65536):
            expect_bytes(s.read(123, length, F_DF), pattern(123, length),
                         123, "DF of %d" % length)
        p = s.call(CMD_READ, 0, 4 * MIB, F_DF)
        expect(p.error, {OK, EOVERFLOW}, "DF of 4 MiB")


@case
def request_one():
    for s in sessions(modes=(STRUCTURED, EXTENDED)):
        for offset, length in ((0, 1), (0, 4096), (513, 70000), (0, SIZE)):
            s.status(offset, length, F_REQ_ONE)     # the checker checks


@case
def fua_on_everything():
    for s in sessions():
        for command, length in ((CMD_READ, 4096), (CMD_WRITE, 4096),
                                (CMD_FLUSH, 0), (CMD_TRIM, 4096),
                                (CMD_CACHE, 4096), (CMD_WRITE_ZEROES, 4096),
                                (CMD_BLOCK_STATUS, 4096)):
            if command == CMD_BLOCK_STATUS and s.mode == SIMPLE:
                continue
            p = send_one(s, command, 0, length, F_FUA)
            expect(p.error, OK, "%s: %s" % (p, p.message))
        s.write(100, b"durable", F_FUA)
        expect(s.read(100, 7), b"durable", "data")


@case
def beyond_32_bits():
    for s in sessions(huge_server()):
        expect(s.size, 64 * GIB, "size")
        for offset in (4 * GIB - 2048, 32 * GIB - 1, 64 * GIB - 4096):
            data = pattern(offset, 4096, 3)
            s.write(offset, data)
            expect_bytes(s.read(offset, 4096), data, offset, s.mode)
        s.zero(4 * GIB - 2048, (1 << 32) - 1)
        expect(s.read(4 * GIB - 2048, 4096), bytes(4096), "zeroed")
        s.trim(GIB, (1 << 32) - 1)
        if s.mode == EXTENDED:
            s.zero(0, 64 * GIB)
            expect(s.read(32 * GIB - 1, 4096), bytes(4096), "zeroed")
            s.trim(0, 64 * GIB)
            s.ok(CMD_CACHE, 0, 64 * GIB)


# --- what must be refused ---------------------------------------------------

WRONG_FLAGS = [
    (CMD_READ, F_NO_HOLE), (CMD_READ, F_REQ_ONE), (CMD_READ, F_FAST_ZERO),
    (CMD_WRITE, F_NO_HOLE), (CMD_WRITE, F_DF), (CMD_WRITE, F_REQ_ONE),
    (CMD_WRITE, F_FAST_ZERO), (CMD_FLUSH, F_NO_HOLE), (CMD_FLUSH, F_DF),
    (CMD_FLUSH, F_REQ_ONE), (CMD_FLUSH, F_FAST_ZERO), (CMD_TRIM, F_NO_HOLE),
    (CMD_TRIM, F_DF), (CMD_TRIM, F_REQ_ONE), (CMD_TRIM, F_FAST_ZERO),
    (CMD_CACHE, F_NO_HOLE), (CMD_CACHE, F_DF), (CMD_CACHE, F_REQ_ONE),
    (CMD_CACHE, F_FAST_ZERO), (CMD_WRITE_ZEROES, F_DF),
    (CMD_WRITE_ZEROES, F_REQ_ONE), (CMD_BLOCK_STATUS, F_NO_HOLE),
    (CMD_BLOCK_STATUS, F_DF), (CMD_BLOCK_STATUS, F_FAST_ZERO),
] + [(command, 1 << bit) for command in (
    CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES,
    CMD_BLOCK_STATUS) for bit in (6, 11, 15)]


@case
def wrong_flags():
    for s in sessions():
        before = s.read(0, 4096)
        for command, flags in WRONG_FLAGS:
            length = 0 if command == CMD_FLUSH else 4096
            p = send_one(s, command, 0, length, flags)
            expect(p.error, EINVAL, "%s" % p)
            if s.mode != SIMPLE and not PEER:
                expect(bool(p.message), True, "%s has a text" % p)
        expect_bytes(s.read(0, 4096), before, 0, "after %s" % s.mode)


@case
def df_needs_structured_replies():
    for s in sessions(modes=(SIMPLE,)):
        expect(s.call(CMD_READ, 0, 512, F_DF).error, EINVAL, "DF")


@case
def unknown_commands():
    for s in sessions():
        for command in (CMD_RESIZE, 9, 10, 255, 256, 0x7fff, 0xffff):
            for offset, length in ((0, 0), (4096, 4096), (SIZE * 2, 0)):
                p = s.call(command, offset, length)
                expect(p.error, EINVAL, "%s" % p)
        expect(s.read(SIZE - 512, 512) != b"", True, "goes on")


OUTSIDE = [(SIZE, 1), (SIZE - 1, 2), (SIZE, 4096), (SIZE + 4096, 4096),
           (SIZE - 4096, 8192), (1, SIZE), (SIZE * 2, 512),
           (1 << 32, 512), (1 << 63, 512), ((1 << 63) - 512, 1024),
           (TOP - 1, 1), (TOP - 1, 2), (TOP - 512, 512), (TOP - 512, 1024),
           (TOP - 4096, 8192)]
BEYOND = {CMD_READ: EINVAL, CMD_WRITE: ENOSPC, CMD_TRIM: EINVAL,
          CMD_WRITE_ZEROES: ENOSPC, CMD_CACHE: EINVAL,
          CMD_BLOCK_STATUS: EINVAL}


@case
def beyond_the_end():
    for s in sessions():
        before = s.read(SIZE - 8192, 8192), s.read(0, 8192)
        for command, wanted in BEYOND.items():
            if command == CMD_BLOCK_STATUS and s.mode == SIMPLE:
                continue
            for offset, length in OUTSIDE:
                p = send_one(s, command, offset, length)
                expect(p.error, wanted, "%s" % p)
        expect_bytes(s.read(SIZE - 8192, 8192), before[0], SIZE - 8192,
                     "the end")
        expect_bytes(s.read(0, 8192), before[1], 0, "the beginning")


@case
def absurd_lengths():
    for s in sessions():
        lengths = [1 << 31, (1 << 32) - 1, (1 << 32) - 512]
        if s.mode == EXTENDED:
            lengths += [1 << 32, 1 << 62, 1 << 63, TOP - 1, TOP - 512]
        for command in (CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE,
                        CMD_BLOCK_STATUS, CMD_READ):
            if command == CMD_BLOCK_STATUS and s.mode == SIMPLE:
                continue
            for length in lengths:
                for offset in (0, 1, SIZE, TOP - 1, TOP - length):
                    p = s.call(command, offset & TOP - 1, length)
                    expect(p.error, {BEYOND[command], EINVAL, EOVERFLOW},
                           "%s" % p)


@case
def zero_lengths_keep_the_session():
    for s in sessions():
        before = s.read(0, SIZE)
        for command in (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE,
                        CMD_WRITE_ZEROES, CMD_BLOCK_STATUS):
            if command == CMD_BLOCK_STATUS:
                continue            # has a case of its own
            for offset in (0, 1, SIZE, SIZE + 1, TOP - 1):
                p = s.call(command, offset, 0)
                expect(p.error, {OK, EINVAL, ENOSPC}, "%s" % p)
        expect_bytes(s.read(0, SIZE), before, 0, "nothing has changed")


@case
def status_of_no_length_keeps_the_session():
    # With REQ_ONE no success would be lawful; the checker knows.
    for s in sessions(modes=(STRUCTURED, EXTENDED)):
        for flags in (0, F_REQ_ONE):
            for offset in (0, SIZE, SIZE + 1):
                expect(s.call(CMD_BLOCK_STATUS, offset, 0, flags).error,
                       {OK, EINVAL}, "at %d" % offset)


@case
def status_without_contexts():
    for mode in MODES:
        with server().open(mode) as s:
            p = s.call(CMD_BLOCK_STATUS, 0, 4096)
            expect(p.error, EINVAL, "%s" % p)
            expect(len(s.read(0, 512)), 512, "goes on")
            s.disconnect()


@case
def read_only_export():
    for s in sessions(read_only_server()):
        expect(s.flags & FLAG_READ_ONLY, FLAG_READ_ONLY, "READ_ONLY")
        for command in (CMD_WRITE, CMD_WRITE_ZEROES, CMD_TRIM):
            for offset, length in ((0, 512), (0, 1), (SIZE - 4096, 4096)):
                for flags in (0, F_FUA):
                    p = send_one(s, command, offset, length, flags)
                    expect(p.error, EPERM, "%s" % p)
        s.ok(CMD_CACHE, 0, 4096)
        s.flush()
        expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "data")


@case
def flush_with_a_range_keeps_the_session():
    for s in sessions():
        for offset, length in ((0, 512), (512, 0), (SIZE * 2, 512)):
            p = s.call(CMD_FLUSH, offset, length)
            expect(p.error, {OK, EINVAL}, "%s" % p)


# --- the stream of requests -------------------------------------------------

@case
def cookies_come_back_as_sent():
    cookies = (0, 1, TOP - 1, 1 << 63, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
               0x6744669800000000, 0x0102030405060708)
    for s in sessions(read_only_server()):
        for n, cookie in enumerate(cookies):
            s.request(CMD_READ, n * 512, 512, cookie=cookie)
        for n, cookie in enumerate(cookies):
            expect_bytes(bytes(s.reply(cookie).data),
                         pattern(n * 512, 512), n * 512, "%#x" % cookie)


@case
def many_in_flight():
    for s in sessions():
        wanted = {}
        for n in range(300):
            offset = 2 * MIB + n * 4096
            if n % 3 == 0:
                s.request(CMD_WRITE, offset, payload=pattern(offset, 4096, 9))
            elif n % 3 == 1:
                cookie = s.request(CMD_READ, n * 512, 512)
                wanted[cookie] = n * 512
            else:
                s.request(CMD_FLUSH)
        first = s.read(0, 300 * 512)
        while s.in_flight() or s.done:
            p = s.any_reply()
            expect(p.error, OK, "%s" % p)
            if p.cookie in wanted:
                at = wanted[p.cookie]
                expect_bytes(bytes(p.data), first[at:at + 512], at, "read")
        for n in range(0, 300, 3):
            offset = 2 * MIB + n * 4096
            expect_bytes(s.read(offset, 4096), pattern(offset, 4096, 9),
                         offset, "written")


@case
def many_in_flight_from_a_cold_cache():
    path = raw_image(scratch("cold"), SIZE, [(0, pattern(0, SIZE))])
    for engine in ("io_uring", "threads") if not PEER else (None,):
        with Server(path, engine=engine) as srv:
            for s in sessions(srv):
                s.write(4 * MIB, pattern(4 * MIB, MIB, 6))
                srv.forget_cached(path)
                wanted = {}
                for n in range(200):
                    offset, length = n * 40009 % (4 * MIB), 1 + n * 977 % 90000
                    if n % 4 == 3:
                        offset = 4 * MIB + offset % (MIB - length)
                    wanted[s.request(CMD_READ, offset, length)] = n % 4 == 3
                while s.in_flight():
                    p = s.any_reply()
                    expect(p.error, OK, "%s" % p)
                    expect_bytes(bytes(p.data), pattern(
                        p.offset, p.length, 6 if wanted[p.cookie] else 0),
                        p.offset, "%s, %s" % (engine, p))


@case
def disc_answers_what_it_owes():
    for mode in MODES:
        with server().open(mode) as s:
            for n in range(64):
                if n % 2:
                    s.request(CMD_READ, n * 65536, 65536)
                else:
                    s.request(CMD_WRITE, n * 65536,
                              payload=pattern(n * 65536, 65536, 1))
            s.disconnect()      # counts the replies, then wants the close
            expect(sum(len(v) for v in s.done.values()), 64, "replies")
            for same in s.done.values():
                expect(same[0].error, OK, "%s" % same[0])


@case
def disc_with_odd_fields():
    for mode in MODES:
        with server().open(mode) as s:
            s.request(CMD_DISC, TOP - 1, 4096, F_FUA)
            s.expect_eof()


@case
def a_write_of_one_byte_each():
    # Every byte of two grains by itself, then all compared.
    with server().open() as s:
        base = 3 * MIB
        data = pattern(base, 8192, 21)
        order = sorted(range(8192), key=lambda n: n * 2654435761 % 8192)
        for start in range(0, 8192, 256):
            for n in order[start:start + 256]:
                s.request(CMD_WRITE, base + n, payload=data[n:n + 1])
            while s.in_flight():
                s.any_reply()
        expect_bytes(s.read(base, 8192), data, base, "read back")
        s.disconnect()


# --- space ------------------------------------------------------------------

@case
def trim_and_zeroes_give_space_back():
    if PEER:
        raise Skip("only our overlay promises it")
    with Server(raw_image(scratch("space"), 64 * MIB)) as srv:
        with srv.open() as s:
            empty = srv.overlay_bytes()
            for command in (CMD_TRIM, CMD_WRITE_ZEROES):
                for at in range(0, 16 * MIB, MIB):
                    s.write(at, pattern(at, MIB, 2))
                full = srv.overlay_bytes()
                expect(full - empty >= 16 * MIB, True, "space is taken")
                expect(full - empty <= 17 * MIB, True, "and not much more")
                s.ok(command, 0, 16 * MIB)
                s.flush()
                srv.overlay_falls_to(empty + MIB, CMD_NAMES[command])
                expect(s.read(0, MIB), bytes(MIB), "reads as zeroes")
            s.disconnect()


@case
def no_hole_takes_space():
    if PEER:
        raise Skip("not what this server promises")
    with Server(raw_image(scratch("nohole"), 64 * MIB)) as srv:
        with srv.open(STRUCTURED, [BASE]) as s:
            before = srv.overlay_bytes()
            s.zero(0, 4 * MIB, F_NO_HOLE)
            taken = srv.overlay_bytes() - before
            expect(taken >= 4 * MIB, True, "%d KiB taken" % (taken >> 10))
            for length, status in s.status(0, 4 * MIB)[BASE]:
                expect(status & STATE_HOLE, 0, "hole in %d" % length)
            expect(s.read(0, MIB), bytes(MIB), "zeroes")
            s.disconnect()


main()
