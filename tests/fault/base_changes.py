#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The base changes under a server that reads it: never a crash.

Files cut short, grown, deleted, replaced; a device that returns EIO. What
can't be read is an error in band (or zeroes, where the format says so), the
rest goes on, and what the overlay has stays readable.
"""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch
from images import MIB, pattern, qcow2_image, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 16 * MIB
CUT = 5 * MIB + 1234
CONTENT = pattern(0, SIZE)
BASE = "base:allocation"
ERRORS = {EIO, EINVAL}


def base(name="base"):
    path = scratch(name)
    if os.path.exists(path):
        os.unlink(path)
    return raw_image(path, SIZE, [(0, CONTENT)])


def engines():
    return (None,) if PEER else ("io_uring", "threads")


def each(path_of, **how):
    """A server on a fresh image and a session for each engine and mode."""
    for engine in engines():
        for mode in MODES:
            path = path_of()
            with Server(path, engine=engine, **how) as srv:
                contexts = () if mode == SIMPLE else [BASE]
                with srv.open(mode, contexts) as s:
                    yield path, srv, s
                    # Alive, and other sessions too.
                    with srv.open(mode) as other:
                        expect(len(other.read(0, 512)), 512, "goes on")
                        other.disconnect()
                    s.disconnect()


def reads_of_what_is_gone(s):
    """Each must be answered: an error, or zeroes, or what was cached."""
    for offset, length in ((SIZE - 4096, 4096), (8 * MIB, MIB),
                           (CUT - 100, 200), (0, SIZE), (6 * MIB + 1, 70001),
                           (CUT // 4096 * 4096, 4096), (SIZE - 1, 1)):
        p = s.call(CMD_READ, offset, length)
        expect(p.error, ERRORS | {OK}, "%s" % p)
        if p.error:
            continue
        for at in range(0, length, 4096):
            n = min(4096, length - at)
            here = bytes(p.data[at:at + n])
            whole = pattern(offset + at, n)
            cut = max(0, min(n, CUT - offset - at))
            if here not in (whole, whole[:cut] + bytes(n - cut)):
                raise AssertionError("%s: made-up bytes at %#x: %s"
                                     % (p, offset + at, hexed(here)))


def status_and_hints(s):
    if s.mode != SIMPLE:
        p = s.call(CMD_BLOCK_STATUS, 0, SIZE)
        expect(p.error, ERRORS | {OK}, "%s" % p)
        p = s.call(CMD_BLOCK_STATUS, SIZE - 4096, 4096)
        expect(p.error, ERRORS | {OK}, "%s" % p)
    expect(s.call(CMD_CACHE, 0, SIZE).error, ERRORS | {OK}, "CACHE")


@case
def cut_short():
    for path, _, s in each(base):
        s.write(12 * MIB, pattern(12 * MIB, MIB, 3))
        expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "before")
        os.truncate(path, CUT)
        reads_of_what_is_gone_but_written(s)
        status_and_hints(s)
        expect_bytes(s.read(0, 4 * MIB), pattern(0, 4 * MIB), 0,
                     "what is left")
        expect_bytes(s.read(12 * MIB, MIB), pattern(12 * MIB, MIB, 3),
                     12 * MIB, "the overlay")
        # Whole grains need nothing from below.
        s.write(9 * MIB, pattern(9 * MIB, 65536, 4))
        expect_bytes(s.read(9 * MIB, 65536), pattern(9 * MIB, 65536, 4),
                     9 * MIB, "written above a gap")
        p = s.call(CMD_WRITE, 10 * MIB + 1, payload=b"part of a grain")
        expect(p.error, ERRORS | {OK}, "%s" % p)
        s.flush()


def reads_of_what_is_gone_but_written(s):
    """As reads_of_what_is_gone, leaving out what the overlay has."""
    for offset, length in ((SIZE - 4096, 4096), (8 * MIB, MIB),
                           (CUT - 100, 200), (6 * MIB + 1, 70001),
                           (CUT // 4096 * 4096, 4096), (SIZE - 1, 1)):
        p = s.call(CMD_READ, offset, length)
        expect(p.error, ERRORS | {OK}, "%s" % p)
    p = s.call(CMD_READ, 0, SIZE)
    expect(p.error, ERRORS | {OK}, "%s" % p)


@case
def cut_short_and_read_only():
    for path, _, s in each(base, ephemeral=False, read_only=True):
        os.truncate(path, CUT)
        reads_of_what_is_gone(s)
        status_and_hints(s)
        expect_bytes(s.read(0, 4 * MIB), pattern(0, 4 * MIB), 0,
                     "what is left")


@case
def cut_to_nothing_with_reads_in_flight():
    for path, _, s in each(base):
        for n in range(200):
            s.request(CMD_READ, n * 65536 % SIZE, 65536)
            if n == 100:
                os.truncate(path, 0)
        while s.in_flight():
            p = s.any_reply()
            expect(p.error, ERRORS | {OK}, "%s" % p)
        os.truncate(path, SIZE)     # so that it can be seen to go on


@case
def a_qcow2_cut_short():
    """Zeroes past the file's end are for what lay there at the start; what has
    gone since is an error, not zeroes that a guest would believe."""
    if PEER:
        raise Skip("qemu-nbd answers zeroes")
    for engine in engines():
        path = qcow2_image(scratch("cut.qcow2"), SIZE,
                           writes=["write -P 65 0 %d" % SIZE])
        with Server(path, image_format="qcow2", engine=engine) as srv:
            with srv.open(SIMPLE) as s:
                expect_bytes(s.read(SIZE - 4096, 4096), b"A" * 4096, SIZE,
                             "before")
                os.truncate(path, os.path.getsize(path) - 2 * MIB)
                for offset in (SIZE - 4096, SIZE - MIB, SIZE - 65536):
                    p = s.call(CMD_READ, offset, 4096)
                    expect(p.error, EIO, "read at %d" % offset)
                expect_bytes(s.read(0, 4096), b"A" * 4096, 0, "the rest")
                s.disconnect()


@case
def grown():
    for path, _, s in each(base):
        os.truncate(path, 4 * SIZE)
        with open(path, "r+b") as f:
            f.seek(SIZE)
            f.write(b"new" * 1000)
        expect_bytes(s.read(0, SIZE), CONTENT, 0, "data")
        expect(s.call(CMD_READ, SIZE, 512).error, EINVAL, "past the end")
        expect(s.call(CMD_WRITE, SIZE, payload=b"x").error, ENOSPC,
               "past the end")
        status_and_hints(s)


@case
def deleted():
    for path, _, s in each(base):
        s.write(0, b"mine")
        os.unlink(path)
        expect_bytes(s.read(4, SIZE - 4), CONTENT[4:], 4, "data")
        s.write(1 * MIB + 7, b"part")
        expect_bytes(s.read(MIB, 4096), pattern(MIB, 7) + b"part"
                     + pattern(MIB + 11, 4085), MIB, "copied from below")


@case
def replaced():
    for path, _, s in each(base):
        other = raw_image(path + ".new", SIZE)
        os.rename(other, path)
        expect_bytes(s.read(0, SIZE), CONTENT, 0,
                     "the file that was opened")


def chain():
    for name in ("bottom", "middle", "top"):
        if os.path.exists(scratch(name)):
            os.unlink(scratch(name))
    bottom = qcow2_image(scratch("bottom"), SIZE, writes=["write -P 1 0 16M"])
    middle = qcow2_image(scratch("middle"), SIZE, bottom, writes=[
        "write -P 2 0 1M", "write -P 2 10M 1M"])
    return qcow2_image(scratch("top"), SIZE, middle,
                       writes=["write -P 3 2M 1M"])


@case
def a_layer_of_a_chain_cut_short():
    for name in ("bottom", "middle", "top"):
        for _, _, s in each(chain, image_format="qcow2"):
            s.write(0, b"x" * 4096)
            s.read(0, 65536)
            os.truncate(scratch(name), 256 << 10)
            for at in range(0, SIZE, 512 << 10):
                p = s.call(CMD_READ, at + 1, 65536)
                # qcow2 reads past its file's end as zeroes (as QEMU does).
                expect(p.error, ERRORS | {OK}, "%s of %s" % (p, name))
            status_and_hints(s)
            expect(s.read(0, 4096), b"x" * 4096, "the overlay")
            s.write(5 * MIB, b"whole" * 8192)
            expect(s.read(5 * MIB, 40960), b"whole" * 8192, "whole grains")


@case
def a_layer_of_a_chain_filled_with_noise():
    # Tables that were read before may be known already; others are garbage
    # now. What is read is anybody's guess, but it is read.
    noise = bytes((n * 167 + n // 251) & 255 for n in range(2 * MIB))
    for name in ("bottom", "middle", "top"):
        for _, _, s in each(chain, image_format="qcow2"):
            s.read(0, 512)
            with open(scratch(name), "r+b") as f:
                f.seek(64 << 10)
                f.write(noise)
            for at in range(0, SIZE, MIB):
                p = s.call(CMD_READ, at, 65536)
                expect(p.error, ERRORS | {OK}, "%s of %s" % (p, name))
            status_and_hints(s)


class BadDevice:
    """A block device whose end is gone: reads there fail with EIO."""

    def __init__(self):
        if os.geteuid() or shutil.which("losetup") is None:
            raise Skip("loop devices are root's")
        self.file = base("device")
        done = subprocess.run(["losetup", "--find", "--show", self.file],
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Skip("no loop device: " + done.stdout.strip())
        self.path = done.stdout.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["losetup", "-d", self.path], check=True)


@case
def a_device_that_returns_eio():
    for engine in engines():
        for mode in MODES:
            with BadDevice() as bad:
                with Server(bad.path, engine=engine) as srv, \
                        srv.open(mode) as s:
                    expect_bytes(s.read(0, 65536), pattern(0, 65536), 0,
                                 "device")
                    os.truncate(bad.file, 4 * MIB)
                    drop_cache(bad.path)
                    p = s.call(CMD_READ, 8 * MIB, 65536)
                    expect(p.error, EIO, "%s" % p)
                    p = s.call(CMD_READ, 8 * MIB, 4 * MIB)
                    expect(p.error, EIO, "%s" % p)
                    p = s.call(CMD_WRITE, 8 * MIB + 1, payload=b"part")
                    expect(p.error, EIO, "%s" % p)
                    s.write(8 * MIB, pattern(8 * MIB, 65536, 2))
                    expect_bytes(s.read(8 * MIB, 65536),
                                 pattern(8 * MIB, 65536, 2), 8 * MIB,
                                 "written over the gap")
                    expect_bytes(s.read(0, MIB), pattern(0, MIB), 0,
                                 "what is left")
                    s.disconnect()


def drop_cache(path):
    """Forgets what the kernel has cached of a device."""
    done = subprocess.run(["blockdev", "--flushbufs", path])
    expect(done.returncode, 0, "blockdev")
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


main()
