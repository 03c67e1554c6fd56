#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""One session on standard input and output: --inetd.

A socket (as inetd gives) or a pair of pipes (as ssh gives) both do. The
process ends with its session, and a pipe is never mistaken for a socket.
"""
import os
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import (Skip, case, expect, expect_bytes, main, scratch)
from images import MIB, pattern, raw_image
from nbdwire import *
from rewindserver import MODES, PEER, STOP_S, program

SIZE = 4 * MIB
BASE = "base:allocation"


def image():
    return raw_image(scratch("image"), SIZE, [(0, pattern(0, MIB))])


def start(stdin, stdout):
    if PEER:
        raise Skip("not for %s" % PEER)
    directory = scratch("overlay")
    os.makedirs(directory, exist_ok=True)
    return subprocess.Popen(
        [program(), "serve", "--inetd", "--ephemeral", "--overlay-dir",
         directory, "-f", "raw", image()],
        stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)


def finish(process, status=0):
    try:
        _, err = process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("does not end with its session") from None
    expect(process.returncode, status, "exit status: %r" % err)
    expect(os.listdir(scratch("overlay")), [], "left behind")


def over_pipes():
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    process = start(to_read, from_write)
    os.close(to_read)
    os.close(from_write)
    return process, Session(from_read, to_write)


def over_a_socket():
    ours, theirs = socket.socketpair()
    with theirs:
        process = start(theirs, theirs)
    return process, Session(ours.fileno(), owner=ours)


def use(s, mode):
    s.greet()
    s.use_mode(mode)
    if mode != SIMPLE:
        s.set_meta("", [BASE])
    s.go("")
    expect(s.size, SIZE, "size")
    expect_bytes(s.read(0, 4096), pattern(0, 4096), 0, "base")
    for n in range(40):
        s.request(CMD_WRITE, n * 65536, payload=pattern(n * 65536, 65536, 4))
    for n in range(40):
        s.request(CMD_READ, n * 65536, 65536)
    while s.in_flight():
        expect(s.any_reply().error, OK, "in flight")
    expect_bytes(s.read(0, 40 * 65536), pattern(0, 40 * 65536, 4), 0, "all")
    if mode != SIMPLE:
        s.status(0, SIZE)


@case
def pipes():
    for mode in MODES:
        process, s = over_pipes()
        with s:
            use(s, mode)
            s.disconnect()
        finish(process)


@case
def a_socket():
    for mode in MODES:
        process, s = over_a_socket()
        with s:
            use(s, mode)
            s.disconnect()
        finish(process)


@case
def end_of_file_ends_it():
    for make in (over_pipes, over_a_socket):
        process, s = make()
        with s:
            use(s, SIMPLE)
        finish(process)


@case
def abort_ends_it():
    for make in (over_pipes, over_a_socket):
        process, s = make()
        with s:
            s.greet()
            s.abort()
        finish(process)


@case
def end_of_input_still_gets_its_answers():
    for make in (over_pipes, over_a_socket):
        process, s = make()
        with s:
            s.greet()
            s.go("")
            wanted = [s.request(CMD_READ, n * 4096, 4096) for n in range(64)]
            s.close_sending()
            for n, cookie in enumerate(wanted):
                expect_bytes(bytes(s.reply(cookie).data),
                             pattern(n * 4096, 4096), n * 4096, "answer")
            s.expect_eof()
        finish(process)


@case
def a_reader_that_goes_away():
    # Replies hit a closed pipe: that must not be a signal.
    process, s = over_pipes()
    s.greet()
    s.go("")
    for n in range(64):
        s.request(CMD_READ, 0, 65536)
    s.close()
    try:
        process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise AssertionError("does not end") from None
    expect(process.returncode, {0, 1}, "exit status (a signal is negative)")


main()
