#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Payloads: the largest, larger ones, and extended headers' PAYLOAD_LEN.

Reference: doc/proto.md, "Size constraints", "Request message",
"NBD_CMD_BLOCK_STATUS".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch, shared
from images import GIB, MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

LARGEST = 64 * MIB if not PEER else 32 * MIB
SIZE = 2 * LARGEST
BASE, DEPTH = "base:allocation", "qemu:allocation-depth"


@shared
def server():
    return Server(raw_image(scratch("image"), SIZE))


@shared
def large_server():
    return Server(raw_image(scratch("large"), 8 * GIB))


def large_data(salt):
    """64 MiB in which each 64 KiB tells its place."""
    block = pattern(0, 65536 - 8, salt)
    return b"".join(be("Q", n) + block for n in range(LARGEST // 65536))


@case
def the_largest_payload():
    for n, mode in enumerate(MODES):
        with server().open(mode) as s:
            expect(s.payload_max >= LARGEST, True, "maximum payload")
            for offset in (4096, 4097 + MIB):
                data = large_data(n)
                s.write(offset, data)
                expect_bytes(s.read(offset, LARGEST), data, offset,
                             "%s at %d" % (mode, offset))
                s.zero(offset, LARGEST)
            s.disconnect()
    server().check_memory(64 * MIB, "payloads of 64 MiB")


@case
def two_of_the_largest_at_once():
    with server().open(STRUCTURED) as s:
        data = large_data(7)
        s.request(CMD_WRITE, 0, payload=data)
        s.request(CMD_WRITE, LARGEST, payload=data)
        while s.in_flight():
            expect(s.any_reply().error, OK, "write")
        a = s.request(CMD_READ, 0, LARGEST)
        b = s.request(CMD_READ, LARGEST, LARGEST)
        expect(bytes(s.reply(a).data) == data, True, "first half")
        expect(bytes(s.reply(b).data) == data, True, "second half")
        s.zero(0, SIZE)
        s.disconnect()


@case
def a_larger_write_is_drained_and_refused():
    if PEER:
        raise Skip("closes, as the protocol allows")
    for mode in MODES:
        for extra in (1, 4096, 32 * MIB):
            with server().open(mode) as s:
                too_much = b"y" * (LARGEST + extra)
                try:
                    p = s.call(CMD_WRITE, 0, payload=too_much)
                except Closed:
                    # With extended headers a close is what the protocol
                    # recommends.
                    if mode == EXTENDED:
                        continue
                    raise
                expect(p.error, {EOVERFLOW, EINVAL}, "%s" % p)
                expect(s.read(0, 4096), bytes(4096), "nothing is written")
                s.disconnect()
    server().check_memory(64 * MIB, "refused payloads")


@case
def a_larger_read():
    for mode in MODES:
        with server().open(mode) as s:
            s.write(LARGEST, b"mark")
            for length in (LARGEST + 1, SIZE):
                p = s.call(CMD_READ, 0, length)
                expect(p.error, {OK, EOVERFLOW, EINVAL}, "%s" % p)
                if not p.error:
                    expect(bytes(p.data[LARGEST:LARGEST + 4]), b"mark",
                           "data")
            expect(s.read(LARGEST, 4), b"mark", "goes on")
            s.zero(LARGEST, 4)
            s.disconnect()


@case
def reads_of_gigabytes_keep_the_session():
    if PEER == "nbdkit":
        raise Skip("closes")
    for mode in MODES:
        with large_server().open(mode) as s:
            lengths = [(1 << 32) - 1, 1 << 31, 5 * GIB]
            for length in lengths[:3 if mode == EXTENDED else 2]:
                p = s.call(CMD_READ, 0, length)
                expect(p.error, {OK, EOVERFLOW, EINVAL}, "%s" % p)
            expect(s.read(6 * GIB, 512), bytes(512), "goes on")
            s.disconnect()
    large_server().check_memory(64 * MIB, "absurd reads")


@case
def payload_len_in_compact_requests_is_refused():
    for mode in (SIMPLE, STRUCTURED):
        with server().open(mode) as s:
            p = s.call(CMD_WRITE, 0, flags=F_PAYLOAD_LEN,
                       payload=b"x" * 4096)
            expect(p.error, EINVAL, "%s" % p)
            expect(s.read(0, 4096), bytes(4096), "nothing is written")
            for command in (CMD_READ, CMD_TRIM, CMD_WRITE_ZEROES, CMD_FLUSH):
                p = s.call(command, 0, 0 if command == CMD_FLUSH else 4096,
                           F_PAYLOAD_LEN)
                expect(p.error, EINVAL, "%s" % p)
            s.disconnect()


# --- extended headers only --------------------------------------------------

def extended(contexts=()):
    if PEER:
        raise Skip("has no extended headers")
    return server().open(EXTENDED, contexts)


@case
def a_write_needs_payload_len():
    with extended() as s:
        # Without the flag the length is an effect length: no payload follows.
        cookie = s.request(CMD_FLUSH)
        s.reply(cookie)
        s.send(s.request_bytes(CMD_WRITE, 0, 4096, 0, 77))
        s.pending[77] = [Pending(77, CMD_WRITE, 0, 4096, 0, set())]
        expect(s.reply(77).error, EINVAL, "WRITE without PAYLOAD_LEN")
        expect(s.read(0, 4096), bytes(4096), "nothing is written")
        s.disconnect()


@case
def a_payload_where_none_belongs_is_drained():
    with extended([BASE]) as s:
        for command in (CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE,
                        CMD_WRITE_ZEROES, CMD_RESIZE, 9, 0xffff):
            for length in (1, 4096, 100000, 4 * MIB):
                p = s.call(command, 0, length, F_PAYLOAD_LEN,
                           payload=b"z" * length)
                expect(p.error, EINVAL, "%s" % p)
        expect(s.read(0, 4096), bytes(4096), "nothing is written")
        s.disconnect()


@case
def an_empty_payload():
    with extended([BASE]) as s:
        for command in (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_BLOCK_STATUS,
                        CMD_FLUSH):
            p = s.call(command, 0, 0, F_PAYLOAD_LEN)
            expect(p.error, {OK, EINVAL}, "%s" % p)
        expect(s.read(0, 512), bytes(512), "goes on")
        s.disconnect()


def status_payload(s, effect, ids, data=None, offset=0, flags=0):
    if data is None:
        data = be("Q", effect) + b"".join(be("I", i) for i in ids)
    return s.call(CMD_BLOCK_STATUS, offset, len(data),
                  F_PAYLOAD_LEN | flags, data, contexts=set(ids),
                  effect=effect)


@case
def status_of_some_contexts():
    with extended([BASE, DEPTH]) as s:
        ids = {name: number for number, name in s.contexts.items()}
        for names in ([BASE], [DEPTH], [BASE, DEPTH], [DEPTH, BASE]):
            wanted = [ids[n] for n in names]
            p = status_payload(s, MIB, wanted)
            expect(p.error, OK, "%r: %s" % (names, p.message))
            p = status_payload(s, MIB, wanted, flags=F_REQ_ONE)
            expect(p.error, OK, "%r with REQ_ONE: %s" % (names, p.message))
            p = status_payload(s, 4096, wanted, offset=SIZE - 4096)
            expect(p.error, OK, "%r at the end: %s" % (names, p.message))
        s.ok(CMD_BLOCK_STATUS, 0, MIB)
        s.disconnect()


@case
def status_of_wrong_contexts():
    with extended([BASE]) as s:
        good = next(iter(s.contexts))
        for ids in ([good, good], [good + 1], [good, good + 1], [0],
                    [0xffffffff], [good] * 100, list(range(1, 300))):
            p = status_payload(s, MIB, ids)
            expect(p.error, EINVAL, "%r" % ids[:4])
        s.ok(CMD_BLOCK_STATUS, 0, MIB)
        s.disconnect()


@case
def status_payloads_of_wrong_size():
    with extended([BASE]) as s:
        good = be("QI", MIB, next(iter(s.contexts)))
        for size in (1, 4, 7, 9, 10, 11):
            p = status_payload(s, MIB, [], good[:size])
            expect(p.error, EINVAL, "%d bytes" % size)
        for more in (b"x", b"xxx", bytes(65536), bytes(MIB)):
            p = status_payload(s, MIB, [], good + more)
            expect(p.error, EINVAL, "%d bytes" % (12 + len(more)))
        p = status_payload(s, MIB, [], good[:8])
        expect(p.error, {OK, EINVAL}, "no context at all")
        s.ok(CMD_BLOCK_STATUS, 0, MIB)
        s.disconnect()


@case
def status_payload_beyond_the_end():
    with extended([BASE]) as s:
        good = next(iter(s.contexts))
        for offset, effect in ((0, SIZE + 1), (SIZE, 1), (SIZE - 1, 2),
                               (0, (1 << 64) - 1), (1 << 63, 1 << 63),
                               ((1 << 64) - 1, 1), (4096, 1 << 62)):
            p = status_payload(s, effect, [good], offset=offset)
            expect(p.error, EINVAL, "%#x +%#x" % (offset, effect))
        p = status_payload(s, 0, [good])
        expect(p.error, {OK, EINVAL}, "effect of no length")
        s.ok(CMD_BLOCK_STATUS, 0, MIB)
        s.disconnect()


@case
def status_payload_without_contexts():
    with extended() as s:
        p = status_payload(s, MIB, [1])
        expect(p.error, EINVAL, "%s" % p)
        expect(s.read(0, 512), bytes(512), "goes on")
        s.disconnect()


main()
