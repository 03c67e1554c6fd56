#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: timeout=120
"""Malformed and hostile images. Each must be refused with a message that says
what is wrong, or answer in band with an error where it is damaged and with the
right bytes where it is not: at once, in little memory, without a crash.

Ideas from qemu-iotests 060, 080, 214, 244 and 271, and from the CVEs of image
formats (2008-2004, 2014-0142 to -0148, 2014-0223, 2024-4467, 2024-32498).
"""
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from badqcow2 import *
from harness import SANITIZED, TIMEOUT_SCALE, case, expect, main, scratch, table
from images import MIB, raw_image

DUMP = os.path.join(os.environ["REWIND_TESTLIB"], "layer_dump")
REWIND = os.environ.get("REWIND", "")
CPU_S = 1.0 * TIMEOUT_SCALE      # of one image; a loaded machine takes longer
WALL_S = 10.0 * TIMEOUT_SCALE
MEMORY_BYTES = 100 * MIB     # of address space
REFUSED, IN_BAND = 1, 3
C = 65536
_count = 0


def fresh(suffix="img"):
    global _count
    _count += 1
    folder = scratch("c%d" % _count)
    os.mkdir(folder)
    return folder + "/image." + suffix


def children_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Result:
    def __init__(self, argv, **more):
        start, cpu = time.monotonic(), children_s()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, **more)
        self.out, err = process.communicate(timeout=30 * TIMEOUT_SCALE)
        self.err = err.decode("utf-8", "replace")
        self.status = process.returncode
        self.cpu_s = children_s() - cpu
        self.wall_s = time.monotonic() - start

    def check(self, status, message):
        expect(self.status, status, "status (%s)" % self.err.strip())
        if "Sanitizer" in self.err or "runtime error" in self.err:
            raise AssertionError(self.err)
        if message is not None and not re.search(message, self.err):
            raise AssertionError("message %r lacks %r" % (self.err, message))
        if re.search(r"[^\n\x20-\x7e]", self.err):
            raise AssertionError("unprintable bytes in %r" % self.err)
        self.check_time()

    def check_time(self):
        if self.cpu_s > CPU_S or self.wall_s > WALL_S:
            raise AssertionError("took %.2f s of processor, %.2f s in all"
                                 % (self.cpu_s, self.wall_s))


def dump(image, *options, cwd=None):
    # A sanitizer reserves terabytes; elsewhere the limit is the check.
    limit = None
    if not SANITIZED:
        def limit():
            resource.setrlimit(resource.RLIMIT_AS,
                               (MEMORY_BYTES, MEMORY_BYTES))
    return Result([DUMP, *options, image], preexec_fn=limit, cwd=cwd)


def refuse(message, image, *options):
    result = dump(image, *options)
    result.check(REFUSED, message)
    return result


def changed(message, change, *options, suffix="qcow2", bits=16, version=3):
    """An image with one thing wrong."""
    q = Qcow2(bits=bits, version=version)
    change(q)
    refuse(message, q.write(fresh(suffix)), *options)


def fields(**values):
    def change(q):
        for name, value in values.items():
            setattr(q, name, value)
    return change


# ---- headers ----

