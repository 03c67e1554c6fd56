#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""hold.py URI: a client that connects, says so, reads a sector, and stays
until its standard input ends. Then it leaves in good order."""
import sys

import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(512, 0)
print("connected", flush=True)
sys.stdin.read()
h.shutdown()
