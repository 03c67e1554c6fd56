# SPDX-License-Identifier: BSD-2-Clause
"""QEMU machines for tests.

Owns one kind of child process: a QEMU whose serial line goes to a file. A
machine is a context manager that leaves no process and no file behind.
Waiting is always for a condition, with a limit that only a hang reaches.

One thread. Reference: qemu(1).
"""

import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
import guest as guests
from harness import TIMEOUT_SCALE, Skip

# Seconds that a guest's step takes only when something hangs.
PATIENCE_S = 100 * TIMEOUT_SCALE

PR_SET_PDEATHSIG = 1


def die_with_parent():
    """In a new child: it ends when we are killed, too (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def linux_guest(arch):
    """guests.prepare, or the case is skipped: aloud, and not at all with
    REWIND_REQUIRE_GUEST set."""
    program = guests.ARCHES[arch]["qemu"]
    try:
        if shutil.which(program) is None:
            raise guests.Unavailable(f"{program} is not installed")
        return guests.prepare(arch)
    except guests.Unavailable as why:
        if os.environ.get("REWIND_REQUIRE_GUEST"):
            raise
        raise Skip(str(why)) from why


def boot_sector(path):
    """guests.boot_sector, or the case is skipped."""
    try:
        if shutil.which("qemu-system-x86_64") is None:
            raise guests.Unavailable("qemu-system-x86_64 is not installed")
        guests.boot_sector(path)
    except guests.Unavailable as why:
        raise Skip(str(why)) from why


class Vm:
    """A QEMU machine; what its serial line says is in text()."""

    child = None

    def __init__(self, *argv):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rw"))
        self.console = self.folder / "console"
        self.errors = self.folder / "errors"
        self.console.touch()
        self.begin = time.monotonic()
        common = ["-accel", os.environ.get("VM_ACCEL", "tcg"), "-nodefaults",
                  "-no-user-config", "-display", "none", "-no-reboot",
                  "-serial", f"file:{self.console}"]
        try:
            with open(self.errors, "wb") as errors:
                self.child = subprocess.Popen(
                    [str(arg) for arg in [argv[0], *common, *argv[1:]]],
                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                    preexec_fn=die_with_parent)
        except BaseException:
            self.close()
            raise

    def text(self):
        return self.console.read_text(errors="replace").replace("\r", "")

    def said(self):
        """What the guest's own programs said, without our prefix."""
        return [line[len("guest: "):] for line in self.text().splitlines()
                if line.startswith("guest: ")]

    def story(self):
        return (f"\n--- guest:\n{self.text()[-2000:]}\n--- QEMU:\n"
                f"{self.errors.read_text(errors='replace')[-2000:]}")

    def until(self, look, what):
        """Waits for look(the serial line's text so far) to give something
        true and returns it."""
        end = time.monotonic() + PATIENCE_S
        while True:
            ended = self.child.poll() is not None
            value = look(self.text())
            if value:
                return value
            if ended or time.monotonic() > end:
                raise AssertionError(f"no {what} from the guest"
                                     f"{self.story()}")
            time.sleep(0.01)

    def expect(self, pattern):
        """Waits for a match on the serial line and returns it."""
        return self.until(lambda text: re.search(pattern, text, re.M),
                          repr(pattern))

    def check_patience(self):
        """Fails if the guest is still on after longer than it ever takes."""
        if (self.child.poll() is None
                and time.monotonic() > self.begin + 2 * PATIENCE_S):
            raise AssertionError(f"the guest does not end{self.story()}")

    def finish(self):
        """Waits until the guest has switched itself off; returns the seconds
        since its start."""
        try:
            status = self.child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest does not end{self.story()}"
                                 ) from None
        if status != 0:
            raise AssertionError(f"QEMU ended with {status}{self.story()}")
        return time.monotonic() - self.begin

    def kill(self):
        """As if the host had lost power."""
        self.child.kill()
        self.child.wait()

    def close(self):
        if self.child:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class LinuxVm(Vm):
    """A guest on served disks (URIs; the first is its root) that runs the
    shell script `job` and switches itself off; `more` is more for QEMU."""

    def __init__(self, guest, disks, job, memory_mb=128, more=()):
        self.media = pathlib.Path(tempfile.mkdtemp(prefix="rw"))
        initrd = self.media / "initrd"
        initrd.write_bytes(guests.job_initrd(guest, job))
        drives = []
        for idx, uri in enumerate(disks):
            drives += ["-drive", f"file={uri},format=raw,if=none,id=d{idx},"
                       "discard=unmap,cache=none",
                       "-device", f"virtio-blk-pci,drive=d{idx}"]
        super().__init__(
            guest.info["qemu"], *guest.info["machine"], "-m", memory_mb,
            "-kernel", guest.kernel, "-initrd", initrd, "-append",
            guests.command_line(guest), *drives, *more)

    def close(self):
        super().close()
        shutil.rmtree(self.media, ignore_errors=True)
