#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""BLOCK_STATUS over images whose extents are known.

base:allocation as doc/proto.md says; qemu:allocation-depth as QEMU's
docs/interop/nbd.txt says: 0 nothing has it, 1 the top layer, 2 the next.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, main, scratch
from images import GIB, KIB, MIB, TIB, pattern, qcow2_image, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

BASE, DEPTH = "base:allocation", "qemu:allocation-depth"
BOTH = [BASE, DEPTH]
HOLE = STATE_HOLE | STATE_ZERO
SIZE = 8 * MIB


def modes():
    return [m for m in MODES if m != SIMPLE]


def holes_are_told(path):
    with open(path, "rb") as f:
        return os.lseek(f.fileno(), 0, os.SEEK_HOLE) < os.path.getsize(path)


def sparse_raw(name):
    path = raw_image(scratch(name), SIZE, [
        (MIB, pattern(MIB, MIB)), (4 * MIB, pattern(4 * MIB, 64 * KIB))])
    if not holes_are_told(path):
        raise Skip("this filesystem does not tell of holes")
    return path


RAW = [(0, MIB, HOLE), (MIB, MIB, 0), (2 * MIB, 2 * MIB, HOLE),
       (4 * MIB, 64 * KIB, 0), (4 * MIB + 64 * KIB, 4 * MIB - 64 * KIB, HOLE)]


@case
def raw_image_with_holes():
    path = sparse_raw("raw")
    for how in ({"ephemeral": True}, {"ephemeral": False, "read_only": True}):
        with Server(path, **how) as srv:
            for mode in modes():
                with srv.open(mode, [BASE]) as s:
                    expect(walk_status(s, 0, SIZE), RAW, "%r" % how)
                    for step in (4096, 65536, MIB + 512, 3 * MIB):
                        expect(walk_status(s, 0, SIZE, step=step), RAW,
                               "in steps of %d" % step)
                    s.disconnect()


@case
def parts_of_extents():
    with Server(sparse_raw("raw"), ephemeral=False, read_only=True) as srv:
        for mode in modes():
            with srv.open(mode, [BASE]) as s:
                for offset, length, wanted in (
                        (MIB - 1, 2, [(MIB - 1, 1, HOLE), (MIB, 1, 0)]),
                        (MIB + 1, 1, [(MIB + 1, 1, 0)]),
                        (SIZE - 1, 1, [(SIZE - 1, 1, HOLE)]),
                        (2 * MIB - 512, 1024, [(2 * MIB - 512, 512, 0),
                                               (2 * MIB, 512, HOLE)])):
                    expect(walk_status(s, offset, length), wanted,
                           "%#x +%d" % (offset, length))
                s.disconnect()


@case
def what_sessions_do_shows():
    path = sparse_raw("raw")
    for mode in modes():
        with Server(path) as srv, srv.open(mode, BOTH) as s:
            s.write(6 * MIB, pattern(6 * MIB, 128 * KIB))
            found = walk_status(s, 6 * MIB, 256 * KIB)
            expect(found, [(6 * MIB, 128 * KIB, 0),
                           (6 * MIB + 128 * KIB, 128 * KIB, HOLE)], "written")
            if not PEER:
                found = walk_status(s, 6 * MIB, 128 * KIB, DEPTH)
                expect(found, [(6 * MIB, 128 * KIB, 1)], "depth")
                found = walk_status(s, MIB, 128 * KIB, DEPTH)
                expect(found, [(MIB, 128 * KIB, 2)], "depth of the base")
            s.zero(6 * MIB, 128 * KIB)
            for _, _, status in walk_status(s, 6 * MIB, 128 * KIB):
                expect(status & STATE_ZERO, STATE_ZERO, "zeroed")
            s.zero(MIB, MIB)
            for _, _, status in walk_status(s, MIB, MIB):
                expect(status & STATE_ZERO, STATE_ZERO,
                       "zeroed over data of the base")
            s.write(MIB, pattern(MIB, MIB))
            expect(walk_status(s, MIB, MIB), [(MIB, MIB, 0)], "rewritten")
            s.disconnect()