HEADERS = [
    ("magic", "does not begin with", fields(magic=0x514649fa), "-f", "qcow2"),
    ("version 0", "version 0 is not supported", fields(version=0)),
    ("version 1", r"qcow \(version 1\)", fields(version=1)),
    ("version 4", "version 4 is not supported", fields(version=4)),
    ("version huge", "version", fields(version=0xffffffff)),
    ("cluster bits 0", "cluster bits", fields(bits=0)),
    ("cluster bits 8", "cluster bits", fields(bits=8)),
    ("cluster bits 22", "cluster bits", fields(bits=22)),
    ("cluster bits 63", "cluster bits", fields(bits=63)),
    ("cluster bits huge", "cluster bits", fields(bits=0xffffffff)),
    ("header length 72", "header length", fields(header_length=72)),
    ("header length 0", "header length", fields(header_length=0)),
    ("header length 108", "header length", fields(header_length=108)),
    ("header length above the cluster", "header length",
     fields(header_length=C + 8)),
    ("header length huge", "header length", fields(header_length=0xfffffff8)),
    ("refcount order 7", "reference count", fields(refcount_order=7)),
    ("refcount order huge", "reference count",
     fields(refcount_order=0xffffffff)),
    ("size 2^63", "too large", fields(size=1 << 63)),
    ("size 2^64-1", "too large", fields(size=(1 << 64) - 1)),
    ("L1 too short", "L1 table has 1 entries", fields(size=1 << 40)),
    ("L1 empty", "L1 table has 0 entries", fields(l1_size=0)),
    ("L1 4 GiB", "L1 table has", fields(l1_size=0x7fffffff)),
    ("L1 32 GiB", "L1 table has", fields(l1_size=0xffffffff)),
    ("L1 unaligned", "not the offset of a cluster", fields(l1_off=3 * C + 8)),
    ("L1 past the file", "cut short", fields(l1_off=1000 * C)),
    ("L1 at 2^63", "not the offset of a cluster", fields(l1_off=1 << 63)),
    ("L1 at the end of 64 bits", "L1 table",
     fields(l1_off=(1 << 64) - C)),
    ("L1 cut short", "cut short", fields(size=1 << 40, l1=[0] * 2048,
                                         length=3 * C + 1000)),
    ("refcount table missing", "no refcount table",
     fields(reftable_clusters=0)),
    ("refcount table huge", "refcount table has",
     fields(reftable_clusters=0xffffffff)),
    ("refcount table 16 MiB", "refcount table has",
     fields(reftable_clusters=256)),
    ("refcount table unaligned", "refcount table lies",
     fields(reftable_off=C + 512)),
    ("refcount table at 2^60", "refcount table lies",
     fields(reftable_off=1 << 60)),
    ("snapshots 65537", "snapshot table has",
     fields(snapshot_count=65537, snapshots_off=5 * C)),
    ("snapshots huge", "snapshot table has",
     fields(snapshot_count=0xffffffff, snapshots_off=5 * C)),
    ("snapshots unaligned", "snapshot table lies",
     fields(snapshot_count=1, snapshots_off=5 * C + 8)),
    ("snapshots past the file", "cut short",
     fields(snapshot_count=1, snapshots_off=999 * C)),
    ("AES", "encrypted .AES", fields(crypt=1)),
    ("LUKS", "encrypted .LUKS", fields(crypt=2)),
    ("unknown encryption", "encrypted", fields(crypt=77)),
    ("zstd without the bit", "contradict", fields(compression=1)),
    ("the bit without zstd", "contradict", fields(incompatible=COMPRESSION)),
    ("the bit, short header", "contradict",
     fields(incompatible=COMPRESSION, compression=1, header_length=104)),
    ("compression type 200", "compression type 200",
     fields(incompatible=COMPRESSION, compression=200)),
    ("extended L2 in 8 KiB clusters", "extended L2",
     fields(incompatible=EXTENDED_L2, bits=13, l1_off=0, reftable_off=0,
            snapshots_off=0)),
    ("unknown bit", r"bit 5$", fields(incompatible=1 << 5)),
    ("unknown bits", "bit 7, bit 62, bit 63",
     fields(incompatible=3 << 62 | 1 << 7)),
    ("all bits", "bit 5, bit 6", fields(incompatible=(1 << 64) - 1)),
    ("named unknown bits", r'"hyper \\x1b\[31mdrive" \(bit 9\), bit 10',
     fields(incompatible=3 << 9, extensions=[
         (NAMES, b"\0\0dirty bit".ljust(48, b"\0")
          + b"\0\x09hyper \x1b[31mdrive".ljust(48, b"\0")
          + b"\1\x0acompatible, not this".ljust(48, b"\0"))])),
    ("long name of a bit", r'"A{46}" \(bit 9\)$',
     fields(incompatible=1 << 9, extensions=[(NAMES, b"\0\x09" + b"A" * 46)])),
    ("feature table cut", "bit 9$",
     fields(incompatible=1 << 9, extensions=[(NAMES, b"\0\x09" + b"A" * 40)])),
    ("extension beyond the header", "does not fit",
     fields(extensions=[(0x1234, b"", 0xffffffff)])),
    ("extension just beyond", "does not fit",
     fields(extensions=[(0x1234, b"", C - 112 - 7)])),
    ("thousands of extensions", "does not fit",
     fields(extensions=[(0x1234, b"")] * 5000)),
    ("format name too long", "format has 64 bytes",
     fields(extensions=[(FORMAT, b"q" * 64)])),
    ("data file name too long", "name has 1024 bytes",
     fields(extensions=[(DATA_NAME, b"q" * 1024)])),
    ("backing name outside", "outside of the first cluster",
     fields(backing_off=C + 1, backing_len=8)),
    ("backing name at 2^63", "outside of the first cluster",
     fields(backing_off=1 << 63, backing_len=8)),
    ("backing name beyond the cluster", "outside of the first cluster",
     fields(backing_off=C - 4, backing_len=8)),
    ("backing name 1024", "has 1024 bytes",
     fields(backing_off=4096, backing_len=1024)),
    ("backing name huge", "outside of the first cluster",
     fields(backing_off=4096, backing_len=0xffffffff)),
    ("NUL in the backing name", "NUL byte", fields(backing=b"a\0b")),
    ("raw data file and backing", "exclude each other",
     fields(incompatible=DATA_FILE, autoclear=2, backing=b"b.raw",
            extensions=[(DATA_NAME, b"d"), (FORMAT, b"raw")])),
]
table(changed, HEADERS, "header: %s")


