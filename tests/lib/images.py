# SPDX-License-Identifier: BSD-2-Clause
"""Disk images with known content, made without the program under test.

Owns nothing: every function makes files where it is told to. qcow2 images
are made by qemu-img and qemu-io, so that nobody here marks his own work.
"""
import array
import hashlib
import shutil
import subprocess
import sys

from harness import Skip

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def pattern(offset, length, salt=0):
    """Bytes that tell where they belong: each aligned word holds its own
    number and the salt, and none is zero."""
    first, last = offset // 8, (offset + length + 7) // 8
    top = (salt & 0x7f | 0x80) << 56
    words = array.array("Q", range(top + first, top + last))
    if sys.byteorder == "little":
        words.byteswap()
    start = offset - first * 8
    return words.tobytes()[start:start + length]


def raw_image(path, size, pieces=()):
    """A sparse file of `size` bytes with `pieces` [(offset, bytes)]."""
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, data in pieces:
            f.seek(offset)
            f.write(data)
    return path


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def tool(*argv):
    """Runs a program that must succeed; skips if it is not installed."""
    if shutil.which(argv[0]) is None:
        raise Skip("%s is not installed" % argv[0])
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise AssertionError("%s: %s" % (" ".join(argv), done.stdout))
    return done.stdout


def qcow2_image(path, size=None, backing=None, backing_format="qcow2",
                options="", writes=()):
    """A qcow2 image; `writes` are qemu-io commands, run in order."""
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if options:
        argv += ["-o", options]
    if backing is not None:
        argv += ["-b", backing, "-F", backing_format]
    argv.append(path)
    if size is not None:
        argv.append(str(size))
    tool(*argv)
    if writes:
        argv = ["qemu-io", "-t", "unsafe", "-f", "qcow2"]
        for command in writes:
            argv += ["-c", command]
        tool(*argv, path)
    return path


def content(path, image_format="qcow2"):
    """All bytes that a guest sees, according to qemu-img."""
    out = path + ".content"
    tool("qemu-img", "convert", "-t", "unsafe", "-f", image_format, "-O", "raw", path, out)
    with open(out, "rb") as f:
        return f.read()
