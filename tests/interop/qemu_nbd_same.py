#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The same script of operations against `rewind serve --ephemeral` and
`qemu-nbd --snapshot`, request by request: both must give the same answers.

Seeded and random: reads, writes, zeroes, trims, cache, flush, FUA, block
status, with edges that are aligned to nothing, on a raw base, on a qcow2
chain, on compressed clusters, and read-only on internal snapshots chosen by
-l. What a trim leaves is nobody's promise, so it is followed by zeroes or
data. Block status is held to what it promises, since grains differ: what
either says is zero must be zero.
"""
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import TIMEOUT_SCALE, case, expect, expect_bytes, main, scratch
from harness import seed
from images import KIB, MIB, pattern, qcow2_image, raw_image, sha256, tool
from rewindserver import Server

try:
    import nbd
except ImportError:
    print("SKIP: python3-libnbd is not installed")
    sys.exit(77)

SIZE = 8 * MIB + 3 * 512
STEPS = 300
ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION
SEED = seed()


class QemuNbd:
    """qemu-nbd on a socket, for as long as the block lasts."""

    def __init__(self, image, *args):
        self.socket = scratch("q")
        tool("qemu-nbd", "--version")
        self.process = subprocess.Popen(
            ["qemu-nbd", "-t", "-e", "0", "-A", "-x", "disk", "-k",
             self.socket, *args, image], stdin=subprocess.DEVNULL)

    def connect(self):
        end = time.monotonic() + 20 * TIMEOUT_SCALE
        while True:
            try:
                return connect(self.socket)
            except nbd.Error:
                if (self.process.poll() is not None
                        or time.monotonic() > end):
                    raise
                time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        if os.path.exists(self.socket):
            os.unlink(self.socket)


def connect(socket):
    h = nbd.NBD()
    h.set_export_name("disk")
    h.add_meta_context(ALLOCATION)
    h.set_strict_mode(0)  # wrong requests are for the server to refuse
    h.connect_unix(socket)
    return h


def answer(call):
    """What a request gives: its data, or the error's number."""
    try:
        return call()
    except nbd.Error as error:
        return error.errnum


def place(rng, size):
    """A range, often at some boundary that a layer may care about."""
    length = rng.choice((1, 511, 512, 4096, 4097, 65536, 70001,
                         rng.randrange(1, 300 * KIB)))
    unit = rng.choice((1, 512, 4 * KIB, 64 * KIB))
    off = rng.randrange(0, size - length)
    return off // unit * unit, length


def zero_ranges(h, length, off):
    """What block status says of a range: [(offset, length)] that is zero."""
    found = []

    def extents(_context, at, entries, _error):
        for size, flags in zip(entries[::2], entries[1::2]):
            if flags & nbd.STATE_ZERO:
                found.append((at, size))
            at += size
    h.block_status(length, off, extents)
    return found


def check_status(h, length, off, who):
    data = h.pread(length, off)
    for at, size in zero_ranges(h, length, off):
        part = data[at - off:at - off + size]
        if any(part):
            raise AssertionError("%s says %#x+%d is zero, but it is not"
                                 % (who, at, size))


def step(rng, pair, size):
    """One random request to both; the answers must be equal."""
    off, length = place(rng, size)
    what = rng.choice(("read",) * 4 + ("write",) * 4 + (
        "zero", "zero", "trim", "status", "cache", "flush"))
    fua = rng.choice((0, 0, nbd.CMD_FLAG_FUA))
    salt = rng.randrange(128)
    if what == "read":
        answers = [answer(lambda h=h: h.pread(length, off)) for h in pair]
    elif what == "write":
        data = pattern(off, length, salt)
        answers = [answer(lambda h=h: h.pwrite(data, off, fua))
                   for h in pair]
    elif what == "zero":
        flags = fua | rng.choice((0, nbd.CMD_FLAG_NO_HOLE))
        answers = [answer(lambda h=h: h.zero(length, off, flags))
                   for h in pair]
    elif what == "trim":
        for h in pair:
            expect(answer(lambda h=h: h.trim(length, off, fua)), None, "trim")
        answers = [answer(lambda h=h: h.zero(length, off)) for h in pair]
    elif what == "status":
        for h, who in zip(pair, ("rewind", "qemu-nbd")):
            check_status(h, length, off, who)
        return
    elif what == "cache":
        answers = [answer(lambda h=h: h.cache(length, off)) for h in pair]
    else:
        answers = [answer(h.flush) for h in pair]
    name = "%s of %d at %#x" % (what, length, off)
    if isinstance(answers[0], (bytes, bytearray)) and isinstance(
            answers[1], (bytes, bytearray)):
        expect_bytes(answers[0], answers[1], off, name)
    else:
        expect(answers[0], answers[1], name)


