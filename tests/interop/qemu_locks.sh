#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# QEMU and the server lock images against each other: a served base may be
# shared by readers but written by nobody, and an image that QEMU writes is
# not served. Every refusal names the file.
. "$(dirname "$0")/common.sh"
need qemu-img qemu-io
# qemu-nbd itself lets others write what it serves.
[ -z "$peer" ] || skip "this is about our own locks"

make_raw base.raw 16
make_chain

# A server that must not start, because of what is told in $1.
refuses() { # FILE OPTION... IMAGE
    local argv
    mapfile -t argv < <(server_argv)
    must_fail timeout $((20 * scale)) "${argv[@]}" -k "$tmp/refused" \
        -x disk "${@:2}" >refusal
    grep -q "$1" refusal || {
        cat refusal >&2
        fail "the refusal does not name $1"
    }
    grep -q 'in use' refusal || {
        cat refusal >&2
        fail "the refusal does not say that the file is in use"
    }
    [ ! -e "$tmp/refused" ] || fail "the refused server left its socket"
}

qemu_may() { # FORMAT QEMU_IO_OPTION_AND_COMMAND... FILE
    qemu-io -f "$@" >/dev/null || fail "QEMU may not: $*"
}

qemu_may_not() { # FORMAT QEMU_IO_OPTION_AND_COMMAND... FILE
    must_fail qemu-io -f "$@" >said
    grep -qi lock said || {
        cat said >&2
        fail "QEMU failed for another reason than a lock"
    }
}

# QEMU holds an image read-write until let_go.
hold() { # FORMAT FILE
    mkfifo holder.in
    qemu-io -f "$1" "$2" <holder.in >holder.out 2>&1 &
    holder=$!
    exec 7>holder.in
    rm holder.in
    echo 'length' >&7
    local deadline=$((SECONDS + 20))
    until grep -q MiB holder.out; do
        kill -0 $holder 2>/dev/null || fail "QEMU cannot open $2"
        [ $SECONDS -lt $deadline ] || fail "QEMU does not answer"
        sleep 0.02
    done
}

let_go() {
    exec 7>&-
    wait $holder
}

# 1. A throw-away disk: its base and all of its chain are read, not written.
serve --snapshot -f raw base.raw
qemu_may_not raw -c 'write 0 512' base.raw
qemu_may raw -r -c 'read 0 512' base.raw
qemu-img info base.raw >/dev/null
refuses base.raw -f raw base.raw
serve --snapshot -f raw base.raw
qemu-img compare -q -f raw -F raw base.raw "$uri"
unserve
serve -r -f raw base.raw
unserve
# The first one still holds it.
qemu_may_not raw -c 'write 0 512' base.raw
unserve
qemu_may raw -c 'write 0 512' base.raw

serve --snapshot -f qcow2 chain.qcow2
qemu_may_not qcow2 -c 'write 0 512' chain.qcow2
qemu_may_not qcow2 -c 'write 0 512' mid.qcow2
qemu_may_not raw -c 'write 0 512' bottom.raw
qemu_may qcow2 -r -c 'read 0 512' chain.qcow2
unserve

# 2. A writable disk is its server's alone.
serve -f raw base.raw
qemu_may_not raw -c 'write 0 512' base.raw
must_fail qemu-img convert -f raw -O raw base.raw out.raw >/dev/null
qemu-img convert -U -f raw -O raw base.raw out.raw
refuses base.raw -f raw base.raw
refuses base.raw -f raw --snapshot base.raw
unserve

# 3. QEMU was first.
hold raw base.raw
refuses base.raw -f raw --snapshot base.raw
refuses base.raw -f raw -r base.raw
refuses base.raw -f raw base.raw
let_go
hold qcow2 mid.qcow2
refuses mid.qcow2 -f qcow2 --snapshot chain.qcow2
let_go
hold raw bottom.raw
refuses bottom.raw -f qcow2 --snapshot chain.qcow2
let_go
serve --snapshot -f qcow2 chain.qcow2
unserve

# 4. A server that was killed leaves no lock.
serve -f raw base.raw
kill -KILL "$server_pid"
wait "$server_pid" || true
unset 'server_pids[-1]'
qemu_may raw -c 'write 0 512' base.raw
