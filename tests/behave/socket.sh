#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Unix sockets: their mode, a dead one is replaced, a live one and other files
# are not, paths that can't be.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo
image disk.img

umask 022
start -k s -r disk.img
same "$(stat -c %a s)" 600 "default mode"

# In use: refused, and unharmed.
rewind serve -k s -r disk.img
same "$status" 1 "exit status when the socket is in use"
has err "already in use"
nbdinfo --size "$(uri_of "$PWD/s")" >size || fail "the first server was harmed"

# Killed: its socket stays, and is replaced.
kill -KILL "$pid"
wait_for "the end" dead "$pid"
wait "$pid" 2>/dev/null
[ -S s ] || fail "the test means nothing: no socket left behind"
start -k s -r --socket-mode 660 disk.img
same "$(stat -c %a s)" 660 "--socket-mode"
nbdinfo --size "$(uri_of "$PWD/s")" >size || fail "the new server is deaf"

# Removed and made by somebody else: not ours to unlink.
rm s
echo precious >s
stop
same "$(cat s)" precious "the other's file"
rewind serve -k s -r disk.img
same "$status" 1 "exit status when there is a file"
has err "not a socket"
same "$(cat s)" precious "the other's file"

long=$(printf 'x%.0s' {1..110})
rewind serve -k "$long" -r disk.img
same "$status" 1 "exit status of a long path"
has err shorter
rewind serve -k none/s -r disk.img
same "$status" 1 "exit status without the directory"
has err "none"
