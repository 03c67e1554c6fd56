#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The handshake: every option with every answer the specification knows.

Reference: doc/proto.md, "Fixed newstyle negotiation", "Option types", "Option
reply types", "Metadata querying".
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, main, scratch, shared, table
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 8 * MIB
NAME = "disk"
TEXT = "a disk for tests, caf\u00e9"
BASE, DEPTH = "base:allocation", "qemu:allocation-depth"
REFUSED = {ERR_UNSUP, ERR_POLICY, ERR_PLATFORM, ERR_INVALID}


@shared
def server():
    image = raw_image(scratch("image"), SIZE, [(0, pattern(0, 65536))])
    return Server(image, export=NAME, description=TEXT)


def greeted(flags=FIXED_NEWSTYLE | NO_ZEROES, mode=SIMPLE):
    s = server().connect()
    s.greet(flags)
    s.use_mode(mode)
    return s


def final(s, option, data=b"", length=None):
    return s.option(option, data, length)[-1][0]


def check_works(s):
    """The session is in transmission, and reads what it should."""
    expect(s.size, SIZE, "size")
    expect(s.read(4096, 512), pattern(4096, 512), "data")
    s.disconnect()


def check_goes_on(s):
    """Still haggling: nothing that came before has harmed."""
    expect([name for name, _ in s.list_exports()], [NAME], "exports")
    s.go(NAME)
    check_works(s)


# --- greeting and EXPORT_NAME -----------------------------------------------

@case
def greeting():
    with server().connect() as s:
        s.greet(None)
        expect(s.server_flags, FIXED_NEWSTYLE | NO_ZEROES, "handshake flags")
        if s.readable(0.05):
            s.violation("bytes before the client flags: " + hexed(s.buf))
        s.send(be("I", 3))
        check_goes_on(s)


@case
def export_name_with_each_client_flag():
    for flags in (0, FIXED_NEWSTYLE, NO_ZEROES, FIXED_NEWSTYLE | NO_ZEROES):
        with greeted(flags) as s:
            s.export_name(NAME)
            check_works(s)


@case
def unknown_client_flags_close():
    for flags in (4, 7, 1 << 16, 1 << 31, 0xffffffff):
        with server().connect() as s:
            s.greet(flags)
            s.expect_eof()


@case
def export_name_of_the_default_export():
    with greeted() as s:
        s.export_name("")
        check_works(s)


@case
def export_name_unknown_closes():
    for name in ("nope", "disk2", "dis", "Disk", "disk\x00", "x" * 4096):
        with greeted() as s:
            s.send(option_bytes(OPT_EXPORT_NAME, name.encode()))
            s.expect_eof()


@case
def export_name_after_structured_replies():
    with greeted(mode=STRUCTURED) as s:
        s.export_name(NAME)
        check_works(s)


@case
def export_name_after_extended_headers_is_a_breach():
    with greeted(mode=EXTENDED) as s:
        s.send(option_bytes(OPT_EXPORT_NAME, NAME.encode()))
        s.expect_eof()


# --- INFO and GO ----------------------------------------------------------

@case
def go_in_each_mode():
    for mode in MODES:
        with greeted(mode=mode) as s:
            s.go(NAME)
            expect(bool(s.flags & FLAG_SEND_DF), mode != SIMPLE, "SEND_DF")
            check_works(s)


@case
def flags_of_a_writable_export():
    must = (FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_TRIM
            | FLAG_SEND_WRITE_ZEROES | FLAG_SEND_CACHE | FLAG_SEND_FAST_ZERO
            | FLAG_CAN_MULTI_CONN)
    with greeted() as s:
        s.go(NAME)
        expect(s.flags, must, "transmission flags")
        s.disconnect()


@case
def status_payload_is_offered_with_contexts_only():
    with greeted(mode=EXTENDED) as s:
        s.go(NAME)
        expect(s.flags & FLAG_BLOCK_STATUS_PAYLOAD, 0, "without contexts")
        s.disconnect()
    with greeted(mode=EXTENDED) as s:
        s.set_meta(NAME, [BASE])
        s.go(NAME)
        expect(s.flags & FLAG_BLOCK_STATUS_PAYLOAD, FLAG_BLOCK_STATUS_PAYLOAD,
               "with contexts")
        s.disconnect()


@case
def go_without_block_size():
    with greeted() as s:
        s.go(NAME, ())
        check_works(s)


