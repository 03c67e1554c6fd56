#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# SIGTERM, SIGINT and SIGHUP end a server in good order: what was written is
# there, exit status 0, nothing stays behind, clients or not.
. "$REWIND_SRC/tests/lib/behave.sh"
need qemu-io

for signal in TERM INT HUP; do
    image disk.img
    start -k s --pid-file pid -f raw disk.img
    qemu-io -f raw -c 'write -P 0x61 64k 4k' "${uris[0]}" >io ||
        fail "$(cat io)"
    stop_with $signal
    gone s pid
    same "$(dd if=disk.img bs=4k skip=16 count=1 status=none | tr -d a)" "" \
        "what was written"
done

# With a client that does nothing, and with the overlay's own things.
mkdir overlay
start -k s --pid-file pid -s -f raw --overlay-dir overlay disk.img
hold "${uris[0]}"
begun=$(date +%s%N)
stop
took=$((($(date +%s%N) - begun) / 1000000))
[ $took -lt $((1500 * scale)) ] || fail "an idle client held it up: $took ms"
gone s pid
same "$(ls -A overlay)" "" "left in the overlay directory"
exec 9>&-
wait "$holder" 2>/dev/null

# Started in a way that ignores hangups, it goes on.
begin nohup "$REWIND" serve -k s -r disk.img
wait_for "the ready line" ready_or_dead
kill -HUP "$pid"
sleep 0.1
alive "$pid" || fail "ended by a hangup in spite of nohup"
stop
