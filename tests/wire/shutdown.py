#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The end of a server: SIGTERM and SIGINT under load.

Requests that the server has taken are answered, in whole, then the sessions
close; what was answered is in the file; the exit status is 0 and nothing is
left behind (rewindserver.py looks). doc/proto.md, "Terminating the
transmission phase", "Termination of the session during option haggling".
"""
import fcntl
import os
import random
import signal
import struct
import sys
import termios
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (SANITIZED, Skip, case, expect, expect_bytes, main,
                     scratch)
from images import MIB, pattern, raw_image, sha256
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 64 * MIB
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Not a performance figure (bench/ has that): a person's patience.
SOON_S = 5 if not SANITIZED else 50


def image(name="image"):
    return raw_image(scratch(name), SIZE, [(0, pattern(0, MIB))])


def wait_taken(s):
    """Until the server has taken every byte that we have sent."""
    deadline = time.monotonic() + STUCK_S
    while struct.unpack("i", fcntl.ioctl(s.wfd, termios.TIOCOUTQ,
                                         b"\0" * 4))[0]:
        if time.monotonic() > deadline:
            raise Stuck("the server does not read requests")
        time.sleep(0.002)


def end_soon(srv, number=None):
    """With a signal, or after one that was sent."""
    start = time.monotonic()
    if number is None:
        srv.wait()
    srv.stop(number or signal.SIGTERM)
    expect(time.monotonic() - start < SOON_S, True, "ends soon")


@case
def an_idle_server_ends():
    for number in SIGNALS:
        end_soon(Server(image()), number)


@case
def idle_sessions_do_not_hold_it_up():
    for number in SIGNALS:
        srv = Server(image())
        idle = [srv.open(MODES[n % len(MODES)]) for n in range(10)]
        silent = [srv.connect() for _ in range(10)]
        end_soon(srv, number)
        for s in idle + silent:
            s.recv(len(s.buf))
        for s in idle:
            s.expect_eof()
        for s in idle + silent:
            s.close()


@case
def what_is_taken_is_answered():
    # More than the kernel holds for a reader that waits, so that much of it
    # is still to be sent when the signal comes.
    if PEER:
        raise Skip("drops requests")
    for number in SIGNALS:
        for mode in MODES:
            srv = Server(image())
            with srv.open(mode) as s:
                sent = send_mixed(s)
                wait_taken(s)
                os.kill(srv.pid, number)
                time.sleep(0.1)
                for cookie, offset in sent:
                    p = s.reply(cookie)
                    expect(p.error, {OK, ESHUTDOWN}, "%s" % p)
                    if offset is not None and not p.error:
                        expect_bytes(bytes(p.data), pattern(offset, 65536),
                                     offset, "answer")
                s.expect_eof()
            end_soon(srv)


def send_mixed(s):
    """Reads, zeroes and flushes by one send, so that the server takes all of
    them before it can be held up by what it answers: [(cookie, offset if a
    read)]."""
    sent, stream = [], b""
    for n in range(100):
        offset = n * 4096 % (MIB - 65536)
        command, length = CMD_READ, 65536
        if n % 10 == 4:
            command, offset = CMD_WRITE_ZEROES, 2 * MIB + offset
        elif n % 10 == 9:
            command, offset, length = CMD_FLUSH, 0, 0
        cookie = s.next_cookie()
        stream += s.request_bytes(command, offset, length, 0, cookie)
        s.pending[cookie] = [Pending(cookie, command, offset, length, 0,
                                     set())]
        sent.append((cookie, offset if command == CMD_READ else None))
    s.send(stream)
    return sent


def load(s, rng, stop, told, first_bad):
    """Writes and reads until the server goes; remembers what it was told."""
    flying = {}
    try:
        while not stop.is_set() or flying:
            while len(flying) < 16 and not stop.is_set():
                offset = rng.randrange(0, SIZE // 65536) * 65536
                if any(o == offset for o, _ in flying.values()):
                    continue
                salt = rng.randrange(1, 100)
                cookie = s.request(CMD_WRITE, offset,
                                   payload=pattern(offset, 65536, salt))
                flying[cookie] = (offset, salt)
                told.pop(offset, None)      # until it is answered
            p = s.any_reply()
            offset, salt = flying.pop(p.cookie)
            if not p.error:
                told[offset] = salt
            elif p.error != ESHUTDOWN:
                first_bad.append("%s: %d" % (p, p.error))
    except Closed as e:
        if not e.clean:
            first_bad.append("a torn reply: %s" % e)


@case
def what_was_answered_is_in_the_file():
    for number in SIGNALS:
        path = image("written")
        srv = Server(path, ephemeral=False)
        stop, bad = threading.Event(), []
        told = [{} for _ in range(3)]
        # Sessions write to the same places, so each looks after its own
        # third of them.
        sessions = [srv.open(MODES[n % len(MODES)]) for n in range(3)]
        threads = []
        for n, s in enumerate(sessions):
            rng = ThirdOnly(n)
            threads.append(threading.Thread(
                target=load, args=(s, rng, stop, told[n], bad)))
            threads[-1].start()
        time.sleep(0.5)
        end_soon(srv, number)
        stop.set()
        for t in threads:
            t.join()
        for s in sessions:
            s.close()
        expect(bad, [], "errors")
        expect(sum(len(t) for t in told) > 20, True, "enough was written")
        with open(path, "rb") as f:
            for part in told:
                for offset, salt in part.items():
                    f.seek(offset)
                    expect_bytes(f.read(65536), pattern(offset, 65536, salt),
                                 offset, "file")


class ThirdOnly(random.Random):
    """Random numbers of which the offsets stay within one session's third."""

    def __init__(self, n):
        super().__init__(n)
        self.n = n

    def randrange(self, start, stop=None, step=1):
        if stop == SIZE // 65536:
            return super().randrange(self.n, stop, 3)
        return super().randrange(start, stop, step)


