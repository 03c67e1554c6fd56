# SPDX-License-Identifier: BSD-2-Clause
"""Bytes to and from an NBD server, with a deadline and a trace.

Owns one connection's descriptors. One thread. Knows nothing of the protocol
but how a broken rule is reported.
"""
import collections
import os
import select
import socket
import time

# How long nothing at all may arrive before a test says that the server is
# stuck. Not a performance figure: generous for a busy machine under TSan.
STUCK_S = 30 * float(os.environ.get("REWIND_TIMEOUT_SCALE", "1"))


class Violation(AssertionError):
    """The server broke a rule of the protocol."""


class Stuck(AssertionError):
    """The server owes bytes and does not send them."""


class Closed(Exception):
    """The server closed the connection; `clean` at a message boundary."""

    def __init__(self, text, clean):
        super().__init__(text)
        self.clean = clean


class OptionError(AssertionError):
    """An option was refused where the test needed it."""

    def __init__(self, option, code, text):
        super().__init__("option %d refused with %#x: %r"
                         % (option, code, text))
        self.option, self.code, self.text = option, code, text


def hexed(data, limit=48):
    """Bytes as a person can read them, with their number."""
    data = bytes(data[:limit + 1])
    more = "..." if len(data) > limit else ""
    return data[:limit].hex() + more


class Wire:
    """Bytes in both directions, with a deadline and a trace."""

    def __init__(self, rfd, wfd=None, owner=None, stuck_s=STUCK_S):
        self.rfd, self.wfd = rfd, rfd if wfd is None else wfd
        self.owner = owner          # keeps a socket alive; closed with us
        self.stuck_s = stuck_s
        self.buf = bytearray()
        self.eof = False
        self.reads_while_sending = True
        self.trace = collections.deque(maxlen=24)
        os.set_blocking(self.rfd, False)
        os.set_blocking(self.wfd, False)

    def note(self, text):
        self.trace.append(text)

    def story(self):
        return "\n    ".join(["", "last messages:"] + list(self.trace))

    def violation(self, text):
        raise Violation(text + self.story())

    def _wait(self, write, deadline):
        poll = select.poll()
        if self.rfd == self.wfd:
            poll.register(self.rfd, select.POLLIN * (not write
                          or (self.reads_while_sending and not self.eof))
                          | select.POLLOUT * write)
        else:
            if write:
                poll.register(self.wfd, select.POLLOUT)
            if not write or (self.reads_while_sending and not self.eof):
                poll.register(self.rfd, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            if time.monotonic() < deadline:
                return
            raise Stuck("nothing for %.0f s while %s (%d bytes buffered)%s"
                        % (self.stuck_s, "sending" if write else "receiving",
                           len(self.buf), self.story()))

    def _fill(self):
        """Takes what is there; False if nothing is."""
        try:
            data = os.read(self.rfd, 1 << 20)
        except BlockingIOError:
            return False
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if not data:
            self.eof = True
        self.buf += data
        return True

    def send(self, data):
        """All of it. Reads meanwhile, as a client must that pipelines."""
        view = memoryview(data)
        deadline = time.monotonic() + self.stuck_s
        while len(view):
            try:
                n = os.write(self.wfd, view[:1 << 20])
                view = view[n:]
                deadline = time.monotonic() + self.stuck_s
                continue
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                self.note("! send: peer has closed")
                raise Closed("closed while we sent" + self.story(),
                             True) from None
            if self.reads_while_sending and not self.eof and self._fill():
                continue
            self._wait(True, deadline)

    def fill_to(self, n):
        """True once n bytes are buffered, False at end of file before."""
        deadline = time.monotonic() + self.stuck_s
        while len(self.buf) < n and not self.eof:
            if self._fill():
                deadline = time.monotonic() + self.stuck_s
            else:
                self._wait(False, deadline)
        return len(self.buf) >= n

    def recv(self, n, boundary=False):
        """Exactly n bytes. `boundary`: end of file here is in good order."""
        if not self.fill_to(n):
            clean = boundary and not self.buf
            raise Closed("closed%s, %d of %d bytes: %s%s" % (
                "" if clean else " inside a message", len(self.buf), n,
                hexed(self.buf), self.story()), clean)
        data = bytes(memoryview(self.buf)[:n])
        del self.buf[:n]
        return data

    def readable(self, timeout_s):
        """Whether a byte or the end of file comes within the time."""
        deadline = time.monotonic() + timeout_s
        while not self.buf and not self.eof:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self.rfd], [], [], left)
            self._fill()
        return True

    def expect_eof(self):
        """The server closes and sends nothing before."""
        self.fill_to(1)
        if self.buf:
            self.violation("expected a close, got %s" % hexed(self.buf))

    def close_sending(self):
        """Our half is done; replies still come."""
        if self.owner is not None:
            try:
                self.owner.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        elif self.wfd != self.rfd and self.wfd >= 0:
            os.close(self.wfd)
            self.wfd = -1

    def close(self):
        """Without a word, as a killed client does."""
        if self.owner is not None:
            self.owner.close()
            self.owner = None
        elif self.rfd >= 0:
            os.close(self.rfd)
            if self.wfd not in (self.rfd, -1):
                os.close(self.wfd)
        self.rfd = self.wfd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
