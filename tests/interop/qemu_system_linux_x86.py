#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: slow timeout=240
"""A Linux guest of another architecture works on a disk without an overlay
(tests/guest/work.py): what it wrote is in the file when the server has gone,
and what it trimmed is not.
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"),
                os.path.join(HERE, "..", "guest")]
from harness import case, expect, main, scratch
from images import raw_image, sha256, tool
from vm import linux_guest
from work import SECOND_BYTES, work


@case
def a_writable_disk():
    guest = linux_guest("x86_64")
    before = sha256(guest.disk)
    raw = raw_image(scratch("writable.raw"), SECOND_BYTES)
    work((guest, "gamma", raw, "raw", False))
    tool("e2fsck", "-fn", raw)
    if os.stat(raw).st_blocks * 512 > SECOND_BYTES // 4:
        raise AssertionError("the guest's trim gave no space back")
    expect(sha256(guest.disk), before, "the base's checksum")


main()
