#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A limit on the size of files (ulimit -f) that the overlay runs into.

The signal that comes with it must not end the server, whether or not whoever
started it ignores that signal; and what the guest gives back it can use again,
all of it, although the file may not grow any more.
"""
import os
import resource
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch, table
from images import KIB, MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 128 * MIB


def writes_until_full(s, step, salt):
    """How many writes of `step` bytes one after the other succeed."""
    for n in range(SIZE // step):
        p = s.call(CMD_WRITE, n * step, payload=pattern(n * step, step, salt))
        if p.error:
            expect(p.error, ENOSPC, "%s" % p)
            return n
    raise AssertionError("the limit is not felt")


def check(s, step, count, salt):
    for n in range(count):
        expect_bytes(s.read(n * step, step), pattern(n * step, step, salt),
                     n * step, "written under a limit")


def used_again(limit, step, ignored):
    if PEER:
        raise Skip("has another overlay")

    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ,
                      signal.SIG_IGN if ignored else signal.SIG_DFL)
    path = raw_image(scratch("base"), SIZE)
    with Server(path, preexec=prepare) as srv:
        for mode in MODES:
            with srv.open(mode) as s:
                counts = []
                for salt in range(3):
                    counts.append(writes_until_full(s, step, salt))
                    check(s, step, counts[-1], salt)
                    # In place there is room; beyond there still is none.
                    s.write(100, b"in place")
                    p = s.call(CMD_WRITE, SIZE - 5, payload=b"small")
                    if limit - counts[-1] * step < 4096:
                        expect(p.error, ENOSPC, "%s" % p)
                    s.trim(0, SIZE)
                least = limit // step - 1
                expect(min(counts) >= least, True,
                       "%r writes of %d KiB under a limit of %d KiB"
                       % (counts, step >> 10, limit >> 10))
                s.disconnect()


table(used_again, [
    ("whole grains", 8 * MIB, 64 * KIB, False),
    ("the signal ignored", 8 * MIB, 64 * KIB, True),
    ("a limit within a grain", 4 * MIB + 1000, 64 * KIB, False),
    ("single grains", 2 * MIB, 4 * KIB, False),
    ("large writes", 16 * MIB + 512, MIB, False),
])


@case
def a_raw_image_that_may_not_be_written_so_far():
    # The same signal where the disk itself is the file.
    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    path = raw_image(scratch("disk"), SIZE)
    with Server(path, ephemeral=False, preexec=prepare) as srv:
        for mode in MODES:
            with srv.open(mode) as s:
                s.write(MIB, pattern(MIB, MIB))
                for command in (CMD_WRITE, CMD_WRITE_ZEROES):
                    p = s.call(command, 16 * MIB, 4096, F_NO_HOLE
                               if command == CMD_WRITE_ZEROES else
                               F_PAYLOAD_LEN * (mode == EXTENDED),
                               pattern(0, 4096) * (command == CMD_WRITE))
                    expect(p.error, {ENOSPC, OK} if command != CMD_WRITE
                           else ENOSPC, "%s" % p)
                expect_bytes(s.read(MIB, MIB), pattern(MIB, MIB), MIB, "data")
                s.flush()
                s.disconnect()


main()
