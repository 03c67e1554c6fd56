#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# nbdcopy as a client: out and in, with several connections, synchronously,
# from server to server; holes stay holes on both sides.
. "$(dirname "$0")/common.sh"
need nbdcopy qemu-img qemu-io

make_raw base.raw 64
make_raw new.raw 64 new
make_chain
qemu-img convert -f qcow2 -O raw chain.qcow2 chain.raw
sum=$(sha256sum base.raw mid.qcow2 chain.qcow2)
mib=1048576

for engine in $(engines); do
    serve "$engine" --snapshot -f raw base.raw
    for options in --connections=4 --connections=1 --synchronous; do
        rm -f out.raw
        # shellcheck disable=SC2086
        nbdcopy $options "$uri" out.raw
        cmp base.raw out.raw || fail "copy out with $options"
        [ "$(disk_bytes out.raw)" -lt $((8 * mib)) ] ||
            fail "the copy is not sparse: $(disk_bytes out.raw) bytes"
    done
    # The other image is half holes where this one has data, so it needs
    # writes and zeroes both.
    nbdcopy --connections=4 --requests=64 --flush new.raw "$uri"
    nbdcopy --connections=4 "$uri" out.raw
    cmp new.raw out.raw || fail "copy in"
    if [ -z "$peer" ]; then
        [ "$(overlay_bytes)" -lt $((8 * mib)) ] ||
            fail "the overlay is not sparse: $(overlay_bytes) bytes"
    fi
    # Everything allocated: all of it is written.
    nbdcopy --allocated --connections=4 base.raw "$uri"
    nbdcopy --connections=4 "$uri" out.raw
    cmp base.raw out.raw || fail "copy in, all allocated"
    unserve

    serve "$engine" -r -f qcow2 chain.qcow2
    nbdcopy --connections=4 "$uri" out.raw
    cmp chain.raw out.raw || fail "copy of a chain"
    nbdcopy "$uri" null:
    unserve
done

# From one server into another, which holds a plain file.
truncate -s 64M target.raw
serve -r -f raw base.raw
source_uri=$uri
serve -f raw target.raw
nbdcopy --connections=4 --flush "$source_uri" "$uri"
unserve
unserve
cmp base.raw target.raw || fail "copy from server to server"
[ "$(disk_bytes target.raw)" -lt $((8 * mib)) ] || fail "the target is not sparse"

same "$(sha256sum base.raw mid.qcow2 chain.qcow2)" "$sum" \
    "checksums of the images that were only read"