@case
def short_files():
    whole = Qcow2().header()
    for length in (0, 1, 3, 4, 7, 8, 20, 71, 72, 100, 104):
        image = fresh("qcow2")
        with open(image, "wb") as f:
            f.write(whole[:length])
        refuse(r"ends within|cut short|header", image, "-f", "qcow2")


# ---- tables ----

def damaged(message, change, *, bits=16, version=3, entry=1):
    """Cluster `entry` is damaged; the others, one of them data, read well."""
    q = Qcow2(bits=bits, version=version, size=8 << bits)
    c = q.cluster
    good = 2 if entry != 2 else 3
    q.l2[good] = COPIED | 6 * c
    q.pieces.append((6 * c, b"\x5a" * c))
    change(q)
    if q.incompatible & EXTENDED_L2 and not isinstance(q.l2[good], tuple):
        q.l2[good] = (q.l2[good], 0xffffffff)
    image = q.write(fresh("qcow2"))
    bad = dump(image, "-s", str(entry * c), "-n", str(c))
    bad.check(IN_BAND, message)
    expect(bad.err.count("damaged") + bad.err.count("can't be read") <= 1,
           True, "damage told once")
    if q.l1 == [4 * c]:
        well = dump(image, "-s", str(good * c), "-n", str(c))
        well.check(0, None)
        expect(well.out, b"\x5a" * c, "undamaged cluster")
        with_map = dump(image, "-m")
        expect(with_map.status in (0, IN_BAND), True, "map")


def l2(value, **more):
    def change(q):
        q.l2[1] = value
        fields(**more)(q)
    return change


def packed(offset, data, bits=16, sectors=None):
    """An L2 entry for compressed data at `offset`, which is put there."""
    def change(q):
        if sectors is None:
            count = (offset % 512 + len(data) + 511) // 512
        else:
            count = sectors
        x = 62 - (bits - 8)
        q.l2[1] = PACKED | (count - 1) << x | offset
        q.pieces.append((offset, data))
    return change


def both(*changes):
    def change(q):
        for c in changes:
            c(q)
    return change


ZSTD = fields(incompatible=COMPRESSION, compression=1)
# A frame that asks for a window of 2^41 bytes.
ZSTD_BOMB = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00" * 40

