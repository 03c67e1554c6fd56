# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# What the interop scripts share: a server to talk to, images whose content is
# known, and words for what went wrong. Sourced, not run.
#
# serve OPTION... IMAGE starts a server (qemu-nbd's options) and sets $uri,
# $sock and $server_pid; unserve ends the last one and fails unless it ends
# well. REWIND_PEER=qemu-nbd runs that program instead: a way to find out
# whether a test asks for more than NBD promises.
set -euo pipefail

scale=${REWIND_TIMEOUT_SCALE:-1}
peer=${REWIND_PEER-}
tmp=$(mktemp -d)
server_pids=()
serve_count=0
cd "$tmp"

finish() {
    local status=$?
    local pid
    for pid in "${server_pids[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ "$status" != 0 ] && [ "$status" != 77 ]; then
        tail -n 40 "$tmp"/server*.err >&2 2>/dev/null || true
    fi
    cd /
    rm -rf "$tmp"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
trap 'echo "FAIL: line $LINENO: $BASH_COMMAND" >&2' ERR
set -E

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

skip() {
    echo "SKIP: $*" >&2
    exit 77
}

need() { # PROGRAM...
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

# Runs a command that has to fail, and shows what it says.
must_fail() { # COMMAND...
    if "$@" >must_fail.out 2>&1; then
        cat must_fail.out >&2
        fail "succeeded, but must not: $*"
    fi
    cat must_fail.out
}

same() { # FOUND WANTED WHAT
    [ "$1" = "$2" ] || fail "$3: expected '$2', got '$1'"
}

# Every server program that the scripts can talk to speaks qemu-nbd's options.
server_argv() {
    if [ -z "$peer" ]; then
        printf '%s\n' "$REWIND" serve -t -e 0 --discard=unmap
    else
        printf '%s\n' "$peer" -t -e 0 --discard=unmap
    fi
}

serve() { # [OPTION...] IMAGE
    local argv deadline
    serve_count=$((serve_count + 1))
    sock=$tmp/s$serve_count
    uri="nbd+unix:///disk?socket=$sock"
    mapfile -t argv < <(server_argv)
    : >"server$serve_count.out"
    "${argv[@]}" -k "$sock" -x disk "$@" \
        >"server$serve_count.out" 2>"server$serve_count.err" </dev/null &
    server_pid=$!
    server_pids+=("$server_pid")
    deadline=$((SECONDS + 20 * scale))
    until ready "server$serve_count.out"; do
        kill -0 "$server_pid" 2>/dev/null ||
            fail "the server ended: $(cat "server$serve_count.err")"
        [ $SECONDS -lt $deadline ] || fail "the server does not get ready"
        sleep 0.02
    done
}

# Our ready line is a URI; another server is ready when it answers.
ready() { # STDOUT_FILE
    if [ -z "$peer" ]; then
        grep -q '^nbd' "$1"
    else
        [ -S "$sock" ] && nbdinfo --size "$uri" >/dev/null 2>&1
    fi
}

unserve() {
    local status=0
    kill -TERM "$server_pid"
    wait "$server_pid" || status=$?
    unset 'server_pids[-1]'
    if [ -z "$peer" ]; then
        same "$status" 0 "the server's exit status"
        [ ! -e "$sock" ] || fail "the server left its socket behind"
    fi
    if [ ${#server_pids[@]} -gt 0 ]; then
        server_pid=${server_pids[-1]}
    fi
}

# The engines to try: options for serve, one a line.
engines() {
    if [ -n "$peer" ]; then
        echo --aio=threads
    else
        echo --engine=auto
        echo --engine=threads
    fi
}

# Bytes of disk space in the server's unnamed files: the overlay.
overlay_bytes() {
    local fd bytes=0 blocks
    for fd in /proc/"$server_pid"/fd/*; do
        case $(readlink "$fd") in
        *'(deleted)')
            blocks=$(stat -L -c %b "$fd")
            bytes=$((bytes + blocks * 512))
            ;;
        esac
    done
    echo $bytes
}

disk_bytes() { # FILE
    echo $(($(stat -c %b "$1") * 512))
}

# A sparse raw image with data of many sizes; what is written is repeatable.
make_raw() { # FILE MEBIBYTES [SALT]
    /usr/bin/python3 - "$@" <<'PYTHON'
import random, sys
path, size = sys.argv[1], int(sys.argv[2]) << 20
rng = random.Random(sys.argv[3] if len(sys.argv) > 3 else "base")
with open(path, "wb") as f:
    f.truncate(size)
    for length in (512, 4096, 4097, 65536, 100000, 1 << 20, 3 << 20):
        if length < size:
            f.seek(rng.randrange(0, size - length) // 512 * 512)
            f.write(rng.randbytes(length))
    for off in (0, size - 1024):
        f.seek(off)
        f.write(rng.randbytes(1024))
PYTHON
}

# A chain of three: chain.qcow2 over mid.qcow2 over a shorter raw bottom.raw,
# each with data, zeroes and nothing of its own.
make_chain() {
    make_raw bottom.raw 12 bottom
    qemu-img create -q -f qcow2 -b bottom.raw -F raw mid.qcow2 14M
    qemu-io -f qcow2 -c 'write -q -P 0x11 1M 192k' \
        -c 'write -q -z 2M 1M' -c 'write -q -P 0x12 13M 64k' mid.qcow2
    qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 chain.qcow2 16M
    qemu-io -f qcow2 -c 'write -q -P 0x21 1088k 64k' \
        -c 'write -q -P 0x22 5M 128k' -c 'write -q -z 13M 64k' \
        -c 'write -q -P 0x23 15M 1M' chain.qcow2
}

# The extents of an image or URI, "start length data zero" a line, equal
# neighbours joined; arguments as for qemu-img map.
extents() {
    qemu-img map --output=json "$@" | /usr/bin/python3 -c '
import json, sys
joined = []
for e in json.load(sys.stdin):
    kind = (e["data"], e["zero"])
    if joined and joined[-1][2] == kind:
        joined[-1][1] += e["length"]
    else:
        joined.append([e["start"], e["length"], kind])
for start, length, (data, zero) in joined:
    print(start, length, "data" if data else "hole", "zero" if zero else "-")
'
}
