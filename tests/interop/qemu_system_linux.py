#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# test: slow timeout=240
"""Two Linux guests at once: both boot from one shared base, each through
a throw-away server of its own, and work on second disks of their own, of which
one is raw and one is qcow2 (tests/guest/work.py).
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"),
                os.path.join(HERE, "..", "guest")]
from harness import case, expect, main, scratch
from images import qcow2_image, raw_image, sha256
from vm import linux_guest
from work import SECOND_BYTES, work


@case
def two_guests_on_one_base():
    guest = linux_guest("aarch64")
    before = sha256(guest.disk)
    raw = raw_image(scratch("second.raw"), SECOND_BYTES)
    qcow2 = qcow2_image(scratch("second.qcow2"), SECOND_BYTES)
    work((guest, "alpha", raw, "raw"), (guest, "beta", qcow2, "qcow2"))
    expect(sha256(guest.disk), before, "the shared base's checksum")


main()
