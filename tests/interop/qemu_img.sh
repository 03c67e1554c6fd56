#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# qemu-img as a client: info, compare, convert both ways, map against what it
# says of the same image when it reads it itself, and bench.
. "$(dirname "$0")/common.sh"
need qemu-img qemu-io

make_raw base.raw 16
make_chain
qemu-img convert -f qcow2 -O raw chain.qcow2 chain.raw
make_raw new.raw 16 new
sum=$(sha256sum base.raw bottom.raw mid.qcow2 chain.qcow2)

# Whatever a client sees must be what the image holds.
reads_as() { # FORMAT IMAGE TRUTH
    qemu-img info --output=json "$uri" >info.json
    grep -q '"virtual-size": 16777216' info.json || fail "size of $2"
    qemu-img compare -q -f "$1" -F raw "$2" "$uri" || fail "compare $2"
    qemu-img convert -f raw -O raw "$uri" out.raw
    cmp "$3" out.raw || fail "convert from $2"
    qemu-img convert -f raw -O qcow2 "$uri" out.qcow2
    qemu-img compare -q -F raw out.qcow2 "$3" || fail "convert to qcow2"
    extents -f "$1" "$2" >wanted
    extents -f raw "$uri" >found
    diff wanted found || fail "map of $2"
    # The same without a URI, which is another way into QEMU's client.
    qemu-img info "json:{\"driver\":\"nbd\",\"export\":\"disk\",
        \"server\":{\"type\":\"unix\",\"path\":\"$sock\"}}" >/dev/null
}

for engine in $(engines); do
    serve "$engine" -r -f raw base.raw
    reads_as raw base.raw base.raw
    must_fail qemu-io -f raw -c 'write 0 512' "$uri" >/dev/null
    unserve

    serve "$engine" -r -f qcow2 chain.qcow2
    reads_as qcow2 chain.qcow2 chain.raw
    unserve

    for image in base.raw chain.qcow2; do
        format=${image#*.}
        serve "$engine" --snapshot -f "$format" "$image"
        reads_as "$format" "$image" "${image%.*}.raw"
        qemu-img bench -q -f raw -c 2000 -d 32 -s 4096 "$uri" >/dev/null
        qemu-img bench -q -f raw -c 200 -d 4 -s 131072 -S 128k "$uri" \
            >/dev/null
        # Writes, with a flush after every 16.
        qemu-img bench -q -f raw -w -c 500 -d 16 -s 4096 --pattern=90 \
            --flush-interval=16 "$uri" >/dev/null
        qemu-io -f raw -r -c 'read -P 90 0 1M' "$uri" >/dev/null
        qemu-img convert -n -f raw -O raw new.raw "$uri"
        qemu-img compare -q -f raw -F raw new.raw "$uri" ||
            fail "what convert wrote differs"
        # In, out of order and with several coroutines.
        qemu-img convert -n -W -m 16 -f raw -O raw base.raw "$uri"
        qemu-img compare -q -f raw -F raw base.raw "$uri" ||
            fail "what convert -W wrote differs"
        unserve
    done
done

# A writable disk without an overlay: what is written is in the file.
cp --sparse=always base.raw writable.raw
serve -f raw writable.raw
qemu-img convert -n -f raw -O raw new.raw "$uri"
unserve
cmp new.raw writable.raw || fail "the writable image differs"

same "$(sha256sum base.raw bottom.raw mid.qcow2 chain.qcow2)" "$sum" \
    "checksums of the images that were only read"