@case
def info_types():
    with greeted() as s:
        everything = (INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION,
                      INFO_BLOCK_SIZE)
        info = s.info(NAME, everything)
        expect(info[INFO_EXPORT][0], SIZE, "size")
        expect(info.get(INFO_NAME, NAME), NAME, "name")
        expect(info.get(INFO_DESCRIPTION), TEXT, "description")
        smallest, preferred, payload = info[INFO_BLOCK_SIZE]
        expect(smallest, {1, 512}, "minimum block size")
        expect(preferred, 4096, "preferred block size")
        expect(payload >= 32 * MIB, True, "payload of 32 MiB")
        expect(s.info("", everything).get(INFO_NAME), NAME,
               "name of the default export")
        for wanted in everything:
            expect(wanted in s.info(NAME, (wanted,)), True,
                   "information %d" % wanted)
        check_goes_on(s)


@case
def info_and_go_say_the_same():
    for mode in MODES:
        for wanted in ((), (INFO_BLOCK_SIZE,), (INFO_NAME, INFO_BLOCK_SIZE),
                       (INFO_DESCRIPTION, INFO_NAME)):
            with greeted(mode=mode) as s:
                first = s.info(NAME, wanted)
                expect(s.go(NAME, wanted), first, "GO after INFO")
                check_works(s)


@case
def unknown_information_is_ignored():
    with greeted() as s:
        expect(INFO_EXPORT in s.info(NAME, (77, INFO_BLOCK_SIZE, 0xffff)),
               True, "EXPORT")
        check_goes_on(s)


@case
def repeated_information_request():
    with greeted() as s:
        kind = final(s, OPT_INFO, info_data(NAME, (3, 3, 3)))
        expect(kind, {REP_ACK, ERR_INVALID}, "reply")
        check_goes_on(s)


@case
def info_after_structured_replies_offers_df():
    with greeted() as s:
        flags = s.info(NAME)[INFO_EXPORT][1]
        expect(flags & FLAG_SEND_DF, 0, "before")
        s.structured()
        flags = s.info(NAME)[INFO_EXPORT][1]
        expect(flags & FLAG_SEND_DF, FLAG_SEND_DF, "after")
        check_goes_on(s)


@case
def unknown_export():
    names = ["nope", "disk ", "dis", "%n%s%x", "x" * 256, "x" * 4096,
             "\u2028\u202e", "../etc/passwd", "\n\x1b[2J"]
    with greeted() as s:
        for option in (OPT_INFO, OPT_GO):
            for name in names:
                replies = s.option(option, info_data(name, (3,)))
                expect([r[0] for r in replies], [ERR_UNKNOWN],
                       "%d %.20r" % (option, name))
        check_goes_on(s)


def name_option(length, name, requests=b"\0\0"):
    return be("I", length) + name + requests


MALFORMED_INFO = [
    ("empty", b""), ("three bytes", b"\0\0\0"),
    ("only a length", be("I", 0)),
    ("no request count", be("I", 4) + b"disk"),
    ("half a request count", be("I", 4) + b"disk\0"),
    ("name longer than the data", name_option(5, b"disk")),
    ("name of 2^31", name_option(1 << 31, b"disk")),
    ("name of 2^32 - 1", name_option(0xffffffff, b"disk")),
    ("name of 2^32 - 6", name_option(0xfffffffa, b"disk")),
    ("too few requests", name_option(4, b"disk", be("HH", 2, 3))),
    ("too many requests", name_option(4, b"disk", be("HHH", 1, 3, 3))),
    ("65535 requests announced", name_option(4, b"disk", be("HH", 65535, 3))),
    ("a byte too much", name_option(4, b"disk", be("HHB", 1, 3, 0))),
    ("a byte too few", name_option(4, b"disk", be("HHH", 3, 3, 0) + b"\0")),
]


def malformed_info(data):
    for option in (OPT_INFO, OPT_GO):
        with greeted() as s:
            expect(final(s, option, data), ERR_INVALID, "option %d" % option)
            check_goes_on(s)


table(malformed_info, MALFORMED_INFO, "malformed INFO: %s")


@case
def names_that_are_no_strings():
    bad = [b"x" * 4097, b"x" * 60000, b"\xff\xfe", b"a\0b", b"\xc0\x80",
           b"\xed\xa0\x80"]
    with greeted() as s:
        for option in (OPT_INFO, OPT_GO):
            for name in bad:
                kind = final(s, option, info_data(name))
                expect(kind, {ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG},
                       hexed(name, 8))
        check_goes_on(s)


