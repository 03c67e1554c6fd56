#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: timeout=120
"""Random requests on several sessions, compared with a byte array.

Reads, writes, zeroes, trims, flushes and block status of any alignment over
ephemeral disks, on raw images and on random qcow2 chains, and over a raw disk
written itself, in every reply mode and on both engines, with the page cache
emptied now and then. Requests in flight never overlap a write, so that every
byte has one lawful value. At the end the whole disk is compared, from every
session, and the base files are as they were. REWIND_SEED=N replays a run.
"""
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from diskmodel import GRAIN, DiskModel
from harness import (TIMEOUT_SCALE, case, expect, main, scratch, seed)
from images import MIB, pattern
from nbdwire import *
from randomchain import fingerprints, random_chain, random_raw
from rewindserver import MODES, PEER, Server

SEED = seed()
REQUESTS = 2500
# A slow machine does fewer; it says so.
SECONDS_MAX = 3 * TIMEOUT_SCALE
IN_FLIGHT = 12
BASE = "base:allocation"

WEIGHTS = {CMD_READ: 34, CMD_WRITE: 36, CMD_WRITE_ZEROES: 10, CMD_TRIM: 8,
           CMD_FLUSH: 4, CMD_CACHE: 2, CMD_BLOCK_STATUS: 6}


