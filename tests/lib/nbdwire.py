# SPDX-License-Identifier: BSD-2-Clause
"""An NBD client that trusts nobody.

Owns a session from the greeting to the end, and checks every byte that the
server sends against the specification: whatever breaks a rule raises
Violation, with the last messages of the conversation in its text. It is
explicit rather than fast, one thread per Session, and hides nothing: a test
may send any bytes at any time. Importing all of this module gives a test the
whole vocabulary: the protocol's numbers, the exceptions, Session.

Reference: doc/proto.md of NetworkBlockDevice/nbd with its branch
extension-ext-header; section names are cited where a check comes from one.
"""
import socket
import struct

from nbdbytes import *
from nbdproto import *
from nbdreply import *

def power_of_two(n):
    return n > 0 and n & (n - 1) == 0


class Session(Replies):
    """A session from the greeting to the end."""

    def __init__(self, rfd, wfd=None, owner=None, stuck_s=STUCK_S):
        super().__init__(rfd, wfd, owner, stuck_s)
        self.no_zeroes = False
        self.flags = 0
        self.sent_count = 0

    # --- handshake ------------------------------------------------------

    def greet(self, client_flags=FIXED_NEWSTYLE | NO_ZEROES):
        """Reads the greeting; sends the client flags unless None."""
        magic, second, flags = struct.unpack(">QQH", self.recv(18))
        if (magic, second) != (INIT_MAGIC, OPTION_MAGIC):
            self.violation("greeting %#x %#x" % (magic, second))
        if flags & ~(FIXED_NEWSTYLE | NO_ZEROES):
            self.violation("unknown handshake flags %#x" % flags)
        self.server_flags = flags
        if client_flags is not None:
            self.no_zeroes = bool(client_flags & NO_ZEROES)
            self.send(be("I", client_flags))

    def option_reply(self, option):
        """One reply: (type, data), with everything checked that can be."""
        magic, echoed, kind, length = struct.unpack(
            ">QIII", self.recv(20, boundary=True))
        if magic != OPTION_REPLY_MAGIC or echoed != option:
            self.violation("option reply %#x to option %d, expected %d"
                           % (magic, echoed, option))
        if length > 1 << 20:
            self.violation("option reply of %d bytes" % length)
        data = self.recv(length)
        self.note("< option %d reply %#x %s" % (option, kind, hexed(data)))
        allowed = {OPT_LIST: REP_SERVER, OPT_INFO: REP_INFO, OPT_GO: REP_INFO,
                   OPT_LIST_META_CONTEXT: REP_META_CONTEXT,
                   OPT_SET_META_CONTEXT: REP_META_CONTEXT}
        if kind & REP_ERR:
            self.check_text(data)
            if not ERR_UNSUP <= kind <= ERR_EXT_HEADER_REQD:
                self.violation("unknown error reply %#x" % kind)
        elif kind == REP_ACK:
            if data:
                self.violation("ACK with %d bytes of data" % length)
        elif kind != allowed.get(option):
            self.violation("reply type %#x to option %d" % (kind, option))
        return kind, data

    def check_text(self, data):
        """"Conventions": UTF-8, no NUL, at most 4096 bytes."""
        if len(data) > STRING_MAX or b"\0" in data:
            self.violation("not a string: %s" % hexed(data))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return self.violation("not UTF-8: %s" % hexed(data))

    def option(self, option, data=b"", length=None):
        """Sends an option, returns all replies; the last is final."""
        self.note("> option %d %s" % (option, hexed(data)))
        self.send(option_bytes(option, data, length))
        replies = []
        while True:
            replies.append(self.option_reply(option))
            kind = replies[-1][0]
            if kind == REP_ACK or kind & REP_ERR:
                return replies
            if len(replies) > 100000:
                self.violation("endless replies to option %d" % option)

    def must(self, option, data=b""):
        """As option, and the final reply is ACK; returns those before."""
        replies = self.option(option, data)
        kind, text = replies[-1]
        if kind != REP_ACK:
            raise OptionError(option, kind, text)
        return replies[:-1]

    def structured(self):
        self.must(OPT_STRUCTURED_REPLY)
        self.mode = STRUCTURED

    def extended(self):
        self.must(OPT_EXTENDED_HEADERS)
        self.mode = EXTENDED

    def use_mode(self, mode):
        if mode == STRUCTURED:
            self.structured()
        elif mode == EXTENDED:
            self.extended()

    def list_exports(self):
        """[(name, description)]"""
        out = []
        for _, data in self.must(OPT_LIST):
            if len(data) < 4:
                self.violation("SERVER reply of %d bytes" % len(data))
            n = struct.unpack(">I", data[:4])[0]
            if n > len(data) - 4:
                self.violation("SERVER name longer than its reply")
            out.append((self.check_text(data[4:4 + n]),
                        self.check_text(data[4 + n:])))
        return out

    def _meta(self, option, name, queries):
        out = []
        for _, data in self.must(option, meta_data(name, queries)):
            if len(data) < 4:
                self.violation("META_CONTEXT reply of %d bytes" % len(data))
            text = self.check_text(data[4:])
            if ":" not in text[1:]:
                self.violation("context without namespace: %r" % text)
            out.append((struct.unpack(">I", data[:4])[0], text))
        return out

    def list_meta(self, name="", queries=()):
        found = self._meta(OPT_LIST_META_CONTEXT, name, queries)
        return [text for _, text in found]

    def set_meta(self, name, queries):
        """Selects; returns {name: id}."""
        found = self._meta(OPT_SET_META_CONTEXT, name, queries)
        self.contexts = dict(found)
        if len(self.contexts) != len(found):
            self.violation("context ids are not unique: %r" % found)
        if len(set(self.contexts.values())) != len(found):
            self.violation("a context was selected twice: %r" % found)
        return {text: number for number, text in found}

    def parse_info(self, replies):
        """{type: value}, checked as "NBD_REP_INFO" and "Size constraints"
        say."""
        info = {}
        for _, data in replies:
            if len(data) < 2:
                self.violation("INFO reply of %d bytes" % len(data))
            kind = struct.unpack(">H", data[:2])[0]
            if kind in info:
                self.violation("information %d came twice" % kind)
            want = {INFO_EXPORT: 12, INFO_BLOCK_SIZE: 14}.get(kind)
            if want is not None and len(data) != want:
                self.violation("information %d has %d bytes"
                               % (kind, len(data)))
            if kind == INFO_EXPORT:
                info[kind] = struct.unpack(">QH", data[2:])
            elif kind == INFO_BLOCK_SIZE:
                info[kind] = struct.unpack(">III", data[2:])
                self.check_block_size(*info[kind])
            elif kind in (INFO_NAME, INFO_DESCRIPTION):
                info[kind] = self.check_text(data[2:])
            else:
                info[kind] = data[2:]
        return info

    def check_block_size(self, smallest, preferred, payload):
        if not power_of_two(smallest) or smallest > 65536:
            self.violation("minimum block size %d" % smallest)
        if not power_of_two(preferred) or preferred < max(512, smallest):
            self.violation("preferred block size %d" % preferred)
        if payload < preferred:
            self.violation("maximum payload %d below the preferred block size"
                           % payload)

    def check_flags(self, flags):
        """"Transmission flags"."""
        bad = []
        if not flags & FLAG_HAS_FLAGS:
            bad.append("HAS_FLAGS clear")
        if flags & ~FLAGS_KNOWN:
            bad.append("unknown bits")
        if flags & FLAG_SEND_DF and self.mode == SIMPLE:
            bad.append("SEND_DF without structured replies")
        if flags & FLAG_SEND_FAST_ZERO and not flags & FLAG_SEND_WRITE_ZEROES:
            bad.append("FAST_ZERO without WRITE_ZEROES")
        if flags & FLAG_BLOCK_STATUS_PAYLOAD and self.mode != EXTENDED:
            bad.append("BLOCK_STATUS_PAYLOAD without extended headers")
        if bad:
            self.violation("transmission flags %#x: %s"
                           % (flags, ", ".join(bad)))

    def info(self, name="", requests=(), option=OPT_INFO):
        info = self.parse_info(self.must(option, info_data(name, requests)))
        if INFO_EXPORT not in info:
            self.violation("ACK without INFO_EXPORT")
        size, flags = info[INFO_EXPORT]
        self.check_flags(flags)
        if INFO_BLOCK_SIZE in info:
            smallest, preferred, payload = info[INFO_BLOCK_SIZE]
            if size >= 1 << 20 and payload < 1 << 20:
                self.violation("maximum payload %d" % payload)
        return info

    def go(self, name="", requests=(INFO_BLOCK_SIZE,)):
        info = self.info(name, requests, OPT_GO)
        self.size, self.flags = info[INFO_EXPORT]
        if INFO_BLOCK_SIZE in info:
            self.block_min, self.block_pref, self.payload_max = (
                info[INFO_BLOCK_SIZE])
            self.block_size_told = True
        return info

    def export_name(self, name=""):
        """The old way into transmission; Closed if there is no such
        export."""
        name = name.encode() if isinstance(name, str) else name
        self.send(option_bytes(OPT_EXPORT_NAME, name))
        self.size, self.flags = struct.unpack(
            ">QH", self.recv(10, boundary=True))
        if not self.no_zeroes and self.recv(124) != bytes(124):
            self.violation("the 124 reserved bytes are not zero")
        self.check_flags(self.flags)

    def abort(self):
        """Soft disconnect; the server acknowledges and closes."""
        self.must(OPT_ABORT)
        self.expect_eof()
        self.close()

    # --- requests -------------------------------------------------------

    def next_cookie(self):
        self.sent_count += 1
        return self.sent_count * 0x9e3779b97f4a7c15 & (1 << 64) - 1

    def request_bytes(self, command, offset=0, length=0, flags=0, cookie=0,
                      magic=None):
        if self.mode == EXTENDED:
            return be("IHHQQQ", magic or EXTENDED_REQUEST_MAGIC, flags,
                      command, cookie, offset, length)
        return be("IHHQQI", magic or REQUEST_MAGIC, flags, command, cookie,
                  offset, length)

    def request(self, command, offset=0, length=0, flags=0, payload=b"",
                cookie=None, contexts=None, effect=None):
        """
        Sends one request and returns its cookie. `length` is the header's
        field, and follows from `payload` for WRITE, which also gets
        PAYLOAD_LEN where extended headers want it. `effect` is the effect
        length where it is not `length` (BLOCK_STATUS with a payload), and
        `contexts` the ids that reply must have then.
        """
        if cookie is None:
            cookie = self.next_cookie()
        if command == CMD_WRITE and not length:
            length = len(payload)
            if self.mode == EXTENDED:
                flags |= F_PAYLOAD_LEN
        p = Pending(cookie, command, offset,
                    length if effect is None else effect, flags,
                    set(self.contexts) if contexts is None else contexts)
        header = self.request_bytes(command, offset, length, flags, cookie)
        self.note("> %s payload %d" % (p, len(payload)))
        if command != CMD_DISC:
            self.pending.setdefault(cookie, []).append(p)
        if len(payload) <= 1 << 16:
            self.send(header + bytes(payload))
        else:
            self.send(header)
            self.send(payload)
        return cookie

    def in_flight(self):
        return sum(len(same) for same in self.pending.values())

    # --- one request at a time --------------------------------------------

    def call(self, command, offset=0, length=0, flags=0, payload=b"",
             **more):
        return self.reply(self.request(command, offset, length, flags,
                                       payload, **more))

    def ok(self, command, offset=0, length=0, flags=0, payload=b"", **more):
        p = self.call(command, offset, length, flags, payload, **more)
        if p.error:
            raise AssertionError("%s: %s %r%s" % (
                p, ERROR_NAMES[p.error], p.message, self.story()))
        return p

    def read(self, offset, length, flags=0):
        return bytes(self.ok(CMD_READ, offset, length, flags).data)

    def write(self, offset, data, flags=0):
        self.ok(CMD_WRITE, offset, flags=flags, payload=data)

    def zero(self, offset, length, flags=0):
        self.ok(CMD_WRITE_ZEROES, offset, length, flags)

    def trim(self, offset, length, flags=0):
        self.ok(CMD_TRIM, offset, length, flags)

    def flush(self):
        self.ok(CMD_FLUSH)

    def status(self, offset, length, flags=0):
        """{context name: [(length, status)]}"""
        p = self.ok(CMD_BLOCK_STATUS, offset, length, flags)
        return {self.contexts[c]: e for c, e in p.extents.items()}

    def disconnect(self):
        """DISC; the server answers what it owes and closes."""
        self.request(CMD_DISC)
        while self.in_flight():
            p = self.message()
            if p is not None:
                self.done.setdefault(p.cookie, []).append(p)
        self.expect_eof()
        self.close()