# --- LIST, ABORT, and what takes no data ------------------------------------

@case
def list_names_the_exports():
    with greeted() as s:
        expect(s.list_exports(), [(NAME, TEXT)], "exports")
        check_goes_on(s)


@case
def list_with_data_is_refused():
    with greeted() as s:
        expect(final(s, OPT_LIST, b"x"), ERR_INVALID, "reply")
        expect(final(s, OPT_LIST, bytes(4096)), ERR_INVALID, "reply")
        check_goes_on(s)


@case
def abort():
    for data in (b"", b"because", bytes(4096)):
        with greeted() as s:
            expect(final(s, OPT_ABORT, data), REP_ACK, "reply")
            s.expect_eof()


@case
def abort_without_waiting():
    with greeted() as s:
        s.send(option_bytes(OPT_ABORT))
    with greeted() as s:
        check_goes_on(s)


@case
def structured_replies():
    with greeted() as s:
        expect(final(s, OPT_STRUCTURED_REPLY, b"x"), ERR_INVALID, "data")
        s.structured()
        expect(final(s, OPT_STRUCTURED_REPLY), {REP_ACK, ERR_INVALID},
               "twice")
        check_goes_on(s)


@case
def refused_structured_replies_are_not_used():
    with greeted() as s:
        expect(final(s, OPT_STRUCTURED_REPLY, b"x"), ERR_INVALID, "data")
        s.go(NAME)
        check_works(s)


@case
def extended_headers():
    with greeted() as s:
        expect(final(s, OPT_EXTENDED_HEADERS, b"x"), ERR_INVALID, "data")
        s.extended()
        expect(final(s, OPT_EXTENDED_HEADERS), {REP_ACK, ERR_INVALID},
               "twice")
        expect(final(s, OPT_STRUCTURED_REPLY), ERR_EXT_HEADER_REQD,
               "structured after extended")
        check_goes_on(s)


@case
def extended_headers_after_structured_replies():
    with greeted(mode=STRUCTURED) as s:
        s.extended()
        check_goes_on(s)


@case
def starttls_is_refused_in_band():
    with greeted() as s:
        expect(final(s, OPT_STARTTLS), REFUSED, "reply")
        expect(final(s, OPT_STARTTLS, b"data"), REFUSED, "with data")
        s.structured()
        expect(final(s, OPT_STARTTLS), REFUSED, "later")
        check_goes_on(s)


@case
def unknown_options():
    with greeted() as s:
        for option in (0, OPT_PEEK_EXPORT, 12, 255, 1 << 16, 1 << 31,
                       0xffffffff):
            expect(final(s, option), ERR_UNSUP, "option %d" % option)
            expect(final(s, option, b"x" * 4096), ERR_UNSUP,
                   "option %d with data" % option)
        check_goes_on(s)


@case
def options_too_big():
    size = 1 << 20
    with greeted() as s:
        for option in (OPT_INFO, OPT_GO, OPT_LIST_META_CONTEXT):
            expect(final(s, option, bytes(size)),
                   {ERR_TOO_BIG, ERR_INVALID}, "option %d" % option)
        s.structured()
        expect(final(s, OPT_SET_META_CONTEXT, bytes(size)),
               {ERR_TOO_BIG, ERR_INVALID}, "SET_META")
        expect(final(s, 4711, bytes(size)), {ERR_TOO_BIG, ERR_UNSUP},
               "unknown option")
        expect(final(s, OPT_LIST, bytes(size)), {ERR_TOO_BIG, ERR_INVALID},
               "LIST")
        check_goes_on(s)


# --- metadata contexts ------------------------------------------------------

@case
def list_contexts():
    with greeted(mode=STRUCTURED) as s:
        expect(set(s.list_meta(NAME)), {BASE, DEPTH}, "all")
        expect(s.list_meta(NAME, ["base:"]), [BASE], "base:")
        expect(s.list_meta(NAME, [BASE]), [BASE], BASE)
        expect(s.list_meta(NAME, [DEPTH]), [DEPTH], DEPTH)
        expect(DEPTH in s.list_meta(NAME, ["qemu:"]), True, "qemu:")
        expect(set(s.list_meta(NAME, [DEPTH, BASE, BASE])), {BASE, DEPTH},
               "both")
        expect(s.list_meta(NAME, ["base:nope", "x-what:", "qemu:nope",
                                  "base:allocation2", "Base:allocation"]),
               [], "unknown ones")
        expect(s.list_meta("", [BASE]), [BASE], "default export")
        check_goes_on(s)


