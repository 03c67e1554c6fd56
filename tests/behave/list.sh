#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --list: as a client, what a server exports; ours and others.
. "$REWIND_SRC/tests/lib/behave.sh"
need qemu-nbd jq
image a.img 1M
image b.img 2M

start -k s -x one -r a.img -x two -s -f raw -D 'a text' b.img
rewind serve -L -k s
same "$status" 0 "exit status"
cp out ours
qemu-nbd -L -k "$PWD/s" >theirs || fail "qemu-nbd -L does not work"
# The same program listed by qemu-nbd's own client, but for what newer
# versions of it add.
diff <(grep -v 'transaction size' theirs) ours || fail "not like qemu-nbd's"
has ours "exports available: 2"
has ours "  description: a text"
has ours "  available meta contexts: 2"

rewind serve --list --json "$(uri_of "$PWD/s")"
same "$status" 0 "exit status with --json"
same "$(jq -r '.exports | map(.name) | join(" ")' out)" "one two" "names"
same "$(jq '.exports[1].size' out)" $((2 << 20)) "size"
jq -e '.exports[0].flags | index("readonly")' out >/dev/null ||
    fail "one is not read-only"
stop

# Another's server, over TCP.
port=$(free_port)
begin qemu-nbd -t -r -b 127.0.0.1 -p "$port" -x theirs -f raw a.img
wait_for "qemu-nbd" "$REWIND" serve -L -b 127.0.0.1 -p "$port" 2>/dev/null \
    >/dev/null
rewind serve -L -b 127.0.0.1 -p "$port"
has out "export: 'theirs'"
qemu-nbd -L -b 127.0.0.1 -p "$port" | grep -v 'transaction size' >theirs
diff theirs out || fail "not like qemu-nbd's"
rewind serve -L "nbd://127.0.0.1:$port"
same "$status" 0 "exit status of a URI"
diff theirs out || fail "not like qemu-nbd's by URI"
kill "$pid"
ended

rewind serve -L -k s
same "$status" 1 "exit status when nobody listens"
has err s
rewind serve -L ftp://host
same "$status" 2 "exit status of a bad URI"