@case
def the_base_is_not_touched():
    path = image("base")
    before = sha256(path), os.stat(path).st_mtime_ns
    srv = Server(path)
    with srv.open() as s:
        for n in range(100):
            s.request(CMD_WRITE, n * 65536, payload=b"w" * 65536)
        end_soon(srv, signal.SIGTERM)
    expect((sha256(path), os.stat(path).st_mtime_ns), before, "base")


@case
def a_client_that_never_reads_does_not_hold_it_up():
    if PEER:
        raise Skip("not what this server promises")
    for number in SIGNALS:
        srv = Server(image())
        with srv.open() as s:
            s.reads_while_sending = False
            for _ in range(200):
                s.request(CMD_READ, 0, 65536)
            time.sleep(0.2)
            os.kill(srv.pid, number)
            time.sleep(0.2)
            # The server may wait a little for the reader; a second signal
            # says not to.
            if not srv.ended():
                os.kill(srv.pid, number)
            srv.wait(SOON_S)
            expect(srv.process.returncode >= 0 or
                   -srv.process.returncode == number, True,
                   "exit status %d" % srv.process.returncode)
        srv.kill()


@case
def a_client_that_never_reads_and_one_signal():
    if PEER:
        raise Skip("not what this server promises")
    srv = Server(image())
    with srv.open() as s:
        s.reads_while_sending = False
        for _ in range(200):
            s.request(CMD_READ, 0, 65536)
        time.sleep(0.2)
        start = time.monotonic()
        os.kill(srv.pid, signal.SIGTERM)
        srv.wait(4 * SOON_S)
        expect(srv.process.returncode, 0, "exit status")
        print("      took %.1f s" % (time.monotonic() - start))
    srv.stop()


@case
def a_handshake_is_told():
    for option, data in ((OPT_LIST, b""), (OPT_GO, info_data("")),
                         (OPT_STRUCTURED_REPLY, b"")):
        srv = Server(image())
        with srv.connect() as s:
            s.greet()
            os.kill(srv.pid, signal.SIGTERM)
            try:
                while True:
                    kind = s.option(option, data)[-1][0]
                    if kind == ERR_SHUTDOWN:
                        break
                    if option == OPT_GO and kind == REP_ACK:
                        s.expect_eof()
                        break
                    time.sleep(0.01)
            except Closed:
                pass
        end_soon(srv)


@case
def requests_half_sent_end_in_good_order():
    srv = Server(image())
    halves = []
    for mode in MODES:
        s = srv.open(mode)
        s.send(s.request_bytes(CMD_READ, 0, 512)[:13])
        halves.append(s)
        s = srv.open(mode)
        flags = F_PAYLOAD_LEN if mode == EXTENDED else 0
        s.send(s.request_bytes(CMD_WRITE, 0, 4096, flags) + b"x" * 1000)
        halves.append(s)
        s = srv.open(mode)
        s.send(s.request_bytes(CMD_WRITE, 0, 32 * MIB, flags)
               + b"x" * 3000000)
        halves.append(s)
    end_soon(srv, signal.SIGTERM)
    for s in halves:
        s.expect_eof()
        s.close()


@case
def nobody_is_let_in_afterwards():
    srv = Server(image())
    path = srv.socket
    end_soon(srv, signal.SIGTERM)
    try:
        connect(path).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return
    raise AssertionError("somebody answers")


@case
def signals_in_a_storm():
    # A signal may come while another is being handled, at any point.
    for _ in range(3):
        srv = Server(image())
        with srv.open() as s:
            for n in range(50):
                s.request(CMD_READ, n * 4096, 4096)
                os.kill(srv.pid, signal.SIGUSR1)
            for _ in range(50):
                expect(s.any_reply().error, OK, "read")
        for _ in range(20):
            if not srv.ended():
                os.kill(srv.pid, signal.SIGTERM)
        srv.wait(SOON_S)
        srv.kill()
        srv.check_stderr()


main()
