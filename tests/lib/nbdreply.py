# SPDX-License-Identifier: BSD-2-Clause
"""The server's replies in the transmission phase, checked byte by byte.

Owns the requests in flight. One thread. Whatever breaks a rule of doc/proto.md
("Structured reply types", "Request types", "Ordering of messages and writes")
raises Violation.
"""
import collections
import struct

from nbdbytes import Wire, hexed
from nbdproto import *

Chunk = collections.namedtuple("Chunk", "type offset length")


class Pending:
    """One request in flight and what has come of its reply so far."""

    def __init__(self, cookie, command, offset, length, flags, contexts):
        self.cookie, self.command, self.flags = cookie, command, flags
        self.offset, self.length = offset, length   # length: of the effect
        self.contexts = contexts                    # ids a status must answer
        self.error, self.message = OK, ""
        self.errors = []          # (error, offset or None, text)
        self.chunks = []          # content chunks in order of arrival
        self.data = None          # of a READ, once some of it has come
        self.covered = []         # sorted, disjoint (start, end) of content
        self.extents = {}         # context id: [(length, status)]
        self.style = None         # "simple" or "chunks"

    def __str__(self):
        name = (CMD_NAMES[self.command] if self.command < len(CMD_NAMES)
                else "command %d" % self.command)
        return "%s flags %#x [%#x +%#x] cookie %#x" % (
            name, self.flags, self.offset, self.length, self.cookie)

    def uncovered(self):
        """The first byte of the request that no content chunk has, or
        None."""
        at = self.offset
        for start, end in self.covered:
            if start > at:
                break
            at = end
        return at if at < self.offset + self.length else None


