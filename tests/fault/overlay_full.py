#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The overlay's filesystem is full: the guest is told ENOSPC, in band.

Reads go on, what was answered stays, rewriting in place works, and once there
is space again writes work again (S8). On a small ext4 in a file where loop
devices are to be had, else on a small tmpfs, in a mount namespace of our own;
and under a limit on the size of files, which needs no rights at all.
"""
import os
import random
import resource
import shutil
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (Skip, case, expect, expect_bytes, main, scratch, seed)
from images import MIB, pattern, raw_image, sha256
from nbdwire import *
from rewindserver import MODES, Server

SIZE = 128 * MIB
SMALL = 16 * MIB        # of the overlay's filesystem
STEP = 256 << 10
INSIDE = "REWIND_TEST_INSIDE"
SEED = int(os.environ[INSIDE]) if INSIDE in os.environ else seed()


def enter_namespace():
    """Runs this script again where mounts are its own, if that can be."""
    if INSIDE in os.environ or shutil.which("unshare") is None:
        return
    os.environ[INSIDE] = str(SEED)
    for how in (["-m"], ["-rm"]):
        if subprocess.run(["unshare"] + how + ["true"],
                          stderr=subprocess.DEVNULL).returncode == 0:
            os.execvp("unshare", ["unshare"] + how + [sys.executable]
                      + sys.argv)


def mount(*argv):
    return subprocess.run(["mount"] + list(argv), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


class SmallDirectory:
    """A directory on a filesystem of SMALL bytes."""

    def __init__(self, kind):
        self.path = scratch("small-" + kind)
        os.makedirs(self.path, exist_ok=True)
        if INSIDE not in os.environ or shutil.which("unshare") is None:
            raise Skip("no mount namespace to be had")
        if kind == "ext4":
            image = scratch("small.ext4")
            raw_image(image, SMALL)
            made = subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O",
                                   "^has_journal", image],
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            expect(made.returncode, 0, made.stdout)
            done = mount("-o", "loop", image, self.path)
        else:
            done = mount("-t", "tmpfs", "-o", "size=%d" % SMALL, "tmpfs",
                         self.path)
        if done.returncode:
            raise Skip("cannot mount: " + done.stdout.strip())

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        subprocess.run(["umount", self.path], check=True)


def base():
    return raw_image(scratch("base"), SIZE,
                     [(0, pattern(0, MIB)), (100 * MIB, b"top" * 1000)])


def fill(s, start, salt, limit=SIZE):
    """Writes until the disk says that it is full; where that was."""
    at = start
    while at + STEP <= limit:
        p = s.call(CMD_WRITE, at, payload=pattern(at, STEP, salt))
        if p.error:
            expect(p.error, ENOSPC, "%s" % p)
            return at
        at += STEP
    raise AssertionError("%d MiB fit into %d MiB" % (limit >> 20,
                                                     SMALL >> 20))


def check_filled(s, start, end, salt):
    for at in range(start, end, STEP):
        expect_bytes(s.read(at, STEP), pattern(at, STEP, salt), at,
                     "written before it was full")


def full_and_free_again(s, told):
    start = 2 * MIB
    end = fill(s, start, 5)
    expect(end - start > SMALL // 2, True, "%d KiB fit" % (end - start >> 10))
    if told is not None:
        expect(fill(s, end, 6) - end < 2 * MIB, True, "still full")
    # Reads go on, of the base and of the overlay.
    expect_bytes(s.read(0, MIB), pattern(0, MIB), 0, "base")
    expect(s.read(100 * MIB, 3000), b"top" * 1000, "base")
    check_filled(s, start, end, 5)
    # In place there is always room; for what asks for space there is none.
    s.write(start, pattern(start, STEP, 6))
    s.write(start + 5, b"small")
    s.write(start, pattern(start, STEP, 5))
    p = s.call(CMD_WRITE_ZEROES, 60 * MIB, 40 * MIB, F_NO_HOLE)
    expect(p.error, ENOSPC, "NO_HOLE")
    s.flush()
    # A trim gives space back, and writes work again.
    s.trim(start, 4 * MIB)
    again = 40 * MIB
    for at in range(again, again + 3 * MIB, STEP):
        s.write(at, pattern(at, STEP, 7))
    check_filled(s, again, again + 3 * MIB, 7)
    check_filled(s, start + 4 * MIB, end, 5)
    # So do zeroes, and the whole disk can be used up again.
    s.zero(start, SIZE - start)
    end = fill(s, start, 8)
    check_filled(s, start, end, 8)
    s.zero(0, SIZE)
    s.write(0, pattern(0, MIB, 9))
    expect_bytes(s.read(0, MIB), pattern(0, MIB, 9), 0, "after all that")


def in_modes(directory, modes):
    path = base()
    before = sha256(path)
    for mode in modes:
        with Server(path, overlay_dir=directory) as srv:
            with srv.open(mode) as s:
                full_and_free_again(s, directory)
                s.disconnect()
        expect(os.listdir(directory) in ([], ["lost+found"]), True,
               "nothing left behind")
    expect(sha256(path), before, "the base")


@case
def on_a_small_ext4():
    if os.geteuid():
        raise Skip("loop devices are root's")
    with SmallDirectory("ext4") as directory:
        in_modes(directory, MODES[-1:])


@case
def on_a_small_tmpfs():
    with SmallDirectory("tmpfs") as directory:
        in_modes(directory, MODES)


@case
def space_that_somebody_else_gives_back():
    with SmallDirectory("tmpfs") as directory:
        ballast = os.path.join(directory, "ballast")
        with open(ballast, "wb") as f:
            f.write(b"x" * (SMALL // 2))
        with Server(base(), overlay_dir=directory) as srv:
            with srv.open(STRUCTURED) as s:
                end = fill(s, 2 * MIB, 3)
                os.unlink(ballast)
                further = fill(s, end, 3)
                expect(further - end > SMALL // 4, True, "space is used")
                check_filled(s, 2 * MIB, further, 3)
                s.disconnect()


@case
def several_sessions_in_a_full_house():
    """All run into the wall at once; each byte answered for is there."""
    with SmallDirectory("tmpfs") as directory:
        with Server(base(), overlay_dir=directory) as srv:
            failures = []

            def work(n):
                try:
                    with srv.open(MODES[n % len(MODES)]) as s:
                        crowd(s, n)
                        s.disconnect()
                except BaseException as e:
                    failures.append("session %d: %s" % (n, e))
            threads = [threading.Thread(target=work, args=(n,))
                       for n in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            expect(failures, [], "sessions, seed %d" % SEED)


def crowd(s, n):
    rng = random.Random(SEED + n)
    start = (2 + n * 30) * MIB
    model = {}      # place: salt of the last answered write
    full = 0
    for i in range(400):
        at = start + rng.randrange(0, 20 * MIB // 65536) * 65536
        if rng.random() < 0.2 and full:
            s.trim(at, 65536)
            model.pop(at, None)
            continue
        p = s.call(CMD_WRITE, at, payload=pattern(at, 65536, i))
        if not p.error:
            model[at] = i
            continue
        full += 1
        expect(p.error, ENOSPC, "%s" % p)
        # Each grain has its old or its new data: which one is not told.
        old = model.pop(at, None)
        found = s.read(at, 65536)
        for g in range(at, at + 65536, 4096):
            before = bytes(4096) if old is None else pattern(g, 4096, old)
            here = found[g - at:g - at + 4096]
            if old is not None and here not in (before, pattern(g, 4096, i)):
                raise AssertionError("%#x: neither old nor new" % g)
    for at, salt in model.items():
        expect_bytes(s.read(at, 65536), pattern(at, 65536, salt), at,
                     "answered for")


@case
def a_limit_on_the_size_of_files():
    """EFBIG and SIGXFSZ: the guest sees ENOSPC, the server lives on."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
    with Server(base(), preexec=limit) as srv:
        for mode in MODES:
            with srv.open(mode) as s:
                end = fill(s, 2 * MIB, 4, 64 * MIB)
                expect(end - 2 * MIB > 4 * MIB, True, "some of it fits")
                check_filled(s, 2 * MIB, end, 4)
                s.write(2 * MIB, pattern(2 * MIB, STEP, 5))
                s.trim(2 * MIB, 62 * MIB)
                s.write(32 * MIB, pattern(32 * MIB, STEP, 5))
                s.trim(2 * MIB, 62 * MIB)
                s.disconnect()


@case
def a_raw_image_on_a_full_filesystem():
    """The same for a disk that is written itself."""
    with SmallDirectory("tmpfs") as directory:
        path = raw_image(os.path.join(directory, "disk"), SIZE)
        with Server(path, ephemeral=False) as srv:
            for mode in MODES:
                with srv.open(mode) as s:
                    end = fill(s, 2 * MIB, 4)
                    check_filled(s, 2 * MIB, end, 4)
                    s.write(2 * MIB, pattern(2 * MIB, STEP, 5))
                    s.trim(2 * MIB, SIZE - 2 * MIB)
                    s.write(100 * MIB, pattern(100 * MIB, MIB, 6))
                    expect_bytes(s.read(100 * MIB, MIB),
                                 pattern(100 * MIB, MIB, 6), 100 * MIB,
                                 "after the trim")
                    s.zero(2 * MIB, SIZE - 2 * MIB)
                    s.disconnect()


enter_namespace()
main()
