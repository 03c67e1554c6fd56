#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""The same over TCP, on IPv4 and IPv6, beside a Unix socket.

What differs from a Unix socket: small packets must not wait for each other,
a reset can throw away what was sent, and a port is everybody's.
"""
import os
import signal
import socket
import struct
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import Skip, case, expect, expect_bytes, main, scratch, shared
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 16 * MIB


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
        return True
    except OSError:
        return False


def start(*more):
    if PEER:
        raise Skip("listens to one socket only")
    args = ["--listen", "127.0.0.1:0"]
    if has_ipv6():
        args += ["--listen", "[::1]:0"]
    image = raw_image(scratch("image"), SIZE, [(0, pattern(0, 8 * MIB))])
    return Server(image, export="disk", args=args + list(more))


@shared
def server():
    return start()


def addresses(srv):
    """(host, port) of each TCP ready line."""
    out = []
    for uri in srv.uris:
        u = urllib.parse.urlsplit(uri)
        if u.scheme == "nbd":
            expect(u.path, "/disk", "export in %s" % uri)
            out.append((u.hostname, u.port))
    expect(len(out), 2 if has_ipv6() else 1, "TCP addresses in %r" % srv.uris)
    return out


@case
def every_ready_line_leads_to_the_disk():
    srv = server()
    expect([p for p in srv.paths_in_uris() if p], [srv.socket], "Unix socket")
    for address in addresses(srv):
        for mode in MODES:
            with open_session(address, "disk", mode) as s:
                expect(s.size, SIZE, "size")
                expect_bytes(s.read(0, 8 * MIB), pattern(0, 8 * MIB), 0,
                             "%r %s" % (address, mode))
                s.disconnect()


@case
def all_sockets_show_one_disk():
    srv = server()
    sessions = [open_session(a, "disk") for a in addresses(srv)]
    sessions.append(srv.open())
    for n, s in enumerate(sessions):
        s.write(9 * MIB + n * 4096, pattern(n, 4096, n + 1))
    for s in sessions:
        for n in range(len(sessions)):
            expect_bytes(s.read(9 * MIB + n * 4096, 4096),
                         pattern(n, 4096, n + 1), n, "written elsewhere")
        s.disconnect()


@case
def small_requests_do_not_wait_for_each_other():
    # A reply held back for an acknowledgement costs 40 ms each.
    for address in addresses(server()):
        with open_session(address, "disk") as s:
            start_time = time.monotonic()
            for n in range(200):
                s.request(CMD_READ, n * 512, 512)
                s.request(CMD_READ, n * 512, 1)
                while s.in_flight():
                    s.any_reply()
            took = time.monotonic() - start_time
            s.disconnect()
        with server().open() as s:
            start_time = time.monotonic()
            for n in range(200):
                s.request(CMD_READ, n * 512, 512)
                s.request(CMD_READ, n * 512, 1)
                while s.in_flight():
                    s.any_reply()
            there = time.monotonic() - start_time
            s.disconnect()
        expect(took < 20 * there + 2, True, "%.2f s over TCP, %.2f s over a "
               "Unix socket" % (took, there))


@case
def large_payloads():
    for address in addresses(server()):
        with open_session(address, "disk", STRUCTURED) as s:
            data = pattern(8 * MIB, 8 * MIB, 3)
            for _ in range(3):
                s.request(CMD_WRITE, 8 * MIB, payload=data)
                s.request(CMD_READ, 0, 8 * MIB)
                s.request(CMD_READ, 0, 8 * MIB)
            while s.in_flight():
                expect(s.any_reply().error, OK, "large request")
            expect_bytes(s.read(8 * MIB, 8 * MIB), data, 8 * MIB, "data")
            s.trim(8 * MIB, 8 * MIB)
            s.disconnect()


@case
def resets():
    srv = server()
    for address in addresses(srv):
        for n in range(60):
            s = connect(address)
            s.owner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                               struct.pack("ii", 1, 0))
            if n % 3:
                s.greet()
                s.go("disk")
                for _ in range(n):
                    s.request(CMD_READ, 0, MIB)
            s.close()
    with srv.open() as s:
        expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "goes on")
        s.disconnect()


@case
def disc_answers_what_it_owes():
    for address in addresses(server()):
        with open_session(address, "disk", STRUCTURED) as s:
            for n in range(64):
                s.request(CMD_READ, n * 65536, 65536)
            s.disconnect()
            expect(sum(len(v) for v in s.done.values()), 64, "replies")


@case
def what_is_taken_is_answered_at_the_end():
    for which in range(2 if has_ipv6() else 1):
        srv = start()
        address = addresses(srv)[which]
        with open_session(address, "disk") as s:
            stream = b""
            for n in range(60):
                cookie = s.next_cookie()
                stream += s.request_bytes(CMD_READ, n * 65536, 65536, 0,
                                          cookie)
                s.pending[cookie] = [Pending(cookie, CMD_READ, n * 65536,
                                             65536, 0, set())]
            s.send(stream)
            first = s.any_reply()
            expect_bytes(bytes(first.data), pattern(first.offset, 65536),
                         first.offset, "first answer")
            os.kill(srv.pid, signal.SIGTERM)
            time.sleep(0.1)
            while s.in_flight():
                p = s.any_reply()
                expect(p.error, {OK, ESHUTDOWN}, "%s" % p)
                if not p.error:
                    expect_bytes(bytes(p.data), pattern(p.offset, 65536),
                                 p.offset, "answer")
            s.expect_eof()
        srv.wait()
        srv.stop()


@case
def a_port_is_free_again_at_once():
    srv = start()
    host, port = addresses(srv)[0]
    with open_session((host, port), "disk") as s:
        s.read(0, 512)
        srv.stop()
        s.expect_eof()
    image = scratch("image")
    with Server(image, args=["--listen", "%s:%d" % (host, port)]) as again:
        with open_session((host, port)) as s:
            s.read(0, 512)
            s.disconnect()
        again.check_alive()


main()
