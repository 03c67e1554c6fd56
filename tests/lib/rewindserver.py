# SPDX-License-Identifier: BSD-2-Clause
"""A running `rewind serve`, watched from outside.

Owns the process, its socket and its directories. Server() returns once the
server has said that it is ready; stop() ends it and fails the test if it does
not end well or leaves anything behind.

With REWIND_PEER=qemu-nbd or nbdkit the same calls run that program instead,
as far as it can do the same: a way to find out whether a test is wrong about
the protocol.
"""
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

import nbdwire
from harness import SANITIZED, TIMEOUT_SCALE, Skip, scratch

PEER = os.environ.get("REWIND_PEER", "")
# Extended headers are younger than the peers that Debian 12 has.
MODES = nbdwire.MODES if not PEER else (nbdwire.SIMPLE, nbdwire.STRUCTURED)
START_S = 20 * TIMEOUT_SCALE
STOP_S = 20 * TIMEOUT_SCALE
SANITIZER = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer"
                       r"|runtime error:|Assertion .* failed")
_count = 0


def write_back(fd):
    """Starts and awaits the writing of dirty pages, without the barrier of
    fdatasync, which can take seconds on a busy disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    wait_write_wait = 7
    if not hasattr(libc, "sync_file_range") or libc.sync_file_range(
            fd, ctypes.c_int64(0), ctypes.c_int64(0), wait_write_wait):
        os.fdatasync(fd)


def program():
    path = os.environ.get("REWIND")
    if not path:
        sys.exit("$REWIND must name the program to test")
    return path


def argv_of(images, o):
    """The command line for the program under test."""
    argv = [program(), "serve", "-k", o["socket"], "-e", str(o["clients"]),
            "-A"]
    if o["ephemeral"]:
        argv += ["--ephemeral", "--overlay-dir", o["overlay_dir"]]
    if o["read_only"]:
        argv.append("-r")
    if o["format"]:
        argv += ["-f", o["format"]]
    if o["description"]:
        argv += ["-D", o["description"]]
    if o["engine"]:
        argv += ["--engine", o["engine"]]
    argv += o["args"]
    if o["export"]:
        argv += ["-x", o["export"]]
    return argv + list(images)


def argv_of_qemu_nbd(images, o):
    if o["args"] or len(images) != 1:
        raise Skip("not for qemu-nbd")
    argv = ["qemu-nbd", "-t", "-e", str(o["clients"] or 1000), "-A",
            "-k", o["socket"], "-x", o["export"], "--discard=unmap"]
    argv += ["-f", o["format"]] * bool(o["format"])
    argv += ["-s"] * o["ephemeral"] + ["-r"] * o["read_only"]
    argv += ["-D", o["description"]] * bool(o["description"])
    return argv + list(images)


def argv_of_nbdkit(images, o):
    if o["args"] or len(images) != 1 or o["format"] != "raw":
        raise Skip("not for nbdkit")
    argv = ["nbdkit", "-f", "-U", o["socket"], "-e", o["export"]]
    argv += ["-r"] * o["read_only"] + ["--filter=cow"] * o["ephemeral"]
    return argv + ["file", images[0]]


class Server:
    """One server process and what it may use. `images` are operands: several
    exports are "-x", NAME, IMAGE, "-x", NAME, IMAGE."""

    def __init__(self, *images, ephemeral=True, read_only=False,
                 image_format="raw", export="", engine=None, args=(),
                 clients=0, overlay_dir=None, socket_path=None,
                 description=None,
                 preexec=None, env=None):
        global _count
        _count += 1
        self.dir = scratch("s%d" % _count)
        os.mkdir(self.dir)
        self.own_overlay_dir = overlay_dir is None
        self.overlay_dir = overlay_dir or os.path.join(self.dir, "overlay")
        if self.own_overlay_dir:
            os.mkdir(self.overlay_dir)
        self.socket = socket_path or os.path.join(self.dir, "s")
        self.export = export
        options = {"socket": self.socket, "ephemeral": ephemeral,
                   "read_only": read_only, "format": image_format,
                   "export": export, "engine": engine, "args": args,
                   "clients": clients, "overlay_dir": self.overlay_dir,
                   "description": description}
        build = {"": argv_of, "qemu-nbd": argv_of_qemu_nbd,
                 "nbdkit": argv_of_nbdkit}[PEER]
        self.argv = build(images, options)
        self.stderr_path = os.path.join(self.dir, "stderr")
        self.uris = []
        self.rusage = None
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=err, preexec_fn=preexec,
                env=dict(os.environ, TMPDIR=self.overlay_dir if PEER else
                         os.environ.get("TMPDIR", "/tmp"), **(env or {})))
        self.pid = self.process.pid
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def story(self):
        return "\n  command: %s\n  stderr: %s" % (
            " ".join(self.argv), self.stderr()[-4000:] or "(nothing)")

    def _wait_ready(self):
        """The ready line: a URI that leads to our socket."""
        deadline = time.monotonic() + START_S
        if PEER:
            while not os.path.exists(self.socket):
                if self.ended() or time.monotonic() > deadline:
                    raise AssertionError("does not start" + self.story())
                time.sleep(0.01)
            return
        text = b""
        while b"\n" not in text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [],
                                              left)[0]:
                raise AssertionError("no ready line" + self.story())
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise AssertionError("ended before it was ready"
                                     + self.story())
            text += data
        self.uris = text.decode().splitlines()
        for uri in self.uris:
            if not uri.startswith("nbd"):
                raise AssertionError("not a ready line: %r" % uri)

    def paths_in_uris(self):
        """The socket paths that the ready lines name."""
        return [urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)
                .get("socket", [""])[0] for uri in self.uris]

    # --- sessions -------------------------------------------------------

    def connect(self, **more):
        return nbdwire.connect(self.socket, **more)

    def open(self, mode=nbdwire.SIMPLE, contexts=(), export=None, **more):
        return nbdwire.open_session(
            self.socket, self.export if export is None else export, mode,
            contexts, **more)

    # --- watching -------------------------------------------------------

    def ended(self):
        """Whether the process has ended; then its status is known."""
        if self.process.returncode is not None:
            return True
        pid, status, rusage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.rusage = rusage
        return True

    def check_alive(self):
        if self.ended():
            raise AssertionError("the server ended with status %d%s"
                                 % (self.process.returncode, self.story()))
        self.check_stderr()

    def check_stderr(self):
        if SANITIZER.search(self.stderr()):
            raise AssertionError("the server complains" + self.story())

    def _status(self, key):
        with open("/proc/%d/status" % self.pid, encoding="ascii",
                  errors="replace") as f:
            for line in f:
                if line.startswith(key + ":"):
                    return int(line.split()[1])
        raise AssertionError("no %s in /proc" % key)

    def rss_bytes(self):
        return self._status("VmRSS") << 10

    def peak_rss_bytes(self):
        return self._status("VmHWM") << 10

    def reset_peak(self):
        """Makes peak_rss_bytes begin anew."""
        with open("/proc/%d/clear_refs" % self.pid, "w",
                  encoding="ascii") as f:
            f.write("5")

    def threads(self):
        return self._status("Threads")

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.pid))

    def cpu_s(self):
        """User and system time so far."""
        with open("/proc/%d/stat" % self.pid, encoding="ascii",
                  errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def unnamed_files(self):
        """Paths under /proc of the files that it has open and that have no
        name: overlays."""
        found = []
        for fd in os.listdir("/proc/%d/fd" % self.pid):
            link = "/proc/%d/fd/%s" % (self.pid, fd)
            try:
                if os.readlink(link).endswith(" (deleted)"):
                    found.append(link)
            except OSError:
                pass            # closed meanwhile
        return found

    def overlay_bytes(self):
        """What its overlays take on disk."""
        return sum(os.stat(link).st_blocks * 512
                   for link in self.unnamed_files())

    def overlay_falls_to(self, limit_bytes, what):
        """Space that is given up is given back soon, if not at once."""
        deadline = time.monotonic() + STOP_S
        while self.overlay_bytes() > limit_bytes:
            if time.monotonic() > deadline:
                raise AssertionError("%s: the overlay still takes %d KiB, %d "
                                     "expected" % (what, self.overlay_bytes()
                                                   >> 10, limit_bytes >> 10))
            time.sleep(0.01)

    def forget_cached(self, *paths):
        """Drops these files and the overlays from the page cache, as far as
        the system does that, so that reads have to wait for a disk."""
        for path in list(paths) + self.unnamed_files():
            fd = os.open(path, os.O_RDONLY)
            try:
                write_back(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def check_memory(self, limit_bytes, what=""):
        """Peak and present memory below the limit. Sanitizers keep freed
        memory, so with them it says nothing."""
        if SANITIZED or PEER:
            return
        found = self.peak_rss_bytes()
        if found > limit_bytes:
            raise AssertionError("%s: peak memory is %d KiB, limit %d KiB"
                                 % (what, found >> 10, limit_bytes >> 10))

    # --- the end --------------------------------------------------------

    def wait(self, timeout_s=STOP_S):
        deadline = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > deadline:
                raise AssertionError("has not ended after %.0f s%s"
                                     % (timeout_s, self.story()))
            time.sleep(0.005)
        return self.process.returncode

    def stop(self, number=signal.SIGTERM, status=0):
        """Ends it and checks how it went and what is left."""
        if not self.ended():
            os.kill(self.pid, number)
        try:
            found = self.wait()
        except AssertionError:
            self.kill()
            raise
        self.process.stdout.close()
        self.check_stderr()
        if PEER:
            return
        if found != status:
            raise AssertionError("exit status %d, expected %d%s"
                                 % (found, status, self.story()))
        if os.path.lexists(self.socket):
            raise AssertionError("the socket is left behind" + self.story())
        if self.own_overlay_dir and os.listdir(self.overlay_dir):
            raise AssertionError("left behind in the overlay directory: %r%s"
                                 % (os.listdir(self.overlay_dir),
                                    self.story()))

    def kill(self):
        """As a crash or the OOM killer would."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        if not self.process.stdout.closed:
            self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            try:
                self.check_alive()
            finally:
                self.stop()
        else:
            self.kill()
            if self.stderr():
                print("server's stderr: " + self.stderr()[-4000:])
        shutil.rmtree(self.dir, ignore_errors=True)
