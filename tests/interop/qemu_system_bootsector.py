#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A guest of one boot sector runs on a served disk, through QEMU's client.

It counts in a sector of its disk. Killed, it goes on from there when it is
booted again from the same server; from a new server it begins anew, and the
base has not changed by a bit.
"""
import os
import re
import shutil
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"),
                os.path.join(HERE, "..", "guest")]
from harness import case, expect, main, scratch
from images import sha256, tool
from rewindserver import Server
from vm import Vm, boot_sector


def disk():
    path = scratch("bootsector.raw")
    if not os.path.exists(path):
        boot_sector(path)
    return path


def uri(server):
    return "nbd+unix:///%s?socket=%s" % (server.export, server.socket)


def boot(server, *more):
    return Vm("qemu-system-x86_64", "-M", "pc", "-m", "16", "-drive",
              "file=%s,format=raw,if=ide,cache=none" % uri(server), *more)


def counter_on_disk(server):
    """The counter as another client reads it, which also proves that each
    connection sees what the others wrote."""
    out = scratch("copy.raw")
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri(server), out)
    with open(out, "rb") as f:
        f.seek(512)
        number, complement = struct.unpack("<II", f.read(8))
    expect(complement, ~number & 0xffffffff, "the complement")
    return number


def found(vm):
    return int(vm.expect(r"^guest: found ([0-9a-f]{8})$")[1], 16)


def count_to(vm, number):
    """Waits until the guest has written `number` or more; returns the last
    number it said."""
    def look(text):
        said = re.findall(r"^guest: wrote ([0-9a-f]{8})\n", text, re.M)
        return int(said[-1], 16) if said else 0
    vm.until(lambda text: look(text) >= number, "count of %d" % number)
    return look(vm.text())


def kill_and_boot_again(image_format):
    image = disk()
    if image_format == "qcow2":
        image = scratch("bootsector.qcow2")
        tool("qemu-img", "convert", "-O", "qcow2", "-f", "raw", disk(), image)
    before = sha256(image)
    with Server(image, image_format=image_format, export="disk") as server:
        with boot(server) as vm:
            expect(found(vm), 0, "the counter of a fresh disk")
            said = count_to(vm, 5)
            vm.kill()
        on_disk = counter_on_disk(server)
        if on_disk < said:
            raise AssertionError("the guest wrote %d, the disk says %d"
                                 % (said, on_disk))
        with boot(server) as vm:
            expect(found(vm), on_disk, "the counter after a second boot")
            vm.expect(r"^guest: wrote %08x$" % (on_disk + 1))
    with Server(image, image_format=image_format, export="disk") as server:
        with boot(server) as vm:
            expect(found(vm), 0, "the counter after a fresh start")
            vm.expect(r"^guest: wrote 00000001$")
        # QEMU's own throw-away layer above ours: nothing comes through.
        with boot(server, "-snapshot") as vm:
            expect(found(vm), counter_on_disk(server), "seen by -snapshot")
            count = counter_on_disk(server)
            vm.expect(r"^guest: wrote %08x$" % (count + 3))
            expect(counter_on_disk(server), count, "behind -snapshot")
    expect(sha256(image), before, "the image's checksum")


@case
def raw_base():
    kill_and_boot_again("raw")


@case
def qcow2_base():
    kill_and_boot_again("qcow2")


@case
def a_writable_disk_keeps_what_was_counted():
    image = scratch("writable.raw")
    shutil.copyfile(disk(), image)
    with Server(image, ephemeral=False, export="disk") as server:
        with boot(server) as vm:
            expect(found(vm), 0, "the counter of a fresh disk")
            count_to(vm, 3)
            vm.kill()
        last = counter_on_disk(server)
    with Server(image, ephemeral=False, export="disk") as server:
        with boot(server) as vm:
            expect(found(vm), last, "the counter after a new server")


@case
def two_guests_share_one_base():
    with Server(disk(), export="one") as one, \
            Server(disk(), export="two") as two, \
            boot(one) as first, boot(two) as second:
        expect((found(first), found(second)), (0, 0), "both counters")
        count_to(first, 6)
        second.kill()
        with boot(two) as second:
            count_to(second, found(second) + 1)
        count_to(first, 8)


@case
def the_server_goes_and_the_guest_sees_an_error():
    server = Server(disk(), export="disk")
    try:
        with boot(server) as vm:
            count_to(vm, 2)
            server.kill()
            vm.expect(r"^guest: disk error$")
    finally:
        server.kill()


main()
