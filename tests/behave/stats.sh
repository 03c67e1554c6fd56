#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --stats at the end, and SIGUSR1 at any time: what was done, as text or JSON.
. "$REWIND_SRC/tests/lib/behave.sh"
need qemu-io jq
image disk.img 16M

work() {
    qemu-io -f raw -c 'write 0 64k' -c 'write 1M 4k' -c 'read 0 128k' -c flush \
        -c 'discard 2M 1M' -c 'read 4M 4k' "${uris[0]}" >io ||
        fail "$(cat io)"
}

start --stats -s -f raw -k s disk.img
work
kill -USR1 "$pid"
wait_for "the report" grep -q '^export ""' "$err"
grep -Eq '^write +2 +68 KiB +0 ' "$err" || fail "writes are not told"
has "$err" "sessions: 1 (0 open, 0 failed)"
grep -Eq '^export "": top layer [0-9.]+ .iB on disk' "$err" ||
    fail "the overlay is not told"
same "$(grep -c '^sessions' "$err")" 1 "reports so far"
stop
same "$(grep -c '^sessions' "$err")" 2 "reports in all"

# Without --stats only when asked.
start -r -k s disk.img
kill -USR1 "$pid"
wait_for "the report" grep -q '^sessions: 0' "$err"
stop
same "$(grep -c '^sessions' "$err")" 1 "reports without --stats"

# JSON into a file, a line each, also from the background.
timeout $((20 * scale)) "$REWIND" serve --json --stats=stats.json --fork \
    --pid-file pid -s -f raw -k s disk.img >ready || fail "--fork"
pid=$(cat pid)
pids+=("$pid")
uris=("$(jq -r .uri ready)")
work
kill -USR1 "$pid"
wait_for "the report" test -s stats.json
kill "$pid"
wait_for "the end" dead "$pid"
pids=()
same "$(wc -l <stats.json)" 2 "lines of JSON"
field() { tail -n 1 stats.json | jq "$1"; }
same "$(field .commands.write.requests)" 2 "writes"
same "$(field .commands.write.bytes)" $((68 << 10)) "bytes written"
[ "$(field .commands.read.requests)" -ge 2 ] || fail "reads"
same "$(field .commands.write.errors)" 0 "errors"
field '.commands.write.latency_ns | .p50 > 0 and .p50 <= .p99 and
    .p99 <= .max' | grep -q true || fail "latencies"
same "$(field .sessions)" 1 "sessions"
[ "$(field .bytes_in)" -ge $((68 << 10)) ] || fail "bytes in"
[ "$(field '.exports[0].top_bytes')" -ge $((68 << 10)) ] || fail "top_bytes"
[ "$(field '.exports[0].top_map_bytes')" -gt 0 ] || fail "top_map_bytes"
rewind serve --stats=none/x -r disk.img
same "$status" 1 "exit status when there is no place for the file"
has err none/x
