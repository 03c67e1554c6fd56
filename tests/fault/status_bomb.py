#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""An image whose tables all name one another costs no more than any other.

Four million L1 entries name one L2 table of zeroes: 35 MB on disk that
describe 2^61 bytes. One question about 2^60 of them must be answered, in part,
and the server must still stop when told.
"""
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "..", "lib"))
from harness import case, expect, main, scratch
from nbdwire import *
from rewindserver import Server

CLUSTER = 2 << 20
L1_ENTRIES = 1 << 22
BASE = "base:allocation"
DEPTH = "qemu:allocation-depth"


def bomb(path):
    header = struct.pack(">IIQIIQIIQQIIQ", 0x514649fb, 3, 0, 0, 21, 1 << 61,
                         0, L1_ENTRIES, CLUSTER, 20 * CLUSTER, 1, 0, 0)
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    with open(path, "wb") as f:
        f.write(header)
        f.seek(CLUSTER)
        f.write(struct.pack(">Q", 1 << 63 | 18 * CLUSTER) * L1_ENTRIES)
        f.seek(18 * CLUSTER)
        f.write(struct.pack(">Q", 1) * (CLUSTER // 8))
        f.truncate(21 * CLUSTER)
    return path


@case
def one_question_about_all_of_it():
    path = bomb(scratch("bomb.qcow2"))
    with Server(path, image_format="qcow2", read_only=True,
                ephemeral=False) as srv:
        with srv.open(EXTENDED, [BASE, DEPTH]) as s:
            for flags in (0, F_REQ_ONE):
                # The client gives up by itself if no answer comes.
                p = s.call(CMD_BLOCK_STATUS, 0, 1 << 60, flags=flags)
                expect(p.error, OK, "status")
            s.disconnect()


main()
