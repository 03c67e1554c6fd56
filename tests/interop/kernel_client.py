#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: slow timeout=240
"""Linux's own NBD client: the nbd driver of a guest's kernel, over TCP.

The guest boots from a served disk, connects its kernel to another export with
nbd-client and two connections, makes a filesystem there, writes, checks after
a remount and a reconnection, trims and disconnects. The host then checks the
filesystem and the files' sums.
"""
import hashlib
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"),
                os.path.join(HERE, "..", "guest")]
from harness import Skip, case, expect, main, scratch
from images import MIB, raw_image, tool
from rewindserver import PEER, Server
from vm import LinuxVm, linux_guest

JOB = """
say() { echo "guest: $*"; }
die() { say "failed: $*"; dmesg | tail -n 5; /run/busybox poweroff -f; }

for m in /lib/modules/*.ko; do
    case $m in
    *-nbd.ko) insmod "$m" nbds_max=1 max_part=0 || die "$m" ;;
    *) insmod "$m" || die "$m" ;;
    esac
done
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 || die network

attach() {
    # Without netlink the program stays and waits for the kernel; both ways
    # are in use.
    nbd-client 10.0.2.2 PORT /dev/nbd0 -N disk -C 2 -b 4096 ||
        die "attach $*"
    i=0
    until [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; do
        i=$((i + 1))
        [ $i -lt 200 ] || die "no size"
        usleep 20000
    done
}

attach
say "size: $(cat /sys/block/nbd0/size)"
say "write cache: $(cat /sys/block/nbd0/queue/write_cache)"
mkfs.ext4 -q /dev/nbd0 || die mkfs
mount -t ext4 /dev/nbd0 /mnt || die mount
for i in $(seq 40); do
    dd if=/dev/urandom of=/mnt/$i bs=$((i * 137)) count=1 2>/dev/null
done
dd if=/dev/urandom of=/mnt/big bs=64k count=96 conv=fsync 2>/dev/null || die dd
cd /mnt && md5sum big [0-9]* >/root/sums && cd / || die sums
umount /mnt || die umount
nbd-client -d /dev/nbd0 || die detach
usleep 200000
attach again
mount -t ext4 /dev/nbd0 /mnt || die "second mount"
cd /mnt && md5sum -c /root/sums >/dev/null || die "sums after attaching again"
rm big
sync
cd /
fstrim -v /mnt || die fstrim
cd /mnt && md5sum [0-9]* | sed 's/^/guest: sum /' && cd /
umount /mnt || die "last umount"
nbd-client -d /dev/nbd0 || die "last detach"
say "done"
"""


@case
def filesystem_on_dev_nbd():
    if PEER:
        raise Skip("this server's TCP port is not known")
    guest = linux_guest("aarch64")
    image = raw_image(scratch("disk.raw"), 64 * MIB)
    with Server(str(guest.disk), export="root") as root, \
            Server(image, export="disk", args=["-p", "0"]) as server:
        ports = re.findall(r"nbd://[^/]*:(\d+)/", " ".join(server.uris))
        expect(len(ports), 1, "TCP ports in the ready lines")
        disks = ["nbd+unix:///root?socket=%s" % root.socket]
        net = ["-netdev", "user,id=n", "-device",
               "virtio-net-pci,netdev=n,romfile="]
        with LinuxVm(guest, disks, JOB.replace("PORT", ports[0]),
                     more=net) as vm:
            vm.finish()
            said = vm.said()
            for line in ("size: %d" % (64 * MIB // 512),
                         "write cache: write back", "done"):
                if line not in said:
                    raise AssertionError("the guest did not say %r%s"
                                         % (line, vm.story()))
        out = scratch("out.raw")
        tool("nbdcopy", "nbd+unix:///disk?socket=%s" % server.socket, out)
    tool("e2fsck", "-fn", out)
    folder = scratch("files")
    os.mkdir(folder)
    tool("debugfs", "-R", "rdump / %s" % folder, out)
    sums = dict(reversed(line.split()[1:]) for line in said
                if line.startswith("sum "))
    expect(len(sums), 40, "files the guest told of")
    for name, wanted in sums.items():
        with open(os.path.join(folder, name), "rb") as f:
            expect(hashlib.md5(f.read()).hexdigest(), wanted, name)


main()
