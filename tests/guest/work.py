# SPDX-License-Identifier: BSD-2-Clause
"""A day's work for Linux guests on served disks.

Each guest has its root on a throw-away disk and makes a filesystem on a
second one, with the real mkfs.ext4 (which begins with a trim of the whole
disk). It writes files and fsyncs them, checks their sums after a remount,
deletes some, trims, rewrites, tells the sums, and powers off. The host then
copies the second disk out, checks the filesystem with e2fsck, and takes the
files' sums itself.

One thread, which looks after several guests in turn.
"""
import hashlib
import os
import time

from harness import expect, scratch
from images import MIB, tool
from rewindserver import Server
from vm import LinuxVm

SECOND_BYTES = 192 * MIB
BIG_BYTES = 12 * MIB

JOB = """
say() { echo "guest: $*"; }
die() { say "failed: $*"; sync; /run/busybox poweroff -f; }

say "write cache: $(cat /sys/block/vdb/queue/write_cache)"
say "discard: $(cat /sys/block/vdb/queue/discard_max_bytes)"
say "root before: $(cat /root/mark 2>/dev/null || echo clean)"
echo "NAME was here" >/root/mark
mkfs.ext4 -q /dev/vdb || die mkfs
mount -t ext4 /dev/vdb /mnt || die mount

mkdir /mnt/small
for i in $(seq 60); do
    dd if=/dev/urandom of=/mnt/small/$i bs=$((i * 137)) count=1 2>/dev/null
done
dd if=/dev/urandom of=/mnt/kept bs=64k count=32 conv=fsync 2>/dev/null ||
    die dd
dd if=/dev/urandom of=/mnt/big bs=64k count=$((BIG / 65536)) conv=fsync \\
    2>/dev/null || die dd
cd /mnt && md5sum small/* kept big >/root/sums && cd / || die sums
umount /mnt || die umount
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vdb /mnt || die "second mount"
cd /mnt && md5sum -c /root/sums >/dev/null && cd / ||
    die "sums after a remount"
say "remounted"

rm /mnt/big /mnt/small/1?
sync
say "trimmed: $(fstrim -v /mnt)" || die fstrim
dd if=/dev/urandom of=/mnt/kept bs=4k seek=100 count=50 conv=notrunc,fsync \\
    2>/dev/null || die rewrite
echo 3 >/proc/sys/vm/drop_caches
cd /mnt && md5sum small/* kept | sed 's/^/guest: sum /' && cd /
umount /mnt || die "last umount"
say "done"
"""


def uri(server):
    return "nbd+unix:///%s?socket=%s" % (server.export, server.socket)


class Running:
    """A guest at work, its two servers, and how large its overlay grew."""

    def __init__(self, guest, name, second, second_format, ephemeral=True):
        self.name, self.second, self.ephemeral = name, second, ephemeral
        self.servers = []
        self.vm = None
        self.peak_bytes = 0
        try:
            self.servers.append(Server(str(guest.disk), export="root"))
            self.servers.append(Server(
                second, image_format=second_format, ephemeral=ephemeral,
                export="second"))
            job = JOB.replace("NAME", name).replace("BIG", str(BIG_BYTES))
            self.vm = LinuxVm(guest, [uri(s) for s in self.servers], job)
        except BaseException:
            self.kill()
            raise

    def kill(self):
        if self.vm:
            self.vm.close()
        for server in self.servers:
            server.kill()

    def look(self):
        """Called now and then; true once the guest is off."""
        if self.ephemeral:
            self.peak_bytes = max(self.peak_bytes,
                                  self.servers[1].overlay_bytes())
        return self.vm.child.poll() is not None

    def check(self):
        """The guest is off: what it said, and what its disk holds."""
        self.vm.finish()
        said = self.vm.said()
        for line in ("write cache: write back", "root before: clean",
                     "remounted", "done"):
            if line not in said:
                raise AssertionError("the guest did not say %r%s"
                                     % (line, self.vm.story()))
        expect("discard: 0" in said, False, "a disk without trim")
        for server in self.servers:
            server.check_alive()
        if self.ephemeral and self.peak_bytes:
            left = self.servers[1].overlay_bytes()
            if left > self.peak_bytes - BIG_BYTES // 2:
                raise AssertionError(
                    "the overlay had %d bytes and has %d after the trim"
                    % (self.peak_bytes, left))
        out = scratch("%s.raw" % self.name)
        tool("nbdcopy", "--connections=4", uri(self.servers[1]), out)
        tool("e2fsck", "-fn", out)
        self.check_files(out, said)
        os.unlink(out)

    def check_files(self, image, said):
        """The sums that the guest told, taken on the host without it."""
        folder = scratch("%s.files" % self.name)
        os.mkdir(folder)
        tool("debugfs", "-R", "rdump / %s" % folder, image)
        sums = dict(reversed(line.split()[1:]) for line in said
                    if line.startswith("sum "))
        expect(len(sums), 51, "files the guest told of")
        for name, wanted in sums.items():
            with open(os.path.join(folder, name), "rb") as f:
                found = hashlib.md5(f.read()).hexdigest()
            expect(found, wanted,
                   "sum of %s's %s" % (self.name, name))

    def stop(self):
        self.vm.close()
        for server in self.servers:
            server.stop()


def work(*plans):
    """Runs guests side by side and checks each."""
    guests = []
    try:
        for plan in plans:
            guests.append(Running(*plan))
        while not all([guest.look() for guest in guests]):
            for guest in guests:
                guest.vm.check_patience()
            time.sleep(0.05)
        for guest in guests:
            guest.check()
            guest.stop()
    finally:
        for guest in guests:
            guest.kill()
