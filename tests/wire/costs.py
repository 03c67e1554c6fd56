#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""What a client can make the server spend has a bound: memory for the map of
what it trimmed, memory for replies it does not take, steps for one answer.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import SANITIZED, Skip, case, expect, expect_bytes, main, scratch
from images import GIB, MIB, TIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

DEPTH = "qemu:allocation-depth"


# --- the map --------------------------------------------------------------------

def one_grain_each(s, command, count, step, batch=500):
    """`count` requests of 4 KiB, `step` bytes apart; the errors they got."""
    errors = set()
    for first in range(0, count, batch):
        cookies = [s.request(command, n * step, 4096)
                   for n in range(first, min(first + batch, count))]
        errors |= {s.reply(cookie).error for cookie in cookies}
    return errors


@case
def scattered_trims_do_not_fill_memory():
    # Each needs a part of the map of its own: without a bound 300 MiB.
    if PEER:
        raise Skip("has another map")
    with Server(raw_image(scratch("wide"), 4 * TIB)) as srv:
        with srv.open(MODES[-1]) as s:
            expect(one_grain_each(s, CMD_TRIM, 120000, 2 * MIB), {OK},
                   "trims")
            srv.check_memory(160 * MIB, "scattered trims")
            # Zeroes must read as zeroes, so they are refused in band.
            offset = 3 * TIB
            expect(s.call(CMD_WRITE_ZEROES, offset, 4096).error, ENOSPC,
                   "zeroes beyond the bound")
            # Whoever writes pays with disk, and goes on.
            s.write(offset, pattern(offset, 4096))
            expect_bytes(s.read(offset, 4096), pattern(offset, 4096), offset,
                         "written")
            # What is given back can be had again.
            s.trim(0, s.size)
            expect(one_grain_each(s, CMD_WRITE_ZEROES, 500, 2 * MIB), {OK},
                   "zeroes after a trim of everything")
            s.disconnect()


# --- replies ----------------------------------------------------------------------

def reads_without_replies(srv, count):
    """Sessions that asked for 4 MiB twice and took nothing."""
    held = []
    for _ in range(count):
        s = srv.open()
        s.reads_while_sending = False
        for _ in range(2):
            s.request(CMD_READ, 0, 4 * MIB)
        held.append(s)
    for s in held:
        expect(s.readable(s.stuck_s), True, "a reply begins")
    return held


def settled_rss(srv):
    """Its memory, once that does not grow any more."""
    before = -1
    while srv.rss_bytes() > before + MIB:
        before = srv.rss_bytes()
        time.sleep(0.3)
    return srv.rss_bytes()


@case
def replies_nobody_takes_have_a_bound_over_all_sessions():
    if SANITIZED or PEER:
        raise Skip("is about our memory")
    count = 160                 # 640 MiB if each had its 4 MiB
    path = raw_image(scratch("image"), 16 * MIB, [(0, pattern(0, 16 * MIB))])
    with Server(path) as srv, srv.open() as good:
        held = reads_without_replies(srv, count)
        found = settled_rss(srv)
        expect(found < 480 * MIB, True,
               "%d MiB for %d sessions" % (found >> 20, count))
        # Nobody else is held up, and they get what they asked for.
        expect_bytes(good.read(MIB, MIB), pattern(MIB, MIB), MIB, "beside it")
        want = pattern(0, 4 * MIB)
        for s in held[::16]:
            while s.in_flight():
                expect(s.any_reply().data == want, True, "late reply")
        for s in held:
            s.close()
        good.disconnect()


@case
def idle_sessions_give_back_their_replies_memory():
    if SANITIZED or PEER:
        raise Skip("is about our memory")
    path = raw_image(scratch("image"), 16 * MIB, [(0, pattern(0, 16 * MIB))])
    with Server(path) as srv:
        before = srv.rss_bytes()
        held = [srv.open() for _ in range(40)]
        for s in held:
            s.read(0, 4 * MIB)
        deadline = time.monotonic() + STUCK_S
        while srv.rss_bytes() > before + 40 * MIB:
            if time.monotonic() > deadline:
                raise AssertionError("%d idle sessions keep %d MiB" % (
                    len(held), srv.rss_bytes() - before >> 20))
            time.sleep(0.1)
        for s in held:
            expect_bytes(s.read(MIB, 4096), pattern(MIB, 4096), MIB,
                         "after its rest")
            s.disconnect()


# --- steps ------------------------------------------------------------------------

@case
def status_of_very_many_extents_ends_early():
    # All alike in one context and so one extent of the answer, however many
    # there are below: the answer must not work through them all at once.
    if PEER:
        raise Skip("knows no bound")
    count = 12000
    path = raw_image(scratch("pieces"), count * 8192)
    fd = os.open(path, os.O_RDWR)
    for n in range(count):
        os.pwrite(fd, b"x" * 4096, n * 8192)
    os.fsync(fd)
    os.close(fd)
    with Server(path) as srv:
        for mode in MODES[1:]:
            with srv.open(mode, ["base:allocation"]) as s:
                if len(s.status(0, 4 * MIB)["base:allocation"]) < 1000:
                    raise Skip("this filesystem has no such small holes")
                s.disconnect()
            with srv.open(mode, [DEPTH]) as s:
                for flags in (F_REQ_ONE, 0):
                    (length, depth), *more = s.status(0, s.size,
                                                      flags)[DEPTH]
                    expect(length < s.size and not more, True,
                           "one answer for %d extents: %d bytes"
                           % (2 * count, length))
                # Asking on gets to the end.
                expect(walk_status(s, 0, s.size, DEPTH),
                       [(0, s.size, depth)], "all of it")
                s.disconnect()
    os.unlink(path)


main()
