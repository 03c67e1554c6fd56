#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: timeout=60
"""Malformed handshakes and requests, each with its expected answer.

After each case a good session that was there all the time and a fresh one must
both be served well, the server must be alive, its memory bounded, and a
sanitizer must have nothing to say. Rows marked CVE-... are the inputs that
broke other servers. hostile_load.py has what needs many sessions or time.
"""
import os
import random
import socket
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (case, expect, expect_bytes, main, scratch, seed, shared,
                     table)
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 16 * MIB
NAME = "disk"
BASE = "base:allocation"
RSS_MAX = 64 * MIB
MAX32, MAX64 = (1 << 32) - 1, (1 << 64) - 1
# What a hostile session may get. CLOSE: nothing but the end, once it has closed
# its own half. HANGS_UP: the same, but the server does not wait for what was
# announced. ANY: answers, then the end.
CLOSE = "close"
HANGS_UP = "hangs up"
ANY = "any lawful answer, or a close"
SEED = seed()


class Watched:
    """A server with a good session beside the bad ones."""

    def __init__(self):
        image = raw_image(scratch("image"), SIZE, [(0, pattern(0, SIZE))])
        # Without a limit of time, so that nothing ends by that alone.
        self.server = Server(image, export=NAME,
                             args=() if PEER else ("--handshake-limit", "0"))
        self.good = self.server.open(STRUCTURED)
        self.n = 0

    def check_alive(self):
        self.server.check_alive()
        self.check(self.good)
        with self.server.open() as fresh:
            self.check(fresh)
            fresh.disconnect()
        self.server.check_memory(RSS_MAX, "hostile input")

    def check(self, s):
        self.n += 1
        offset = self.n * 7919 % (SIZE - 8192)
        expect_bytes(s.read(offset, 5000), pattern(offset, 5000), offset,
                     "the good session")

    def __exit__(self, *exception):
        self.good.disconnect()
        for line in self.server.stderr().splitlines():
            if any(ord(c) < 32 or ord(c) == 127 for c in line):
                raise AssertionError("a name was logged unquoted: %r" % line)
        return self.server.__exit__(*exception)


@shared
def watched():
    return Watched()


def greeted(flags=3, mode=SIMPLE):
    s = watched().server.connect()
    s.greet(flags)
    s.use_mode(mode)
    return s


def opened(mode=SIMPLE):
    return watched().server.open(mode, () if mode == SIMPLE else [BASE])


def send_all(s, data, wanted=CLOSE):
    """The server may close before it has taken everything."""
    try:
        s.send(data)
        if wanted != HANGS_UP:
            s.close_sending()
    except Closed:
        pass


def read_to_end(s, limit=1 << 26):
    """What the server says until it closes."""
    n = 0
    while not s.eof:
        n += len(s.buf)
        s.buf.clear()
        if n > limit:
            s.violation("endless answer")
        s.fill_to(1)
    return n + len(s.buf)


# --- before an option is complete -------------------------------------------

HTTP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(240)


def go(name=b"disk", length=None):
    data = (be("I", len(name) if length is None else length) + name
            + be("H", 0))
    return data


# name, bytes after the server's greeting, what must come of it
GREETINGS = [
    ("client flags all set", be("I", MAX32), HANGS_UP),
    ("client flags of the future", be("I", 1 << 2), HANGS_UP),
    ("HTTP", HTTP, HANGS_UP),
    ("TLS ClientHello (CVE-2021-3716)", HELLO, HANGS_UP),
    ("oldstyle client", be("QQ", INIT_MAGIC, 0x00420281861253), HANGS_UP),
    ("a request instead of flags",
     be("IHHQQI", REQUEST_MAGIC, 0, 0, 0, 0, 512), HANGS_UP),
    ("half the client flags", b"\0\0", CLOSE),
    ("nothing (port scan, CVE-2017-9524)", b"", CLOSE),
    ("zeroes", bytes(4096), HANGS_UP),
    ("a megabyte of 0xff", b"\xff" * MIB, HANGS_UP),
]


