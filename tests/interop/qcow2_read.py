#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: timeout=240
"""Images that QEMU makes, in every geometry and with every feature that it
can make, read byte for byte as QEMU reads them.

The images get a random but repeatable mix of data, zeroes, holes and
compressed clusters. layer_dump opens them exactly as the server does.
"""
import itertools
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import case, expect, expect_bytes, main, scratch, table
from images import MIB, pattern, raw_image, tool

DUMP = os.path.join(os.environ["REWIND_TESTLIB"], "layer_dump")
_count = itertools.count()


def path(suffix):
    return scratch("%d.%s" % (next(_count), suffix))


def read(file):
    with open(file, "rb") as f:
        return f.read()


def dump(image, *options):
    """What we read; options are layer_dump's."""
    out = path("dump")
    with open(out, "wb") as f:
        done = subprocess.run([DUMP, *options, image], stdout=f,
                              stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise AssertionError("layer_dump %s: status %d: %s" % (
            image, done.returncode, done.stderr))
    data = read(out)
    os.unlink(out)
    return data


def truth(image, *options):
    """What QEMU reads."""
    out = path("truth")
    tool("qemu-img", "convert", "-U", "-O", "raw", *options, image, out)
    data = read(out)
    os.unlink(out)
    return data


def compare(image, *options, qemu_options=("-f", "qcow2")):
    wanted = truth(image, *qemu_options)
    expect_bytes(dump(image, *options), wanted, 0, image)
    # In pieces that cut across clusters, and by several threads at once.
    expect_bytes(dump(image, "-b", "100864", *options), wanted, 0,
                 image + " in small reads")
    done = subprocess.run([DUMP, "-j", "4", "-b", "36864", *options, image])
    expect(done.returncode, 0, "four threads on " + image)


def scribble(image, size, rng, count=30, compressed=True):
    """Random requests on an image, by QEMU."""
    commands = []
    for _ in range(count):
        length = rng.choice((1, 3, 8, 17, 64, 128, 200, 700)) * 512
        offset = rng.randrange(0, size - length) // 512 * 512
        kind = rng.choice(("data", "data", "zero", "unmap", "discard")
                          + ("packed",) * 2 * compressed)
        if kind == "packed":
            length = max(length // 65536, 1) * 65536
            offset = offset // 65536 * 65536
            if offset + length > size:
                continue
        commands.append({
            "data": "write -q -P %d %d %d" % (rng.randrange(1, 256), offset,
                                              length),
            "zero": "write -q -z %d %d" % (offset, length),
            "unmap": "write -q -z -u %d %d" % (offset, length),
            "discard": "discard -q %d %d" % (offset, length),
            "packed": "write -q -c -P %d %d %d" % (rng.randrange(1, 256),
                                                   offset, length),
        }[kind])
    argv = ["qemu-io", "-f", "qcow2", "-d", "unmap"]
    for command in commands:
        argv += ["-c", command]
    # A compressed write over an allocated cluster is refused, which is fine.
    subprocess.run(argv + [image], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=False)


def create(size, options, *more):
    image = path("qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2",
         *(["-o", options] if options else []), *more, image, str(size))
    return image


# ---- geometries ----

def geometry(options, size=5 * MIB + 1536, compressed=True):
    image = create(size, options)
    scribble(image, size, random.Random(options), compressed=compressed)
    compare(image)


CLUSTERS = (512, 1024, 4096, 16384, 65536, 262144, 2097152)
GEOMETRIES = []
for cluster in CLUSTERS:
    GEOMETRIES.append("compat=1.1,cluster_size=%d" % cluster)
for cluster in (512, 65536, 2097152):
    GEOMETRIES.append("compat=0.10,cluster_size=%d" % cluster)
for cluster in (16384, 65536, 131072, 2097152):
    GEOMETRIES.append("extended_l2=on,cluster_size=%d" % cluster)
for bits in (1, 2, 4, 8, 32, 64):
    GEOMETRIES.append("refcount_bits=%d" % bits)
GEOMETRIES += [
    "compression_type=zstd,cluster_size=4096",
    "compression_type=zstd",
    "compression_type=zstd,extended_l2=on,cluster_size=32768",
    "compression_type=zstd,cluster_size=2097152",
    "lazy_refcounts=on",
]
table(geometry, [(o, o) for o in GEOMETRIES], "geometry %s")


# ---- compressed images ----

def source(size):
    """Text-like, random and empty stretches: what compresses well, badly and
    not at all."""
    rng = random.Random(size)
    pieces = [(rng.randrange(0, size - 40000),
               (b"line %d of a log file\n" % i) * rng.randrange(1, 1500))
              for i in range(40)]
    pieces += [(rng.randrange(0, size - 70000), rng.randbytes(70000))
               for _ in range(6)]
    return raw_image(path("raw"), size,
                     [(o, d[:size - o]) for o, d in pieces])


def packed(options):
    raw = source(7 * MIB)
    image = path("qcow2")
    tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
         options, raw, image)
    expect_bytes(dump(image), read(raw), 0, options)
    compare(image)


table(packed, [(o, o) for o in (
    "compression_type=%s,cluster_size=%d" % pair
    for pair in itertools.product(("zlib", "zstd"), CLUSTERS))],
    "packed %s")
table(packed, [("zlib v2", "compat=0.10"),
               ("extended", "extended_l2=on,compression_type=zstd")],
      "packed %s")


# ---- preallocation, external data files ----

def preallocated(mode):
    size = 6 * MIB
    image = create(size, "preallocation=" + mode)
    compare(image)
    scribble(image, size, random.Random(mode), compressed=False)
    compare(image)
    image = create(size, "extended_l2=on,preallocation=" + mode)
    scribble(image, size, random.Random(mode), compressed=False)
    compare(image)


table(preallocated, [(m, m) for m in ("metadata", "falloc", "full")],
      "preallocated %s")


def external(options, scribbles=True):
    size = 6 * MIB
    data = path("data")
    options = ",".join(["data_file=" + os.path.basename(data)]
                       + [options] * bool(options))
    image = create(size, options)
    if scribbles:
        scribble(image, size, random.Random(options), compressed=False)
    compare(image)
    if "raw=on" in options:
        expect_bytes(dump(image), read(data), 0, "data file of " + options)


table(external, [
    ("plain", ""), ("raw", "data_file_raw=on"), ("raw off", "data_file_raw=off"),
    ("subclusters", "extended_l2=on,cluster_size=128k"),
    ("raw subclusters", "extended_l2=on,data_file_raw=on"),
    ("preallocated", "preallocation=metadata"),
    ("small clusters", "cluster_size=512"),
    ("untouched", "", False), ("raw untouched", "data_file_raw=on", False),
], "data file %s")


@case
def external_data_shorter_than_the_disk():
    data = path("data")
    image = create(4 * MIB, "data_file=" + os.path.basename(data))
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4M", image)
    os.truncate(data, 3 * MIB + 100)
    wanted = b"\7" * (3 * MIB + 100)
    expect_bytes(dump(image), wanted.ljust(4 * MIB, b"\0"), 0, image)


# ---- chains ----

def chain(seed):
    """Layers of any size, geometry and format on each other."""
    rng = random.Random(seed)
    below = None
    for depth in range(rng.randrange(2, 7)):
        size = rng.randrange(1 * MIB, 6 * MIB) // 512 * 512
        if below is None and rng.random() < 0.5:
            image = source(size)
            # A raw image may end within a sector.
            os.truncate(image, size - rng.choice((0, 0, 100)))
            below = (image, "raw")
            continue
        options = rng.choice(("cluster_size=512", "cluster_size=64k",
                              "cluster_size=1M", "compat=0.10", "",
                              "extended_l2=on", "compression_type=zstd",
                              "extended_l2=on,cluster_size=16k"))
        more = []
        if below is not None:
            more = ["-F", below[1], "-b", os.path.basename(below[0])]
        image = create(size, options, *more)
        scribble(image, size, rng, count=12)
        below = (image, "qcow2")
    if below[1] == "qcow2":
        compare(below[0])
        compare_map(below[0])


def compare_map(image):
    """The same bytes from the same layers as QEMU says."""
    # QEMU counts layers from 0; holes are told differently, data is not.
    theirs = json.loads(tool("qemu-img", "map", "--output=json", "-U", "-f",
                             "qcow2", image))
    wanted = join((e["start"], e["start"] + e["length"], e["depth"] + 1)
                  for e in theirs if e["data"])
    done = subprocess.run([DUMP, "-m", image], stdout=subprocess.PIPE,
                          text=True, check=True)
    ours = []
    for line in done.stdout.splitlines():
        start, length, kind, depth = line.split()
        if kind != "zero":
            ours.append((int(start), int(start) + int(length), int(depth)))
    ours = join(ours)
    # A raw bottom has holes that QEMU may call data of the end's block.
    expect([e for e in ours if e not in wanted and not inside(e, wanted)], [],
           "data that QEMU does not see in " + image)
    expect([e for e in wanted if e not in ours and not inside(e, ours)], [],
           "data that QEMU sees in " + image)


def join(extents):
    joined = []
    for start, end, depth in extents:
        if joined and joined[-1][1:] == (start, depth):
            joined[-1] = (joined[-1][0], end, depth)
        else:
            joined.append((start, end, depth))
    return joined


def inside(extent, others):
    start, end, depth = extent
    return any(s <= start and end <= e + 512 and d == depth
               for s, e, d in others)


table(chain, [(i, i) for i in range(12)], "chain %d")


@case
def deep_chain():
    """Each of 40 layers has one cluster of its own."""
    size = 4 * MIB
    below = create(size, "")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 200 0 4M", below)
    for i in range(40):
        image = create(size, "cluster_size=4k", "-F", "qcow2", "-b",
                       os.path.basename(below))
        tool("qemu-io", "-f", "qcow2", "-c",
             "write -q -P %d %dk 8k" % (i + 1, i * 64), image)
        below = image
    compare(below)


@case
def windows_into_a_chain():
    base = source(3 * MIB)
    image = create(2 * MIB, "", "-F", "raw", "-b", os.path.basename(base))
    scribble(image, 2 * MIB, random.Random(9))
    wanted = truth(image, "-f", "qcow2")
    for offset in (512, 65536 + 512, MIB, 2 * MIB - 512):
        expect_bytes(dump(image, "-o", str(offset)), wanted[offset:], offset,
                     "offset %d" % offset)
        expect_bytes(dump(base, "-f", "raw", "-o", str(offset)),
                     read(base)[offset:], offset, "raw offset %d" % offset)
        expect_bytes(dump(image, "-e", "-o", str(offset)), wanted[offset:],
                     offset, "ephemeral, offset %d" % offset)


@case
def beyond_4_gib():
    """Offsets that need more than 32 bits, in the guest and in the file."""
    size = 9 << 40
    image = create(size, "cluster_size=64k")
    commands = []
    for gib, byte in ((1, 1), (5, 2), (1000, 3), (9000, 4)):
        commands += ["-c", "write -q -P %d %dG 64k" % (byte, gib)]
    tool("qemu-io", "-f", "qcow2", *commands, image)
    done = subprocess.run([DUMP, "-m", image], stdout=subprocess.PIPE,
                          text=True, check=True)
    found = [line.split()[:3] for line in done.stdout.splitlines()]
    expect([f[:2] for f in found if f[2] == "data"],
           [[str(gib << 30), "65536"] for gib in (1, 5, 1000, 9000)],
           "data extents")
    for gib, byte in ((1, 1), (5, 2), (1000, 3), (9000, 4)):
        data = dump(image, "-s", str((gib << 30) - 512), "-n", "66560")
        expect_bytes(data, bytes(512) + bytes([byte]) * 65536 + bytes(512),
                     (gib << 30) - 512, "%d GiB" % gib)


# ---- internal snapshots ----

@case
def snapshots():
    size = 3 * MIB
    image = create(size, "")
    rng = random.Random("snapshots")
    names = ["first", "2", "with, comma", "last"]
    for name in names:
        scribble(image, size, rng, count=8)
        tool("qemu-img", "snapshot", "-c", name, image)
    scribble(image, size, rng, count=8)
    compare(image)
    states = [truth(image, "-f", "qcow2", "-l",
                    "snapshot.name=" + name.replace(",", ",,"))
              for name in names]
    expect(len(set(states)), 4, "different states")
    for i, (name, state) in enumerate(zip(names, states)):
        quoted = name.replace(",", ",,")
        for spec in ("snapshot.id=%d" % (i + 1), "snapshot.name=" + quoted,
                     "snapshot.id=%d,snapshot.name=%s" % (i + 1, quoted),
                     "snapshot.name=%s,snapshot.id=%d" % (quoted, i + 1)):
            expect_bytes(dump(image, "-l", spec), state, 0, spec)
        expect_bytes(dump(image, "-e", "-l", "snapshot.id=%d" % (i + 1)),
                     state, 0, "ephemeral " + name)
    for spec, state in (("first", 0), ("1", 0), ("with, comma", 2),
                        ("4", 3), ("2", 1)):
        expect_bytes(dump(image, "-l", spec), states[state], 0, spec)


@case
def snapshot_id_goes_before_name():
    image = create(MIB, "")
    for byte, name in ((1, "2"), (2, "other")):
        tool("qemu-io", "-f", "qcow2", "-c",
             "write -q -P %d 0 1M" % byte, image)
        tool("qemu-img", "snapshot", "-c", name, image)
    expect_bytes(dump(image, "-l", "2"), b"\2" * MIB, 0, "ID 2")
    expect_bytes(dump(image, "-l", "snapshot.name=2"), b"\1" * MIB, 0,
                 "name 2")


@case
def snapshot_of_another_size():
    image = create(2 * MIB, "cluster_size=512")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 2M", image)
    tool("qemu-img", "snapshot", "-c", "small", image)
    tool("qemu-img", "resize", "-q", image, "5M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 5M", image)
    tool("qemu-img", "snapshot", "-c", "large", image)
    expect_bytes(dump(image, "-l", "small"), b"\1" * (2 * MIB), 0, "small")
    expect_bytes(dump(image, "-l", "large"), b"\2" * (5 * MIB), 0, "large")
    compare(image)


@case
def snapshots_in_every_geometry():
    for options in ("compat=0.10", "extended_l2=on", "cluster_size=512",
                    "refcount_bits=64", "compression_type=zstd"):
        size = 2 * MIB
        image = create(size, options)
        rng = random.Random(options)
        scribble(image, size, rng, count=10)
        tool("qemu-img", "snapshot", "-c", "s", image)
        scribble(image, size, rng, count=10)
        expect_bytes(dump(image, "-l", "s"),
                     truth(image, "-f", "qcow2", "-l", "s"), 0, options)
        compare(image)


@case
def snapshot_over_a_backing_file():
    base = source(3 * MIB)
    image = create(3 * MIB, "", "-F", "raw", "-b", os.path.basename(base))
    rng = random.Random(3)
    scribble(image, 3 * MIB, rng, count=6)
    tool("qemu-img", "snapshot", "-c", "s", image)
    scribble(image, 3 * MIB, rng, count=6)
    expect_bytes(dump(image, "-l", "s"),
                 truth(image, "-f", "qcow2", "-l", "s"), 0, "snapshot")


# ---- states that a crash leaves ----

def poke(image, offset, data):
    with open(image, "r+b") as f:
        f.seek(offset)
        f.write(data)


@case
def dirty_image():
    image = create(2 * MIB, "lazy_refcounts=on")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 1M", "-c",
                    "flush", "-c", "abort", image], check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    expect(read(image)[79] & 1, 1, "dirty bit")
    expect_bytes(dump(image), (b"\5" * MIB).ljust(2 * MIB, b"\0"), 0, "dirty")


