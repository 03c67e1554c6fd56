#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# qemu-io as a client: the same commands go to a served throw-away disk and to
# a plain copy of its base, and both must then hold the same bytes. Patterns,
# zeroes with and without unmapping, discard, unaligned edges, flush, FUA,
# vectors, many at once, and requests past the end.
. "$(dirname "$0")/common.sh"
need qemu-img qemu-io

make_raw base.raw 16
make_chain
qemu-img convert -f qcow2 -O raw chain.qcow2 chain.raw
sum=$(sha256sum base.raw chain.qcow2)

# Written ranges overlap on purpose, and most edges are aligned to nothing.
# What a discard leaves is undefined, so each is followed by zeroes.
cat >commands <<'EOF'
write -P 0x41 0 64k
write -P 0x42 4096 4096
write -P 0x43 5000 1
write -P 0x44 8191 2
write -P 0x45 65535 131074
write -f -P 0x46 70000 3000
write -z 80001 70001
write -z -u 160001 30001
write -z -u 1M 1M
write -z -f 1100000 5
write -P 0x47 1200000 12345
discard 2M 1M
write -z 2M 1M
discard 3000001 100000
write -z 3000001 100000
writev -P 0x48 4000000 512 4096 1 7 65536
write -P 0x49 16776704 512
write -z 16777215 1
flush
aio_write -P 0x50 5M 1M
aio_write -P 0x51 6M 64k
aio_write -P 0x52 6357k 333
aio_write -z 7M 512k
aio_write -z -u 7680k 512k
aio_write -f -P 0x53 8M 4k
aio_flush
write -P 0x54 9M 4M
write -P 0x55 10000000 1000000
write -z 10500000 1
flush
EOF

# Feeds the commands to an image; qemu-io goes on after a failed one.
play() { # FORMAT FILE_OR_URI
    qemu-io -f "$1" -d unmap "$2" <commands >played 2>&1 ||
        { cat played; fail "qemu-io on $2"; }
    if grep -iE 'fail|error|invalid' played; then
        fail "a command failed on $2"
    fi
}

# Reads back with qemu-io's own comparison, of which one is wrong on purpose.
reads_back() {
    qemu-io -r -f raw -c 'read -P 0x41 0 4096' -c 'read -P 0x43 5000 1' \
        -c 'read -P 0x44 8191 2' -c 'read -P 0 80001 70001' \
        -c 'readv -P 0x48 4000000 70000' -c 'aio_read -P 0x50 5M 1M' \
        -c 'aio_read -P 0x54 9M 500k' -c aio_flush "$uri" >read.out
    ! grep -i 'fail' read.out || fail "a pattern differs"
    must_fail qemu-io -r -f raw -c 'read -P 0x41 0 4097' "$uri" >/dev/null
}

past_the_end() {
    must_fail qemu-io -f raw -c 'write 16776705 512' "$uri" >/dev/null
    must_fail qemu-io -r -f raw -c 'read 16777216 1' "$uri" >/dev/null
    must_fail qemu-io -f raw -c 'write -z 16777215 2' "$uri" >/dev/null
}

for image in base.raw chain.qcow2; do
    format=${image#*.}
    cp --sparse=always "${image%.*}.raw" model.raw
    play raw model.raw
    for engine in $(engines); do
        serve "$engine" --snapshot -f "$format" "$image"
        play raw "$uri"
        qemu-img compare -q -f raw -F raw model.raw "$uri" ||
            fail "$image differs from the model"
        reads_back
        past_the_end
        # Again over what is there now: rewrites in place.
        play raw "$uri"
        qemu-img compare -q -f raw -F raw model.raw "$uri" ||
            fail "$image differs from the model after rewriting"
        unserve
    done
done

# Without an overlay the file itself is the witness.
cp --sparse=always base.raw model.raw
cp --sparse=always base.raw writable.raw
play raw model.raw
serve -f raw writable.raw
play raw "$uri"
unserve
cmp model.raw writable.raw || fail "the writable image differs"

# A read-only disk refuses what changes it, and says so to the client.
serve -r -f raw base.raw
for command in 'write 0 512' 'write -z 0 4096' 'discard 0 4096'; do
    must_fail qemu-io -f raw -c "$command" "$uri" >/dev/null
    qemu-io -r -f raw -c 'read 0 512' "$uri" >/dev/null
done
unserve

same "$(sha256sum base.raw chain.qcow2)" "$sum" "checksums of the bases"
