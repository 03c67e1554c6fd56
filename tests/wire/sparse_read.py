#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Holes travel as holes with structured replies, and as zeroes without.

Reference: doc/proto.md, "NBD_REPLY_TYPE_OFFSET_HOLE", "NBD_CMD_READ".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch, shared
from images import KIB, MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

# Data at the first and third MiB, nothing elsewhere.
SIZE = 8 * MIB
PIECES = [(0, MIB), (2 * MIB, MIB)]


def model():
    data = bytearray(SIZE)
    for offset, length in PIECES:
        data[offset:offset + length] = pattern(offset, length)
    return data


def sparse_server(read_only):
    path = raw_image(scratch("sparse"), SIZE,
                     [(o, pattern(o, n)) for o, n in PIECES])
    with open(path, "rb") as f:
        if os.lseek(f.fileno(), 0, os.SEEK_HOLE) != MIB:
            raise Skip("this filesystem does not tell of holes")
    return Server(path, read_only=read_only, ephemeral=not read_only)


@shared
def base_server():
    return sparse_server(True)


@shared
def server():
    return sparse_server(False)


def both():
    return base_server(), server()


def kinds(p):
    """Content chunks in ascending order, neighbours of a kind joined."""
    out = []
    for c in sorted(p.chunks, key=lambda c: c.offset):
        if out and out[-1][0] == c.type and sum(out[-1][1:]) == c.offset:
            out[-1] = (c.type, out[-1][1], out[-1][2] + c.length)
        else:
            out.append((c.type, c.offset, c.length))
    return out


def structured_modes():
    return [m for m in MODES if m != SIMPLE]


@case
def data_and_holes_apart():
    wanted = [(CHUNK_OFFSET_DATA, 0, MIB), (CHUNK_OFFSET_HOLE, MIB, MIB),
              (CHUNK_OFFSET_DATA, 2 * MIB, MIB),
              (CHUNK_OFFSET_HOLE, 3 * MIB, 5 * MIB)]
    for srv in both():
        for mode in structured_modes():
            with srv.open(mode) as s:
                p = s.ok(CMD_READ, 0, SIZE)
                expect(kinds(p), wanted, mode)
                expect_bytes(bytes(p.data), bytes(model()), 0, mode)
                s.disconnect()


@case
def a_part_of_each():
    for srv in both():
        for mode in structured_modes():
            with srv.open(mode) as s:
                p = s.ok(CMD_READ, MIB - 100000, 200000)
                expect(kinds(p), [(CHUNK_OFFSET_DATA, MIB - 100000, 100000),
                                  (CHUNK_OFFSET_HOLE, MIB, 100000)], mode)
                expect_bytes(bytes(p.data),
                             pattern(MIB - 100000, 100000) + bytes(100000),
                             MIB - 100000, mode)
                s.disconnect()


@case
def nothing_but_a_hole():
    for srv in both():
        for mode in structured_modes():
            with srv.open(mode) as s:
                for offset, length in ((MIB, 4096), (MIB, MIB), (5 * MIB, 1),
                                       (4 * MIB + 1, 123457)):
                    p = s.ok(CMD_READ, offset, length)
                    expect(bytes(p.data), bytes(length), "zeroes")
                    expect(kinds(p),
                           [(CHUNK_OFFSET_HOLE, offset, length)], mode)
                s.disconnect()


@case
def whole_in_one_piece_with_df():
    for srv in both():
        for mode in structured_modes():
            with srv.open(mode) as s:
                for offset, length in ((MIB - 4096, 8192), (MIB - 1, 2),
                                       (MIB - 65536, 65536 * 2), (0, 65536)):
                    p = s.ok(CMD_READ, offset, length, F_DF)
                    expect_bytes(bytes(p.data),
                                 bytes(model()[offset:offset + length]),
                                 offset, "DF")
                    expect([tuple(c) for c in p.chunks],
                           [(CHUNK_OFFSET_DATA, offset, length)], mode)
                s.disconnect()


@case
def simple_replies_hold_the_zeroes():
    for srv in both():
        with srv.open(SIMPLE) as s:
            expect_bytes(s.read(0, SIZE), bytes(model()), 0, "simple")
            expect_bytes(s.read(MIB - 777, 100000),
                         bytes(model()[MIB - 777:MIB + 99223]), MIB - 777,
                         "simple")
            s.disconnect()


@case
def holes_that_the_session_made():
    # One of trim and one of write-zeroes, in data of the base and of the
    # overlay.
    if PEER:
        raise Skip("promises less")
    for mode in structured_modes():
        with server().open(mode) as s:
            s.write(4 * MIB, pattern(4 * MIB, MIB, 3))
            for at in (256 * KIB, 4 * MIB + 256 * KIB):
                s.zero(at, 256 * KIB)
                p = s.ok(CMD_READ, at - 128 * KIB, 512 * KIB)
                expect(kinds(p), [
                    (CHUNK_OFFSET_DATA, at - 128 * KIB, 128 * KIB),
                    (CHUNK_OFFSET_HOLE, at, 256 * KIB),
                    (CHUNK_OFFSET_DATA, at + 256 * KIB, 128 * KIB)], mode)
                salt = 0 if at < MIB else 3
                expect_bytes(bytes(p.data[:128 * KIB]),
                             pattern(at - 128 * KIB, 128 * KIB, salt),
                             at - 128 * KIB, "before")
                s.write(at, pattern(at, 256 * KIB, salt))
                p = s.ok(CMD_READ, at - 128 * KIB, 512 * KIB)
                expect(kinds(p), [(CHUNK_OFFSET_DATA, at - 128 * KIB,
                                   512 * KIB)], "rewritten")
            s.trim(4 * MIB, MIB)
            s.disconnect()


@case
def chunks_are_not_crumbs():
    # Every second grain a hole: an answer in a thousand crumbs would cost
    # more than the zeroes it saves.
    if PEER:
        raise Skip("promises less")
    with server().open(STRUCTURED) as s:
        s.write(6 * MIB, pattern(6 * MIB, MIB, 4))
        for at in range(0, MIB, 8192):
            s.request(CMD_WRITE_ZEROES, 6 * MIB + at, 4096)
        while s.in_flight():
            expect(s.any_reply().error, OK, "zero")
        wanted = bytearray(pattern(6 * MIB, MIB, 4))
        for at in range(0, MIB, 8192):
            wanted[at:at + 4096] = bytes(4096)
        p = s.ok(CMD_READ, 6 * MIB, MIB)
        expect_bytes(bytes(p.data), bytes(wanted), 6 * MIB, "data")
        expect(len(p.chunks) <= 64, True, "%d chunks" % len(p.chunks))
        s.disconnect()


main()
