#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Payloads that come slowly or never: what was asked before them is answered
meanwhile, and what they bring is taken when it comes.

Every case is a matter of progress: a reply that is owed comes although the
rest of the payload does not. Reference: doc/proto.md, "Ordering of messages
and writes", "NBD_CMD_DISC".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (Skip, case, expect, expect_bytes, main, scratch, shared,
                     table)
from images import KIB, MIB, pattern, raw_image, tool
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 64 * MIB
DATA = 8 * MIB          # of the image; the rest is empty
TARGET = 16 * MIB + 512
# Gathered in the buffer, just below and above what is streamed, and more than
# any buffer.
PAYLOADS = (4096, 100 * KIB, 200 * KIB, MIB, 8 * MIB)


def raw(name):
    return raw_image(scratch(name), SIZE, [(0, pattern(0, DATA))])


@shared
def cached():
    return Server(raw("base"))


@shared
def compressed():
    path = scratch("packed.qcow2")
    tool("qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2",
         raw("plain"), path)
    return Server(path, image_format="qcow2")


@shared
def writable():
    return Server(raw("disk"), ephemeral=False)


def begin_write(s, offset, data, part, flags=0):
    """The header and the first `part` bytes; finish_write sends the rest."""
    cookie = s.next_cookie()
    if s.mode == EXTENDED:
        flags |= F_PAYLOAD_LEN
    s.pending[cookie] = [Pending(cookie, CMD_WRITE, offset, len(data), flags,
                                 set())]
    s.note("> WRITE %d of %d bytes" % (part, len(data)))
    s.send(s.request_bytes(CMD_WRITE, offset, len(data), flags, cookie)
           + data[:part])
    return cookie


def finish_write(s, cookie, offset, data, part):
    s.send(data[part:])
    expect(s.reply(cookie).error, OK, "the slow write")
    expect_bytes(s.read(offset, len(data)), data, offset, "what it wrote")


def nothing_held_up(server, *requests):
    """All the requests in one go with half a write behind them."""
    for mode in MODES:
        for size in PAYLOADS:
            with server().open(mode) as s:
                data = pattern(TARGET, size, 1)
                early = [s.request(*request[:4], **dict(request[4:]))
                         for request in requests]
                slow = begin_write(s, TARGET, data, 1000)
                for cookie in early:
                    p = s.reply(cookie)     # Stuck, if it is held up
                    expect(p.error, OK, "%s before %d bytes" % (p, size))
                    if p.command == CMD_READ:
                        expect_bytes(bytes(p.data),
                                     pattern(p.offset, p.length), p.offset,
                                     "read before a slow write")
                if s.readable(0.01):
                    s.violation("an answer to half a write")
                finish_write(s, slow, TARGET, data, 1000)
                s.disconnect()


BLOCK = pattern(9 * MIB, 4096)

table(nothing_held_up, [
    ("cached reads", cached, (CMD_READ, 0, 4096), (CMD_READ, MIB, MIB)),
    ("reads that must wait", compressed, (CMD_READ, 4 * MIB, 4096),
     (CMD_READ, MIB, MIB)),
    ("a write", cached,
     (CMD_WRITE, 9 * MIB, 0, 0, ("payload", BLOCK))),
    ("a write and a read", compressed,
     (CMD_WRITE, 9 * MIB, 0, 0, ("payload", BLOCK)),
     (CMD_READ, 6 * MIB, 65536)),
    ("a flush", writable, (CMD_FLUSH, 0, 0, 0)),
    ("a write, a flush and FUA", writable,
     (CMD_WRITE, 9 * MIB, 0, 0, ("payload", BLOCK)), (CMD_FLUSH, 0, 0, 0),
     (CMD_WRITE, 9 * MIB, 0, F_FUA, ("payload", BLOCK))),
    ("large zeroes", cached, (CMD_WRITE_ZEROES, 40 * MIB, 16 * MIB, F_NO_HOLE),
     (CMD_TRIM, 40 * MIB, 16 * MIB)),
], "%s before half a write")


@case
def a_slow_write_is_not_seen_as_done():
    # Its FUA is no less slow, and other sessions are served meanwhile.
    for server in (cached, writable):
        with server().open(MODES[-1]) as s, server().open() as other:
            data = pattern(TARGET, 2 * MIB, 5)
            slow = begin_write(s, TARGET, data, MIB, F_FUA)
            for n in range(20):
                other.write(12 * MIB, pattern(12 * MIB, 4096, n))
                other.flush()
            if s.readable(0.01):
                s.violation("an answer to half a write")
            finish_write(s, slow, TARGET, data, MIB)
            s.disconnect()
            other.disconnect()


@case
def half_a_refused_payload_holds_up_nothing():
    # More than may be: drained, and refused once it has all come.
    if PEER:
        raise Skip("closes, as the protocol allows")
    for mode in MODES:
        with compressed().open(mode) as s:
            data = b"z" * (65 * MIB)
            early = s.request(CMD_READ, 2 * MIB, 65536)
            slow = begin_write(s, 0, data, MIB)
            expect_bytes(bytes(s.reply(early).data),
                         pattern(2 * MIB, 65536), 2 * MIB, "read")
            s.send(data[MIB:])
            expect(s.reply(slow).error, EINVAL, "too large")
            s.disconnect()


@case
def disc_with_a_payload_that_never_comes():
    # It is obeyed at once: what is owed is answered, and nothing else.
    if PEER:
        raise Skip("has no extended headers")
    for size in (1, 4096, 200000, 32 * MIB):
        with compressed().open(EXTENDED) as s:
            reads = [s.request(CMD_READ, n * MIB, 65536) for n in range(4)]
            s.send(s.request_bytes(CMD_DISC, 0, size, F_PAYLOAD_LEN, 99))
            for n, cookie in enumerate(reads):
                expect_bytes(bytes(s.reply(cookie).data),
                             pattern(n * MIB, 65536), n * MIB, "owed")
            s.expect_eof()


@case
def disc_with_a_payload_that_comes():
    if PEER:
        raise Skip("has no extended headers")
    for size in (1, 4096, 200000, 8 * MIB):
        for part in (0, size):
            with cached().open(EXTENDED) as s:
                try:
                    s.send(s.request_bytes(CMD_DISC, 0, size, F_PAYLOAD_LEN,
                                           99) + bytes(part))
                    s.send(bytes(size - part))
                except Closed:
                    pass        # it did not wait for the payload
                s.expect_eof()
    with cached().open() as s:
        expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "others go on")
        s.disconnect()


main()