def chain():
    """Three layers of a MiB each, and what all of it must look like."""
    bottom = qcow2_image(scratch("c1"), SIZE, writes=["write -P 1 0 4M"])
    middle = qcow2_image(scratch("c2"), SIZE, bottom, writes=[
        "write -P 2 1M 1M", "write -z -u 3M 512k", "write -z 3584k 512k"])
    top = qcow2_image(scratch("c3"), SIZE, middle, writes=[
        "write -P 3 2M 1M", "write -P 3 6M 64k"])
    depth = [(0, MIB, 3), (MIB, MIB, 2), (2 * MIB, MIB, 1), (3 * MIB, MIB, 2),
             (4 * MIB, 2 * MIB, 0), (6 * MIB, 64 * KIB, 1),
             (6 * MIB + 64 * KIB, 2 * MIB - 64 * KIB, 0)]
    # Whether a zero cluster keeps its space is told by the hole bit, and
    # qemu-io decides it; what must hold is that it reads as zeroes.
    zero = [(0, 3 * MIB, 0), (3 * MIB, 3 * MIB, STATE_ZERO),
            (6 * MIB, 64 * KIB, 0),
            (6 * MIB + 64 * KIB, 2 * MIB - 64 * KIB, STATE_ZERO)]
    return top, depth, zero


def only_zero_bit(extents):
    out = []
    for offset, length, status in extents:
        status &= STATE_ZERO
        if out and out[-1][2] == status:
            out[-1] = (out[-1][0], out[-1][1] + length, status)
        else:
            out.append((offset, length, status))
    return out


@case
def qcow2_chain():
    top, depth, zero = chain()
    with Server(top, ephemeral=False, read_only=True,
                image_format="qcow2") as srv:
        for mode in modes():
            with srv.open(mode, BOTH) as s:
                expect(walk_status(s, 0, SIZE, DEPTH), depth, "depth")
                expect(only_zero_bit(walk_status(s, 0, SIZE)), zero, BASE)
                for step in (4096 * 7, 65536, MIB + 512):
                    expect(walk_status(s, 0, SIZE, DEPTH, step), depth,
                           "depth in steps of %d" % step)
                for offset, data in ((0, b"\1"), (MIB, b"\2"),
                                     (2 * MIB, b"\3"), (3 * MIB, b"\0")):
                    expect(s.read(offset, 512), data * 512, "data")
                s.disconnect()


@case
def qcow2_chain_under_an_overlay():
    if PEER:
        raise Skip("its snapshot has a grain of its own")
    top, depth, zero = chain()
    for mode in modes():
        with Server(top, image_format="qcow2") as srv, \
                srv.open(mode, BOTH) as s:
            one_more = [(o, n, d + 1 if d else 0) for o, n, d in depth]
            expect(walk_status(s, 0, SIZE, DEPTH), one_more, "depth")
            expect(only_zero_bit(walk_status(s, 0, SIZE)), zero, BASE)
            s.write(7 * MIB, b"x" * 4096)
            expect(walk_status(s, 7 * MIB, 8192, DEPTH),
                   [(7 * MIB, 4096, 1), (7 * MIB + 4096, 4096, 0)],
                   "written")
            s.disconnect()
    # Another server has not seen any of it.
    with Server(top, image_format="qcow2") as srv:
        with srv.open(STRUCTURED, BOTH) as s:
            expect(s.read(7 * MIB, 4096), bytes(4096), "not kept")
            s.disconnect()


@case
def short_backing_file():
    bottom = qcow2_image(scratch("b1"), MIB, writes=["write -P 1 0 1M"])
    top = qcow2_image(scratch("b2"), 4 * MIB, bottom)
    with Server(top, ephemeral=False, read_only=True,
                image_format="qcow2") as srv:
        with srv.open(STRUCTURED, BOTH) as s:
            found = only_zero_bit(walk_status(s, 0, 4 * MIB))
            expect(found, [(0, MIB, 0), (MIB, 3 * MIB, STATE_ZERO)], BASE)
            # Who "has" what lies past the backing file's end is a matter of
            # taste (QEMU 7.2 says: the backing file).
            for offset, _, depth in walk_status(s, 0, 4 * MIB, DEPTH):
                expect(depth, {2} if offset < MIB else {0, 1, 2}, "depth")
            s.disconnect()


