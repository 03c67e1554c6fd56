#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: timeout=120
"""Sessions that write different bytes of the same 4 KiB grains at once.

The first write to a part of a grain copies the rest of it from the base; if
two do so at the same time and one forgets the other, an update is lost. Each
writer is a process with a session of its own and a slice of every grain that
nobody else touches; every answered write must be there at the end, and at
every moment between. REWIND_SEED=N replays the order of each writer.
"""
import os
import random
import resource
import struct
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import case, expect, expect_bytes, main, scratch, seed
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import PEER, Server

SEED = seed()
GRAIN = 4096
SIZE = 4 * MIB
WRITERS = 4
BATCH = 64
SECONDS = 1


def engines():
    return (None,) if PEER else ("io_uring", "threads")


class Writers:
    """Processes that start together and tell how it went."""

    def __init__(self, count, work):
        self.children = []
        self.ended = {}             # pid: status
        go_read, go_write = os.pipe()
        for n in range(count):
            out_read, out_write = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(go_write)
                os._exit(self.child(go_read, out_write, work, n))
            os.close(out_write)
            self.children.append((pid, out_read))
        os.close(go_read)
        os.close(go_write)          # end of file: go

    @staticmethod
    def child(go, out, work, n):
        try:
            os.read(go, 1)
            work(n)
            return 0
        except BaseException:
            os.write(out, traceback.format_exc().encode()[-4000:])
            return 1

    def any_left(self):
        for pid, _ in self.children:
            if pid not in self.ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.ended[pid] = status
        return len(self.ended) < len(self.children)

    def join(self, meanwhile=None):
        """`meanwhile` is called until all have ended."""
        texts = []
        while meanwhile and self.any_left():
            meanwhile()
            time.sleep(0.005)
        for pid, out in self.children:
            with os.fdopen(out, "rb") as f:
                text = f.read().decode()
            status = self.ended.get(pid)
            if status is None:
                status = os.waitpid(pid, 0)[1]
            status = os.waitstatus_to_exitcode(status)
            if status:
                texts.append("writer: exit %d\n%s" % (status, text))
        if texts:
            raise AssertionError("REWIND_SEED=%d\n%s"
                                 % (SEED, "\n".join(texts)))


def send_batch(s, requests):
    """
    Many requests by one send, so that they meet those of the others. What
    the overlay has no room for is sent again: space that others gave up may
    take a moment to come back.
    """
    deadline = time.monotonic() + STUCK_S
    answers = []
    while requests:
        again, stream, sent = [], b"", {}
        for request in requests:
            command, offset, length, data = request
            cookie = s.next_cookie()
            stream += s.request_bytes(command, offset, len(data) or length, 0,
                                      cookie) + data
            s.pending[cookie] = [Pending(cookie, command, offset,
                                         len(data) or length, 0, set())]
            sent[cookie] = request
        s.send(stream)
        while s.in_flight():
            p = s.any_reply()
            if p.error == ENOSPC and time.monotonic() < deadline:
                again.append(sent[p.cookie])
            elif p.error:
                raise AssertionError("%s: %s" % (p, ERROR_NAMES[p.error]))
            else:
                answers.append(p)
        requests = again
    return answers


def race(srv, plan, rounds):
    """`plan(n, round)` lists what writer n does in a round."""
    def work(n):
        with srv.open() as s:
            for i in range(rounds):
                requests = plan(n, i)
                for at in range(0, len(requests), BATCH):
                    send_batch(s, requests[at:at + BATCH])
            s.disconnect()
    Writers(WRITERS, work).join()


def until_time_is_up(make_case, file_limit=None):
    """
    Fresh servers (so fresh grains) as long as there is time. With
    `file_limit` the overlay's file may not grow beyond it, so that space
    which was given up is used again at once.
    """
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    for engine in engines():
        image = raw_image(scratch("base"), SIZE, [(0, pattern(0, SIZE, 1))])
        deadline = time.monotonic() + SECONDS
        n = 0
        while n == 0 or time.monotonic() < deadline:
            with Server(image, engine=engine,
                        preexec=limit if file_limit else None) as srv:
                make_case(srv, "%d %d" % (SEED, n))
            n += 1
        print("      %d rounds on %s" % (n, engine))


def whole(srv, size):
    with srv.open(STRUCTURED) as s:
        data = b"".join(s.read(at, MIB) for at in range(0, size, MIB))
        s.disconnect()
    return data


