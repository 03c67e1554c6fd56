#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The Virtualization framework's client on our server (lib/vzclient.py).

A guest's random work is compared with a model; the server is killed and
started again under it; whole disks of 64 TiB are trimmed.
"""
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (SANITIZED, Skip, case, expect, expect_bytes, main,
                     scratch, seed)
from images import MIB, TIB, pattern, qcow2_image, raw_image, sha256
from nbdwire import *
from rewindserver import PEER, Server
from vzclient import (ALIGNMENT, RANGE_MAX, REQUEST_MAX, OutOfOrder,
                      VZClient)

SIZE = 64 * MIB
RSS_MAX = 64 * MIB
HUGE = 64 * TIB if not SANITIZED else 4 * TIB
SEED = seed()


class Guest:
    """Random work, and what must come of it. Grains that were trimmed are
    unknown (None) until they are written again."""

    def __init__(self, client, rng, content):
        self.client, self.rng = client, rng
        self.model = bytearray(content)
        self.known = bytearray(b"\1" * (len(content) // ALIGNMENT))
        self.locked = []            # (offset, length) in flight
        self.count = 0

    def free_range(self):
        """A range that no request in flight touches, or None."""
        length = ALIGNMENT * self.rng.choice(
            [1, 1, 1, 2, 8, 16, 64, 256, REQUEST_MAX // ALIGNMENT])
        offset = self.rng.randrange(
            0, (len(self.model) - length) // ALIGNMENT + 1) * ALIGNMENT
        for o, n in self.locked:
            if offset < o + n and o < offset + length:
                return None
        return offset, length

    def start_one(self):
        place = self.free_range()
        if place is None:
            return False
        offset, length = place
        command = self.rng.choices(
            [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES],
            [40, 45, 7, 8])[0]
        data = self.rng.randbytes(length) if command == CMD_WRITE else b""
        self.locked.append(place)
        self.client.submit(command, offset, length, data)
        return True

    def grains(self, r):
        return slice(r.offset // ALIGNMENT, (r.offset + r.length)
                     // ALIGNMENT)

    def finish_one(self):
        r = self.client.wait()
        self.count += 1
        self.locked.remove((r.offset, r.length))
        expect(r.error, OK, "%s at %#x +%d"
               % (CMD_NAMES[r.command], r.offset, r.length))
        where = slice(r.offset, r.offset + r.length)
        if r.command == CMD_READ:
            self.compare(r.offset, r.data, "request %d" % self.count)
        elif r.command == CMD_TRIM:
            self.known[self.grains(r)] = bytes(r.length // ALIGNMENT)
        else:
            self.model[where] = r.data or bytes(r.length)
            self.known[self.grains(r)] = b"\1" * (r.length // ALIGNMENT)

    def compare(self, offset, data, what):
        first = offset // ALIGNMENT
        known = self.known[first:first + len(data) // ALIGNMENT]
        if 0 not in known:
            expect_bytes(data, bytes(self.model[offset:offset + len(data)]),
                         offset, what)
            return
        for n, is_known in enumerate(known):
            if is_known:
                at = n * ALIGNMENT
                expect_bytes(
                    data[at:at + ALIGNMENT],
                    bytes(self.model[offset + at:offset + at + ALIGNMENT]),
                    offset + at, what)

    def work(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while len(self.client.flying) < 8 and self.start_one():
                pass
            if self.client.flying:
                self.finish_one()
        self.settle()

    def settle(self):
        while self.client.flying:
            self.finish_one()

    def check_all(self):
        for offset in range(0, len(self.model), REQUEST_MAX):
            n = min(REQUEST_MAX, len(self.model) - offset)
            self.compare(offset, self.client.run(CMD_READ, offset, n),
                         "whole disk")


def with_seed(function, *arguments):
    try:
        function(*arguments)
    except AssertionError as e:
        raise AssertionError("REWIND_SEED=%d: %s" % (SEED, e)) from e


@case
def a_guest_at_work():
    content = pattern(0, 8 * MIB) + bytes(SIZE - 8 * MIB)
    path = raw_image(scratch("golden"), SIZE, [(0, content[:8 * MIB])])
    before = sha256(path)
    with Server(path, export="my disk") as srv:
        with VZClient(srv.socket, "my disk") as client:
            guest = Guest(client, random.Random(SEED), content)
            with_seed(guest.work, 3)
            with_seed(guest.check_all)
            expect(guest.count > 50, True, "it has done something")
            print("      %d requests" % guest.count)
        srv.check_memory(64 * MIB, "8 requests of 4 MiB")
    expect(sha256(path), before, "the base")


@case
def many_lives_on_one_server():
    with Server(raw_image(scratch("golden"), SIZE)) as srv:
        for n in range(30):
            with VZClient(srv.socket) as client:
                for i in range(8):
                    client.submit(CMD_WRITE, i * REQUEST_MAX, 65536,
                                  bytes((n + 1,)) * 65536)
                if n % 2:       # the other half is cut off at once
                    while client.flying:
                        expect(client.wait().error, OK, "write")


def kill_and_restart(srv_box, make, times, stop):
    for pause in times:
        if stop.wait(pause):
            return
        srv_box[0].kill()
        if stop.wait(1):
            return
        srv_box[0] = make()


@case
def the_server_is_killed_under_a_guest():
    path = raw_image(scratch("disk"), SIZE)
    socket_path = scratch("vz.sock")

    def make():
        return Server(path, ephemeral=False, socket_path=socket_path)

    box, stop = [make()], threading.Event()
    killer = threading.Thread(target=kill_and_restart,
                              args=(box, make, (0.7, 1, 1.3), stop))
    try:
        with VZClient(socket_path) as client:
            guest = Guest(client, random.Random(SEED + 1), bytes(SIZE))
            killer.start()
            while killer.is_alive():
                with_seed(guest.work, 0.5)
            with_seed(guest.work, 0.5)
            with_seed(guest.check_all)
            expect(client.connects, 4, "connections")
            print("      %d requests" % guest.count)
    finally:
        stop.set()
        if killer.ident is not None:
            killer.join()
    box[0].stop()
    with open(path, "rb") as f:
        data = f.read()
    with_seed(guest.compare, 0, data, "the file at the end")


@case
def a_graceful_restart_under_a_guest():
    path = raw_image(scratch("disk2"), SIZE)
    socket_path = scratch("vz2.sock")
    with VZServer(path, socket_path) as box:
        with VZClient(socket_path) as client:
            guest = Guest(client, random.Random(SEED + 2), bytes(SIZE))
            for _ in range(3):
                while len(client.flying) < 8:
                    guest.start_one()
                again = threading.Thread(target=box.restart)
                again.start()
                try:
                    with_seed(guest.settle)
                finally:
                    again.join()
                with_seed(guest.work, 0.5)
            with_seed(guest.check_all)
            expect(client.connects, 4, "connections")


class VZServer:
    """A server that can be ended in good order and started again."""

    def __init__(self, path, socket_path):
        self.make = lambda: Server(path, ephemeral=False,
                                   socket_path=socket_path)
        self.srv = self.make()

    def restart(self):
        self.srv.stop(signal.SIGTERM)
        self.srv = self.make()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.srv.__exit__(*exception)


@case
def another_size_after_a_restart_is_the_end():
    # Not our server's fault, but what the test client must notice.
    socket_path = scratch("vz3.sock")
    srv = Server(raw_image(scratch("small"), MIB), socket_path=socket_path)
    with VZClient(socket_path) as client:
        client.run(CMD_READ, 0, 4096)
        srv.stop()
        srv = Server(raw_image(scratch("big"), 2 * MIB),
                     socket_path=socket_path)
        try:
            client.run(CMD_READ, 0, 4096)
        except OutOfOrder:
            pass
        else:
            raise AssertionError("not noticed")
    srv.stop()


# Steps in which a guest goes over a disk that is larger than one request may
# be. Neither the round ones nor those that end inside a leaf of the server's
# map may leave anything behind in it.
STEPS = [1 << 31, RANGE_MAX]


def over_all_of(path, image_format):
    if PEER:
        raise Skip("needs our overlay")
    for step in STEPS:
        with Server(path, image_format=image_format) as srv:
            with VZClient(srv.socket) as client:
                expect(client.size, HUGE, "size")
                over_all_with(srv, client, step)
                srv.check_memory(RSS_MAX, "steps of %d" % step)


def over_all_with(srv, client, step):
    empty = srv.overlay_bytes()
    places = [n * HUGE // 9 // 4096 * 4096 for n in range(9)]
    for command in (CMD_TRIM, CMD_WRITE_ZEROES):
        for at in places:
            client.run(CMD_WRITE, at, 65536, pattern(at, 65536))
        expect(srv.overlay_bytes() > empty, True, "space is taken")
        start = time.monotonic()
        client.over_all(command, step)
        print("      %s of %d TiB in steps of %d: %.1f s" % (
            CMD_NAMES[command], HUGE // TIB, step, time.monotonic() - start))
        for at in places:
            data = client.run(CMD_READ, at, 65536)
            if command == CMD_WRITE_ZEROES:
                expect(data, bytes(65536), "zeroed at %#x" % at)
        srv.overlay_falls_to(empty + MIB, CMD_NAMES[command])
    for at in places:
        client.run(CMD_WRITE, at, 4096, pattern(at, 4096, 2))
        expect_bytes(client.run(CMD_READ, at, 4096), pattern(at, 4096, 2), at,
                     "written again")


@case
def sixty_four_tebibytes_of_raw():
    for directory in (scratch(), "/dev/shm"):
        path = os.path.join(directory, "rewind-vz.%d" % os.getpid())
        try:
            raw_image(path, HUGE)
        except OSError:
            if os.path.exists(path):
                os.unlink(path)
            continue
        try:
            over_all_of(path, "raw")
        finally:
            os.unlink(path)
        return
    raise Skip("no filesystem here takes a file of 64 TiB")


@case
def sixty_four_tebibytes_of_qcow2():
    path = qcow2_image(scratch("huge"), HUGE, options="cluster_size=2M",
                       writes=["write -P 5 1T 64k"])
    over_all_of(path, "qcow2")


@case
def a_whole_disk_in_one_request():
    # Up to 4 GiB mkfs needs but one; and the disk works on.
    size = RANGE_MAX
    with Server(raw_image(scratch("one"), size, [(0, pattern(0, MIB))])) as srv:
        with VZClient(srv.socket) as client:
            for command in (CMD_TRIM, CMD_WRITE_ZEROES):
                client.run(CMD_WRITE, 0, MIB, pattern(0, MIB, 1))
                client.run(command, 0, size)
                client.run(CMD_WRITE, MIB, MIB, pattern(MIB, MIB, 2))
                expect_bytes(client.run(CMD_READ, MIB, MIB),
                             pattern(MIB, MIB, 2), MIB, "data")
                if command == CMD_WRITE_ZEROES:
                    expect(client.run(CMD_READ, 0, MIB), bytes(MIB), "zero")
            srv.check_memory(RSS_MAX, "whole-disk requests")


@case
def errors_come_in_band():
    path = raw_image(scratch("ro"), MIB)
    with Server(path, read_only=True, ephemeral=False) as srv:
        with VZClient(srv.socket) as client:
            for command in (CMD_TRIM, CMD_WRITE_ZEROES):
                client.submit(command, 0, MIB)
                error = client.wait().error
                expect(error, {EPERM} if not PEER else {EPERM, EINVAL},
                       CMD_NAMES[command])
            client.run(CMD_READ, 0, 4096)
            expect(client.connects, 1, "connections")


main()
