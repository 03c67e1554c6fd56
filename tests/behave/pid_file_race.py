#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Servers that start and end at the same time with one pid file: each that
gets ready finds its own id there, the others are refused, and nothing stays.
One that opens the file just before its owner removes it must notice."""
import os
import subprocess
import threading
import time

DURATION_S = 5
WORKERS = 3
faults = []
served = []
refused = []


def attempt(socket):
    argv = [os.environ["REWIND"], "serve", "--pid-file", "pid", "-k", socket,
            "-r", "-f", "raw", "disk.img"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL) as p:
        if p.stdout.readline():
            try:
                with open("pid", encoding="ascii") as f:
                    text = f.read()
            except OSError as e:
                text = str(e)
            if text != f"{p.pid}\n":
                faults.append(f"server {p.pid} has the pid file: {text}")
            served.append(p.pid)
            p.terminate()
            expected = 0
        else:
            refused.append(p.pid)
            expected = 1
        said = p.stderr.read().decode()
        if p.wait() != expected or ("is locked" in said) != (expected == 1):
            faults.append(f"exit status {p.returncode}: {said}")


def work(number):
    end = time.monotonic() + DURATION_S
    while time.monotonic() < end and not faults:
        attempt(f"s{number}")


with open("disk.img", "wb") as image:
    image.truncate(1 << 20)
threads = [threading.Thread(target=work, args=(i,)) for i in range(WORKERS)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(f"{len(served)} served, {len(refused)} refused")
assert not faults, faults
assert served and refused, "the test means nothing: they did not meet"
assert os.listdir(".") == ["disk.img"], os.listdir(".")
