#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Socket activation: listening sockets are handed over as systemd does it, and
# replace all other addresses.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo
image disk.img

# activate.py COUNT COMMAND...: listens on that many sockets and becomes the
# command, with them from descriptor 3 on; a TCP one is the last.
cat >activate.py <<'PYTHON'
import os, socket, sys
kept = []
for i in range(int(sys.argv[1])):
    if i + 1 < int(sys.argv[1]) or i == 0:
        s = socket.socket(socket.AF_UNIX)
        s.bind(os.path.abspath("s%d" % i))
    else:
        s = socket.socket(socket.AF_INET)
        s.bind(("127.0.0.1", 0))
    s.listen()
    kept.append(os.dup2(s.fileno(), 50 + i, inheritable=True))
for i, fd in enumerate(kept):
    os.dup2(fd, 3 + i, inheritable=True)
os.environ["LISTEN_FDS"] = sys.argv[1]
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDNAMES"] = "x:y:z"
os.closerange(50, 60)
os.execv(sys.argv[2], sys.argv[2:])
PYTHON
activate() { # COUNT ARGUMENT...
    local n=$1
    shift
    begin /usr/bin/python3 activate.py "$n" "$REWIND" serve "$@"
    wait_for "the server" ready_or_dead
}

activate 3 -r -x name disk.img
mapfile -t uris <"$out"
same "${#uris[@]}" 3 "URIs"
same "${uris[0]}" "nbd+unix:///name?socket=$PWD/s0" "the first URI"
same "${uris[2]%:*}" "nbd://127.0.0.1" "the last URI"
for uri in "${uris[@]}"; do
    same "$(nbdinfo --size "$uri")" $((1 << 20)) "size at $uri"
done
if [ -d /proc/self ]; then
    tr '\0' '\n' <"/proc/$pid/environ" | grep -q LISTEN_PID ||
        fail "the test means nothing: no LISTEN_PID"
fi
stop
[ -S s0 ] || fail "a socket that is not ours was unlinked"
rm s0 s1

# In the background too, though the process id is another then.
mkdir run
(cd run && timeout $((20 * scale)) /usr/bin/python3 ../activate.py 1 "$REWIND" \
    serve --fork --pid-file pid -r ../disk.img >out 2>err) ||
    fail "$(cat run/err)"
pid=$(cat run/pid)
pids+=("$pid")
same "$(nbdinfo --size "$(cat run/out)")" $((1 << 20)) "size when forked"
kill "$pid"
wait_for "the end" dead "$pid"
pids=()

refused() { # ARGUMENT...
    rm -f s0
    run /usr/bin/python3 activate.py 1 "$REWIND" serve "$@"
    same "$status" 2 "exit status of $*"
    has err "socket activation"
}
refused -r -k s disk.img
refused -r -p 0 disk.img
refused -r --listen localhost:0 disk.img
refused -r --inetd disk.img
refused --list

# Meant for somebody else: as if it were not there.
export LISTEN_PID=1 LISTEN_FDS=1
start -k own -r disk.img
same "$(nbdinfo --size "${uris[0]}")" $((1 << 20)) "size"
stop
unset LISTEN_PID LISTEN_FDS

# A descriptor that does not listen is no socket to serve on.
export LISTEN_FDS=1
cat >notlisten.py <<'PYTHON'
import os, sys
os.set_inheritable(os.dup2(os.open("/dev/null", os.O_RDWR), 3), True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], [sys.argv[1], "serve", "-r", "disk.img"])
PYTHON
run /usr/bin/python3 notlisten.py "$REWIND"
same "$status" 1 "exit status without a socket"
has err "not a socket"
