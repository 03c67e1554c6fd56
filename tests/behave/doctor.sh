#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# doctor says what works here; its exit status is whether serve does.
. "$REWIND_SRC/tests/lib/behave.sh"
need jq
mkdir overlay

rewind doctor --overlay-dir overlay
same "$status" 0 "exit status"
has out "rewind serve works here."
for label in "I/O engine" "open files" "Unix socket" overlays "punch holes" \
    "find holes" "clone files" "image locks" "cached reads" hypervisor QEMU; do
    has out "$label"
done
same "$(ls -A overlay)" "" "left behind"
gone "rewind-$(id -u)"

rewind --json doctor --overlay-dir overlay
same "$status" 0 "exit status with --json"
same "$(jq .works out)" true "works"
check() { jq -r ".checks[] | select(.check == \"$1\").$2" out; }
same "$(check overlay path)" overlay "the overlay's directory"
[ "$(check overlay free_bytes)" -gt 0 ] || fail "no free space"
[ "$(check socket path_max)" -ge 103 ] || fail "path_max"
[ "$(check files limit)" -gt 0 ] || fail "limit of files"
case $(check engine engine) in
io_uring | threads) ;;
*) fail "engine: $(check engine engine)" ;;
esac
same "$(jq -r '.checks[].verdict' out | grep -vx 'ok\|info\|warn')" "" \
    "verdicts"

# What does not work is said, and the exit status tells.
rewind doctor --overlay-dir none
same "$status" 1 "exit status without the directory"
has out "FAIL"
has out "none"
has out "rewind serve does not work here."
rewind doctor --overlay-dir none --json
same "$status" 1 "exit status without the directory, --json"
same "$(jq .works out)" false "works"

# Other programs are asked with a time limit, and may say anything.
mkdir bin
printf '#!/bin/sh\necho "QEMU emulator version 9.9.9 (x)"; yes\n' \
    >bin/qemu-system-x86_64
printf '#!/bin/sh\nexec sleep 60\n' >bin/qemu-img
chmod +x bin/*
PATH=$PWD/bin:/usr/bin:/bin run "$REWIND" doctor --json
same "$status" 0 "exit status with odd programs"
same "$(check qemu '"qemu-system-x86_64"')" 9.9.9 "a talkative program"