table(damaged, [
    ("L1 unaligned", "L1 entry .* not the offset of a cluster",
     fields(l1=[4 * C + 512])),
    ("L1 reserved low bits", "L1 entry .* reserved", fields(l1=[4 * C | 1])),
    ("L1 reserved high bits", "L1 entry .* reserved",
     fields(l1=[4 * C | 1 << 60])),
    ("L2 table past the file", "L2 table at .* ends before",
     fields(l1=[0xffffffff0000])),
    ("L2 table cut", "L2 table at .* ends before",
     fields(l1=[15 * C], length=15 * C + 8)),
    ("L2 unaligned", "L2 entry .* not the offset of a cluster",
     l2(COPIED | 6 * C + 512)),
    ("L2 reserved low bits", "L2 entry .* reserved", l2(COPIED | 6 * C | 2)),
    ("L2 reserved high bits", "L2 entry .* reserved", l2(6 * C | 1 << 57)),
    ("L2 all ones", "L2 entry", l2(((1 << 64) - 1) & ~PACKED)),
    ("zero cluster unaligned", "L2 entry .* not the offset", l2(6 * C + 512 | 1)),
    ("subcluster data and zero", "both data and zero",
     l2((6 * C, 1 << 32 | 1), incompatible=EXTENDED_L2)),
    ("subcluster without cluster", "but no cluster",
     l2((0, 1), incompatible=EXTENDED_L2)),
    ("subcluster with the zero bit", "reserved",
     l2((6 * C | 1, 0), incompatible=EXTENDED_L2)),
    ("packed past the file", None, l2(PACKED | 1 << 40)),
    ("packed at the end of offsets", None,
     l2(PACKED | (1 << 54) - 1)),
    ("packed garbage", None, packed(7 * C + 100, b"\xff" * 3000)),
    ("packed empty", None, packed(7 * C, b"", sectors=1)),
    ("packed too short", None,
     packed(7 * C, deflate(b"x" * (C - 1)))),
    ("packed cut in the sectors", None,
     packed(7 * C, deflate(os.urandom(C)), sectors=64)),
    ("packed zstd garbage", None,
     both(ZSTD, packed(7 * C, b"\x28\xb5\x2f\xfd" + b"\xaa" * 500))),
    ("packed zstd with a huge window", None,
     both(ZSTD, packed(7 * C, ZSTD_BOMB))),
    ("packed zlib in a zstd image", None,
     both(ZSTD, packed(7 * C, deflate(b"x" * C)))),
], "damaged: %s")


@case
def zero_bit_in_version_2():
    damaged("L2 entry .* reserved", l2(COPIED | 6 * C | 1), version=2)


@case
def packed_offset_above_2_56():
    """Small clusters leave room for offsets that no file can have."""
    damaged("beyond 2", l2(PACKED | 1 << 57), bits=9)


@case
def packed_of_the_largest_length():
    """Two clusters of input, which end at the file's end."""
    q = Qcow2(bits=21, size=4 << 20)
    q.l1 = [4 * q.cluster]
    q.l2[0] = PACKED | (1 << 62) - (1 << 49) | 5 * q.cluster
    q.pieces.append((5 * q.cluster, os.urandom(1 << 20)))
    q.length = 5 * q.cluster + (1 << 20)
    dump(q.write(fresh("qcow2"))).check(IN_BAND, None)


@case
def packed_that_would_go_on():
    """Decompression ends with the cluster, whatever follows; and the last
    sector need not be in the file."""
    for data in (deflate(b"x" * (64 * MIB)), deflate(b"x" * C)):
        q = Qcow2()
        packed(7 * C, data)(q)
        q.length = 7 * C + len(data)
        done = dump(q.write(fresh("qcow2")), "-s", str(C), "-n", str(C))
        done.check(0, None)
        expect(done.out, b"x" * C, "the cluster")


@case
def data_past_the_file_is_zeroes():
    q = Qcow2()
    q.l2[0] = COPIED | 7 * C
    q.l2[1] = COPIED | 1000 * C
    q.pieces = [(7 * C, b"y" * 100)]
    q.length = 7 * C + 100
    done = dump(q.write(fresh("qcow2")))
    done.check(0, None)
    expect(done.out, b"y" * 100 + bytes(MIB - 100), "the disk")


@case
def clusters_that_overlap_tables():
    """Nothing forbids to read the header as data; nothing may break."""
    q = Qcow2()
    for i in range(16):
        q.l2[i] = i * C
    done = dump(q.write(fresh("qcow2")))
    done.check(0, None)
    expect(done.out[3 * C:3 * C + 8], struct.pack(">Q", 4 * C), "L1 as data")


@case
def an_l2_table_for_all():
    """Every L1 entry names the same table: 2 EiB of disk in 3 MiB."""
    q = Qcow2(bits=21, size=1 << 60)
    q.l1 = [4 * q.cluster] * (1 << 12)
    q.l1_size = 1 << 22
    q.l1_off = 6 * q.cluster
    q.length = 6 * q.cluster + (32 << 20)
    q.pieces = [(6 * q.cluster, struct.pack(">Q", 4 * q.cluster) * 4096)]
    image = q.write(fresh("qcow2"))
    expect(dump(image, "-q").out, b"%d\n" % (1 << 60), "size")
    dump(image, "-s", str(1 << 59), "-n", "4096").check(0, None)