@case
def both_contexts_agree_on_the_range():
    top, _, _ = chain()
    with Server(top, ephemeral=False, read_only=True,
                image_format="qcow2") as srv:
        for mode in modes():
            with srv.open(mode, BOTH) as s:
                found = s.status(0, SIZE)
                for name in BOTH:
                    expect(sum(n for n, _ in found[name]) <= SIZE, True, name)
                    expect(found[name][0][0] > 0, True, name)
                one = s.status(MIB - 512, SIZE - MIB, F_REQ_ONE)
                expect(one[DEPTH], [(512, 3)], "REQ_ONE")
                s.disconnect()


def huge_extents(image_format, path):
    size = 64 * TIB
    with Server(path, image_format=image_format) as srv:
        for mode in modes():
            with srv.open(mode, BOTH) as s:
                expect(s.size, size, "size")
                s.write(40 * TIB, b"here" * 1024)
                top = size if mode == EXTENDED else 3 * GIB
                expect(walk_status(s, 0, top)[0][2] & STATE_ZERO, STATE_ZERO,
                       "nothing")
                found = s.status(0, top)[BASE]
                if mode == EXTENDED and not PEER:
                    expect(max(n for n, _ in found) > 1 << 32, True,
                           "an extent over 4 GiB: %r" % found[:4])
                near = 40 * TIB - (1 << 31)
                found = only_zero_bit(walk_status(s, near, (1 << 32) - 4096))
                expect(found, [(near, 1 << 31, STATE_ZERO),
                               (40 * TIB, 4096, 0),
                               (40 * TIB + 4096, (1 << 31) - 8192,
                                STATE_ZERO)], "around the data")
                s.ok(CMD_BLOCK_STATUS, size - 1, 1)
                s.ok(CMD_BLOCK_STATUS, 5, (1 << 32) - 1)
                s.ok(CMD_BLOCK_STATUS, 40 * TIB + 1, (1 << 32) - 2)
                s.trim(40 * TIB, 4096)
                s.disconnect()
        srv.check_memory(64 * MIB, "a disk of 64 TiB")


@case
def sixty_four_tebibytes_of_qcow2():
    huge_extents("qcow2", qcow2_image(scratch("huge"), 64 * TIB,
                                      options="cluster_size=2M"))


@case
def sixty_four_tebibytes_of_raw():
    path = huge_raw(64 * TIB)
    try:
        huge_extents("raw", path)
    finally:
        os.unlink(path)


def huge_raw(size):
    """A sparse file larger than most filesystems allow."""
    for directory in (scratch(), "/dev/shm"):
        path = os.path.join(directory, "rewind-huge.%d" % os.getpid())
        try:
            return raw_image(path, size)
        except OSError:
            if os.path.exists(path):
                os.unlink(path)
    raise Skip("no filesystem here takes a file of %d TiB" % (size // TIB))


@case
def a_thousand_extents():
    if PEER:
        raise Skip("its grain is coarse")
    with Server(raw_image(scratch("many"), 64 * MIB)) as srv:
        for mode in modes():
            with srv.open(mode, BOTH) as s:
                for n in range(2000):
                    s.request(CMD_WRITE, n * 8192, payload=b"d" * 4096)
                while s.in_flight():
                    expect(s.any_reply().error, OK, "write")
                found = walk_status(s, 0, 2000 * 8192)
                expect(len(found), 4000, "extents")
                for i, (offset, length, status) in enumerate(found):
                    expect((offset, length, status & STATE_ZERO),
                           (i * 4096, 4096, STATE_ZERO * (i % 2)), "extent")
                s.trim(0, 2000 * 8192)
                s.disconnect()


main()
