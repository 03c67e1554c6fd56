#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""What one client does must not take from another: the space that others give
back, the workers that others' reads need, the lock that others' first writes
need.

Nothing here is timed against a clock: either something must come about in the
end, or two things that happen at once are compared.
"""
import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch
from images import GIB, KIB, MIB, pattern, raw_image, tool
from nbdwire import *
from rewindserver import PEER, Server

PACKED = 32 * MIB       # of the image, compressed: reads of it must wait
SIZE = 64 * GIB
FREE = GIB              # from here on the image is empty
SPARE = 4 * MIB         # an overlay in which next to nothing is left


def packed_server(**more):
    if PEER:
        raise Skip("watches our overlay")
    path = scratch("packed.qcow2")
    if not os.path.exists(path):
        raw = raw_image(scratch("packed"), PACKED, [(0, pattern(0, PACKED))])
        tool("qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2",
             raw, path)
        tool("qemu-img", "resize", "-q", "-f", "qcow2", path, str(SIZE))
        os.unlink(raw)
    return Server(path, image_format="qcow2", **more)


def check_packed(s, offset):
    expect_bytes(s.read(offset, 64 * KIB), pattern(offset, 64 * KIB), offset,
                 "compressed")


def takes_no_replies(srv):
    """A session that owes us many replies and can't get rid of them."""
    s = srv.open()
    s.reads_while_sending = False
    for n in range(200):
        s.request(CMD_READ, n * 131072 % (PACKED - 262144), 262144)
    expect(s.readable(s.stuck_s), True, "it has begun to answer")
    return s


def write_and_trim(s, times):
    for n in range(times):
        s.write(FREE, pattern(FREE, MIB, n))
        s.trim(FREE, MIB)


@case
def space_comes_back_beside_a_client_that_takes_no_replies():
    with packed_server() as srv, srv.open() as s:
        write_and_trim(s, 8)
        srv.overlay_falls_to(SPARE, "alone")
        for n in range(2):
            stuck = takes_no_replies(srv)
            write_and_trim(s, 16)
            srv.overlay_falls_to(SPARE, "beside stuck clients: %d" % (n + 1))
            stuck.close()
        s.disconnect()


@case
def space_comes_back_without_further_requests():
    # A trim that meets another client's reads must leave its space to be
    # collected later. No request helps with that: all is quiet afterwards.
    with packed_server() as srv, srv.open() as reader, srv.open() as s:
        for n in range(8):
            s.write(FREE, pattern(FREE, 8 * MIB, n))
            cookies = [reader.request(CMD_READ, k % 120 * 262144, 262144)
                       for k in range(64)]
            s.trim(FREE, 8 * MIB)
            for cookie in cookies:
                expect(reader.reply(cookie).error, OK, "read")
            srv.overlay_falls_to(SPARE, "round %d" % n)
        reader.disconnect()
        s.disconnect()


# --- zeroes that are written out --------------------------------------------------

def ask_for_zeroes(s, count, length):
    """`count` requests that each take a while, in one go; their cookies."""
    cookies = []
    text = b""
    for n in range(count):
        p = Pending(s.next_cookie(), CMD_WRITE_ZEROES, FREE + n * 2 * length,
                    length, F_NO_HOLE, set())
        s.pending[p.cookie] = [p]
        cookies.append(p.cookie)
        text += s.request_bytes(p.command, p.offset, length, p.flags,
                                p.cookie)
    s.send(text)
    return cookies


@case
def zeroes_leave_room_for_others_reads():
    # Enough of them to occupy every worker, if they could.
    count = 24
    with packed_server() as srv, srv.open() as greedy, srv.open() as s:
        check_packed(s, 0)
        cookies = ask_for_zeroes(greedy, count, 64 * MIB)
        check_packed(s, MIB)
        written = srv.overlay_bytes()
        expect(written <= count * 64 * MIB // 4, True,
               "a read beside %d MiB of zeroes came after %d MiB of them"
               % (count * 64, written >> 20))
        for cookie in cookies:
            expect(greedy.reply(cookie).error, OK, "zeroes")
        greedy.disconnect()
        s.disconnect()