# ---- snapshots ----

def snapshot_entry(l1_off=3 * C, l1_size=1, ident=b"1", name=b"snap",
                   extra=struct.pack(">QQ", 0, MIB), extra_len=None,
                   id_len=None, name_len=None):
    return struct.pack(
        ">QIHHIIQII", l1_off, l1_size,
        len(ident) if id_len is None else id_len,
        len(name) if name_len is None else name_len, 0, 0, 0, 0,
        len(extra) if extra_len is None else extra_len
    ) + extra + ident + name


def snapshot(message, entry, count=1, spec="snap", **more):
    q = Qcow2()
    q.snapshot_count = count
    q.snapshots_off = 14 * C
    q.pieces.append((14 * C, entry))
    q.length = 14 * C + len(entry)
    fields(**more)(q)
    refuse(message, q.write(fresh("qcow2")), "-l", spec)


table(snapshot, [
    ("unknown", "no internal snapshot .* \"nope\"", snapshot_entry(), 1,
     "nope"),
    ("none there", "no internal snapshot", b"", 0),
    ("strange name", r'"a\\x1b\[2Jb"', snapshot_entry(), 1, "a\x1b[2Jb"),
    ("bad option", "names no snapshot", snapshot_entry(), 1,
     "snapshot.size=3"),
    ("empty option", "names no snapshot", snapshot_entry(), 1, "snapshot."),
    ("cut entry", "damaged", snapshot_entry()[:30]),
    ("cut extra data", "damaged", snapshot_entry()[:50]),
    ("huge extra data", "damaged", snapshot_entry(extra_len=0xffffffff)),
    ("long ID", "damaged", snapshot_entry(id_len=65535)),
    ("long name", "damaged", snapshot_entry(name_len=65535)),
    ("more than there are", "damaged|no internal", snapshot_entry(), 3, "x"),
    ("L1 unaligned", "snapshot's L1 table lies", snapshot_entry(l1_off=77)),
    ("L1 huge", "snapshot's L1 table has",
     snapshot_entry(l1_size=0xffffffff)),
    ("L1 past the file", "cut short", snapshot_entry(l1_off=999 * C)),
    ("size 2^63", "too large",
     snapshot_entry(extra=struct.pack(">QQ", 0, 1 << 63))),
], "snapshot: %s")


@case
def snapshots_and_data_file():
    q = Qcow2()
    fields(incompatible=DATA_FILE, extensions=[(DATA_NAME, b"d")])(q)
    refuse("no internal snapshots", q.write(fresh()), "-l", "1")


@case
def snapshot_of_a_raw_image():
    refuse("raw image has no", raw_image(fresh(), MIB), "-f", "raw", "-l", "1")


@case
def snapshot_l1_shorter_than_its_disk():
    q = Qcow2()
    q.snapshot_count, q.snapshots_off = 1, 14 * C
    entry = snapshot_entry(l1_size=0, extra=struct.pack(">QQ", 0, 2 * MIB))
    q.pieces.append((14 * C, entry))
    done = dump(q.write(fresh()), "-l", "snap")
    done.check(0, None)
    expect(done.out, bytes(2 * MIB), "the snapshot")


@case
def sixty_five_thousand_snapshots():
    """The most there can be, all looked at for a name that is not there."""
    q = Qcow2()
    q.snapshot_count, q.snapshots_off = 65536, 14 * C
    q.pieces.append((14 * C, snapshot_entry(ident=b"12").ljust(64, b"\0")
                     * 65536))
    q.length = 14 * C + 64 * 65536
    image = q.write(fresh())
    result = dump(image, "-l", "nope")
    expect(result.status, REFUSED, "status")
    result.check_time()


# ---- names ----

def follow(message, backing, declared=b"raw", prepare=None):
    """An image that names a backing file."""
    q = Qcow2()
    q.backing = backing
    q.extensions = [(FORMAT, declared)] if declared is not None else []
    image = q.write(fresh("qcow2"))
    if prepare is not None:
        prepare(os.path.dirname(image))
    refuse(message, image)
    refuse(message, image, "-e")


def link(target):
    def prepare(folder):
        os.symlink(target, folder + "/link")
    return prepare


