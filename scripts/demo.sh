#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# demo.sh: a real guest boots from a disk that `rewind serve --ephemeral`
# serves, ruins it, and boots clean again; then once more from a qcow2 image.
# Says what happens and how long it takes, checks every claim, and exits with
# 1 if one does not hold. Leaves nothing behind but the guest's disk in
# ${XDG_CACHE_HOME:-~/.cache}/rewind, for the next time.
#
# The guest is emulated (arm64 Debian kernel and busybox), so no KVM is needed.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
rewind=${REWIND:-$top/build/rewind}
patience_s=120
tmp=
pids=()

if [ -t 1 ] && [ -z "${NO_COLOR-}" ] && [ "${TERM-dumb}" != dumb ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

finish() {
    local status=$? pid
    trap - EXIT
    for pid in "${pids[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    [ -z "$tmp" ] || rm -rf "$tmp"
    if [ "$status" -ge 128 ]; then
        echo "${plain}Stopped; nothing is left behind." >&2
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

heading() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
command_line() { printf '  %s$ %s%s\n' "$dim" "$*" "$plain"; }
good() { printf '  %sok%s  %s\n' "$green" "$plain" "$*"; }

fail() {
    printf '  %sFAILED%s  %s\n' "$red" "$plain" "$*"
    exit 1
}

now_us() { echo "${EPOCHREALTIME/[.,]/}"; }

# Microseconds as people say them.
duration() { # MICROSECONDS
    if [ "$1" -lt 100000 ]; then
        printf '%d.%d ms' $(($1 / 1000)) $(($1 / 100 % 10))
    else
        printf '%d.%d s' $(($1 / 1000000)) $(($1 / 100000 % 10))
    fi
}

size() { # BYTES
    if [ "$1" -lt 1048576 ]; then
        printf '%d KiB' $(($1 / 1024))
    else
        printf '%d.%d MiB' $(($1 / 1048576)) $(($1 % 1048576 * 10 / 1048576))
    fi
}

checksum() { sha256sum "$1" | cut -d' ' -f1; }

# What was measured, for the table at the end.
measured=()
measure() { # WHAT VALUE
    measured+=("$1"$'\t'"$2")
}

# ---- the guest ----

prepare() {
    local line begin
    "$top/scripts/install-deps" demo
    if [ -z "${REWIND-}" ] && [ -z "${MAKELEVEL-}" ]; then
        make -s -C "$top"
    fi
    [ -x "$rewind" ] || fail "$rewind is not there; run make first"
    heading "The guest"
    begin=$(now_us)
    "$top/tests/guest/guest.py" aarch64 >"$tmp/guest" ||
        fail "the guest's disk can't be made; see above"
    while IFS='=' read -r name line; do
        case $name in
        qemu) qemu=$line ;;
        machine) read -ra machine <<<"$line" ;;
        append) append=$line ;;
        kernel) kernel=$line ;;
        disk) base=$line ;;
        esac
    done <"$tmp/guest"
    say "A small arm64 machine made of Debian's packages. Its disk:"
    say "$base, $(size "$(stat -c %s "$base")")"
    base_sum=$(checksum "$base")
    say "sha256 $base_sum"
    measure "the guest's disk, from packages or the cache" \
        "$(duration $(($(now_us) - begin)))"
}

# The two things that guests are asked to do, as shell scripts that run in
# them.
write_jobs() {
    cat >"$tmp/look.sh" <<'JOB'
say() { echo "guest: $*"; }
say "my disk has $(($(cat /sys/block/vda/size) / 2048)) MiB and" \
    "$(find / -xdev -type f | wc -l) files;" \
    "I was started here $(cat /root/starts 2>/dev/null || echo 0) times before"
echo 1 >/root/starts
JOB
    cat "$tmp/look.sh" - >"$tmp/ruin.sh" <<'JOB'
say "now: rm -rf /home /usr /lib /bin /sbin /etc"
rm -rf /home /usr /lib /bin /sbin /etc
/run/busybox sync
say "done: $(/run/busybox find / -xdev -type f | /run/busybox wc -l) file left"
/run/busybox ls / >/dev/null 2>&1 || true
say "this machine is ruined; powering off"
/run/busybox poweroff -f
JOB
    for job in look ruin; do
        "$top/tests/guest/guest.py" aarch64 --job "$tmp/$job.sh" \
            "$tmp/$job.initrd"
    done
}

