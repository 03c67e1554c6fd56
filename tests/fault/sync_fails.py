#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A sync fails once, and the next would succeed: nobody may be told that his
data is safe (S8).

The kernel reports the failure to one call only, so the server must remember
it, for every session and at once: also while the session that asked does not
take its replies. tests/lib/fail_sync.c makes it happen.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import SANITIZED, Skip, case, expect, expect_bytes, main, scratch
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 32 * MIB
ENGINES = ("auto", "threads")
_count = 0


class FailingSync:
    """A writable disk whose first sync fails when fail() says so."""

    def __init__(self, engine):
        global _count
        module = os.path.join(os.environ.get("REWIND_TESTLIB", ""),
                              "fail_sync.so")
        if PEER or SANITIZED or not os.path.exists(module):
            raise Skip("LD_PRELOAD can't be had here")
        _count += 1
        self.dir = scratch("sync%d" % _count)
        os.mkdir(self.dir)
        self.path = raw_image(scratch("disk%d" % _count), SIZE,
                              [(0, pattern(0, 8 * MIB))])
        self.server = Server(self.path, ephemeral=False, engine=engine,
                             env={"LD_PRELOAD": module,
                                  "FAIL_SYNC_DIR": self.dir})

    def wait_begun(self):
        """Until the sync that is going to fail has begun."""
        deadline = time.monotonic() + STUCK_S
        while not os.path.exists(os.path.join(self.dir, "began")):
            if time.monotonic() > deadline:
                raise AssertionError("no sync begins" + self.server.story())
            time.sleep(0.005)

    def fail(self):
        with open(os.path.join(self.dir, "go"), "wb"):
            pass

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.fail()     # so that it can end
        try:
            if kind is None:
                self.server.check_alive()
                self.server.stop(status=1)      # for it says so at the end
        finally:
            self.server.kill()


def nothing_is_safe(s):
    """All that promises durability fails from now on; the rest works."""
    for _ in range(2):
        p = s.call(CMD_FLUSH)
        expect(p.error, EIO, "%s after the failed sync" % p)
    p = s.call(CMD_WRITE, MIB, 0, F_FUA, pattern(MIB, 4096))
    expect(p.error, EIO, "%s" % p)
    p = s.call(CMD_WRITE, MIB, 0, F_FUA, pattern(MIB, 2 * MIB))
    expect(p.error, EIO, "%s" % p)
    for command in (CMD_WRITE_ZEROES, CMD_TRIM):
        for length in (4096, 4 * MIB):
            p = s.call(command, 12 * MIB, length, F_FUA)
            expect(p.error, EIO, "%s" % p)
    s.write(16 * MIB, pattern(16 * MIB, 65536, 3))
    expect_bytes(s.read(16 * MIB, 65536), pattern(16 * MIB, 65536, 3),
                 16 * MIB, "a plain write")
    expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "a read")


@case
def every_session_sees_it():
    for engine in ENGINES:
        with FailingSync(engine) as f:
            srv = f.server
            with srv.open() as a, srv.open(STRUCTURED) as b:
                b.write(0, pattern(0, 4096))
                first = a.request(CMD_FLUSH)
                f.wait_begun()
                # Those that come while it runs must not be answered by it,
                # but they must know how it ended.
                second = b.request(CMD_FLUSH)
                fua = a.request(CMD_WRITE, 0, flags=F_FUA,
                                payload=pattern(0, 4096))
                for s in (a, b):
                    if s.readable(0.05):
                        s.violation("an answer before the sync has ended")
                f.fail()
                for s, cookie in ((a, first), (b, second), (a, fua)):
                    expect(s.reply(cookie).error, EIO, "a waiting one")
                for s in (b, a):
                    nothing_is_safe(s)
                with srv.open(MODES[-1]) as later:
                    nothing_is_safe(later)
                    later.disconnect()
                a.disconnect()
                b.disconnect()


@case
def also_while_the_one_who_asked_takes_no_replies():
    for engine in ENGINES:
        with FailingSync(engine) as f:
            with f.server.open() as a, f.server.open() as b:
                a.reads_while_sending = False
                a.request(CMD_FLUSH)
                f.wait_begun()
                for _ in range(8):
                    a.request(CMD_READ, 0, 4 * MIB)
                expect(a.readable(a.stuck_s), True, "its replies begin")
                f.fail()
                nothing_is_safe(b)
                # It is told, too, once it listens.
                while a.in_flight():
                    p = a.any_reply()
                    expect(p.error, EIO if p.command == CMD_FLUSH else OK,
                           "%s" % p)
                a.disconnect()
                b.disconnect()


@case
def also_when_the_one_who_asked_has_gone():
    for engine in ENGINES:
        with FailingSync(engine) as f:
            with f.server.open() as a, f.server.open() as b:
                a.request(CMD_FLUSH)
                f.wait_begun()
                a.close()
                f.fail()
                nothing_is_safe(b)
                b.disconnect()


@case
def without_a_failure_all_is_well():
    # The module is not what makes the others fail.
    for engine in ENGINES:
        path = raw_image(scratch("well"), SIZE)
        with Server(path, ephemeral=False, engine=engine) as srv:
            with srv.open() as s:
                s.write(0, pattern(0, 65536), F_FUA)
                s.flush()
                s.disconnect()


main()