def loop(folder):
    """image -> b -> image"""
    q = Qcow2()
    q.backing = b"image.qcow2"
    q.extensions = [(FORMAT, b"qcow2")]
    q.write(folder + "/b")


def bind(folder):
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)
    s.bind("sock")
    os.chdir(here)
    s.close()


OUTSIDE = "outside of the image's folder .*--allow-path"
PROTOCOL = "names a protocol"
table(follow, [
    ("json", PROTOCOL, b'json:{"driver":"raw","file":{"filename":"/etc/passwd"}}'),
    ("nbd", PROTOCOL, b"nbd://localhost/x"),
    ("nbd unix", PROTOCOL, b"nbd:unix:/tmp/x:exportname=y"),
    ("nbd+unix", PROTOCOL, b"nbd+unix:///x?socket=y"),
    ("http", PROTOCOL, b"http://example.com/x"),
    ("file", PROTOCOL, b"file:base.raw"),
    ("fat", PROTOCOL, b"fat:rw:/"),
    ("fd", PROTOCOL, b"fd:3"),
    ("capitals", PROTOCOL, b"JSON:{}"),
    ("absolute", OUTSIDE, b"/etc/passwd"),
    ("dots", OUTSIDE, b"../../../../../../../../../../etc/passwd"),
    ("dots in between", OUTSIDE, b"./../../../../../../../../../etc/passwd"),
    ("own memory", OUTSIDE, b"/proc/self/maps"),
    ("descriptor", OUTSIDE + "|can't be found", b"/dev/fd/0"),
    ("device", OUTSIDE, b"/dev/zero"),
    ("link out", OUTSIDE, b"link", b"raw", link("/etc/passwd")),
    ("folder link out", OUTSIDE, b"link/passwd", b"raw", link("/etc")),
    ("link to a device", OUTSIDE, b"link", b"raw", link("/dev/zero")),
    ("link to itself", "can't be found", b"link", b"raw", link("link")),
    ("missing", "can't be found at .*No such file", b"gone.raw"),
    ("missing folder", "can't be found", b"gone/x.raw"),
    ("through a file", "can't be found", b"image.qcow2/x"),
    ("empty format", "does not say which format", b"base.raw", b""),
    ("no format", r"rebase -u -F raw\|qcow2 -b 'base.raw'", b"base.raw", None),
    ("no format, bad name", r"\\x1b\[2J", b"\x1b[2J\n", None),
    ("format vmdk", 'format "vmdk"', b"base.raw", b"vmdk"),
    ("format file", 'format "file"', b"base.raw", b"file"),
    ("format of escapes", r"\\x1b", b"base.raw", b"\x1b[31m"),
    ("itself", "in a circle", b"image.qcow2", b"qcow2"),
    ("itself, as raw", "in a circle", b"image.qcow2", b"raw"),
    ("itself by a link", "in a circle", b"link", b"qcow2",
     link("image.qcow2")),
    ("loop", "in a circle", b"b", b"qcow2", loop),
    ("pipe", "is a pipe", b"p", b"raw", lambda d: os.mkfifo(d + "/p")),
    ("socket", "is a socket", b"sock", b"raw", bind),
    ("directory", "is a directory", b"d", b"raw", lambda d: os.mkdir(d + "/d")),
    ("its own folder", OUTSIDE + "|is a directory", b"."),
    ("raw called qcow2", "does not begin with", b"b", b"qcow2",
     lambda d: raw_image(d + "/b", MIB)),
    ("empty file called qcow2", "ends within the header", b"b", b"qcow2",
     lambda d: raw_image(d + "/b", 0)),
    ("a hostile base", "names a protocol", b"b", b"qcow2",
     lambda d: follow_in(d, b"json:{}")),
], "backing: %s")


def follow_in(folder, backing):
    q = Qcow2()
    q.backing = backing
    q.extensions = [(FORMAT, b"raw")]
    q.write(folder + "/b")


@case
def unreadable_backing_file():
    if os.geteuid() == 0:
        return      # root reads everything
    follow("let this user read", b"b", b"raw",
           lambda d: os.chmod(raw_image(d + "/b", MIB), 0))