@case
def sectors_of_the_same_grains():
    # 8 sectors a grain, each writer two of them.
    def make(srv, tag):
        grains = 2 * MIB // GRAIN

        def plan(n, _):
            rng = random.Random("%s %d" % (tag, n // 2))
            order = list(range(grains))
            rng.shuffle(order)      # pairs of writers walk the same way
            out = []
            for g in order:
                for sector in (n, n + WRITERS):
                    at = g * GRAIN + sector * 512
                    out.append((CMD_WRITE, at, 0, pattern(at, 512, 2)))
            return out
        race(srv, plan, 1)
        expect_bytes(whole(srv, 2 * MIB), pattern(0, 2 * MIB, 2), 0,
                     "an update is lost, seed %s" % tag)
    until_time_is_up(make)


@case
def bytes_of_the_same_grains():
    # Writer n has the bytes whose place modulo the writers is n.
    def make(srv, tag):
        size = 2 * GRAIN

        def plan(n, _):
            rng = random.Random("%s %d" % (tag, n))
            out = []
            for at in rng.sample(range(n, size, WRITERS), size // WRITERS):
                out.append((CMD_WRITE, at, 0, pattern(at, 1, 3)))
            return out
        race(srv, plan, 1)
        data = whole(srv, MIB)
        expect_bytes(data[:size], pattern(0, size, 3), 0,
                     "an update is lost, seed %s" % tag)
        expect_bytes(data[size:], pattern(size, MIB - size, 1), size,
                     "beyond")
    until_time_is_up(make)


@case
def writes_beside_zeroes_and_trims():
    # Even writers write; odd ones zero, trim or write-and-trim their own
    # slices. Trims of less than a grain must not reach their neighbours.
    def make(srv, tag):
        grains = 2 * MIB // GRAIN

        def plan(n, _):
            rng = random.Random("%s %d" % (tag, n))
            out = []
            for g in range(grains):
                at = g * GRAIN + n * 1024
                if n % 2 == 0:
                    out.append((CMD_WRITE, at, 0, pattern(at, 1024, 4)))
                else:
                    out.append((rng.choice([CMD_WRITE_ZEROES, CMD_TRIM]), at,
                                1024, b""))
            return out
        race(srv, plan, 1)
        data = whole(srv, 2 * MIB)
        for g in range(grains):
            for n in range(0, WRITERS, 2):
                at = g * GRAIN + n * 1024
                expect_bytes(data[at:at + 1024], pattern(at, 1024, 4), at,
                             "writer %d, seed %s" % (n, tag))
    until_time_is_up(make)


@case
def whole_grain_trims_beside_first_writes():
    # A writer trims and rewrites whole grains while others write parts of
    # the grains on both sides: space that is given back must not be reused
    # under somebody's write.
    def make(srv, tag):
        grains = 256

        def work(n):
            rng = random.Random("%s %d" % (tag, n))
            with srv.open() as s:
                for i in range(8):
                    mine = [g for g in range(grains) if g % WRITERS == n]
                    rng.shuffle(mine)
                    batch = [(CMD_TRIM, g * GRAIN, GRAIN, b"") for g in mine]
                    send_batch(s, batch)
                    batch = [(CMD_WRITE, g * GRAIN + 512 * (i % 8), 0,
                              pattern(g * GRAIN, 512, i)) for g in mine]
                    send_batch(s, batch)
                    batch = [(CMD_WRITE, g * GRAIN, 0,
                              pattern(g * GRAIN, GRAIN, i)) for g in mine]
                    send_batch(s, batch)
                    for p in send_batch(s, [(CMD_READ, g * GRAIN, GRAIN, b"")
                                            for g in mine]):
                        expect_bytes(bytes(p.data),
                                     pattern(p.offset, GRAIN, i), p.offset,
                                     "writer %d round %d" % (n, i))
                s.disconnect()
        Writers(WRITERS, work).join()
        expect_bytes(whole(srv, MIB), pattern(0, MIB, 7), 0, "seed " + tag)
    until_time_is_up(make, 5 * MIB // 4)


@case
def trims_under_writes_harm_nobody_else():
    # Two writers write and trim the same grains with no regard for each
    # other: what those hold is anybody's guess (though only ever what was
    # there: old data, theirs, or zeroes). The space that the trims give up
    # goes to the other two, whose grains must hold what they wrote.
    def make(srv, tag):
        shared = 1 * MIB

        def reckless(n, s, rng):
            runs = [(g * GRAIN, rng.choice([1, 1, 2, 16, 32]) * GRAIN)
                    for g in rng.choices(range(shared // GRAIN - 64), k=32)]
            send_batch(s, [(CMD_WRITE, at, 0, pattern(at, length, 5))
                           for at, length in runs])
            send_batch(s, [(rng.choice([CMD_TRIM, CMD_WRITE_ZEROES]), at,
                            length, b"") for at, length in runs])
            for p in send_batch(s, [(CMD_READ, at, length, b"")
                                    for at, length in runs]):
                check_pieces(bytes(p.data), p.offset, n)

        def careful(n, s, rng, i):
            begin = (n - 1) * MIB
            spots = [begin + g * GRAIN
                     for g in rng.sample(range(MIB // GRAIN), 128)]
            send_batch(s, [(CMD_WRITE, at, 0, pattern(at, GRAIN, 6 + n))
                           for at in spots])
            for p in send_batch(s, [(CMD_READ, at, GRAIN, b"")
                                    for at in spots]):
                expect_bytes(bytes(p.data), pattern(p.offset, GRAIN, 6 + n),
                             p.offset, "writer %d round %d, seed %s"
                             % (n, i, tag))
            send_batch(s, [(CMD_TRIM, at, GRAIN, b"") for at in spots])

        def work(n):
            rng = random.Random("%s %d" % (tag, n))
            with srv.open() as s:
                for i in range(12):
                    if n < 2:
                        reckless(n, s, rng)
                    else:
                        careful(n, s, rng, i)
                s.disconnect()
        # Reads that wait for a disk hold on to what they found longest.
        Writers(WRITERS, work).join(srv.forget_cached)
    until_time_is_up(make, 5 * MIB // 2)


@case
def cold_reads_under_a_trim_see_no_other_data():
    # Reads wait for a disk while what they read is trimmed and its space
    # goes to somebody else: what comes must be from before or from after,
    # never what the space holds now.
    def make(srv, tag):
        rng = random.Random(tag)
        with srv.open() as a, srv.open() as b, srv.open(STRUCTURED) as c:
            for i in range(6):
                c.trim(2 * MIB, MIB)
                send_batch(a, [(CMD_WRITE, 0, 0, pattern(0, MIB, 5))])
                srv.forget_cached()
                spots = [g * GRAIN for g in range(MIB // GRAIN)]
                rng.shuffle(spots)
                stream = b""
                for at in spots:
                    cookie = a.next_cookie()
                    stream += a.request_bytes(CMD_READ, at, GRAIN, 0, cookie)
                    a.pending[cookie] = [Pending(cookie, CMD_READ, at, GRAIN,
                                                 0, set())]
                a.send(stream)
                b.request(CMD_TRIM, 0, MIB)
                for at in range(2 * MIB, 3 * MIB, 65536):
                    send_batch(c, [(CMD_WRITE, at, 0, pattern(at, 65536, 9))])
                for s in (b, a):
                    while s.in_flight():
                        p = s.any_reply()
                        expect(p.error, OK, "%s" % p)
                        if p.command == CMD_READ:
                            check_pieces(bytes(p.data), p.offset, i)
                expect_bytes(c.read(2 * MIB, MIB), pattern(2 * MIB, MIB, 9),
                             2 * MIB, "the other's data")
            for s in (a, b, c):
                s.disconnect()
    until_time_is_up(make, 5 * MIB // 2)


def check_pieces(data, offset, n):
    """Each grain is the base's, the reckless writers', or zeroes; where two
    of them met, a mixture."""
    for at in range(0, len(data), GRAIN):
        here = data[at:at + GRAIN]
        lawful = (pattern(offset + at, GRAIN, 1), pattern(offset + at, GRAIN,
                                                          5), bytes(GRAIN))
        if here in lawful:
            continue
        for w in range(0, GRAIN, 512):
            if here[w:w + 512] not in [whole[w:w + 512] for whole in lawful]:
                raise AssertionError(
                    "writer %d reads at %#x what was never there: %s"
                    % (n, offset + at + w, hexed(here[w:w + 512])))


@case
def what_is_written_stays_while_others_write_beside_it():
    # One writes a counter into its slice again and again and reads it back;
    # the others do the same beside it in the same few grains.
    def make(srv, tag):
        grains = 8

        def work(n):
            rng = random.Random("%s %d" % (tag, n))
            with srv.open([SIMPLE, STRUCTURED][n % 2]) as s:
                told = {}
                for i in range(250):
                    g = rng.randrange(grains)
                    at = g * GRAIN + n * 1000 + 3
                    data = struct.pack(">I", i) * 250
                    s.request(CMD_WRITE, at, payload=data)
                    told[at] = data
                    while s.in_flight():
                        expect(s.any_reply().error, OK, "write")
                    at, data = rng.choice(list(told.items()))
                    expect_bytes(s.read(at, 1000), data, at,
                                 "writer %d step %d" % (n, i))
                for at, data in told.items():
                    expect_bytes(s.read(at, 1000), data, at, "at the end")
                s.disconnect()
        Writers(WRITERS, work).join()
    until_time_is_up(make)


main()