@case
def zeroes_do_not_hold_up_earlier_replies():
    count = 24
    with packed_server() as srv, srv.open() as s:
        early = s.request(CMD_READ, 0, 4096)
        cookies = ask_for_zeroes(s, count, 64 * MIB)
        for cookie, done in ((early, 0), (cookies[0], 64 * MIB)):
            expect(s.reply(cookie).error, OK, "an early one")
            written = srv.overlay_bytes()
            expect(written <= done + count * 64 * MIB // 2, True,
                   "its reply waited for %d MiB of zeroes" % (written >> 20))
        for cookie in cookies[1:]:
            expect(s.reply(cookie).error, OK, "zeroes")
        s.disconnect()


@case
def the_end_does_not_wait_for_zeroes():
    srv = packed_server()
    try:
        with srv.open() as s:
            cookies = ask_for_zeroes(s, 1500, 16 * MIB)
            deadline = time.monotonic() + STUCK_S
            while srv.overlay_bytes() < SPARE:
                expect(time.monotonic() < deadline, True, "it begins")
                time.sleep(0.01)
            os.kill(srv.pid, signal.SIGTERM)
            errors = []
            try:
                while cookies:
                    errors.append(s.reply(cookies.pop(0)).error)
            except Closed:
                pass
            expect(set(errors) <= {OK, ESHUTDOWN}, True, "%r" % set(errors))
        srv.stop()
    finally:
        srv.kill()


# --- a trim of very many pieces ---------------------------------------------------

GRAIN = 4096
PIECES = 24576


class FirstWrites(threading.Thread):
    """Writes to places never written before, one after the other, and notes
    how long each took."""

    def __init__(self, s):
        super().__init__()
        self.s, self.stop, self.done, self.error = s, False, [], None

    def run(self):
        data = pattern(0, GRAIN)
        try:
            for n in range(1 << 20):
                if self.stop:
                    return
                start = time.perf_counter()
                self.s.write(50 * GIB + n * GRAIN, data)
                self.done.append((start, time.perf_counter()))
        except BaseException as e:  # told by whoever joins
            self.error = e


def write_apart(s, region, other):
    """PIECES grains at `region`, which lie apart from each other in the
    overlay, since grains of `other` come between them."""
    data = bytes(range(1, 129)) * (GRAIN // 128)
    for first in range(0, PIECES, 64):
        cookies = [s.request(CMD_WRITE, where + (first + n) * GRAIN,
                             payload=data)
                   for n in range(64) for where in (region, other)]
        for cookie in cookies:
            expect(s.reply(cookie).error, OK, "write")


def longest_wait(s, other, region):
    """(seconds a trim of `region` took, the longest that one of another
    client's first writes took meanwhile)"""
    writer = FirstWrites(other)
    writer.start()
    try:
        while len(writer.done) < 10 and writer.is_alive():
            time.sleep(0.001)
        start = time.perf_counter()
        s.trim(region, PIECES * GRAIN)
        end = time.perf_counter()
    finally:
        writer.stop = True
        writer.join()
    if writer.error:
        raise writer.error
    return end - start, max([b - a for a, b in writer.done if b > start]
                            + [0])


@case
def first_writes_do_not_wait_for_a_large_trim():
    with packed_server() as srv, srv.open() as s, srv.open() as other:
        found = []
        for n in range(4):
            region = FREE + n * GIB
            write_apart(s, region, region + 20 * GIB)
            took, waited = longest_wait(s, other, region)
            found.append("%.1f of %.1f ms" % (waited * 1e3, took * 1e3))
            if waited < took / 3:
                break
        else:
            raise AssertionError("first writes waited for a trim: %s"
                                 % ", ".join(found))
        s.disconnect()
        other.disconnect()


main()