@case
def names_of_a_base_count_from_the_top():
    """A base in a sub-folder may use the top's folder, and no more."""
    image = fresh("qcow2")
    folder = os.path.dirname(image)
    os.mkdir(folder + "/sub")
    raw_image(folder + "/base.raw", MIB, [(0, b"z" * MIB)])
    follow_in(folder + "/sub", b"../base.raw")
    q = Qcow2()
    q.backing, q.extensions = b"sub/b", [(FORMAT, b"qcow2")]
    done = dump(q.write(image))
    done.check(0, None)
    expect(done.out, b"z" * MIB, "through a sub-folder")
    # The same chain entered below: its folder is the sub-folder then.
    refuse(OUTSIDE, folder + "/sub/b")


def data_file(message, name, prepare=None, autoclear=0):
    q = Qcow2()
    q.incompatible, q.autoclear = DATA_FILE, autoclear
    q.extensions = [(DATA_NAME, name)] if name is not None else []
    image = q.write(fresh("qcow2"))
    if prepare is not None:
        prepare(os.path.dirname(image))
    refuse(message, image)


table(data_file, [
    ("no name", "does not name", None),
    ("empty name", "does not name", b""),
    ("json", PROTOCOL, b'json:{"driver":"file","filename":"/etc/passwd"}'),
    ("absolute", OUTSIDE, b"/etc/passwd"),
    ("absolute, raw", OUTSIDE, b"/etc/passwd", None, 2),
    ("dots", OUTSIDE, b"../../../../../../../../../../etc/passwd"),
    ("link out", OUTSIDE, b"link", link("/etc/passwd")),
    ("pipe", "is a pipe", b"p", lambda d: os.mkfifo(d + "/p")),
    ("device", OUTSIDE, b"/dev/zero"),
    ("itself", "in a circle", b"image.qcow2"),
    ("missing", "can't be found", b"gone"),
    ("NUL", "NUL byte", b"a\0b"),
], "data file: %s")


def wrong_data_file(message, entry):
    q = Qcow2()
    q.incompatible = DATA_FILE
    q.extensions = [(DATA_NAME, b"data")]
    q.l2[1] = entry
    q.l2[2] = COPIED | 2 * C
    image = q.write(fresh("qcow2"))
    raw_image(os.path.dirname(image) + "/data", MIB, [(0, b"d" * MIB)])
    dump(image, "-s", str(C), "-n", "512").check(IN_BAND, message)
    well = dump(image, "-s", str(2 * C), "-n", "512")
    well.check(0, None)
    expect(well.out, b"d" * 512, "the good cluster")


table(wrong_data_file, [
    ("shifted", "not the guest's own offset", COPIED | 3 * C),
    ("shifted to 0", "not the guest's own offset", COPIED),
    ("shifted zeroes", "not the guest's own offset", COPIED | 3 * C | 1),
    ("compressed", "is compressed", PACKED | 3 * C),
], "data file: %s")


# ---- tops ----

def top(message, content, *options):
    image = fresh()
    with open(image, "wb") as f:
        f.write(content)
        f.truncate(MIB)
    refuse(message, image, *options)


CONVERT = "qemu-img convert -O qcow2"
table(top, [
    ("VMDK", "VMDK image.*" + CONVERT, b"KDMV\1\0\0\0"),
    ("VMDK text", "VMDK.*" + CONVERT,
     b"# Disk DescriptorFile\nversion=1\nCID=1\n"),
    ("VMDK other text", "VMDK", b"# x\n \nversion=3\n"),
    ("ESX", "VMDK", b"COWD\1\0\0\0"),
    ("VDI", "VDI.*" + CONVERT, bytes(64) + b"\x7f\x10\xda\xbe"),
    ("VHDX", "VHDX.*" + CONVERT, b"vhdxfile"),
    ("VHD", "VHD.*" + CONVERT, b"conectix"),
    ("QED", "QED.*" + CONVERT, b"QED\0"),
    ("Parallels", "Parallels.*" + CONVERT, b"WithoutFreeSpace"),
    ("LUKS", "LUKS.*-f raw", b"LUKS\xba\xbe\0\1"),
    ("qcow", "version 1.*" + CONVERT, b"QFI\xfb\0\0\0\1"),
    ("ASIF", "ASIF.*diskutil", b"shdw"),
    ("writable, format unknown", "must be declared.*-f raw", b"", "-w"),
    ("writable qcow2", "in place is not supported.*--ephemeral",
     Qcow2().header(), "-w", "-f", "qcow2"),
    ("writable, probed qcow2", "in place is not supported.*--ephemeral",
     Qcow2().header(), "-w"),
    ("writable, probed qcow2, as qemu-nbd", "in place is not supported",
     Qcow2().header(), "-w", "-p"),
    ("offset beyond the end", "beyond the disk's end", b"", "-f", "raw", "-o",
     "1048576"),
    ("offset far beyond the end", "beyond the disk's end", b"", "-f", "raw",
     "-o", "0xffffffffffffffff"),
], "top: %s")


