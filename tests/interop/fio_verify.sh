#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# fio's own client (through libnbd) writes blocks that carry their checksum
# and place, in random order and of many sizes, from two jobs at once, and
# verifies them; then once more from a new process.
. "$(dirname "$0")/common.sh"
need fio qemu-img qemu-io
fio --enghelp 2>/dev/null | grep -qw nbd || skip "fio has no nbd engine"

make_raw base.raw 32
make_chain
sum=$(sha256sum base.raw mid.qcow2 chain.qcow2)

# Each job has a half of the disk of its own, where it writes every block once.
run_fio() { # SIZE_OF_A_HALF OPTION...
    local half=$1
    shift
    fio --output=fio.out --ioengine=nbd --uri="$uri" --thread --randseed=7 \
        --rw=randwrite --bsrange=512-64k --iodepth=32 --size="$half" \
        --verify=crc32c --verify_fatal=1 "$@" \
        --name=low --offset=0 --name=high --offset="$half"
}

verify() { # SIZE_OF_A_HALF OPTION...
    run_fio "$@" || {
        cat fio.out
        fail "fio $*"
    }
    if grep -E 'err= *[1-9]' fio.out; then
        fail "fio saw errors"
    fi
}

for engine in $(engines); do
    serve "$engine" --snapshot -f raw base.raw
    verify 8m --do_verify=1
    # The same disk again: rewrites, with flushes, and reads among the writes.
    verify 8m --do_verify=1 --fsync=32 --verify_backlog=64
    fio --output=trim.out --ioengine=nbd --uri="$uri" --thread --name=trim \
        --rw=randtrim --bs=64k --size=4m --offset=16m --iodepth=8
    verify 8m --do_verify=0 --randseed=8
    # Another process checks what the last one wrote (which it would not do
    # with a backlog).
    verify 8m --verify_only=1 --randseed=8
    # And would have seen a wrong byte.
    qemu-io -f raw -c 'write -P 1 5000000 4096' "$uri" >/dev/null
    must_fail run_fio 8m --verify_only=1 --randseed=8 >/dev/null
    unserve

    serve "$engine" --snapshot -f qcow2 chain.qcow2
    verify 8m --do_verify=1
    unserve
done

same "$(sha256sum base.raw mid.qcow2 chain.qcow2)" "$sum" \
    "checksums of the bases"
