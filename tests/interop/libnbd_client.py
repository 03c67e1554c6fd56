#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""libnbd as a client: what it checks of a server is not what we think.

Structured reads with holes and in pieces, DF, block status of each context,
fast zeroes, cache, trim, FUA, requests of many sizes up to 32 MiB, many in
flight on several connections, a client that leaves with work in flight.
libnbd itself fails on replies that break the protocol.
"""
import errno
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch
from images import KIB, MIB, pattern, qcow2_image, raw_image, sha256
from rewindserver import PEER, Server

try:
    import nbd
except ImportError:
    print("SKIP: python3-libnbd is not installed")
    sys.exit(77)

SIZE = 64 * MIB
ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION
DEPTH = "qemu:allocation-depth"
# Data at 0, a hole, data in the middle that is aligned to nothing much.
DATA = [(0, 64 * KIB), (8 * MIB, 3 * MIB), (20 * MIB + 512, 10000)]


def base():
    path = scratch("base.raw")
    if not os.path.exists(path):
        raw_image(path, SIZE,
                  [(off, pattern(off, size)) for off, size in DATA])
    return path


def content():
    disk = bytearray(SIZE)
    for off, size in DATA:
        disk[off:off + size] = pattern(off, size)
    return disk


def connect(server, *contexts, structured=True):
    h = nbd.NBD()
    h.set_export_name(server.export)
    h.set_request_structured_replies(structured)
    for context in contexts:
        h.add_meta_context(context)
    h.connect_unix(server.socket)
    return h


def serve(**more):
    more.setdefault("export", "disk")
    return Server(more.pop("image", None) or base(), **more)


def structured_read(h, length, offset, flags=0):
    """[(offset, length, is_hole)] in order, after checking that the pieces
    cover the range once."""
    pieces = []

    def piece(buf, off, status, _error):
        if status == nbd.READ_ERROR:
            raise AssertionError("error chunk at %#x" % off)
        pieces.append((off, len(buf), status == nbd.READ_HOLE))

    buf = h.pread_structured(length, offset, piece, flags)
    pieces.sort()
    at = offset
    for off, size, _ in pieces:
        expect(off, at, "start of a chunk")
        at = off + size
    expect(at, offset + length, "end of the chunks")
    return buf, pieces


@case
def reads_come_as_data_and_holes():
    with serve() as server:
        h = connect(server)
        disk = content()
        buf, pieces = structured_read(h, 16 * MIB, 0)
        expect_bytes(buf, disk[:16 * MIB], 0, "a sparse read")
        holes = sum(size for _, size, hole in pieces if hole)
        if holes < 12 * MIB:
            raise AssertionError("of 12.9 MiB only %d bytes came as holes: %r"
                                 % (holes, pieces[:20]))
        # An odd range that begins and ends within data and within a hole.
        for off, size in ((1, 3), (65535, 2), (8 * MIB - 1, 2),
                          (20 * MIB + 511, 10002), (11 * MIB - 3, 70001)):
            buf, _ = structured_read(h, size, off)
            expect_bytes(buf, disk[off:off + size], off, "an odd read")
        h.shutdown()


@case
def dont_fragment_gives_one_piece():
    with serve() as server:
        h = connect(server)
        expect(h.can_df(), True, "DF")
        disk = content()
        # 64 KiB is what a server has to honour in any case.
        off = 8 * MIB - 32 * KIB
        buf, pieces = structured_read(h, 64 * KIB, off, nbd.CMD_FLAG_DF)
        expect(len(pieces), 1, "chunks of a DF read")
        expect_bytes(buf, disk[off:off + 64 * KIB], off, "a DF read")
        h.shutdown()


@case
def simple_replies_serve_the_same_bytes():
    with serve() as server:
        h = connect(server, structured=False)
        expect(h.get_structured_replies_negotiated(), False, "structured")
        expect(h.can_df(), False, "DF without structured replies")
        expect_bytes(h.pread(SIZE // 2, 0), content()[:SIZE // 2], 0, "read")
        h.shutdown()


def block_status(h, length, offset, context, flags=0):
    """Extents [(offset, length, status)] of one context, one request."""
    found = []

    def extents(name, off, entries, _error):
        if name == context:
            at = off
            for size, status in zip(entries[::2], entries[1::2]):
                found.append((at, size, status))
                at += size
    h.block_status(length, offset, extents, flags)
    if not found or found[0][0] != offset:
        raise AssertionError("no extents of %s at %#x" % (context, offset))
    return found


def whole_status(h, context, size=SIZE):
    """The same for the whole disk, asking again for what is left."""
    found, at = [], 0
    while at < size:
        for off, length, status in block_status(h, size - at, at, context):
            if found and found[-1][2] == status:
                found[-1] = (found[-1][0], found[-1][1] + length, status)
            else:
                found.append((off, length, status))
            at = off + length
    return found


@case
def block_status_tells_the_truth():
    with serve() as server:
        h = connect(server, ALLOCATION)
        expect(h.can_meta_context(ALLOCATION), True, "base:allocation")
        disk = content()

        def check():
            for off, length, status in whole_status(h, ALLOCATION):
                length = min(length, SIZE - off)
                if status & nbd.STATE_ZERO and any(disk[off:off + length]):
                    raise AssertionError("data at %#x is said to be zero"
                                         % off)
            spoken = sum(length for _, length, status
                         in whole_status(h, ALLOCATION)
                         if not status & nbd.STATE_ZERO)
            wanted = sum(1 for off in range(0, SIZE, 64 * KIB)
                         if any(disk[off:off + 64 * KIB])) * 64 * KIB
            if spoken > wanted:
                raise AssertionError("%d bytes are said to be data, but all "
                                     "lie in %d" % (spoken, wanted))
        check()
        data = pattern(40 * MIB, 128 * KIB)
        h.pwrite(data, 40 * MIB)
        disk[40 * MIB:40 * MIB + len(data)] = data
        check()
        h.zero(2 * MIB, 8 * MIB)
        disk[8 * MIB:10 * MIB] = bytes(2 * MIB)
        check()
        one = block_status(h, SIZE, 0, ALLOCATION, nbd.CMD_FLAG_REQ_ONE)
        expect(len(one), 1, "extents with REQ_ONE")
        if one[0][1] > SIZE:
            raise AssertionError("REQ_ONE's extent passes the request")
        h.shutdown()


@case
def depth_tells_overlay_from_base():
    with serve() as server:
        h = connect(server, ALLOCATION, DEPTH)
        if not h.can_meta_context(DEPTH):
            if PEER:
                raise Skip("no allocation-depth")
            raise AssertionError("%s is not offered" % DEPTH)
        h.pwrite(pattern(0, 64 * KIB), 32 * MIB)
        found = dict((off, (length, status)) for off, length, status
                     in whole_status(h, DEPTH))
        expect(found[32 * MIB], (64 * KIB, 1), "depth of what was written")
        expect(found[0][1], 2, "depth of the base")
        h.shutdown()


@case
def zeroes_and_trims():
    with serve() as server:
        h = connect(server, ALLOCATION)
        disk = content()
        expect(h.can_zero(), True, "write-zeroes")
        expect(h.can_fast_zero(), True, "fast zero")
        expect(h.can_trim(), True, "trim")
        for off, size, flags in (
                (9 * MIB, MIB, 0), (0, 1, 0), (4095, 2, nbd.CMD_FLAG_FUA),
                (10 * MIB + 1, 70001, nbd.CMD_FLAG_NO_HOLE),
                (10 * MIB + 512 * KIB, 64 * KIB,
                 nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)):
            h.zero(size, off, flags)
            disk[off:off + size] = bytes(size)
        # Fast or refused, but never half done.
        for off, size in ((8 * MIB, 64 * KIB), (20 * MIB + 600, 100)):
            try:
                h.zero(size, off, nbd.CMD_FLAG_FAST_ZERO)
                disk[off:off + size] = bytes(size)
            except nbd.Error as error:
                expect(error.errnum, errno.ENOTSUP, "a slow fast zero")
        expect_bytes(h.pread(32 * MIB, 0), disk[:32 * MIB], 0,
                     "after the zeroes")
        # A trim of everything; its content is then ours to choose, but must
        # not be garbage that changes between reads.
        h.trim(SIZE, 0)
        first, second = h.pread(16 * MIB, 0), h.pread(16 * MIB, 0)
        expect_bytes(first, second, 0, "two reads of a trimmed range")
        h.zero(SIZE, 0)
        expect_bytes(h.pread(32 * MIB, 0), bytes(32 * MIB), 0, "all zero")
        h.flush()
        h.shutdown()


@case
def cache_and_flush_are_harmless():
    with serve() as server:
        h = connect(server)
        expect(h.can_cache(), True, "cache")
        # No payload, so no limit but the disk's size; qemu-nbd has one.
        whole = 32 * MIB if PEER else SIZE
        for off, size in ((0, 1), (8 * MIB, 3 * MIB), (0, whole)):
            h.cache(size, off)
        h.flush()
        expect_bytes(h.pread(64 * KIB, 8 * MIB),
                     content()[8 * MIB:8 * MIB + 64 * KIB], 8 * MIB, "read")
        h.shutdown()


@case
def sizes_up_to_the_largest():
    largest = 32 * MIB
    with serve() as server:
        h = connect(server)
        if h.get_block_size(nbd.SIZE_MAXIMUM) < largest:
            raise AssertionError("a maximum payload under 32 MiB")
        disk = content()
        for size in (1, 511, 512, 4095, 4097, 65536, 65537, MIB - 1,
                     2 * MIB + 1, largest):
            off = 1000 if size < largest else 0
            data = pattern(off, size, salt=size % 97)
            h.pwrite(data, off)
            disk[off:off + size] = data
            expect_bytes(h.pread(size, off), data, off, "%d bytes" % size)
        h.flush()
        for at in range(0, SIZE, largest):
            expect_bytes(h.pread(largest, at), disk[at:at + largest], at,
                         "the whole disk")
        h.shutdown()


def in_flight(h, rng, disk, share, count):
    """Many requests at once on one connection. The ranges of one batch do
    not overlap, and each connection keeps to its `share` of the disk, so the
    outcome is determined whatever the order."""
    start, end = share
    slot = (end - start) // count
    reads = []
    cookies = []
    for idx in rng.sample(range(count), count):
        off = start + idx * slot + rng.randrange(slot // 2)
        size = rng.randrange(1, slot // 2)
        what = rng.randrange(4)
        if what == 0:
            data = rng.randbytes(size)
            cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(
                bytearray(data)), off))
            disk[off:off + size] = data
        elif what == 1:
            cookies.append(h.aio_zero(size, off))
            disk[off:off + size] = bytes(size)
        else:
            buf = nbd.Buffer(size)
            cookies.append(h.aio_pread(buf, off))
            reads.append((buf, off, bytes(disk[off:off + size])))
    return cookies, reads


def settle(h, cookies, reads):
    while h.aio_in_flight() > 0:
        h.poll(-1)
    for cookie in cookies:
        expect(h.aio_command_completed(cookie), True, "completion")
    for buf, off, wanted in reads:
        expect_bytes(bytes(buf.to_bytearray()), wanted, off,
                     "a read among many")


@case
def many_in_flight_on_four_connections():
    rng = random.Random(4)
    for engine in (None, "threads"):
        with serve(engine=None if PEER else engine) as server:
            disk = content()
            handles = [connect(server) for _ in range(4)]
            part = SIZE // len(handles)
            for _ in range(6):
                waiting = [(h, *in_flight(h, rng, disk,
                                          (idx * part, (idx + 1) * part),
                                          256))
                           for idx, h in enumerate(handles)]
                for h, cookies, reads in waiting:
                    settle(h, cookies, reads)
            # Any connection sees what all of them wrote.
            handles[0].flush()
            for at in range(0, SIZE, 16 * MIB):
                expect_bytes(handles[3].pread(16 * MIB, at),
                             disk[at:at + 16 * MIB], at, "seen by another")
            for h in handles:
                h.shutdown()


@case
def leaving_in_the_middle_harms_nobody():
    with serve() as server:
        good = connect(server)
        for _ in range(5):
            bad = connect(server)
            for idx in range(64):
                bad.aio_pread(nbd.Buffer(MIB), idx % 32 * MIB)
            del bad
            expect_bytes(good.pread(64 * KIB, 8 * MIB),
                         content()[8 * MIB:8 * MIB + 64 * KIB], 8 * MIB,
                         "the good client's read")
        good.shutdown()


@case
def a_chain_reads_as_one_disk():
    bottom, top = base(), scratch("top.qcow2")
    qcow2_image(top, backing=bottom, backing_format="raw",
                writes=["write -q -P 0xaa 9M 1M", "write -q -z 0 64k"])
    before = sha256(bottom), sha256(top)
    disk = content()
    disk[9 * MIB:10 * MIB] = b"\xaa" * MIB
    disk[:64 * KIB] = bytes(64 * KIB)
    with serve(image=top, image_format="qcow2") as server:
        h = connect(server, ALLOCATION)
        for at in range(0, SIZE, 16 * MIB):
            buf, _ = structured_read(h, 16 * MIB, at)
            expect_bytes(buf, disk[at:at + 16 * MIB], at, "a chain")
        h.pwrite(b"x" * 5000, 9 * MIB - 2500)
        disk[9 * MIB - 2500:9 * MIB + 2500] = b"x" * 5000
        expect_bytes(h.pread(MIB, 8 * MIB + 512 * KIB),
                     disk[8 * MIB + 512 * KIB:9 * MIB + 512 * KIB],
                     8 * MIB + 512 * KIB, "a write over a seam of layers")
        h.shutdown()
    expect((sha256(bottom), sha256(top)), before, "the images' checksums")


@case
def a_read_only_disk_refuses_writes():
    with serve(read_only=True, ephemeral=False) as server:
        h = connect(server)
        expect(h.is_read_only(), True, "read-only")
        h.set_strict_mode(0)  # let libnbd send what it knows to be wrong
        for call in (lambda: h.pwrite(b"x" * 512, 0),
                     lambda: h.zero(4096, 0), lambda: h.trim(4096, 0)):
            try:
                call()
            except nbd.Error as error:
                expect(error.errnum, errno.EINVAL if PEER else errno.EPERM,
                       "a write")
            else:
                raise AssertionError("a read-only disk took a write")
        expect_bytes(h.pread(512, 0), content()[:512], 0, "read after that")
        h.shutdown()


@case
def requests_past_the_end_are_refused_in_band():
    with serve() as server:
        h = connect(server)
        h.set_strict_mode(0)
        for call, codes in (
                (lambda: h.pread(512, SIZE - 511), {errno.EINVAL}),
                (lambda: h.pwrite(b"x" * 512, SIZE - 511),
                 {errno.ENOSPC, errno.EINVAL}),
                (lambda: h.zero(512, SIZE), {errno.ENOSPC, errno.EINVAL}),
                (lambda: h.trim(512, 1 << 62), {errno.EINVAL})):
            try:
                call()
            except nbd.Error as error:
                expect(error.errnum, codes, "a request past the end")
            else:
                raise AssertionError("a request past the end succeeded")
        expect_bytes(h.pread(512, 0), content()[:512], 0, "read after that")
        h.shutdown()


main()