@case
def tops_that_are_no_files():
    image = fresh()
    os.mkfifo(image)
    refuse("is a pipe", image)
    refuse("is a pipe", image, "-f", "raw", "-w")
    refuse("is a directory", os.path.dirname(image))
    refuse("character device", "/dev/zero")
    refuse("character device", "/dev/null", "-f", "raw")
    refuse("No such file", image + ".gone")
    refuse("only files and block devices", "nbd://localhost/x")
    refuse("only files and block devices", "json:{}")
    refuse("No such file", "")
    link_path = fresh()
    os.symlink(link_path, link_path)
    refuse("symbolic link", link_path)


@case
def chain_too_deep():
    """1030 images on each other: refused, by the limit or for want of
    descriptors, soon enough."""
    folder = os.path.dirname(fresh())
    raw_image(folder + "/0", 512)
    for i in range(1, 1031):
        q = Qcow2(bits=9, size=512)
        q.l1 = [0]
        q.backing = b"%d" % (i - 1)
        q.extensions = [(FORMAT, b"qcow2" if i > 1 else b"raw")]
        q.length = 4 * 512
        q.write("%s/%d" % (folder, i))
    result = dump(folder + "/1030")
    expect(result.status, REFUSED, "status")
    expect(bool(re.search("more than 1024|Too many open files.*ulimit",
                          result.err)), True, result.err)
    dump(folder + "/200").check(0, None)


@case
def random_damage():
    """Bytes of a good image's tables set to anything: no crash, no hang, and
    an answer that is one of ours."""
    import random
    rng = random.Random("damage")
    for i in range(60 if not SANITIZED else 25):
        bits = rng.choice((9, 12, 16))
        q = Qcow2(bits=bits, size=64 << bits)
        q.incompatible = rng.choice((0, 0, COMPRESSION, EXTENDED_L2))
        q.compression = 1 if q.incompatible == COMPRESSION else 0
        for j in range(32):
            value = (rng.randrange(0, 16) * q.cluster
                     | rng.choice((0, COPIED, PACKED, 1)))
            q.l2[j] = (value, rng.getrandbits(64)) \
                if q.incompatible == EXTENDED_L2 else value
        for _ in range(rng.randrange(1, 8)):
            off = rng.choice((rng.randrange(8, 112),
                              3 * q.cluster + rng.randrange(8),
                              4 * q.cluster + rng.randrange(256)))
            q.pieces.append((off, bytes([rng.choice((0, 1, 0x7f, 0x80, 0xff,
                                                     rng.randrange(256)))])))
        result = dump(q.write(fresh("qcow2")), "-n", str(4 * MIB))
        expect(result.status in (0, REFUSED, IN_BAND), True,
               "image %d: status %d: %s" % (i, result.status, result.err))
        result.check_time()


# ---- the program itself ----

@case
def serve_refuses_too():
    """What the tool above says, the server says, with exit status 1."""
    if not os.access(REWIND, os.X_OK):
        return
    q = Qcow2()
    q.backing, q.extensions = b"json:{}", [(FORMAT, b"raw")]
    bad = q.write(fresh("qcow2"))
    for image, message, *options in (
            (bad, PROTOCOL, "-f", "qcow2"),
            # Not declared: it may be a raw disk whose guest made it so.
            (bad, "could have made it so"),
            (os.path.dirname(fresh()), "is a directory"),
            (fresh() + ".gone", "No such file")):
        for mode in ("--read-only", "--ephemeral"):
            sock = scratch("s")
            result = Result([REWIND, "serve", mode, *options, "-k", sock,
                             image])
            result.check(1, message)
            expect(os.path.exists(sock), False, "a socket is left")


if not os.path.exists(DUMP):
    print("SKIP: no layer_dump in $REWIND_TESTLIB")
    sys.exit(77)
main()
