#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The checker is checked: a lying server is caught, whatever its lie.

Plays the server's part on one end of a socket pair, with bytes that break one
rule each, and expects tests/lib/nbdwire.py to say so; and with odd but lawful
ones, which must pass. Without this, every other test here could pass blindly.
"""
import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import case, expect, main, table
from nbdwire import *

COOKIE = 0x1122334455667788
OFF = 0x10000


def session(mode, contexts=None):
    ours, theirs = socket.socketpair()
    s = Session(ours.fileno(), owner=ours, stuck_s=5)
    s.mode, s.size = mode, 1 << 30
    s.contexts = contexts or {}
    return s, theirs


def chunk(kind, data=b"", flags=0, cookie=COOKIE):
    return be("IHHQI", STRUCTURED_REPLY_MAGIC, flags, kind, cookie,
              len(data)) + data


def extended(kind, data=b"", flags=0, offset=OFF, length=None):
    return be("IHHQQQ", EXTENDED_REPLY_MAGIC, flags, kind, COOKIE, offset,
              len(data) if length is None else length) + data


def simple(error=0, data=b"", cookie=COOKIE):
    return be("IIQ", SIMPLE_REPLY_MAGIC, error, cookie) + data


def piece(offset, length, flags=0, wrap=chunk):
    return wrap(CHUNK_OFFSET_DATA, be("Q", offset) + b"x" * length, flags)


def hole(offset, length, flags=0, wrap=chunk):
    return wrap(CHUNK_OFFSET_HOLE, be("QI", offset, length), flags)


def status(context, *extents, flags=REPLY_DONE):
    data = be("I", context) + b"".join(be("II", *e) for e in extents)
    return chunk(CHUNK_BLOCK_STATUS, data, flags)


def status_ext(context, *extents, count=None, flags=REPLY_DONE):
    data = be("II", context, len(extents) if count is None else count)
    data += b"".join(be("QQ", *e) for e in extents)
    return extended(CHUNK_BLOCK_STATUS_EXT, data, flags)


def error(code, text=b"", size=None, tail=b"", kind=CHUNK_ERROR, flags=0):
    data = be("IH", code, len(text) if size is None else size) + text + tail
    return chunk(kind, data, flags)


DONE = chunk(CHUNK_NONE, flags=REPLY_DONE)
DONE_EXT = extended(CHUNK_NONE, flags=REPLY_DONE)
BASE = {1: "base:allocation"}
TWO = {1: "base:allocation", 2: "qemu:allocation-depth"}
READ = (CMD_READ, OFF, 4096, 0)
READ_DF = (CMD_READ, OFF, 4096, F_DF)
FLUSH = (CMD_FLUSH, OFF, 0, 0)
STATUS = (CMD_BLOCK_STATUS, OFF, 4096, 0)
STATUS_ONE = (CMD_BLOCK_STATUS, OFF, 4096, F_REQ_ONE)
WHOLE = piece(OFF, 4096, REPLY_DONE)

# name, mode, contexts, request, the server's bytes, lawful or not
REPLIES = [
    ("simple read", SIMPLE, {}, READ, simple(0, bytes(4096)), True),
    ("simple error", SIMPLE, {}, READ, simple(EIO), True),
    ("wrong cookie", SIMPLE, {}, FLUSH, simple(cookie=COOKIE + 1), False),
    ("error of no name", SIMPLE, {}, FLUSH, simple(error=13), False),
    ("chunk to a simple session", SIMPLE, {}, READ, WHOLE, False),
    ("wrong magic", SIMPLE, {}, FLUSH, bytes(16), False),
    ("short data then close", SIMPLE, {}, READ, simple(0, bytes(4095)),
     Closed),
    ("half a header then close", SIMPLE, {}, FLUSH, simple()[:15], Closed),

    ("read in one chunk", STRUCTURED, {}, READ, WHOLE, True),
    ("read in reverse order", STRUCTURED, {}, READ,
     piece(OFF + 2048, 2048) + hole(OFF, 2048) + DONE, True),
    ("simple error to a flush", STRUCTURED, {}, FLUSH, simple(EIO), True),
    ("simple reply to a read", STRUCTURED, {}, READ,
     simple(0, bytes(4096)), False),
    ("simple error to a read", STRUCTURED, {}, READ, simple(EIO), False),
    ("simple reply after a chunk", STRUCTURED, {}, FLUSH,
     error(EIO) + simple(), False),
    ("chunks overlap", STRUCTURED, {}, READ,
     piece(OFF, 2049) + piece(OFF + 2048, 2048) + DONE, False),
    ("hole overlaps data", STRUCTURED, {}, READ,
     piece(OFF, 4096) + hole(OFF + 8, 8) + DONE, False),
    ("data before the request", STRUCTURED, {}, READ,
     piece(OFF - 1, 4096) + DONE, False),
    ("data after the request", STRUCTURED, {}, READ,
     piece(OFF + 1, 4096) + DONE, False),
    ("hole after the request", STRUCTURED, {}, READ,
     hole(OFF, 4097) + DONE, False),
    ("a byte is missing", STRUCTURED, {}, READ,
     piece(OFF, 2048) + piece(OFF + 2049, 2047) + DONE, False),
    ("the last byte is missing", STRUCTURED, {}, READ,
     piece(OFF, 4095, REPLY_DONE), False),
    ("nothing but DONE", STRUCTURED, {}, READ, DONE, False),
    ("no DONE", STRUCTURED, {}, READ, piece(OFF, 4096), Closed),
    ("chunk after DONE", STRUCTURED, {}, READ, WHOLE + DONE, False),
    ("NONE without DONE", STRUCTURED, {}, FLUSH, chunk(CHUNK_NONE), False),
    ("NONE with data", STRUCTURED, {}, FLUSH,
     chunk(CHUNK_NONE, b"x", REPLY_DONE), False),
    ("unknown chunk", STRUCTURED, {}, FLUSH, chunk(9, b"", REPLY_DONE),
     False),
    ("unknown reply flag", STRUCTURED, {}, FLUSH, chunk(CHUNK_NONE, b"", 3),
     False),
    ("empty data chunk", STRUCTURED, {}, READ, piece(OFF, 0) + WHOLE, False),
    ("empty hole", STRUCTURED, {}, READ, hole(OFF, 0) + WHOLE, False),
    ("hole of wrong length", STRUCTURED, {}, READ,
     chunk(CHUNK_OFFSET_HOLE, be("QQ", OFF, 4096), REPLY_DONE), False),
    ("two chunks despite DF", STRUCTURED, {}, READ_DF,
     piece(OFF, 2048) + piece(OFF + 2048, 2048) + DONE, False),
    ("DF in one chunk and DONE", STRUCTURED, {}, READ_DF,
     piece(OFF, 4096) + DONE, True),
    ("data to a flush", STRUCTURED, {}, FLUSH, piece(OFF, 1, 1), False),
    ("extended chunk to a structured session", STRUCTURED, {}, FLUSH,
     DONE_EXT, False),

    ("error with text", STRUCTURED, {}, READ,
     error(EIO, b"cannot read", flags=REPLY_DONE), True),
    ("error of value 0", STRUCTURED, {}, READ, error(0) + DONE, False),
    ("error text too long for its chunk", STRUCTURED, {}, READ,
     error(EIO, b"abc", size=4) + DONE, False),
    ("error text shorter than its chunk", STRUCTURED, {}, READ,
     error(EIO, b"abc", size=2) + DONE, False),
    ("error text not UTF-8", STRUCTURED, {}, READ,
     error(EIO, b"\xff\xfe") + DONE, False),
    ("error text with NUL", STRUCTURED, {}, READ, error(EIO, b"a\0b") + DONE,
     False),
    ("two errors", STRUCTURED, {}, READ, error(EIO) + error(EIO) + DONE,
     False),
    ("error at an offset outside", STRUCTURED, {}, READ,
     error(EIO, tail=be("Q", OFF + 4096), kind=CHUNK_ERROR_OFFSET) + DONE,
     False),
    ("data after an error in it", STRUCTURED, {}, READ,
     error(EIO, tail=be("Q", OFF + 8), kind=CHUNK_ERROR_OFFSET)
     + piece(OFF, 4096) + DONE, False),
    ("error at an offset inside", STRUCTURED, {}, READ,
     piece(OFF, 4096)
     + error(EIO, tail=be("Q", OFF + 8), kind=CHUNK_ERROR_OFFSET) + DONE,
     True),

    ("status", STRUCTURED, BASE, STATUS, status(1, (512, 0), (8192, 3)),
     True),
    ("status of two contexts", STRUCTURED, TWO, STATUS,
     status(2, (512, 7), flags=0) + status(1, (512, 0)), True),
    ("a context is missing", STRUCTURED, TWO, STATUS, status(1, (512, 0)),
     False),
    ("a context comes twice", STRUCTURED, BASE, STATUS,
     status(1, (512, 0), flags=0) + status(1, (512, 0)), False),
    ("unknown context", STRUCTURED, BASE, STATUS, status(3, (512, 0)),
     False),
    ("simple success to a status", STRUCTURED, BASE, STATUS, simple(),
     False),
    ("no extents", STRUCTURED, BASE, STATUS, status(1), False),
    ("extent of no length", STRUCTURED, BASE, STATUS,
     status(1, (512, 0), (0, 3)), False),
    ("extent wholly past the request", STRUCTURED, BASE, STATUS,
     status(1, (4096, 0), (512, 3)), False),
    ("extent past the end", STRUCTURED, BASE, STATUS,
     status(1, ((1 << 30) - OFF + 512, 0)), False),
    ("reserved bit", STRUCTURED, BASE, STATUS, status(1, (512, 4)), False),
    ("REQ_ONE with two", STRUCTURED, BASE, STATUS_ONE,
     status(1, (512, 0), (512, 3)), False),
    ("REQ_ONE longer than asked", STRUCTURED, BASE, STATUS_ONE,
     status(1, (4608, 0)), False),
    ("REQ_ONE exact", STRUCTURED, BASE, STATUS_ONE, status(1, (4096, 0)),
     True),
    ("status of odd length", STRUCTURED, BASE, STATUS,
     chunk(CHUNK_BLOCK_STATUS, be("III", 1, 512, 0) + b"x", 1), False),
    ("64-bit status in a compact session", STRUCTURED, BASE, STATUS,
     chunk(CHUNK_BLOCK_STATUS_EXT, be("IIQQ", 1, 1, 512, 0), 1), False),
    ("status to a read", STRUCTURED, BASE, READ, status(1, (512, 0)), False),

    ("extended read", EXTENDED, {}, READ,
     piece(OFF, 4096, REPLY_DONE, extended), True),
    ("extended with a wrong offset", EXTENDED, {}, READ,
     extended(CHUNK_OFFSET_DATA, be("Q", OFF) + bytes(4096), 1,
              offset=OFF + 8), False),
    ("extended of absurd length", EXTENDED, {}, READ,
     extended(CHUNK_OFFSET_DATA, length=1 << 40), False),
    ("simple in extended", EXTENDED, {}, FLUSH, simple() + bytes(16), False),
    ("structured in extended", EXTENDED, {}, FLUSH, DONE + bytes(12), False),
    ("extended status", EXTENDED, BASE, STATUS,
     status_ext(1, (512, 0), (1 << 20, 3)), True),
    ("extended status count lies", EXTENDED, BASE, STATUS,
     status_ext(1, (512, 0), count=2), False),
    ("32-bit status in extended", EXTENDED, BASE, STATUS,
     extended(CHUNK_BLOCK_STATUS, be("III", 1, 512, 0), 1), False),
]


def check_reply(mode, contexts, request, answer, lawful):
    s, theirs = session(mode, contexts)
    with s, theirs:
        s.request(*request, cookie=COOKIE)
        theirs.sendall(answer)
        theirs.close()
        try:
            while s.in_flight() or s.fill_to(1):
                s.message()
            found = True
        except Violation:
            found = False
        except Closed:
            found = Closed
        expect(found, lawful, "verdict (True: lawful)")


table(check_reply, REPLIES, "reply: %s")


def option_reply(kind, data=b"", option=OPT_INFO, magic=OPTION_REPLY_MAGIC,
                 length=None):
    return be("QIII", magic, option, kind,
              len(data) if length is None else length) + data


ACK = option_reply(REP_ACK)
EXPORT = option_reply(REP_INFO, be("HQH", INFO_EXPORT, 1 << 20, 1))


def blocks(*values):
    return option_reply(REP_INFO, be("HIII", INFO_BLOCK_SIZE, *values))


def flags(value):
    return option_reply(REP_INFO, be("HQH", INFO_EXPORT, 1 << 20, value))


INFOS = [
    ("lawful", EXPORT + blocks(1, 4096, 1 << 25) + ACK, True),
    ("unknown type is ignored",
     EXPORT + option_reply(REP_INFO, be("HI", 77, 1)) + ACK, True),
    ("no EXPORT", blocks(1, 4096, 1 << 25) + ACK, False),
    ("EXPORT twice", EXPORT + EXPORT + ACK, False),
    ("EXPORT of wrong length",
     option_reply(REP_INFO, be("HQI", INFO_EXPORT, 1, 1)) + ACK, False),
    ("minimum 3", EXPORT + blocks(3, 4096, 1 << 25) + ACK, False),
    ("minimum 128 KiB", EXPORT + blocks(1 << 17, 1 << 17, 1 << 25) + ACK,
     False),
    ("preferred 256", EXPORT + blocks(1, 256, 1 << 25) + ACK, False),
    ("payload below preferred", EXPORT + blocks(1, 4096, 512) + ACK, False),
    ("payload below 1 MiB", EXPORT + blocks(1, 4096, 1 << 19) + ACK, False),
    ("HAS_FLAGS clear", flags(4) + ACK, False),
    ("DF without structured", flags(1 | FLAG_SEND_DF) + ACK, False),
    ("FAST_ZERO alone", flags(1 | FLAG_SEND_FAST_ZERO) + ACK, False),
    ("unknown flag", flags(1 | 1 << 15) + ACK, False),
    ("status payload without extended",
     flags(1 | FLAG_BLOCK_STATUS_PAYLOAD) + ACK, False),
    ("ACK with data", EXPORT + option_reply(REP_ACK, b"x"), False),
    ("other option", EXPORT + option_reply(REP_ACK, option=OPT_LIST), False),
    ("other magic", EXPORT + option_reply(REP_ACK, magic=1), False),
    ("SERVER reply", option_reply(REP_SERVER, be("I", 0)) + ACK, False),
    ("unknown error", option_reply(REP_ERR + 99), False),
    ("absurd length", option_reply(REP_INFO, length=1 << 31), False),
]


def check_info(answer, lawful):
    s, theirs = session(SIMPLE)
    with s, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        try:
            s.info("x", (INFO_BLOCK_SIZE,))
            found = True
        except Violation:
            found = False
        expect(found, lawful, "verdict (True: lawful)")


table(check_info, INFOS, "info: %s")


@case
def greeting_with_unknown_flags():
    s, theirs = session(SIMPLE)
    with s, theirs:
        theirs.sendall(be("QQH", INIT_MAGIC, OPTION_MAGIC, 7))
        try:
            s.greet()
        except Violation:
            return
        raise AssertionError("not noticed")


@case
def silence_is_noticed():
    s, theirs = session(SIMPLE)
    with s, theirs:
        s.stuck_s = 0.1
        s.request(CMD_FLUSH, cookie=COOKIE)
        try:
            s.message()
        except Stuck:
            return
        raise AssertionError("not noticed")


@case
def interleaved_replies_are_kept_apart():
    s, theirs = session(STRUCTURED)
    with s, theirs:
        s.request(*READ, cookie=COOKIE)
        s.request(CMD_READ, OFF, 4096, cookie=7)
        theirs.sendall(
            piece(OFF, 2048)
            + chunk(CHUNK_OFFSET_DATA, be("Q", OFF) + b"y" * 4096, 1, 7)
            + hole(OFF + 2048, 2048) + DONE)
        expect(bytes(s.reply(COOKIE).data), b"x" * 2048 + bytes(2048), "one")
        expect(bytes(s.reply(7).data), b"y" * 4096, "other")


main()
