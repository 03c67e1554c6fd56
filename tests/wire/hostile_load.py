#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Clients that cost memory, threads or time: a good one beside them is not
harmed, and what they cost is bounded.

Silent and slow handshakes, readers that never read, hundreds of idle
connections, floods. Times are only ever compared with each other.
"""
import os
import resource
import socket
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (TIMEOUT_SCALE, Skip, case, expect, expect_bytes, main,
                     scratch)
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, Server

SIZE = 128 * MIB
RSS_MAX = 64 * MIB
BASE = "base:allocation"


def image(name="image"):
    return raw_image(scratch(name), SIZE, [(0, pattern(0, 8 * MIB))])


def good(s, rounds=50):
    """The median time of one small read, and that its data is right."""
    times = []
    for n in range(rounds):
        offset = n * 8191 % (7 * MIB)
        start = time.perf_counter()
        data = s.read(offset, 4096)
        times.append(time.perf_counter() - start)
        expect_bytes(data, pattern(offset, 4096), offset, "good session")
    return statistics.median(times)


def unharmed(s, alone, what, factor=20):
    """Not slower than it was alone, generously; a busy machine gets several
    tries to show it."""
    found = []
    for _ in range(8):
        found.append(good(s))
        if found[-1] <= alone * factor + 0.002:
            return
        time.sleep(0.3)
    raise AssertionError("%s: a read takes %.0f us at best, alone %.0f us"
                         % (what, min(found) * 1e6, alone * 1e6))


def serves_a_fresh_one(srv):
    with srv.open() as s:
        good(s, 5)
        s.disconnect()


# --- handshakes that do not end ---------------------------------------------

def closed_within(s, seconds, what):
    deadline = time.monotonic() + seconds
    while not s.eof:
        if time.monotonic() > deadline:
            raise AssertionError("%s: still open after %d s" % (what, seconds))
        s.buf.clear()
        s.readable(0.2)


def args_for_limit(seconds):
    if PEER:
        raise Skip("has no such option")
    return ("--handshake-limit", str(seconds))


@case
def silence_in_the_handshake_is_cut_off():
    data = (be("I", 3) + option_bytes(OPT_STRUCTURED_REPLY)
            + option_bytes(OPT_GO, info_data("nope", (3,)))
            + option_bytes(OPT_LIST))
    with Server(image(), args=args_for_limit(1)) as srv, srv.open() as old:
        held = []
        for n in list(range(0, len(data), 5)) + [len(data)]:
            s = srv.connect()
            s.send(data[:n])
            held.append(s)
        s = srv.connect()
        s.greet()
        s.send(option_bytes(OPT_GO, b"x" * 1000, 60000))
        held.append(s)
        for n, s in enumerate(held):
            closed_within(s, 10 * TIMEOUT_SCALE, "silent session %d" % n)
            s.close()
        good(old)               # longer idle than any of them
        old.disconnect()


@case
def a_byte_now_and_then_is_cut_off():
    data = be("I", 3) + option_bytes(OPT_LIST) * 100
    with Server(image(), args=args_for_limit(1)) as srv:
        with srv.connect() as s:
            start = time.monotonic()
            try:
                for byte in data:
                    s.send(bytes((byte,)))
                    s.buf.clear()
                    time.sleep(0.05)
                    if time.monotonic() - start > 10 * TIMEOUT_SCALE:
                        raise AssertionError("a slow handshake goes on")
            except Closed:
                pass
        serves_a_fresh_one(srv)


@case
def options_without_end_are_cut_off():
    # Lawful, quick, and for ever: the limit is on the whole handshake.
    with Server(image(), args=args_for_limit(1)) as srv:
        with srv.connect() as s:
            s.greet()
            start = time.monotonic()
            try:
                while time.monotonic() - start < 10 * TIMEOUT_SCALE:
                    s.option(OPT_INFO, info_data(""))
                raise AssertionError("an endless handshake goes on")
            except Closed:
                pass
        serves_a_fresh_one(srv)


# --- slow readers -----------------------------------------------------------

def never_reads(srv, mode, requests):
    """A session with all these requests sent, and not a byte read since."""
    s = srv.open(mode, () if mode == SIMPLE else [BASE])
    s.reads_while_sending = False
    s.stuck_s = 0.1
    try:
        for request in requests:
            s.request(*request)
    except Stuck:
        pass
    return s


def slow_case(what, requests, count=8, prepare=None):
    with Server(image()) as srv:
        with srv.open() as s:
            if prepare:
                prepare(s)
            alone = good(s)
            slow = [never_reads(srv, MODES[n % len(MODES)], requests)
                    for n in range(count)]
            unharmed(s, alone, what)
            serves_a_fresh_one(srv)
            srv.check_memory(RSS_MAX, what)
            for x in slow:
                x.close()
            unharmed(s, alone, what + ", gone")
            s.disconnect()


@case
def readers_of_megabytes_that_never_read():
    slow_case("1 MiB reads", [(CMD_READ, n % 7 * MIB, MIB)
                              for n in range(2000)])


@case
def one_reader_of_64_mib_that_never_reads():
    slow_case("64 MiB reads", [(CMD_READ, 0, 64 * MIB)] * 100, 1)


@case
def one_reader_from_a_cold_cache_that_never_reads():
    # Reads that must wait for a disk are held in memory meanwhile.
    path = scratch("cold")
    with open(path, "wb") as f:
        for n in range(SIZE // MIB):
            f.write(pattern(n * MIB, MIB))
    for engine in ("io_uring", "threads") if not PEER else (None,):
        for length in (65536, MIB, 4 * MIB):
            with Server(path, engine=engine) as srv, srv.open() as s:
                good(s)
                srv.forget_cached(path)
                x = never_reads(srv, SIMPLE, [
                    (CMD_READ, n * length % (SIZE - length), length)
                    for n in range(4000 * 65536 // length)])
                time.sleep(0.3)
                good(s)
                srv.check_memory(RSS_MAX, "cold reads of %d" % length)
                x.close()
                s.disconnect()


@case
def readers_of_grains_that_never_read():
    slow_case("4 KiB reads", [(CMD_READ, n % 1000 * 4096, 4096)
                              for n in range(20000)])


@case
def readers_of_written_data_that_never_read():
    def prepare(s):
        for at in range(8 * MIB, 16 * MIB, MIB):
            s.write(at, pattern(at, MIB))
    slow_case("reads of the overlay",
              [(CMD_READ, 8 * MIB + n % 8 * MIB, MIB) for n in range(2000)],
              prepare=prepare)


@case
def askers_for_status_that_never_read():
    def prepare(s):
        for n in range(2048):
            s.request(CMD_WRITE, 16 * MIB + n * 8192, payload=b"x" * 4096)
        while s.in_flight():
            s.any_reply()
    slow_case("block status",
              [(CMD_BLOCK_STATUS, 0, SIZE)] * 3000, prepare=prepare)


@case
def flushers_that_never_read():
    slow_case("flushes", [(CMD_FLUSH,)] * 30000)


@case
def a_reader_of_a_byte_now_and_then():
    with Server(image()) as srv, srv.open() as s:
        alone = good(s)
        slow = never_reads(srv, SIMPLE, [(CMD_READ, 0, MIB)] * 100)
        for _ in range(100):
            slow.recv(1)
            slow.buf.clear()
            time.sleep(0.002)
        unharmed(s, alone, "a slow reader")
        slow.close()
        s.disconnect()
        srv.check_memory(RSS_MAX, "a slow reader")


# --- slow writers -----------------------------------------------------------

@case
def half_written_payloads_hold_no_memory():
    with Server(image()) as srv, srv.open() as s:
        alone = good(s)
        held = []
        for n in range(24):
            x = srv.open(MODES[n % len(MODES)])
            flags = F_PAYLOAD_LEN if x.mode == EXTENDED else 0
            x.send(x.request_bytes(CMD_WRITE, SIZE - 60 * MIB, 60 * MIB, flags)
                   + bytes(8 * MIB + n))
            held.append(x)
        unharmed(s, alone, "half payloads")
        srv.check_memory(RSS_MAX, "half payloads")
        for x in held:
            x.close()
        s.disconnect()


@case
def half_requests_hold_no_memory():
    with Server(image()) as srv, srv.open() as s:
        alone = good(s)
        held = [srv.open(MODES[n % len(MODES)]) for n in range(100)]
        for n, x in enumerate(held):
            x.send(x.request_bytes(CMD_READ, 0, 4096)[:n % 28])
        unharmed(s, alone, "half requests")
        srv.check_memory(RSS_MAX, "half requests")
        for x in held:
            x.close()
        s.disconnect()


# --- many -------------------------------------------------------------------

def room_for(descriptors):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        if hard != resource.RLIM_INFINITY and hard < descriptors:
            raise Skip("%d descriptors are not allowed here" % descriptors)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


@case
def five_hundred_idle_connections():
    room_for(2000)
    with Server(image()) as srv, srv.open() as s:
        alone = good(s, 300)
        held = []
        for n in range(500):
            if n % 5 == 0:
                held.append(srv.connect())      # not even a greeting read
            else:
                x = srv.open(MODES[n % len(MODES)])
                x.read(n * 4096, 4096)
                held.append(x)
        unharmed(s, alone, "500 idle connections", 5)
        serves_a_fresh_one(srv)
        srv.check_memory(2 * RSS_MAX, "500 idle connections")
        cpu = srv.cpu_s()
        time.sleep(1)
        expect(srv.cpu_s() - cpu < 0.5 * TIMEOUT_SCALE, True,
               "idle connections cost no CPU time")
        for x in held:
            x.close()
        unharmed(s, alone, "500 connections, gone", 5)
        s.disconnect()


def bytes_read(srv):
    """By read and its kind; what came from sockets by recv is not in it."""
    with open("/proc/%d/io" % srv.pid, encoding="ascii") as f:
        return int(f.readline().split()[1])


@case
def a_flood_of_connections_does_not_touch_the_image():
    # CVE-2019-14850: each connection made the server open a slow disk.
    with Server(image("untouched")) as srv:
        before = bytes_read(srv)
        for n in range(1000):
            x = srv.connect()
            if n % 3 == 1:
                x.greet()
            elif n % 3 == 2:
                x.greet(3)
                x.option(OPT_INFO, info_data("", (INFO_BLOCK_SIZE,)))
            x.close()
        found = bytes_read(srv) - before
        with srv.open() as s:
            before = bytes_read(srv)
            s.read(1, 3000)
            expect(bytes_read(srv) - before >= 3000, True,
                   "the measure works")
            s.disconnect()
        expect(found < 64 * 1000, True, "%d bytes read" % found)
        srv.check_memory(RSS_MAX, "a flood of connections")


@case
def port_scans():
    # CVE-2017-9524, CVE-2024-7409.
    with Server(image()) as srv, srv.open() as s:
        alone = good(s)
        for _ in range(500):
            x = socket.socket(socket.AF_UNIX)
            x.connect(srv.socket)
            x.close()
        unharmed(s, alone, "after port scans")
        serves_a_fresh_one(srv)
        s.disconnect()


@case
def beyond_the_limit_they_wait_in_line():
    if PEER:
        raise Skip("refuses them")
    with Server(image(), clients=3) as srv:
        held = [srv.open() for _ in range(3)]
        waiting = [srv.connect() for _ in range(5)]
        for x in waiting:
            if x.readable(0.05):
                x.violation("served beyond the limit")
        for x in waiting:
            held.pop(0).disconnect()
            x.greet()
            x.go("")
            good(x, 3)
            held.append(x)
        for x in held:
            x.disconnect()


@case
def silent_ones_do_not_lock_out_a_good_one_for_long():
    # All places taken by connections that say nothing: their time runs out.
    if PEER:
        raise Skip("has no such option")
    with Server(image(), clients=4, args=args_for_limit(1)) as srv:
        silent = [srv.connect() for _ in range(4)]
        with srv.open() as s:
            good(s, 5)
            s.disconnect()
        for x in silent:
            x.close()


@case
def one_greedy_client_beside_a_good_one():
    # 16 reads of 4 MiB in flight all the time on each of three sessions.
    with Server(image()) as srv, srv.open() as s:
        alone = good(s)
        greedy = [srv.open(MODES[n % len(MODES)]) for n in range(3)]
        for _ in range(3):
            for g in greedy:
                for n in range(16):
                    g.request(CMD_READ, n % 2 * 4 * MIB, 4 * MIB)
            unharmed(s, alone, "greedy ones", 200)
            for g in greedy:
                while g.in_flight():
                    expect(g.any_reply().error, OK, "greedy read")
        srv.check_memory(RSS_MAX, "greedy clients")
        for g in greedy:
            g.disconnect()
        s.disconnect()


main()