@case
def list_contexts_of_an_unknown_export():
    with greeted(mode=STRUCTURED) as s:
        expect(final(s, OPT_LIST_META_CONTEXT, meta_data("nope")),
               ERR_UNKNOWN, "reply")
        check_goes_on(s)


@case
def listing_selects_nothing():
    with greeted(mode=STRUCTURED) as s:
        s.list_meta(NAME, [BASE])
        s.go(NAME)
        expect(s.call(CMD_BLOCK_STATUS, 0, 4096).error, EINVAL, "status")
        check_works(s)


@case
def contexts_need_structured_replies():
    with greeted() as s:
        expect(final(s, OPT_SET_META_CONTEXT, meta_data(NAME, [BASE])),
               {ERR_INVALID, ERR_EXT_HEADER_REQD}, "SET_META")
        expect(final(s, OPT_LIST_META_CONTEXT, meta_data(NAME, [BASE])),
               {REP_ACK, ERR_INVALID, ERR_EXT_HEADER_REQD}, "LIST_META")
        check_goes_on(s)


def selected(queries, mode=STRUCTURED):
    with greeted(mode=mode) as s:
        names = list(s.set_meta(NAME, queries))
        s.go(NAME)
        if names:
            expect(set(s.status(0, 65536)), set(names), "contexts answered")
        else:
            expect(s.call(CMD_BLOCK_STATUS, 0, 4096).error, EINVAL, "status")
        check_works(s)
        return set(names)


@case
def select_contexts():
    for mode in (STRUCTURED, EXTENDED):
        for queries, wanted in (
                ([], set()), ([BASE], {BASE}), ([DEPTH], {DEPTH}),
                ([BASE, DEPTH], {BASE, DEPTH}),
                ([DEPTH, "x-none:1", BASE, BASE], {BASE, DEPTH}),
                (["base:"], set()), (["base:nope", "x-none:"], set()),
                (["other"], set())):
            if queries == ["other"]:    # no colon: INVALID is allowed too
                with greeted(mode=mode) as s:
                    expect(final(s, OPT_SET_META_CONTEXT,
                                 meta_data(NAME, queries)),
                           {REP_ACK, ERR_INVALID}, "no colon")
                    check_goes_on(s)
            else:
                expect(selected(queries, mode), wanted, "%r" % queries)


@case
def a_later_selection_replaces():
    with greeted(mode=STRUCTURED) as s:
        s.set_meta(NAME, [BASE, DEPTH])
        s.set_meta(NAME, [DEPTH])
        s.go(NAME)
        expect(set(s.status(0, 4096)), {DEPTH}, "contexts answered")
        check_works(s)
    with greeted(mode=STRUCTURED) as s:
        s.set_meta(NAME, [BASE])
        s.set_meta(NAME, [])
        s.go(NAME)
        expect(s.call(CMD_BLOCK_STATUS, 0, 4096).error, EINVAL, "none left")
        check_works(s)


@case
def a_failed_selection_replaces_too():
    for data in (meta_data("nope", [BASE]), meta_data(NAME, [BASE])[:-1],
                 b"", be("I", 0xffffffff)):
        with greeted(mode=STRUCTURED) as s:
            s.set_meta(NAME, [BASE])
            expect(final(s, OPT_SET_META_CONTEXT, data),
                   {ERR_UNKNOWN, ERR_INVALID}, hexed(data))
            s.contexts = {}
            s.go(NAME)
            expect(s.call(CMD_BLOCK_STATUS, 0, 4096).error, EINVAL, "status")
            check_works(s)


def query(length, text):
    return be("I", length) + text


