#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Several sessions on one export see one disk.

Reference: doc/proto.md, "NBD_FLAG_CAN_MULTI_CONN": the effects of FLUSH and
FUA are visible across all connections. Invariant S2.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import case, expect, expect_bytes, main, scratch, shared
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, Server

SIZE = 16 * MIB


@shared
def ephemeral():
    return Server(raw_image(scratch("base"), SIZE, [(0, pattern(0, MIB))]))


@shared
def writable():
    return Server(raw_image(scratch("disk"), SIZE), ephemeral=False)


def servers():
    return ephemeral(), writable()


@case
def multi_conn_is_offered():
    for srv in servers():
        with srv.open() as s:
            expect(s.flags & FLAG_CAN_MULTI_CONN, FLAG_CAN_MULTI_CONN, "flag")
            s.disconnect()


@case
def write_here_flush_there_read_elsewhere():
    for srv in servers():
        with srv.open(SIMPLE) as a, srv.open(MODES[-1]) as b, \
                srv.open(STRUCTURED) as c:
            for n in range(200):
                offset = n * 7919 % (SIZE - 20000)
                data = pattern(offset, 1 + n * 97 % 20000, n)
                a.write(offset, data)
                b.flush()
                expect_bytes(c.read(offset, len(data)), data, offset,
                             "round %d" % n)
                a, b, c = b, c, a
            for s in (a, b, c):
                s.disconnect()


@case
def fua_is_seen_elsewhere():
    for srv in servers():
        with srv.open(SIMPLE) as a, srv.open(STRUCTURED) as b:
            for n in range(100):
                offset = MIB + n * 5003
                a.write(offset, pattern(offset, 5003, n), F_FUA)
                expect_bytes(b.read(offset, 5003), pattern(offset, 5003, n),
                             offset, "after a write")
                a.zero(offset + 1, 5001, F_FUA)
                expect(b.read(offset + 1, 5001), bytes(5001), "after zeroes")
                a, b = b, a
            a.disconnect()
            b.disconnect()


@case
def what_a_killed_client_was_told_stays():
    for srv in servers():
        a = srv.open(SIMPLE)
        a.write(5 * MIB, pattern(5 * MIB, MIB, 1))
        a.request(CMD_READ, 0, MIB)
        a.close()
        with srv.open(SIMPLE) as b:
            expect_bytes(b.read(5 * MIB, MIB), pattern(5 * MIB, MIB, 1),
                         5 * MIB, "data")
            b.disconnect()


@case
def sessions_come_and_go():
    for srv in servers():
        before = srv.fds(), srv.threads()
        held = [srv.open(MODES[n % len(MODES)]) for n in range(32)]
        for n, s in enumerate(held):
            s.request(CMD_WRITE, n * 4096, payload=pattern(n * 4096, 4096, 2))
        for s in held:
            while s.in_flight():
                expect(s.any_reply().error, OK, "write")
        for n, s in enumerate(reversed(held)):
            expect_bytes(s.read(n * 4096, 4096), pattern(n * 4096, 4096, 2),
                         n * 4096, "read by another session")
        for s in held:
            s.disconnect()
        for _ in range(200):
            with srv.open() as s:
                expect(len(s.read(0, 512)), 512, "short visit")
        settle(srv, before)


def settle(srv, before):
    """What sessions used is given back soon after they end."""
    deadline = time.monotonic() + STUCK_S
    while True:
        now = srv.fds(), srv.threads()
        if now[0] <= before[0] + 4 and now[1] <= before[1] + 4:
            return
        if time.monotonic() > deadline:
            raise AssertionError("descriptors and threads: %r before, %r "
                                 "after" % (before, now))
        time.sleep(0.02)


@case
def the_file_has_it_after_the_end():
    path = raw_image(scratch("last"), SIZE)
    with Server(path, ephemeral=False) as srv:
        with srv.open() as a, srv.open() as b:
            a.write(0, pattern(0, MIB))
            b.write(8 * MIB + 5, pattern(8 * MIB + 5, MIB))
            a.flush()
            b.write(MIB, pattern(MIB, MIB))     # nobody flushes this one
    with open(path, "rb") as f:
        data = f.read()
    expect_bytes(data[:2 * MIB], pattern(0, 2 * MIB), 0, "file")
    expect_bytes(data[8 * MIB + 5:9 * MIB + 5],
                 pattern(8 * MIB + 5, MIB), 8 * MIB + 5, "file")
    expect(len(data), SIZE, "size")


main()