class Replies(Wire):
    """Requests in flight and their replies."""

    def __init__(self, rfd, wfd, owner, stuck_s):
        super().__init__(rfd, wfd, owner, stuck_s)
        self.mode = SIMPLE
        self.size = None
        self.block_min, self.block_pref = 1, 4096
        self.payload_max = PAYLOAD_MAX_DEFAULT
        self.block_size_told = False
        self.contexts = {}        # id: name, as selected
        self.pending = {}         # cookie: [Pending], oldest first
        self.done = {}            # cookie: [Pending], answered, not claimed

    def _pending(self, cookie):
        same = self.pending.get(cookie)
        if not same:
            self.violation("reply with a cookie that is not in flight: %#x"
                           % cookie)
        return same[0]

    def _finish(self, p):
        self.pending[p.cookie].pop(0)
        if not self.pending[p.cookie]:
            del self.pending[p.cookie]
        self.check_whole(p)
        if p.command == CMD_READ and p.data is None:
            p.data = b""
        self.note("< %s: %s %s" % (p, ERROR_NAMES[p.error],
                                   [tuple(c) for c in p.chunks[:4]]))
        return p

    def check_error(self, error):
        if error not in ERROR_NAMES:
            self.violation("error value %d is not one of NBD's" % error)

    def check_whole(self, p):
        """What must hold once a reply is complete."""
        if p.error:
            return
        if p.command == CMD_READ and p.style == "chunks":
            hole = p.uncovered()
            if hole is not None:
                self.violation("%s: success, but nothing for %#x" % (p, hole))
        if p.command == CMD_BLOCK_STATUS and set(p.extents) != p.contexts:
            self.violation("%s: contexts %r answered, %r expected"
                           % (p, sorted(p.extents), sorted(p.contexts)))

    def message(self):
        """Reads one message; the Pending it completes, or None."""
        if self.mode == EXTENDED:
            return self._extended_chunk()
        magic = struct.unpack(">I", self.recv(4, boundary=True))[0]
        if magic == SIMPLE_REPLY_MAGIC:
            return self._simple()
        if magic != STRUCTURED_REPLY_MAGIC or self.mode != STRUCTURED:
            self.violation("reply magic %#x in %s mode" % (magic, self.mode))
        flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
        return self._chunk(self._pending(cookie), flags, kind, length)

    def _simple(self):
        error, cookie = struct.unpack(">IQ", self.recv(12))
        p = self._pending(cookie)
        p.style = "simple"
        if p.chunks or p.errors or p.extents:
            self.violation("%s: simple reply after chunks" % p)
        if self.mode == STRUCTURED and p.command == CMD_READ:
            self.violation("%s: simple reply" % p)
        if p.command == CMD_BLOCK_STATUS and not error:
            self.violation("%s: simple reply says success" % p)
        self.check_error(error)
        p.error = error
        if p.command == CMD_READ and not error:
            p.data = self.recv(p.length)
        return self._finish(p)

    def _extended_chunk(self):
        magic, flags, kind, cookie, offset, length = struct.unpack(
            ">IHHQQQ", self.recv(32, boundary=True))
        if magic != EXTENDED_REPLY_MAGIC:
            self.violation("reply magic %#x in extended mode" % magic)
        p = self._pending(cookie)
        if offset != p.offset:
            self.violation("%s: reply says offset %#x" % (p, offset))
        return self._chunk(p, flags, kind, length)

    def _chunk(self, p, flags, kind, length):
        p.style = "chunks"
        if flags & ~REPLY_DONE:
            self.violation("%s: reply flags %#x" % (p, flags))
        if length > (1 << 32) - 1:
            self.violation("%s: chunk of %#x bytes" % (p, length))
        handler = self.CHUNKS.get(kind)
        if handler is None:
            self.violation("%s: chunk type %#x" % (p, kind))
        handler(self, p, length, flags)
        return self._finish(p) if flags & REPLY_DONE else None

    def _chunk_none(self, p, length, flags):
        if length or not flags & REPLY_DONE:
            self.violation("%s: NONE with length %d, flags %#x"
                           % (p, length, flags))

    def _content(self, p, chunk):
        """Rules common to data and holes."""
        if p.command != CMD_READ:
            self.violation("%s: content chunk" % p)
        if not chunk.length:
            self.violation("%s: empty content chunk" % p)
        if chunk.offset < p.offset or (
                chunk.offset + chunk.length > p.offset + p.length):
            self.violation("%s: content outside the request: %r" % (p, chunk))
        if p.flags & F_DF and p.chunks:
            self.violation("%s: second content chunk despite DF" % p)
        end = chunk.offset + chunk.length
        for start, stop in p.covered:
            if chunk.offset < stop and start < end:
                self.violation("%s: %r overlaps" % (p, chunk))
        for _, offset, _ in p.errors:
            if offset is not None and chunk.offset <= offset < end:
                self.violation("%s: %r after an error in it" % (p, chunk))
        p.covered.append((chunk.offset, end))
        p.covered.sort()
        p.chunks.append(chunk)
        if p.data is None:
            p.data = bytearray(p.length)

    def _chunk_data(self, p, length, _flags):
        if length < 9:
            self.violation("%s: OFFSET_DATA of length %d" % (p, length))
        if length - 8 > max(self.payload_max, p.length):
            self.violation("%s: OFFSET_DATA of length %d" % (p, length))
        chunk = Chunk(CHUNK_OFFSET_DATA,
                      struct.unpack(">Q", self.recv(8))[0], length - 8)
        self._content(p, chunk)
        data = self.recv(chunk.length)
        at = chunk.offset - p.offset
        p.data[at:at + chunk.length] = data

    def _chunk_hole(self, p, length, _flags):
        if length != 12:
            self.violation("%s: OFFSET_HOLE of length %d" % (p, length))
        offset, size = struct.unpack(">QI", self.recv(12))
        self._content(p, Chunk(CHUNK_OFFSET_HOLE, offset, size))
        # p.data began as zeroes, and nothing else may cover the hole.

    def _chunk_status(self, p, length, _flags):
        if self.mode == EXTENDED:
            self.violation("%s: 32-bit status in extended mode" % p)
        if length < 12 or length % 8 != 4:
            self.violation("%s: BLOCK_STATUS of length %d" % (p, length))
        data = self.recv(length)
        self._status(p, struct.unpack(">I", data[:4])[0],
                     list(struct.iter_unpack(">II", data[4:])))

    def _chunk_status_ext(self, p, length, _flags):
        if self.mode != EXTENDED:
            self.violation("%s: 64-bit status in compact mode" % p)
        if length < 24 or length % 16 != 8:
            self.violation("%s: BLOCK_STATUS_EXT of length %d" % (p, length))
        data = self.recv(length)
        context, count = struct.unpack(">II", data[:8])
        extents = list(struct.iter_unpack(">QQ", data[8:]))
        if count != len(extents):
            self.violation("%s: count %d, but %d descriptors"
                           % (p, count, len(extents)))
        self._status(p, context, extents)

    def _status(self, p, context, extents):
        if p.command != CMD_BLOCK_STATUS:
            self.violation("%s: status chunk" % p)
        if context not in p.contexts or context in p.extents:
            self.violation("%s: context %d unknown or repeated"
                           % (p, context))
        if len(extents) > EXTENTS_MAX:
            self.violation("%s: %d extents" % (p, len(extents)))
        if p.flags & F_REQ_ONE and (len(extents) != 1
                                    or extents[0][0] > p.length):
            self.violation("%s: REQ_ONE answered with %r" % (p, extents[:9]))
        total = 0
        for length, status in extents:
            if not length:
                self.violation("%s: extent of no length: %r"
                               % (p, extents[:9]))
            if total and total >= p.length:
                self.violation("%s: extent begins past the request: %r"
                               % (p, extents[-9:]))
            if self.block_size_told and length % self.block_min:
                self.violation("%s: extent of %d bytes is not in blocks"
                               % (p, length))
            if self.contexts[context] == "base:allocation" and status & ~3:
                self.violation("%s: reserved status bits %#x" % (p, status))
            total += length
        if total > self.size - p.offset:
            self.violation("%s: extents reach %d past the end of the export"
                           % (p, total - (self.size - p.offset)))
        p.extents[context] = extents

    def _error(self, p, length, tail):
        """The common beginning of error chunks; returns what is after the
        text."""
        if length < 6 + tail or length > 6 + tail + STRING_MAX:
            self.violation("%s: error chunk of length %d" % (p, length))
        data = self.recv(length)
        error, size = struct.unpack(">IH", data[:6])
        if not error or size != length - 6 - tail:
            self.violation("%s: error chunk %s" % (p, hexed(data)))
        self.check_error(error)
        text = self.check_text(data[6:6 + size])
        if not p.error:
            p.error, p.message = error, text
        return error, text, data[6 + size:]

    def _chunk_error(self, p, length, _flags):
        error, text, _ = self._error(p, length, 0)
        if any(offset is None for _, offset, _ in p.errors):
            self.violation("%s: two ERROR chunks" % p)
        p.errors.append((error, None, text))

    def _chunk_error_offset(self, p, length, _flags):
        error, text, tail = self._error(p, length, 8)
        offset = struct.unpack(">Q", tail)[0]
        if p.command in (CMD_FLUSH, CMD_DISC, CMD_RESIZE) or not (
                p.offset <= offset < p.offset + max(p.length, 1)):
            self.violation("%s: error at offset %#x" % (p, offset))
        p.errors.append((error, offset, text))

    CHUNKS = {
        CHUNK_NONE: _chunk_none,
        CHUNK_OFFSET_DATA: _chunk_data,
        CHUNK_OFFSET_HOLE: _chunk_hole,
        CHUNK_BLOCK_STATUS: _chunk_status,
        CHUNK_BLOCK_STATUS_EXT: _chunk_status_ext,
        CHUNK_ERROR: _chunk_error,
        CHUNK_ERROR_OFFSET: _chunk_error_offset,
    }

    def any_reply(self):
        """The next request to be answered, whichever it is."""
        for cookie, same in self.done.items():
            p = same.pop(0)
            if not same:
                del self.done[cookie]
            return p
        while True:
            p = self.message()
            if p is not None:
                return p

    def reply(self, cookie):
        """The answer to this request; others are kept for later."""
        while cookie not in self.done:
            p = self.message()
            if p is not None:
                self.done.setdefault(p.cookie, []).append(p)
        same = self.done[cookie]
        p = same.pop(0)
        if not same:
            del self.done[cookie]
        return p
