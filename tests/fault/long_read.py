#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A long read fails after its reply has begun.

A simple reply can't take its "success" back, so the session must end there,
with nothing after the last good byte: whatever else is owed would be taken for
data (doc/proto.md, "NBD_CMD_READ"). With structured replies it is told in
band.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 64 * MIB
LENGTH = 16 * MIB       # more than the server and the socket hold together
LOST = 512              # its last bytes, gone when the server comes there
DATA = pattern(0, LENGTH)


def begun(srv, mode, before, after):
    """A session in which a read of LENGTH has begun to be answered, with the
    requests `before` and `after` it still owed; and the read's cookie."""
    s = srv.open(mode)
    s.reads_while_sending = False
    text = b""
    cookies = []
    for request in before + [(CMD_READ, 0, LENGTH)] + after:
        cookies.append(s.next_cookie())
        command, offset, length = request
        flags = F_PAYLOAD_LEN if (command, s.mode) == (
            CMD_WRITE, EXTENDED) else 0
        s.pending[cookies[-1]] = [Pending(cookies[-1], command, offset,
                                          length, flags, set())]
        text += s.request_bytes(command, offset, length, flags, cookies[-1])
        text += pattern(offset, length) * (command == CMD_WRITE)
    s.send(text)        # at once, so that all of it is known to the server
    return s, cookies[len(before)]


AROUND = [
    ([], []),
    ([(CMD_WRITE, 40 * MIB, 4096)], []),
    ([], [(CMD_READ, 0, 512), (CMD_FLUSH, 0, 0), (CMD_READ, MIB, 70000)]),
    ([(CMD_WRITE, 40 * MIB, 4096), (CMD_READ, 0, 512)],
     [(CMD_WRITE, 41 * MIB, 4096), (CMD_READ, 0, 512)]),
]


def each():
    if PEER:
        raise Skip("reads a long read at once")
    for n, (before, after) in enumerate(AROUND):
        path = raw_image(scratch("base"), SIZE, [(0, DATA)])
        with Server(path, engine=("auto", "threads")[n % 2]) as srv, \
                srv.open() as other:
            yield srv, path, before, after
            # The others are not concerned.
            expect_bytes(other.read(0, 65536), DATA[:65536], 0,
                         "another session")
            other.disconnect()
        os.unlink(path)


@case
def a_simple_reply_breaks_off():
    for srv, path, before, after in each():
        s, cookie = begun(srv, SIMPLE, before, after)
        head = be("IIQ", SIMPLE_REPLY_MAGIC, OK, cookie)
        s.fill_to(len(head))
        while head not in s.buf:
            expect(s.fill_to(len(s.buf) + 1), True, "the reply begins")
        at = s.buf.index(head) + len(head)
        os.truncate(path, LENGTH - LOST)
        s.fill_to(at + LENGTH + 4096)
        expect(s.eof, True, "the session ends")
        data = bytes(s.buf[at:])
        expect(len(data) <= LENGTH - LOST, True,
               "%d bytes of %d, %d of which were there"
               % (len(data), LENGTH, LENGTH - LOST))
        expect_bytes(data, DATA[:len(data)], 0, "what came of it")
        s.close()


@case
def chunks_tell_it():
    for srv, path, before, after in each():
        for mode in MODES[1:]:
            s, cookie = begun(srv, mode, before, after)
            expect(s.readable(s.stuck_s), True, "the reply begins")
            os.truncate(path, LENGTH - LOST)
            p = s.reply(cookie)
            expect(p.error, EIO, "%s" % p)
            while s.in_flight():
                expect(s.any_reply().error, OK, "what was asked beside it")
            s.disconnect()
            with open(path, "r+b") as f:
                f.truncate(SIZE)
                f.seek(LENGTH - LOST)
                f.write(DATA[-LOST:])


main()