MALFORMED_META = [
    ("empty", b""),
    ("half a length", b"\0\0"),
    ("name longer than the data", be("I", 5) + b"disk"),
    ("name of 2^32 - 1", be("I", 0xffffffff) + b"disk" + be("I", 0)),
    ("no query count", be("I", 4) + b"disk"),
    ("half a query count", be("I", 4) + b"disk\0\0"),
    ("a query is missing", be("I", 4) + b"disk" + be("I", 1)),
    ("a query too long",
     be("I", 4) + b"disk" + be("I", 1) + query(16, b"base:allocation")),
    ("a query of 2^32 - 1",
     be("I", 4) + b"disk" + be("I", 1) + query(0xffffffff, b"base:")),
    ("2^32 - 1 queries",
     be("I", 4) + b"disk" + be("I", 0xffffffff) + query(5, b"base:")),
    ("a byte too much",
     be("I", 4) + b"disk" + be("I", 1) + query(5, b"base:") + b"x"),
    ("data after zero queries", be("I", 4) + b"disk" + be("I", 0) + b"x"),
]


def malformed_meta(data):
    for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
        with greeted(mode=STRUCTURED) as s:
            expect(final(s, option, data), ERR_INVALID, "option %d" % option)
            check_goes_on(s)


table(malformed_meta, MALFORMED_META, "malformed META: %s")


@case
def many_queries():
    with greeted(mode=STRUCTURED) as s:
        queries = ["x-%d:y" % n for n in range(1000)] + [BASE]
        for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            expect(final(s, option, meta_data(NAME, queries)),
                   {REP_ACK, ERR_TOO_BIG}, "1001 queries")
        long = "base:" + "x" * 4091
        for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            expect(final(s, option, meta_data(NAME, [long])),
                   {REP_ACK, ERR_INVALID, ERR_TOO_BIG}, "a long query")
        check_goes_on(s)


@case
def contexts_of_another_export_are_not_used():
    if PEER:
        raise Skip("needs two exports")
    a = raw_image(scratch("a"), MIB)
    b = raw_image(scratch("b"), 2 * MIB)
    with two_exports(a, b) as srv, srv.connect() as s:
        s.greet()
        s.structured()
        s.set_meta("one", [BASE])
        s.contexts = {}
        s.go("two")
        expect(s.call(CMD_BLOCK_STATUS, 0, 4096).error, EINVAL, "status")
        s.disconnect()


# --- several exports, other transports ------------------------------------

def two_exports(a, b):
    return Server("-x", "one", a, "-x", "two", b)


@case
def several_exports():
    if PEER:
        raise Skip("has one export only")
    a = raw_image(scratch("a"), MIB, [(0, b"a" * 512)])
    b = raw_image(scratch("b"), 2 * MIB, [(0, b"b" * 512)])
    with two_exports(a, b) as srv:
        with srv.connect() as s:
            s.greet()
            expect(sorted(n for n, _ in s.list_exports()), ["one", "two"],
                   "exports")
            expect(s.info("two")[INFO_EXPORT][0], 2 * MIB, "INFO two")
            expect(s.info("")[INFO_EXPORT][0], MIB, "INFO default")
            s.abort()
        for name, size, byte in (("one", MIB, b"a"), ("two", 2 * MIB, b"b"),
                                 ("", MIB, b"a")):
            with srv.open(export=name) as s:
                expect(s.size, size, "size of %r" % name)
                expect(s.read(0, 512), byte * 512, "data of %r" % name)
                s.disconnect()


@case
def one_byte_at_a_time():
    with server().connect() as s:
        stream = (be("I", 3) + option_bytes(OPT_STRUCTURED_REPLY)
                  + option_bytes(OPT_SET_META_CONTEXT,
                                 meta_data(NAME, [BASE]))
                  + option_bytes(OPT_GO, info_data(NAME, (3,))))
        s.greet(None)
        for byte in stream:
            s.send(bytes((byte,)))
        expect(s.option_reply(OPT_STRUCTURED_REPLY)[0], REP_ACK, "first")
        s.mode = STRUCTURED
        expect(s.option_reply(OPT_SET_META_CONTEXT)[0], REP_META_CONTEXT,
               "second")
        expect(s.option_reply(OPT_SET_META_CONTEXT)[0], REP_ACK, "second")
        while s.option_reply(OPT_GO)[0] != REP_ACK:
            pass
        s.size = SIZE
        request = s.request_bytes(CMD_READ, 4096, 512, 0, 5)
        s.pending[5] = [Pending(5, CMD_READ, 4096, 512, 0, set())]
        for byte in request:
            s.send(bytes((byte,)))
        expect(bytes(s.reply(5).data), pattern(4096, 512), "data")
        s.disconnect()


main()
