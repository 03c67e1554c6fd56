# SPDX-License-Identifier: BSD-2-Clause
"""The NBD client of Apple's Virtualization framework, as others measured it.

INFO then GO, asking for BLOCK_SIZE only; NO_ZEROES; simple replies; one
connection; at most 8 requests in flight of at most 4 MiB each, aligned to
4 KiB; TRIM and WRITE_ZEROES as large as the disk (or as 32 bits allow); never
FLUSH, FUA or DISC; the end is a close. When the connection is lost it tries
again for about half a minute, sends what was in flight anew, and is out of
order for good if it fails or the disk has another size. One thread.
"""
import time

import nbdwire as nbd

IN_FLIGHT_MAX = 8
REQUEST_MAX = 4 << 20
ALIGNMENT = 4096
RECONNECT_S = 30
RANGE_MAX = (1 << 32) - ALIGNMENT


class OutOfOrder(AssertionError):
    """The client has given up: every later request of the guest fails."""


class Request:
    """One request of the guest."""

    def __init__(self, command, offset, length, data=b""):
        self.command, self.offset, self.length = command, offset, length
        self.data = data
        self.error = None
        self.cookie = None


class VZClient:
    """One attachment. `path` is the socket's, `export` the URL's name."""

    def __init__(self, path, export=""):
        if len(path.encode()) >= 104:
            raise AssertionError("the framework takes no socket path of "
                                 "%d bytes" % len(path.encode()))
        self.path, self.export = path, export
        self.flying = {}            # cookie: Request
        self.size = None
        self.connects = 0
        self.session = self._connect()  # no second try at a machine's start
        self.size = self.session.size

    def _connect(self):
        s = nbd.connect(self.path)
        try:
            s.greet(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES)
            wanted = (nbd.INFO_BLOCK_SIZE,)
            info = s.info(self.export, wanted)
            if s.go(self.export, wanted) != info:
                s.violation("GO says otherwise than INFO")
            smallest = info[nbd.INFO_BLOCK_SIZE][0]
            if smallest > 512 or s.size % 512:
                raise OutOfOrder("blocks of %d, size %d" % (smallest, s.size))
            if self.size not in (None, s.size):
                raise OutOfOrder("the size was %d and is %d"
                                 % (self.size, s.size))
        except BaseException:
            s.close()
            raise
        self.connects += 1
        return s

    def _reconnect(self):
        self.session.close()
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                self.session = self._connect()
                again = list(self.flying.values())
                self.flying.clear()
                for r in again:
                    self._send(r)
                return
            except (OSError, nbd.Closed) as e:
                if time.monotonic() > deadline:
                    raise OutOfOrder("no server for %d s: %s"
                                     % (RECONNECT_S, e)) from None
                time.sleep(0.2)

    def _send(self, r):
        self.session.note("(guest request %#x +%d)" % (r.offset, r.length))
        r.cookie = self.session.next_cookie()
        self.flying[r.cookie] = r
        self.session.request(r.command, r.offset,
                             0 if r.data else r.length, 0, r.data,
                             cookie=r.cookie)

    def submit(self, command, offset, length, data=b""):
        """Starts a request of the guest. At most 8 may be under way."""
        data_command = command in (nbd.CMD_READ, nbd.CMD_WRITE)
        if (len(self.flying) >= IN_FLIGHT_MAX or offset % ALIGNMENT
                or length % ALIGNMENT
                or length > (REQUEST_MAX if data_command else RANGE_MAX)):
            raise AssertionError("the framework would not send this")
        r = Request(command, offset, length, data)
        try:
            self._send(r)
        except nbd.Closed:
            self._reconnect()
        return r

    def wait(self):
        """The next request that ends; its error is the guest's."""
        while True:
            try:
                p = self.session.any_reply()
                break
            except nbd.Closed:
                self._reconnect()
        r = self.flying.pop(p.cookie)
        r.error = p.error
        if r.command == nbd.CMD_READ and not p.error:
            r.data = bytes(p.data)
        return r

    def run(self, command, offset, length, data=b""):
        """One request, alone."""
        wanted = self.submit(command, offset, length, data)
        r = self.wait()
        if r is not wanted or r.error:
            raise AssertionError("%s at %#x: %s" % (
                nbd.CMD_NAMES[command], offset, nbd.ERROR_NAMES[r.error]))
        return r.data

    def over_all(self, command, step=RANGE_MAX):
        """TRIM or WRITE_ZEROES of the whole disk, as mkfs does."""
        offset = 0
        while offset < self.size or self.flying:
            while offset < self.size and len(self.flying) < IN_FLIGHT_MAX:
                n = min(self.size - offset, step)
                self.submit(command, offset, n)
                offset += n
            r = self.wait()
            if r.error:
                raise AssertionError("error %d at %#x" % (r.error, r.offset))

    def close(self):
        """The machine is off: no DISC, just gone."""
        self.session.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