def same_content(pair, size):
    for at in range(0, size, 4 * MIB):
        length = min(4 * MIB, size - at)
        expect_bytes(pair[0].pread(length, at), pair[1].pread(length, at),
                     at, "the whole disk")


def wrong_requests(pair, size):
    """Both refuse what no server may do, with errors of one meaning."""
    for name, call in (
            ("read", lambda h: h.pread(512, size)),
            ("cache", lambda h: h.cache(1, size)),
            ("overflow", lambda h: h.pread(512, (1 << 63) - 512))):
        expect(answer(lambda: call(pair[0])), answer(lambda: call(pair[1])),
               "a wrong %s" % name)


def play(image, image_format, steps, args=(), read_only=False):
    rng = random.Random("%d %s" % (SEED, os.path.basename(image)))
    before = sha256(image)
    theirs_args = ["-f", image_format, *args]
    theirs_args += [] if read_only else ["--snapshot", "--discard=unmap"]
    with Server(image, image_format=image_format, export="disk",
                ephemeral=not read_only, read_only=read_only,
                args=args) as ours, \
            QemuNbd(image, *theirs_args) as theirs:
        pair = (connect(ours.socket), theirs.connect())
        size = pair[0].get_size()
        expect(size, pair[1].get_size(), "size")
        same_content(pair, size)
        for _ in range(steps):
            (reading_step if read_only else step)(rng, pair, size)
        wrong_requests(pair, size)
        same_content(pair, size)
        for h in pair:
            h.shutdown()
    expect(sha256(image), before, "the image's checksum")


def reading_step(rng, pair, size):
    off, length = place(rng, size)
    expect_bytes(pair[0].pread(length, off), pair[1].pread(length, off), off,
                 "read")
    check_status(pair[0], length, off, "rewind")


def bottom():
    path = scratch("bottom.raw")
    if not os.path.exists(path):
        raw_image(path, SIZE, [
            (0, pattern(0, 100000)), (MIB + 512, pattern(MIB + 512, MIB)),
            (SIZE - 1024, pattern(SIZE - 1024, 1024))])
    return path


@case
def raw():
    play(bottom(), "raw", STEPS)


@case
def chain():
    mid, top = scratch("mid.qcow2"), scratch("top.qcow2")
    qcow2_image(mid, size=SIZE - MIB, backing=bottom(), backing_format="raw",
                writes=["write -q -P 3 3M 200k", "write -q -z 64k 128k"])
    qcow2_image(top, size=SIZE + MIB, backing=mid,
                options="cluster_size=4k,lazy_refcounts=on",
                writes=["write -q -P 4 3100k 33k", "write -q -z 5M 1M"])
    play(top, "qcow2", STEPS)


@case
def compressed():
    for kind in ("zlib", "zstd"):
        image = scratch("%s.qcow2" % kind)
        tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
             "compression_type=%s" % kind, bottom(), image)
        play(image, "qcow2", STEPS // 3)


@case
def internal_snapshots():
    image = scratch("snapshots.qcow2")
    qcow2_image(image, size=SIZE, writes=["write -q -P 1 0 1M"])
    tool("qemu-img", "snapshot", "-c", "first one", image)
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 512k 3M", image)
    tool("qemu-img", "snapshot", "-c", "second", image)
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 4M", image)
    for chosen in ("first one", "2", "snapshot.id=1",
                   "snapshot.name=second"):
        play(image, "qcow2", 30, args=("-l", chosen), read_only=True)


main()
