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

# SIGTERM is a good end as well before a client has chosen an export, be it
# silent, in the middle of an option or between two, on a socket or on pipes.
cat >early.py <<'PYTHON'
import socket, struct, subprocess, sys
kind, state, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
if kind == "socket":
    ours, theirs = socket.socketpair()
    p = subprocess.Popen(argv, stdin=theirs, stdout=theirs)
    theirs.close()
    into = out_of = ours.makefile("rwb", buffering=0)
else:
    p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         bufsize=0)
    into, out_of = p.stdin, p.stdout
def take(n):
    data = b""
    while len(data) < n:
        piece = out_of.read(n - len(data))
        assert piece, data
        data += piece
    return data
assert take(18)[:16] == b"NBDMAGICIHAVEOPT"
if state != "silent":
    into.write(struct.pack(">I", 3))
if state == "between": # after a list
    into.write(b"IHAVEOPT" + struct.pack(">II", 3, 0))
    take(20 + 4) # the one export, whose name is empty
    take(20)
elif state == "middle":
    into.write(b"IHAVEOPT" + struct.pack(">II", 7, 100) + b"x")
p.terminate()
try:
    assert out_of.read(1) in (b"", None)
except ConnectionResetError: # what we sent was not read: an end too
    pass
sys.exit(p.wait())
PYTHON
for kind in socket pipes; do
    for state in silent middle between; do
        run /usr/bin/python3 early.py $kind $state \
            "$REWIND" serve --inetd -f raw --pid-file pid disk.img
        same "$status" 0 "SIGTERM on $kind, $state"
        gone pid
    done
done
