#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The first SIGTERM waits for a client that does not take its replies; a second
# one does not, and nothing stays behind either way.
. "$REWIND_SRC/tests/lib/behave.sh"
image disk.img 64M

# A client that asks for much and reads nothing.
cat >greedy.py <<'PYTHON'
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def take(n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        if not piece:
            sys.exit("hung up")
        data += piece
    return data
take(18)
s.sendall(struct.pack(">I", 3))
s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 0))
take(10)
for i in range(16):
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, 0, 32 << 20))
print("asked", flush=True)
sys.stdin.read()
PYTHON

greedy() {
    mkfifo fifo
    /usr/bin/python3 greedy.py s <fifo >greedy.out 2>&1 &
    holder=$!
    exec 9>fifo
    wait_for "the greedy client" grep -q asked greedy.out
    rm fifo
}

start -k s --pid-file pid -r disk.img
greedy
kill -TERM "$pid"
sleep 0.2
alive "$pid" || fail "the test means nothing: it did not wait"
begun=$(date +%s%N)
kill -TERM "$pid"
ended
took=$((($(date +%s%N) - begun) / 1000000))
[ $took -lt $((1000 * scale)) ] || fail "the second signal took $took ms"
gone s pid
[ "$status" -le 1 ] || fail "exit status $status"
exec 9>&-
wait "$holder" 2>/dev/null

# Without a second one its patience ends too.
start -k s --pid-file pid -r disk.img
greedy
kill -TERM "$pid"
ended
gone s pid
[ "$status" -le 1 ] || fail "exit status $status"
exec 9>&-
wait "$holder" 2>/dev/null
exit 0
