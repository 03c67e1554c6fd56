#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --fork returns when the server is ready, with its URI, or with the server's
# own error; the server goes on without a terminal and removes its pid file.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo
image disk.img

# $(...) ends only if nobody keeps our output open.
mkdir sub
uri=$(cd sub && timeout $((20 * scale)) "$REWIND" serve --fork --pid-file ../pid \
    -k s -s -f raw ../disk.img 2>../err)
status=$?
pid=$(cat pid)
pids+=("$pid")
same $status 0 "exit status ($(cat err))"
same "$uri" "nbd+unix:///?socket=$(pwd -P)/sub/s" "the URI"
[ -S sub/s ] || fail "no socket"
alive "$pid" || fail "no server"
same "$(nbdinfo --size "$uri")" $((1 << 20)) "size"
same "$(stat -c %a pid)" 644 "mode of the pid file"
same "$(ls)" "$(printf 'disk.img\nerr\npid\nsub')" "nothing else"
if [ -d /proc/self ]; then
    same "$(readlink "/proc/$pid/cwd")" / "working directory"
    same "$(readlink "/proc/$pid/fd/"{0,1,2} | uniq)" /dev/null "streams"
    same "$(ps -o sid= -p "$pid" | tr -d ' ')" "$pid" "session"
fi
kill -HUP "$pid"
same "$(nbdinfo --size "$uri")" $((1 << 20)) "size after a hangup"
kill "$pid"
wait_for "the end" dead "$pid"
pids=()
gone pid sub/s

# With -v what the server says later is still seen.
uri=$(timeout $((20 * scale)) "$REWIND" serve --fork --pid-file pid -v -r \
    disk.img 2>messages) || fail "--fork -v"
pid=$(cat pid)
pids+=("$pid")
has messages "serving 1 image"
if [ -d /proc/self ]; then
    same "$(readlink "/proc/$pid/fd/2")" "$PWD/messages" "standard error"
fi
kill "$pid"
wait_for "the end" dead "$pid"
pids=()

# What goes wrong comes back.
run "$REWIND" serve --fork --pid-file pid -k s -r nope.img
same "$status" 1 "exit status without an image"
has err nope.img
gone pid s
run "$REWIND" serve --fork --pid-file none/pid -k s -r disk.img
same "$status" 1 "exit status without a pid file"
has err none/pid
gone s

# A pid file that is somebody else's by now is let alone.
start --pid-file pid -r disk.img
same "$(cat pid)" "$pid" "the pid file"
echo 1 >pid
stop
same "$(cat pid)" 1 "the other's pid file"