def connect(address, stuck_s=STUCK_S):
    """`address`: the path of a Unix socket, or (host, port)."""
    if isinstance(address, str):
        s = socket.socket(socket.AF_UNIX)
    elif ":" in address[0]:
        s = socket.socket(socket.AF_INET6)
    else:
        s = socket.socket(socket.AF_INET)
    # A blocking connect waits in the listener's queue; with a Python timeout
    # it would fail at once when that is full.
    wait = struct.pack("ll", int(stuck_s), 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    try:
        s.connect(address)
    except BlockingIOError:
        s.close()
        raise Stuck("the server does not accept") from None
    except BaseException:
        s.close()
        raise
    if s.family != socket.AF_UNIX:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Session(s.fileno(), owner=s, stuck_s=stuck_s)


def open_session(address, export="", mode=SIMPLE, contexts=(),
                 requests=(INFO_BLOCK_SIZE,), stuck_s=STUCK_S):
    """Connects and goes all the way into the transmission phase."""
    s = connect(address, stuck_s)
    try:
        s.greet()
        s.use_mode(mode)
        if contexts:
            s.set_meta(export, contexts)
        s.go(export, requests)
    except BaseException:
        s.close()
        raise
    return s


def walk_status(s, offset, length, context="base:allocation", step=None):
    """All extents of a range, by as many requests as it takes, joined:
    [(offset, length, status)]."""
    out = []
    end = offset + length
    while offset < end:
        want = min(end - offset, step or end - offset)
        if s.mode != EXTENDED:
            want = min(want, (1 << 32) - 1 & ~4095)
        for n, status in s.status(offset, want)[context]:
            n = min(n, end - offset)
            if not n:
                break
            if out and out[-1][2] == status:
                out[-1] = (out[-1][0], out[-1][1] + n, status)
            else:
                out.append((offset, n, status))
            offset += n
    return out
