#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# -e: further clients wait; --handshake-limit: a client that says nothing is
# dropped; the limit of open files is raised; --exit-with-parent.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo
image disk.img

start -e 1 -k s -r disk.img
hold "${uris[0]}"
timeout 1 nbdinfo --size "${uris[0]}" >size 2>&1
same $? 124 "a client beyond -e"
release
same "$(nbdinfo --size "${uris[0]}")" $((1 << 20)) "the next client"
stop

start --handshake-limit 1 -k s -r disk.img
cat >silent.py <<'PYTHON'
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect("s")
s.settimeout(60)
begun = time.monotonic()
while s.recv(4096):
    pass
took = time.monotonic() - begun
sys.exit(0 if 0.8 < took < 15 else "dropped after %.1f s" % took)
PYTHON
run /usr/bin/python3 silent.py
same "$status" 0 "a silent client is dropped ($(cat err))"
stop

(
    ulimit -S -n 256
    start -k s -r disk.img
    if [ -r "/proc/$pid/limits" ]; then
        limit=$(awk '/^Max open files/ { print $4 " " $5 }' "/proc/$pid/limits")
        same "${limit% *}" "${limit#* }" "soft and hard limit of open files"
    fi
    stop
) || exit 1

# The server ends soon after whoever started it.
cat >parent.sh <<SH
"$REWIND" serve --exit-with-parent --pid-file pid -k s -r disk.img >ready &
while [ ! -s ready ]; do sleep 0.02; done
SH
run bash parent.sh
wait_for "the server's end" test ! -e pid
gone s