class Runner:
    def __init__(self, rng, srv, model, paths):
        self.rng, self.srv, self.model = rng, srv, model
        self.paths = paths          # of all layers
        self.size = len(model.data)
        self.sessions = [srv.open(mode, () if mode == SIMPLE else [BASE])
                         for mode in MODES + (MODES[1],)]
        self.locks = []             # [offset, end, is a write]
        self.flying = {s: {} for s in self.sessions}
        self.number = 0
        self.answered = 0

    def pick_range(self):
        rng = self.rng
        align = rng.choice([1, 1, 512, 4096, 4096])
        longest = rng.choice([16, 512, 4096, 20000, 70000, 300000])
        length = max(align, rng.randrange(1, longest + 1) // align * align)
        if rng.random() < 0.1:      # at the very end
            return self.size - length, length
        # A few hot places, so that requests meet.
        span = self.size if rng.random() < 0.5 else 40 * GRAIN
        offset = rng.randrange(0, max(1, span // align)) * align
        return min(offset, self.size - length), length

    def free(self, offset, length, writes):
        end = offset + length
        return not any(o < end and offset < e and (writes or w)
                       for o, e, w in self.locks)

    def start_one(self, s):
        rng = self.rng
        command = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if command == CMD_BLOCK_STATUS and s.mode == SIMPLE:
            command = CMD_READ
        flags = F_FUA if rng.random() < 0.1 else 0
        if command == CMD_FLUSH:
            self.flying[s][s.request(command, flags=flags)] = None
            return
        offset, length = self.pick_range()
        writes = command in (CMD_WRITE, CMD_WRITE_ZEROES, CMD_TRIM)
        if not self.free(offset, length, writes):
            return
        if command == CMD_WRITE_ZEROES:
            flags |= rng.choice([0, 0, F_NO_HOLE, F_FAST_ZERO])
        elif command == CMD_READ and s.mode != SIMPLE and length <= 65536:
            flags |= rng.choice([0, 0, F_DF])
        elif command == CMD_BLOCK_STATUS:
            flags |= rng.choice([0, F_REQ_ONE])
        self.number += 1
        data = (pattern(offset, length, self.number)
                if command == CMD_WRITE else b"")
        cookie = s.request(command, offset, 0 if data else length, flags,
                           data)
        lock = (offset, offset + length, writes)
        self.locks.append(lock)
        self.flying[s][cookie] = (lock, data, self.number)

    def finish_one(self, s):
        p = s.any_reply()
        self.answered += 1
        entry = self.flying[s].pop(p.cookie)
        if p.error and not (p.error == ENOTSUP and p.flags & F_FAST_ZERO):
            raise AssertionError("%s: %s %s" % (p, ERROR_NAMES[p.error],
                                                p.message))
        if entry is None:
            return
        lock, data, number = entry
        self.locks.remove(lock)
        what = "request %d, %s session %d, %s" % (
            number, s.mode, self.sessions.index(s), p)
        self.apply(p, data, number, what)

    def apply(self, p, data, number, what):
        model = self.model
        if p.command == CMD_READ:
            model.check(p.offset, bytes(p.data), what)
        elif p.command == CMD_BLOCK_STATUS:
            for extents in p.extents.values():
                # What reaches past the request may be in somebody's hands.
                model.check_status(p.offset, clip(extents, p.length), what)
        elif p.command == CMD_WRITE:
            model.remember("%s salt %#x" % (what, number & 0x7f | 0x80),
                           p.offset, p.length)
            model.write(p.offset, data)
        elif p.command == CMD_WRITE_ZEROES:
            model.remember(what + " " + ERROR_NAMES[p.error], p.offset,
                           p.length)
            if not p.error:         # ENOTSUP must not have changed anything
                model.write(p.offset, bytes(p.length))
        elif p.command == CMD_TRIM:
            model.remember(what, p.offset, p.length)
            model.trim(p.offset, p.length)

    def work(self):
        start = time.monotonic()
        deadline = start + SECONDS_MAX
        while self.answered < REQUESTS:
            s = self.rng.choice(self.sessions)
            for _ in range(self.rng.randrange(1, 8)):
                if len(self.flying[s]) < IN_FLIGHT:
                    self.start_one(s)
            s = self.rng.choice(self.sessions)
            for _ in range(self.rng.randrange(1, 8)):
                if self.flying[s]:
                    self.finish_one(s)
            if self.rng.random() < 0.02:
                self.srv.forget_cached(*self.paths)
            if time.monotonic() > deadline:
                print("      (%d of %d requests in %.1f s)" % (
                    self.answered, REQUESTS, time.monotonic() - start))
                break
        for s in self.sessions:
            while self.flying[s]:
                self.finish_one(s)

    def compare_all(self):
        step = 1 << 20
        for s in self.sessions:
            for offset in range(0, self.size, step):
                n = min(step, self.size - offset)
                self.model.check(offset, s.read(offset, n),
                                 "whole disk, %s session" % s.mode)
            if s.mode != SIMPLE:
                self.model.check_status(
                    0, [(n, st) for _, n, st in walk_status(s, 0, self.size)],
                    "whole disk, status")

    def finish(self):
        for s in self.sessions:
            s.disconnect()


def clip(extents, length):
    out = []
    for n, status in extents:
        if length <= 0:
            break
        out.append((min(n, length), status))
        length -= n
    return out


def make_image(rng, directory, kind, size):
    """The path to serve, its content, and all layers' paths."""
    if kind == "qcow2":
        return random_chain(rng, directory, size, rng.randrange(1, 7))
    path = os.path.join(directory, "raw")
    return path, random_raw(rng, path, size), [path]


def run(name, engine, kind, trim_zeroes):
    rng = random.Random("%d %s" % (SEED, name))
    # Not in whole grains, as images made by others may be.
    size = rng.randrange(2 * MIB // 512, 5 * MIB // 512) * 512
    directory = scratch(name)
    os.mkdir(directory)
    path, content, paths = make_image(rng, directory, kind, size)
    before = fingerprints(paths)
    ephemeral = kind != "disk"
    model = DiskModel(content, trim_zeroes)
    with Server(path, image_format="qcow2" if kind == "qcow2" else "raw",
                engine=engine, ephemeral=ephemeral) as srv:
        try:
            runner = Runner(rng, srv, model, paths)
            expect(runner.sessions[0].size, size, "size")
            runner.work()
            runner.compare_all()
            runner.finish()
        except (AssertionError, Closed) as e:
            raise AssertionError("REWIND_SEED=%d %s: %s"
                                 % (SEED, name, e)) from e
    if ephemeral:
        expect(fingerprints(paths), before, "the layers are as they were")
    else:
        with open(path, "rb") as f:
            model.check(0, f.read(), "the file")


def add(name, *arguments):
    def function():
        run(name, *arguments)
    function.__name__ = name
    case(function)


for ENGINE in ("io_uring", "threads") if not PEER else (None,):
    for KIND in ("raw", "qcow2", "disk"):
        add("%s_on_%s" % (ENGINE, KIND), ENGINE, KIND, False)
        if not PEER and KIND != "disk":
            add("%s_on_%s_trims_are_zero" % (ENGINE, KIND), ENGINE, KIND,
                True)

main()