@case
def corrupt_bit_warns():
    image = create(2 * MIB, "")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 2M", image)
    poke(image, 79, b"\2")
    done = subprocess.run([DUMP, image], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    expect(done.returncode, 0, "status")
    expect_bytes(done.stdout, b"\5" * (2 * MIB), 0, "corrupt")
    expect(b"marked as corrupt" in done.stderr, True, "warning")


@case
def unknown_compatible_and_autoclear_bits():
    image = create(2 * MIB, "")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 2M", image)
    poke(image, 80, b"\xff" * 8)
    poke(image, 88, b"\xff" * 7 + b"\xfd")
    expect_bytes(dump(image), b"\5" * (2 * MIB), 0, "unknown bits")


@case
def bitmaps_do_not_matter():
    image = create(2 * MIB, "")
    tool("qemu-img", "bitmap", "--add", "--enable", image, "b0")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 1M", image)
    compare(image)


@case
def sizes_that_are_no_sectors():
    """A disk ends with a whole sector, the rest of it zeroes."""
    raw = path("raw")
    with open(raw, "wb") as f:
        f.write(b"x" * 1000)
    for options in (("-f", "raw"), ("-f", "raw", "-e"), ()):
        expect_bytes(dump(raw, *options), b"x" * 1000 + bytes(24), 0,
                     "raw of 1000 bytes %r" % (options,))
    image = create(MIB, "cluster_size=512")
    tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 5 0 1M", image)
    poke(image, 24, (1000).to_bytes(8, "big"))
    expect_bytes(dump(image), b"\5" * 1000 + bytes(24), 0, "qcow2 of 1000")


@case
def names_of_backing_files():
    """Relative to the directory of the image that names them, through links
    and sub-folders; absolute ones inside the folder."""
    folder = scratch("names")
    os.makedirs(folder + "/sub/deep")
    base = raw_image(folder + "/sub/deep/base:1.raw", MIB,
                     [(0, pattern(0, MIB))])
    wanted = read(base)

    def overlay(file, backing, backing_format):
        tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F",
             backing_format, "-b", backing, file, str(MIB))
        return file

    overlay(folder + "/sub/mid.qcow2", "deep/./base:1.raw", "raw")
    top = overlay(folder + "/top.qcow2", "sub/mid.qcow2", "qcow2")
    expect_bytes(dump(top), wanted, 0, "relative")
    overlay(folder + "/dots.qcow2", "sub/../sub/mid.qcow2", "qcow2")
    expect_bytes(dump(folder + "/dots.qcow2"), wanted, 0, "dots")
    overlay(folder + "/abs.qcow2", os.path.realpath(base), "raw")
    expect_bytes(dump(folder + "/abs.qcow2"), wanted, 0, "absolute")
    # A link into the folder, and a link to the top image beside its base.
    os.symlink("sub/deep/base:1.raw", folder + "/link.raw")
    overlay(folder + "/through.qcow2", "link.raw", "raw")
    expect_bytes(dump(folder + "/through.qcow2"), wanted, 0, "link")
    # From its own directory, where the name has no slash.
    done = subprocess.run([DUMP, "top.qcow2"], cwd=folder,
                          stdout=subprocess.PIPE, check=True)
    expect_bytes(done.stdout, wanted, 0, "no directory in the name")
    # From elsewhere only if allowed.
    other = scratch("elsewhere")
    os.makedirs(other)
    raw_image(other + "/b.raw", MIB, [(0, pattern(0, MIB, 7))])
    overlay(folder + "/out.qcow2", "../elsewhere/b.raw", "raw")
    expect_bytes(dump(folder + "/out.qcow2", "-a", other),
                 read(other + "/b.raw"), 0, "allowed")


if not os.path.exists(DUMP):
    print("SKIP: no layer_dump in $REWIND_TESTLIB")
    sys.exit(77)
# A data file's name counts from here when QEMU creates it.
os.chdir(scratch())
main()
