#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Started under the name qemu-nbd, the program has qemu-nbd's defaults.
# test: serial
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo qemu-io
as_qemu_nbd
image Disk.img

listening() { # PORT
    nbdinfo --size "nbd://localhost:$1/${2-}" >size 2>/dev/null
}
connects() { # HOST PORT
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# The line that people use: TCP port 10809 on all interfaces, silent, over
# after its last client.
if connects 127.0.0.1 10809; then
    echo "port 10809 is taken; its half of this test is left out"
else
    before=$(sha256sum <Disk.img)
    begin ./qemu-nbd --snapshot -x myDisk -f raw Disk.img
    # A connection that leaves without an export is not the last client.
    wait_for "the server" connects 127.0.0.1 10809
    alive "$pid" || fail "ended by a mere look"
    if [ -r /proc/net/tcp ]; then
        grep -q ' 00000000:2A39 ' /proc/net/tcp || fail "not on 0.0.0.0"
    fi
    qemu-io -f raw -c 'write 0 64k' nbd://localhost:10809/myDisk >io ||
        fail "$(cat io)"
    ended
    same "$status" 0 "exit status after the last client"
    same "$(cat "$out" "$err")" "" "what it said"
    same "$(sha256sum <Disk.img)" "$before" "the image"
fi

# -p; -t: it goes on.
port=$(free_port)
begin ./qemu-nbd -t -r -p "$port" -b 127.0.0.1 Disk.img
wait_for "the server" listening "$port"
listening "$port" || fail "ended in spite of -t"
same "$(cat size)" $((1 << 20)) "size"
stop
# qemu-nbd knows no other export than the one it was told.
begin ./qemu-nbd -t -r -x a -k "$PWD/s" Disk.img
wait_for "the socket" test -S s
nbdinfo --size "$(uri_of "$PWD/s" a)" >size || fail "no export a"
run nbdinfo --size "$(uri_of "$PWD/s" b)"
[ "$status" != 0 ] || fail "an export b was found"
stop
gone s

# -k: the umask decides on the mode. -e: one client, unless told otherwise.
umask 027
begin ./qemu-nbd -r -k "$PWD/s" Disk.img
wait_for "the socket" test -S s
same "$(stat -c %a s)" 750 "mode of the socket"
hold "$(uri_of "$PWD/s")"
timeout 1 nbdinfo --size "$(uri_of "$PWD/s")" >size 2>&1
same $? 124 "a second client at the same time"
release
ended
same "$status" 0 "exit status"
gone s
begin ./qemu-nbd -r -e 2 -k "$PWD/s" Disk.img
wait_for "the socket" test -S s
hold "$(uri_of "$PWD/s")"
same "$(timeout 10 nbdinfo --size "$(uri_of "$PWD/s")")" $((1 << 20)) "-e 2"
alive "$pid" || fail "ended before the last of two clients"
release
ended

# A writable image without -f: probed, with a warning.
begin ./qemu-nbd -k "$PWD/s" Disk.img
wait_for "the socket" test -S s
has "$err" "format"
qemu-io -f raw -c 'write -P 0x61 512k 64k' "$(uri_of "$PWD/s")" >io ||
    fail "$(cat io)"
ended
same "$(dd if=Disk.img bs=64k skip=8 count=1 status=none | tr -d a)" "" \
    "what was written"

# A line that libvirt and scripts have: O_DIRECT is not to be had, the server is.
begin ./qemu-nbd -t -f raw --cache=none --aio=native --discard=unmap \
    -k "$PWD/s" Disk.img
wait_for "the socket" test -S s
qemu-io -f raw -c 'write -P 0x62 512k 64k' "$(uri_of "$PWD/s")" >io ||
    fail "$(cat io)"
stop
same "$(dd if=Disk.img bs=64k skip=8 count=1 status=none | tr -d b)" "" \
    "what was written with --cache=none"

# --fork --pid-file, as scripts do it.
./qemu-nbd --fork --pid-file "$PWD/pid" -t -k "$PWD/s" -r Disk.img ||
    fail "--fork"
pid=$(cat pid)
pids+=("$pid")
nbdinfo --size "$(uri_of "$PWD/s")" >size || fail "nobody listens"
kill "$pid"
wait_for "the end" dead "$pid"
pids=()
gone s pid

run ./qemu-nbd --help
same "$status" 0 "--help"
has out "qemu-nbd [OPTION]"
run ./qemu-nbd -V
same "$status" 0 "-V"
has out "qemu-nbd "
run ./qemu-nbd
same "$status" 1 "no image"
has err "qemu-nbd: "
run ./qemu-nbd --bogus Disk.img
same "$status" 1 "an option that does not exist"
run ./qemu-nbd -L nbd://localhost
same "$status" 1 "a list of a URI"
