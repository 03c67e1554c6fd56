#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --cache: writethrough and directsync make each write durable before its reply,
# writeback and none at a flush, unsafe never.
. "$REWIND_SRC/tests/lib/behave.sh"
need strace qemu-io
[ "${REWIND_SANITIZE:-none}" = none ] || skip "no strace beside a sanitizer"
strace -o probe true 2>/dev/null || skip "strace may not trace"
image disk.img 4M

# How many syncs the server has done after each of a write and a flush.
syncs() { # OPTION...
    rm -f trace
    # -D: the server, not strace, is the process that we stop. Only the threads
    # engine's work can be seen.
    begin strace -D -f -o trace -e trace=fdatasync,fsync "$REWIND" serve \
        --engine=threads -f raw -k s "$@" disk.img
    wait_for "the ready line" ready_or_dead
    mapfile -t uris <"$out"
    # cache=none: the client flushes when it is told, not before.
    qemu-io -f raw -t none -c 'write 0 4k' -c 'sleep 300' \
        -c 'write 4k 4k' -c 'sleep 300' "${uris[0]}" >io || fail "$(cat io)"
    written=$(grep -c 'sync(.*= 0' trace)
    qemu-io -f raw -t none -c 'write 8k 4k' -c flush -c flush "${uris[0]}" \
        >io || fail "$(cat io)"
    flushed=$(grep -c 'sync(.*= 0' trace)
    stop
}

# A client's flush as it leaves is one sync at most.
for mode in writethrough directsync; do
    syncs --cache=$mode
    [ "$written" -ge 2 ] || fail "$mode: $written syncs after two writes"
done
for mode in writeback none; do
    syncs --cache=$mode
    [ "$written" -le 1 ] || fail "$mode: $written syncs after two writes"
    [ $((flushed - written)) -ge 1 ] || fail "$mode: no sync after a flush"
done
syncs --cache=unsafe
same "$written" 0 "syncs with unsafe, after writes"
same "$flushed" 0 "syncs with unsafe, after flushes"
same "$(grep -c 'sync(' trace)" 0 "syncs with unsafe, at the end"