# ---- the server ----

serve() { # FORMAT IMAGE
    local begin line
    socket=$tmp/disk.sock
    command_line "rewind serve --ephemeral -f $1 -x disk" \
        "--listen unix:$socket $2"
    begin=$(now_us)
    exec 3< <(exec "$rewind" serve --ephemeral -f "$1" -x disk \
        --listen "unix:$socket" "$2" 2>"$tmp/server.err")
    server=$!
    pids+=("$server")
    uri=
    if ! IFS= read -r -t "$patience_s" uri <&3; then
        cat "$tmp/server.err" >&2
        fail "the server does not get ready"
    fi
    started_us=$(($(now_us) - begin))
    say "ready after $(duration $started_us): $uri"
}

unserve() {
    local status=0 begin
    begin=$(now_us)
    kill -TERM "$server"
    wait "$server" || status=$?
    exec 3<&-
    unset 'pids[-1]'
    if [ "$status" != 0 ]; then
        cat "$tmp/server.err" >&2
        fail "the server ended with status $status"
    fi
    [ ! -e "$socket" ] || fail "the server left its socket behind"
    say "server stopped in $(duration $(($(now_us) - begin)));" \
        "what the guest wrote went with it"
}

# What the server's nameless overlay file takes on disk.
overlay_bytes() {
    local fd bytes=0
    for fd in /proc/"$server"/fd/*; do
        if [[ $(readlink "$fd") == *'(deleted)' ]]; then
            bytes=$((bytes + $(stat -L -c %b "$fd") * 512))
        fi
    done
    echo $bytes
}

# ---- the machine ----

# Boots a guest with a job, shows what it says as it says it, and waits until
# it is off. Sets boot_us (start to the disk's own init), job_us (from there
# on), files, starts and left, as far as the guest came.
boot() { # JOB
    local begin deadline shown=0 off=false lines=() line
    boot_us=0 files=0 starts=-1 left=-1 up=false
    : >"$tmp/console"
    begin=$(now_us)
    deadline=$((SECONDS + patience_s))
    "$qemu" -accel "${VM_ACCEL:-tcg}" "${machine[@]}" -m 128 -nodefaults \
        -no-user-config -display none -no-reboot \
        -serial "file:$tmp/console" -kernel "$kernel" \
        -initrd "$tmp/$1.initrd" -append "$append" \
        -drive "file=$uri,format=raw,if=none,id=d,discard=unmap,cache=none" \
        -device virtio-blk-pci,drive=d \
        </dev/null >"$tmp/qemu.out" 2>&1 &
    vm=$!
    pids+=("$vm")
    while :; do
        # Look first whether it is off, so that nothing it said is missed.
        kill -0 "$vm" 2>/dev/null || off=true
        mapfile -t lines < <(head -n "$(wc -l <"$tmp/console")" \
            "$tmp/console" | sed -n 's/\r*$//; s/^guest: //p')
        while [ $shown -lt ${#lines[@]} ]; do
            line=${lines[shown]}
            shown=$((shown + 1))
            heard "$line" "$begin"
        done
        $off && break
        [ $SECONDS -lt $deadline ] || {
            tail -n 20 "$tmp/console" "$tmp/qemu.out" >&2
            fail "the guest does not end"
        }
        sleep 0.02
    done
    unset 'pids[-1]'
    if ! wait "$vm"; then
        cat "$tmp/qemu.out" >&2
        fail "QEMU failed"
    fi
    job_us=$(($(now_us) - begin - boot_us))
}

heard() { # LINE BEGIN_US
    local at_us=$(($(now_us) - $2))
    printf '  %s%7s%s  guest: %s\n' "$dim" "$(duration $at_us)" "$plain" "$1"
    case $1 in
    'up after'*) boot_us=$at_us up=true ;;
    'my disk has'*)
        [[ $1 =~ and\ ([0-9]+)\ files.*here\ ([0-9]+)\ times ]] || return 0
        files=${BASH_REMATCH[1]} starts=${BASH_REMATCH[2]}
        ;;
    'done: '*) left=${1#done: } left=${left%% *} ;;
    esac
}

boots_clean() {
    $up || fail "the guest did not boot"
    [ "$files" -gt 500 ] || fail "the guest misses files: it sees $files"
    [ "$starts" = 0 ] || fail "the guest finds what an earlier one wrote"
}

is_ruined() {
    if [ "$left" -lt 0 ] || [ "$left" -ge 10 ]; then
        fail "the guest did not ruin its disk"
    fi
}

is_unchanged() {
    local sum
    sum=$(checksum "$base")
    [ "$sum" = "$base_sum" ] || fail "the base has changed: sha256 $sum"
    good "the base is what it was, bit for bit: sha256 ${sum:0:16}..."
}

# ---- the story ----

raw_story() {
    heading "1. Serve it as a throw-away disk, and boot"
    serve raw "$base"
    measure "server start to ready, raw" "$(duration "$started_us")"
    boot ruin
    boots_clean
    is_ruined
    local clean_files=$files
    measure "guest boot" "$(duration "$boot_us")"
    measure "ruin ($files files down to $left), and power off" \
        "$(duration "$job_us")"
    good "it booted, deleted $((files - left)) of its $files files, and went" \
        "off"
    say "all of that is in the overlay: $(size "$(overlay_bytes)")"
    measure "overlay after the ruin" "$(size "$(overlay_bytes)")"

    heading "2. Boot again from the same server: the ruin is real"
    boot look
    ! $up || fail "the ruined disk booted"
    good "it can't: its disk remembers what was done to it"
    unserve

    heading "3. A new server on the same base: as if nothing had happened"
    serve raw "$base"
    measure "second server start to ready" "$(duration "$started_us")"
    boot look
    boots_clean
    [ "$files" = "$clean_files" ] ||
        fail "$files files, but $clean_files at first"
    measure "guest boot, clean again" "$(duration "$boot_us")"
    good "all $files files are there"
    unserve
    is_unchanged
}

qcow2_story() {
    local image=$tmp/disk.qcow2 sum
    heading "4. The same with a qcow2 image"
    if ! command -v qemu-img >/dev/null; then
        say "left out: qemu-img is not installed"
        return
    fi
    command_line "qemu-img convert -O qcow2 $base $image"
    qemu-img convert -f raw -O qcow2 "$base" "$image"
    sum=$(checksum "$image")
    serve qcow2 "$image"
    measure "server start to ready, qcow2" "$(duration "$started_us")"
    boot ruin
    boots_clean
    is_ruined
    unserve
    serve qcow2 "$image"
    boot look
    boots_clean
    unserve
    [ "$(checksum "$image")" = "$sum" ] || fail "the qcow2 image has changed"
    good "ruined, and clean again; the image is what it was, bit for bit"
}

summary() {
    local entry
    heading "How long it took, how much it was"
    for entry in "${measured[@]}"; do
        printf '  %-52s %12s\n' "${entry%%$'\t'*}" "${entry#*$'\t'}"
    done
    printf '  %-52s %12s\n' "everything" "$(duration $(($(now_us) - begun)))"
    printf '\n%sAll as claimed.%s\n' "$green" "$plain"
}

begun=$(now_us)
# A short path: a Unix socket's must fit 104 bytes.
tmp=$(mktemp -d /tmp/rewind-demo.XXXXXX)
printf '%srewind demo: a guest ruins its disk, and boots clean again%s\n' \
    "$bold" "$plain"
prepare
write_jobs
raw_story
qcow2_story
summary
