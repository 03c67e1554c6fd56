#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --inetd serves one session on standard input and output: sockets or pipes.
. "$REWIND_SRC/tests/lib/behave.sh"
image disk.img

# libnbd starts the server itself, with a socket pair as both streams.
cat >pair.py <<'PYTHON'
import sys, nbd
h = nbd.NBD()
h.set_export_name("x")
h.connect_command(sys.argv[1:])
assert bytes(h.pread(16, 0)) == b"this is disk.img"
h.pwrite(b"y" * 4096, 8192)
h.flush()
h.shutdown()
PYTHON
run /usr/bin/python3 pair.py "$REWIND" serve --inetd --stats=stats -f raw \
    -x x disk.img
same "$status" 0 "a session on a socket pair"
same "$(dd if=disk.img bs=4k skip=2 count=1 status=none | tr -d y)" "" \
    "what was written"
has stats "write "

# Two pipes, by hand: the greeting comes, and the end of input is the end.
cat >pipes.py <<'PYTHON'
import os, struct, subprocess, sys
p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE,
                     stdout=subprocess.PIPE)
def take(n):
    data = p.stdout.read(n)
    assert len(data) == n, data
    return data
assert take(16) == b"NBDMAGICIHAVEOPT"
take(2)
p.stdin.write(struct.pack(">I", 3))
p.stdin.write(b"IHAVEOPT" + struct.pack(">II", 1, 0))
p.stdin.flush()
assert struct.unpack(">QH", take(10))[0] == 1 << 20
p.stdin.write(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 16))
p.stdin.flush()
assert take(16) == struct.pack(">IIQ", 0x67446698, 0, 7)
assert take(16) == b"this is disk.img"
if os.path.isdir("/proc/self"):
    # What is printed by mistake must not get into the session.
    assert os.readlink("/proc/%d/fd/1" % p.pid) == "/dev/null"
if "--pid-file" in sys.argv:
    p.terminate()
else:
    p.stdin.write(struct.pack(">IHHQQI", 0x25609513, 0, 2, 8, 0, 0))
    p.stdin.close()
assert p.stdout.read() == b""
sys.exit(p.wait())
PYTHON
run /usr/bin/python3 pipes.py "$REWIND" serve --inetd -s -f raw disk.img
same "$status" 0 "a session on pipes"
run /usr/bin/python3 pipes.py "$REWIND" serve --inetd -s -f raw \
    --pid-file pid disk.img
same "$status" 0 "a session on pipes that SIGTERM ends"
gone pid
