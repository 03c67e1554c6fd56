#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Several images: each an export with its own name and options.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo qemu-img qemu-io jq
image a.img 1M
image b.img 2M
qemu-img create -q -f qcow2 c.qcow2 3M

start -k s -x one -r a.img -x two -f raw -D 'the second' b.img -s c.qcow2
same "${#uris[@]}" 3 "ready lines"
list=$(nbdinfo --list --json "$(uri_of "$PWD/s")")
field() { # NAME FIELD
    echo "$list" | jq -r ".exports[] | select(.\"export-name\" == \"$1\").$2"
}
same "$(field one '"export-size"')" $((1 << 20)) "size of one"
same "$(field one is_read_only)" true "read-only of one"
same "$(field two '"export-size"')" $((2 << 20)) "size of two"
same "$(field two is_read_only)" false "read-only of two"
same "$(field two description)" "the second" "description of two"
same "$(field c '"export-size"')" $((3 << 20)) "size of c"
same "$(field c is_read_only)" false "read-only of c"

# The default export is the first; an unknown one is refused.
same "$(nbdinfo --size "$(uri_of "$PWD/s")")" $((1 << 20)) "default export"
run nbdinfo --size "$(uri_of "$PWD/s" nope)"
[ "$status" != 0 ] || fail "an export that is not there was found"

# Each is written where it belongs.
qemu-io -f raw -c 'write -P 0x62 0 4k' "$(uri_of "$PWD/s" two)" >io ||
    fail "$(cat io)"
before=$(sha256sum <c.qcow2)
qemu-io -f raw -c 'write -P 0x63 0 4k' "$(uri_of "$PWD/s" c)" >io ||
    fail "$(cat io)"
stop
same "$(dd if=b.img bs=4k count=1 status=none | tr -d b)" "" "b.img"
same "$(sha256sum <c.qcow2)" "$before" "the base of an ephemeral export"

# An export's offset and internal snapshot.
qemu-io -c 'write -P 0x31 0 1M' c.qcow2 >io
qemu-img snapshot -c before c.qcow2
qemu-io -c 'write -P 0x32 0 1M' c.qcow2 >io
start -k s -x snap -l before c.qcow2 -x now -r c.qcow2 -x half -r -f raw \
    -o 1M b.img
qemu-io -r -f raw -c 'read -P 0x31 0 1M' "$(uri_of "$PWD/s" snap)" >io ||
    fail "$(cat io)"
lacks io "verification failed"
qemu-io -r -f raw -c 'read -P 0x32 0 1M' "$(uri_of "$PWD/s" now)" >io ||
    fail "$(cat io)"
lacks io "verification failed"
same "$(nbdinfo --size "$(uri_of "$PWD/s" half)")" $((1 << 20)) "-o 1M"
stop