def greeting(data, wanted):
    with watched().server.connect() as s:
        s.greet(None)
        send_all(s, data, wanted)
        expect(read_to_end(s), 0, "bytes of an answer")


table(greeting, GREETINGS, "greeting: %s")

# name, bytes after the client flags, what must come of it: CLOSE, HANGS_UP or
# a set of final replies to the first option
OPTIONS = [
    ("wrong magic", option_bytes(OPT_LIST, magic=OPTION_MAGIC + 1), HANGS_UP),
    ("reply magic", option_bytes(OPT_LIST, magic=OPTION_REPLY_MAGIC), HANGS_UP),
    ("NBDMAGIC again", be("QQ", INIT_MAGIC, OPTION_MAGIC), HANGS_UP),
    ("HTTP", HTTP, HANGS_UP),
    ("a request before the handshake ends",
     be("IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, 4096), HANGS_UP),
    ("an extended request before the handshake ends",
     be("IHHQQQ", EXTENDED_REQUEST_MAGIC, 0, CMD_READ, 1, 0, 4096), HANGS_UP),
    ("half an option header", option_bytes(OPT_LIST)[:9], CLOSE),
    ("half an option's data",
     option_bytes(OPT_GO, b"\0\0\0", 100), CLOSE),
    ("EXPORT_NAME of 2^32 - 1 (CVE-2022-26495)",
     option_bytes(OPT_EXPORT_NAME, b"x" * 100, MAX32), HANGS_UP),
    ("EXPORT_NAME of 2^32 - 1 with much data",
     option_bytes(OPT_EXPORT_NAME, b"x" * MIB, MAX32), HANGS_UP),
    ("EXPORT_NAME of 2^31", option_bytes(OPT_EXPORT_NAME, b"x", 1 << 31),
     HANGS_UP),
    ("EXPORT_NAME of 4096 unknown (CVE-2017-15118, CVE-2011-1925)",
     option_bytes(OPT_EXPORT_NAME, b"x" * 4096), HANGS_UP),
    ("EXPORT_NAME of 4097", option_bytes(OPT_EXPORT_NAME, b"x" * 4097),
     HANGS_UP),
    ("EXPORT_NAME of 100000", option_bytes(OPT_EXPORT_NAME, b"x" * 100000),
     HANGS_UP),
    ("EXPORT_NAME with NUL", option_bytes(OPT_EXPORT_NAME, b"disk\0"),
     HANGS_UP),
    ("GO of 2^32 - 1", option_bytes(OPT_GO, go(), MAX32), HANGS_UP),
    ("INFO of 4 GiB - 16", option_bytes(OPT_INFO, go(), MAX32 - 15), HANGS_UP),
    ("LIST of 2^32 - 1", option_bytes(OPT_LIST, b"", MAX32), HANGS_UP),
    ("ABORT of 2^32 - 1", option_bytes(OPT_ABORT, b"", MAX32), HANGS_UP),
    ("STARTTLS of 2^32 - 1", option_bytes(OPT_STARTTLS, b"", MAX32), HANGS_UP),
    ("unknown option of 4 GiB (CVE-2017-15119)",
     option_bytes(4711, b"x" * MIB, MAX32), HANGS_UP),
    ("SET_META of 2^32 - 1", option_bytes(OPT_SET_META_CONTEXT, b"", MAX32),
     HANGS_UP),
    ("GO with a name of 2^32 - 1 (CVE-2022-26495)",
     option_bytes(OPT_GO, go(length=MAX32)), {ERR_INVALID}),
    ("GO with a name of 2^32 - 2",
     option_bytes(OPT_GO, go(length=MAX32 - 1)), {ERR_INVALID}),
    ("GO with a name longer than the option (CVE-2022-26496)",
     option_bytes(OPT_GO, go(length=4096)), {ERR_INVALID}),
    ("GO with a name of 4097 (CVE-2022-26496)",
     option_bytes(OPT_GO, go(b"y" * 4097)),
     {ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN}),
    ("GO with a name of 4096, unknown (CVE-2020-10761)",
     option_bytes(OPT_GO, go(b"y" * 4096)), {ERR_UNKNOWN}),
    ("GO with a name of conversions",
     option_bytes(OPT_GO, go(b"%n%s%d%x" * 500)), {ERR_UNKNOWN}),
    ("GO with a name of control characters",
     option_bytes(OPT_GO, go(b"\x1b[2J\r\n\x07\x7f" * 10)),
     {ERR_UNKNOWN, ERR_INVALID}),
    ("GO with a name that is no UTF-8",
     option_bytes(OPT_GO, go(b"\xff\xfe\xc0\x80")),
     {ERR_UNKNOWN, ERR_INVALID}),
    ("option of 1 MiB", option_bytes(OPT_GO, bytes(MIB)),
     {ERR_TOO_BIG, ERR_INVALID}),
    ("unknown option of 1 MiB", option_bytes(4711, bytes(MIB)),
     {ERR_UNSUP, ERR_TOO_BIG}),
]


def first_reply(s):
    """The final reply to the first option, whatever it was; CLOSE if there
    is none."""
    while True:
        try:
            magic, _, kind, length = struct.unpack(">QIII",
                                                   s.recv(20, boundary=True))
            expect(magic, OPTION_REPLY_MAGIC, "reply magic")
            s.recv(length)
        except Closed:
            return CLOSE
        if kind == REP_ACK or kind & REP_ERR:
            return kind


def option(data, wanted):
    with greeted() as s:
        send_all(s, data, wanted)
        if wanted in (CLOSE, HANGS_UP):
            expect(read_to_end(s), 0, "bytes of an answer")
        else:
            expect(first_reply(s), wanted, "reply")
            expect(read_to_end(s), 0, "bytes after it")


table(option, OPTIONS, "option: %s")


@case
def options_up_to_32_mib_may_be_skipped():
    with greeted() as s:
        s.reads_while_sending = True
        send_all(s, option_bytes(OPT_GO, bytes(32 * MIB)))
        expect(first_reply(s), {ERR_TOO_BIG, ERR_INVALID, CLOSE}, "reply")


@case
def queries_without_end():
    # 16000 empty queries, and one whose lengths lie one by one.
    for data in (be("I", 4) + b"disk" + be("I", 16000) + bytes(4 * 16000),
                 be("I", 4) + b"disk" + be("I", 16000)
                 + b"".join(be("I", n) for n in range(16000))):
        for kind in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            with greeted(mode=STRUCTURED) as s:
                expect(s.option(kind, data)[-1][0],
                       {ERR_INVALID, ERR_TOO_BIG, REP_ACK}, "reply")


@case
def a_flood_of_options():
    with greeted() as s:
        send_all(s, option_bytes(OPT_LIST) * 20000)
        read_to_end(s)


@case
def a_flood_of_options_nobody_reads():
    with greeted() as s:
        s.reads_while_sending = False
        s.stuck_s = 1
        try:
            for _ in range(50):
                s.send(option_bytes(OPT_LIST) * 1000)
        except (Closed, Stuck):
            pass


ODD = [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, OPT_STARTTLS,
       OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS,
       OPT_PEEK_EXPORT, 99]


def odd_data(rng, kind):
    name = rng.choice([NAME, "", "nope", "x" * 4096, "disk2"])
    if kind in (OPT_INFO, OPT_GO):
        return info_data(name, rng.sample(range(6), rng.randrange(5)))
    if kind in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
        return meta_data(name, rng.sample(
            [BASE, "base:", "qemu:allocation-depth", "x:", "", "nocolon"],
            rng.randrange(5)))
    return rng.choice([b"", b"", b"", b"junk"])


@case
def options_in_odd_orders():
    # CVE-2019-14851: an assertion that INFO, then GO with another name, hit.
    rng = random.Random(SEED)
    for n in range(150):
        flags = rng.randrange(4)
        with greeted(flags) as s:
            try:
                odd_session(rng, s)
            except Closed as e:
                # Who does not speak fixed newstyle may be told so only thus.
                if flags & FIXED_NEWSTYLE:
                    raise AssertionError("seed %d round %d: %s"
                                         % (SEED, n, e)) from e


def odd_session(rng, s):
    for _ in range(rng.randrange(1, 25)):
        kind = rng.choice(ODD)
        final = s.option(kind, odd_data(rng, kind))[-1][0]
        if final != REP_ACK:
            continue
        if kind == OPT_STRUCTURED_REPLY:
            s.mode = STRUCTURED
        elif kind == OPT_EXTENDED_HEADERS:
            s.mode = EXTENDED
        elif kind == OPT_GO:
            s.size = SIZE
            expect_bytes(s.read(4096, 512), pattern(4096, 512), 4096, "data")
            s.disconnect()
            return


# --- in transmission --------------------------------------------------------

def compact(magic=REQUEST_MAGIC, flags=0, command=CMD_READ, cookie=1,
            offset=0, length=512):
    return be("IHHQQI", magic, flags, command, cookie, offset, length)


def long(magic=EXTENDED_REQUEST_MAGIC, flags=0, command=CMD_READ, cookie=1,
         offset=0, length=512):
    return be("IHHQQQ", magic, flags, command, cookie, offset, length)


W, P = CMD_WRITE, F_PAYLOAD_LEN

# name, mode, bytes, what must come of it: CLOSE HANGS_UP or ANY
REQUESTS = [
    ("wrong magic", SIMPLE, compact(magic=REQUEST_MAGIC + 1), HANGS_UP),
    ("the magic of 1998", SIMPLE, compact(magic=0x12560953), HANGS_UP),
    ("a reply's magic", SIMPLE, compact(magic=SIMPLE_REPLY_MAGIC), HANGS_UP),
    ("magic in the other byte order", SIMPLE, compact(magic=0x13956025),
     HANGS_UP),
    ("extended request in a compact session", STRUCTURED, long(), HANGS_UP),
    ("compact request in an extended session", EXTENDED, compact() + bytes(4),
     HANGS_UP),
    ("an option", SIMPLE, option_bytes(OPT_ABORT) + bytes(12), HANGS_UP),
    ("GO again", SIMPLE, option_bytes(OPT_GO, go()) + bytes(28), HANGS_UP),
    ("HTTP", SIMPLE, HTTP + bytes(28), CLOSE),
    ("zeroes", SIMPLE, bytes(MIB), HANGS_UP),
    ("zeroes, extended", EXTENDED, bytes(MIB), HANGS_UP),
    ("half a request", SIMPLE, compact()[:27], CLOSE),
    ("half an extended request", EXTENDED, long()[:31], CLOSE),
    ("DISC and then more", SIMPLE, compact(command=CMD_DISC)
     + compact() * 100, HANGS_UP),
    ("WRITE of 2^32 - 1 (CVE-2005-3534)", SIMPLE,
     compact(command=W, length=MAX32), HANGS_UP),
    ("WRITE of 2^32 - 1 with 2 MiB", SIMPLE,
     compact(command=W, length=MAX32) + bytes(2 * MIB), HANGS_UP),
    ("WRITE of 1 GiB", STRUCTURED,
     compact(command=W, length=1 << 30) + bytes(MIB), HANGS_UP),
    ("extended WRITE of 2^64 - 1", EXTENDED,
     long(command=W, flags=P, length=MAX64) + bytes(MIB), HANGS_UP),
    ("extended WRITE of 2^63", EXTENDED,
     long(command=W, flags=P, length=1 << 63) + bytes(MIB), HANGS_UP),
    ("extended WRITE of 2^32", EXTENDED,
     long(command=W, flags=P, length=1 << 32) + bytes(MIB), HANGS_UP),
    ("extended READ with a payload of 2^64 - 1", EXTENDED,
     long(flags=P, length=MAX64) + bytes(MIB), HANGS_UP),
    ("BLOCK_STATUS with a payload of 2^63", EXTENDED,
     long(command=CMD_BLOCK_STATUS, flags=P, length=1 << 63), HANGS_UP),
    ("half the payload of a small write", SIMPLE,
     compact(command=W, length=4096) + bytes(2048), CLOSE),
    ("half the payload of a large write", SIMPLE,
     compact(command=W, offset=15 * MIB, length=MIB)
     + pattern(15 * MIB, MIB // 2), CLOSE),
    ("half the payload of a refused write", SIMPLE,
     compact(command=W, offset=1 << 40, length=8 * MIB) + bytes(3 * MIB),
     CLOSE),
    ("unknown command with what looks like a payload", SIMPLE,
     compact(command=77, length=4096) + bytes(4096), ANY),
    ("reads past every end (CVE-2011-0530)", SIMPLE,
     b"".join(compact(offset=o, length=n) for o in
              (0, 1, SIZE - 1, SIZE, 1 << 32, 1 << 63, MAX64)
              for n in (MAX32, MAX32 - 1, 1 << 31, (1 << 26) + 1)), ANY),
    ("status of 2^32 - 1 (CVE-2025-47711)", STRUCTURED,
     compact(command=CMD_BLOCK_STATUS, length=MAX32) * 100, ANY),
    ("status near 2^32 (CVE-2025-47712)", STRUCTURED,
     b"".join(compact(command=CMD_BLOCK_STATUS, offset=o, length=n)
              for o in (0, 1, 511, SIZE - 1, MAX32, MAX32 - 511, 1 << 32)
              for n in (MAX32, 0xfffffe00, 0xfffffe01, 1)), ANY),
    ("status of nothing, a thousand times", STRUCTURED,
     compact(command=CMD_BLOCK_STATUS, length=0) * 1000, ANY),
    ("writes of nothing, ten thousand", SIMPLE,
     compact(command=W, length=0) * 10000, ANY),
    ("a storm of flushes", SIMPLE,
     compact(command=CMD_FLUSH, length=0) * 10000, ANY),
    ("one cookie for a thousand reads", STRUCTURED,
     compact(cookie=7, offset=4096, length=4096) * 1000, ANY),
]


def requests(mode, data, wanted):
    if mode not in MODES:
        return
    with opened(mode) as s:
        send_all(s, data, wanted)
        n = read_to_end(s)
        if wanted != ANY:
            expect(n, 0, "bytes of an answer")


table(requests, REQUESTS, "request: %s")


@case
def half_a_large_write_did_no_harm_elsewhere():
    # What was sent of it may be there or not; what lies beyond must not be
    # touched. The row above wrote the same bytes as there are.
    with opened() as s:
        expect_bytes(s.read(15 * MIB, MIB), pattern(15 * MIB, MIB), 15 * MIB,
                     "data")
        s.disconnect()


@case
def a_storm_of_trims():
    # The good session's data must not go: trims of nothing but the past-end
    # and empty ranges, and of one spare MiB that is written again.
    spare = 8 * MIB
    for mode in MODES:
        with opened(mode) as s:
            for n in range(3000):
                s.request(CMD_TRIM, spare + n % 512, MIB - n % 512)
                if n % 10 == 0:
                    s.request(CMD_TRIM, SIZE - 1, 2)
            while s.in_flight():
                expect(s.any_reply().error, {OK, EINVAL}, "trim")
            s.write(spare, pattern(spare, MIB))
            s.disconnect()


@case
def one_cookie_for_all():
    for mode in MODES:
        with opened(mode) as s:
            for n in range(300):
                s.request(CMD_READ, 4096, 512, cookie=5)
            for n in range(300):
                expect_bytes(bytes(s.reply(5).data), pattern(4096, 512), 4096,
                             "read %d" % n)
            s.disconnect()


@case
def everything_in_one_go():
    # A whole session in one send, then a close without reading.
    data = (be("I", 3) + option_bytes(OPT_STRUCTURED_REPLY)
            + option_bytes(OPT_GO, info_data(NAME)) + compact() * 100
            + compact(command=CMD_DISC))
    for n in range(50):
        with watched().server.connect() as s:
            s.send(data)
            if n % 2:
                read_to_end(s)


# --- leaving at every byte --------------------------------------------------

def whole_conversation(mode):
    """Client flags to the first requests, as one run of bytes."""
    out = be("I", 3)
    if mode == STRUCTURED:
        out += option_bytes(OPT_STRUCTURED_REPLY)
    if mode == EXTENDED:
        out += option_bytes(OPT_EXTENDED_HEADERS)
    if mode != SIMPLE:
        out += option_bytes(OPT_SET_META_CONTEXT, meta_data(NAME, [BASE]))
    out += option_bytes(OPT_INFO, info_data(NAME, (3,)))
    out += option_bytes(OPT_GO, info_data(NAME, (3,)))
    make, flag = (long, P) if mode == EXTENDED else (compact, 0)
    out += make(length=65536) * 3
    out += make(command=W, flags=flag, offset=MIB, length=16)
    out += pattern(MIB, 16)
    out += make(command=CMD_FLUSH, length=0)
    return out + make(command=CMD_BLOCK_STATUS, length=65536)


@case
def close_at_every_byte():
    # CVE-2013-7441, CVE-2017-10664: a close at a bad moment killed servers.
    for mode in MODES:
        data = whole_conversation(mode)
        for n in range(len(data)):
            with watched().server.connect() as s:
                s.send(data[:n])
                if n % 3 == 1:
                    s.close_sending()
                    read_to_end(s)
                elif n % 3 == 2:
                    s.readable(0.001)


@case
def close_with_large_replies_pending():
    for mode in MODES:
        for n in range(20):
            with opened(mode) as s:
                for i in range(n):
                    s.request(CMD_READ, 0, 4 * MIB)
                if n % 2:
                    s.recv(1)


# --- noise, by seed ---------------------------------------------------------

@case
def garbage():
    rng = random.Random(SEED + 1)
    for n in range(200):
        data = rng.randbytes(rng.choice([1, 20, 300, 5000, 100000]))
        stage = rng.randrange(3)
        s = (watched().server.connect() if stage == 0 else greeted()
             if stage == 1 else opened(rng.choice(MODES)))
        with s:
            if stage == 0:
                s.greet(None)
            send_all(s, data)
            read_to_end(s)


@case
def a_few_wrong_bits():
    # A lawful conversation with one to four bits turned. WRITE's own bytes
    # are what lies there already, so only its place can go wrong; so each
    # round gets a server of its own to spoil.
    rng = random.Random(SEED + 2)
    image = raw_image(scratch("spoilt"), 2 * MIB)
    with Server(image, export=NAME) as srv:
        for _ in range(400):
            data = bytearray(whole_conversation(rng.choice(MODES)))
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            with srv.connect() as s:
                send_all(s, bytes(data))
                read_to_end(s)
        with srv.open(MODES[-1]) as s:
            expect(len(s.read(0, 4096)), 4096, "still served")
            s.disconnect()
        srv.check_memory(RSS_MAX, "seed %d" % SEED)


@case
def an_urgent_end_of_the_sending_half():
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        for mode in MODES:
            with opened(mode) as s:
                s.request(CMD_READ, 0, MIB)
                s.owner.shutdown(how)


main()
