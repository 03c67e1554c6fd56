#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Image locks against QEMU's own programs, both ways: who is let in beside
# whom, and what a refusal says. A base (FILE_LOCK_BASE) is shared with
# readers and kept from writers; a writable top (FILE_LOCK_WRITE) is shared
# with nobody.
. "$(dirname "$0")/common.sh"
need qemu-img qemu-io qemu-nbd
holder=$REWIND_TESTLIB/lock_holder
[ -z "$peer" ] || skip "tests our own locks"

qemu-img create -q -f raw disk.raw 1M
qemu-img create -q -f qcow2 disk.qcow2 1M

# Keeps our lock on FILE until release.
# shellcheck disable=SC2153
hold() { # base|write FILE
    coproc HOLDER { exec "$holder" "$@"; }
    # The coprocess's variables go with it.
    holder_pid=$HOLDER_PID
    holder_in=${HOLDER[1]}
    local word=
    read -r -t $((20 * scale)) word <&"${HOLDER[0]}" || true
    same "$word" held "$1 lock on $2"
}

release() {
    exec {holder_in}>&-
    wait "$holder_pid"
}

# An image open in another program, for writing or for reading, until quit.
opened_by_qemu() { # OPTION... FILE
    coproc PEER { exec qemu-io "$@"; }
    qemu_pid=$PEER_PID
    qemu_in=${PEER[1]}
    qemu_out=${PEER[0]}
    local line=
    echo length >&"$qemu_in"
    read -r -t $((20 * scale)) line <&"$qemu_out" || true
    case $line in
    *MiB*) ;;
    *) fail "qemu-io $* does not open its image: $line" ;;
    esac
}

quit_qemu() {
    echo quit >&"$qemu_in"
    wait "$qemu_pid" || true
}

refused() { # WORDS LOCK FILE
    local words=$1 said
    shift
    said=$(must_fail "$holder" "$@" </dev/null)
    case $said in
    *"$2"*"$words"*) ;;
    *) fail "the refusal does not say '$words': $said" ;;
    esac
}

granted() { # LOCK FILE
    same "$("$holder" "$@" </dev/null)" held "$1 lock on $2"
}

qemu_refused() { # COMMAND...
    case $(must_fail "$@") in
    *lock*) ;;
    *) fail "not refused for a lock: $*" ;;
    esac
}

# Runs qemu-nbd on the image until quit_nbd. Its socket is there before the
# image is open, so the first answer is waited for.
served_by_qemu() { # OPTION... FILE
    local deadline=$((SECONDS + 20 * scale))
    qemu-nbd -t -k "$tmp/nbd.sock" "$@" &
    nbd_pid=$!
    server_pids+=("$nbd_pid")
    until qemu-img info "nbd+unix:///?socket=$tmp/nbd.sock" >/dev/null 2>&1; do
        kill -0 "$nbd_pid" 2>/dev/null || fail "qemu-nbd $* ended"
        [ $SECONDS -lt $deadline ] || fail "qemu-nbd does not get ready"
        sleep 0.02
    done
}

quit_nbd() {
    kill -TERM "$nbd_pid"
    wait "$nbd_pid" || true
    unset 'server_pids[-1]'
    rm -f nbd.sock
}

for format in raw qcow2; do
    image=disk.$format

    # We have it as a base.
    hold base $image
    granted base $image
    qemu-io -r -f $format -c 'read 0 64k' $image >/dev/null
    qemu-img convert -f $format -O raw $image copy.raw
    qemu-img info $image >/dev/null
    served_by_qemu --snapshot -f $format $image
    quit_nbd
    qemu_refused qemu-io -f $format -c 'write 0 4k' $image
    qemu_refused qemu-img resize -f $format $image 2M
    qemu_refused qemu-nbd -f $format -k "$tmp/nbd.sock" $image
    refused 'relies on it' write $image
    release

    # We have it as a writable top. (qemu-io -r on a raw image is no reader
    # to test with: it allows anyone to write, QEMU's own writers too.)
    hold write $image
    refused 'open for writing' base $image
    refused 'open for writing' write $image
    qemu_refused qemu-io -f $format -c 'write 0 4k' $image
    qemu_refused qemu-img convert -f $format -O raw $image copy.raw
    qemu_refused qemu-nbd -r -f $format -k "$tmp/nbd.sock" $image
    qemu-img info -U $image >/dev/null
    release

    # QEMU writes it.
    opened_by_qemu -f $format $image
    refused 'open for writing' base $image
    refused 'open for writing' write $image
    quit_qemu

    # QEMU reads it.
    served_by_qemu -r -f $format $image
    granted base $image
    refused 'relies on it' write $image
    quit_nbd
    served_by_qemu --snapshot -f $format $image
    granted base $image
    if [ $format = qcow2 ]; then # a raw one it leaves to whoever writes
        refused 'relies on it' write $image
    fi
    quit_nbd

    # Nothing is left behind.
    granted write $image
    qemu-io -f $format -c 'write 0 4k' $image >/dev/null
done
