#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Beyond loopback the server listens only with --insecure, and -p alone means
# loopback.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo
image disk.img

for address in 0.0.0.0:0 '*:0' ':0' '[::]:0'; do
    rewind serve --listen "$address" -r disk.img
    same "$status" 2 "exit status of --listen $address"
    has err --insecure
done
rewind serve -b 0.0.0.0 -p 0 -r disk.img
same "$status" 2 "exit status of -b 0.0.0.0"
has err --insecure

local_only() {
    [ ! -r "/proc/net/$1" ] || same "$(awk -v p="$(printf :%04X "$port")" \
        '$4 == "0A" && $2 ~ p "$" { print substr($2, 1, length($2) - 5) }' \
        "/proc/net/$1")" "$2" "listeners of /proc/net/$1"
}
start -p 0 -r disk.img
port=${uris[0]##*:}
port=${port%/}
same "${uris[0]}" "nbd://localhost:$port/" "the URI"
same "$(nbdinfo --size "${uris[0]}")" $((1 << 20)) "size"
local_only tcp 0100007F
stop

start --insecure --listen 0.0.0.0:0 -r disk.img
port=${uris[0]##*:}
port=${port%/}
same "${uris[0]%:*}" "nbd://localhost" "the URI"
local_only tcp 00000000
same "$(nbdinfo --size "nbd://127.0.0.1:$port")" $((1 << 20)) "size"
# And that port is taken.
rewind serve -b 127.0.0.1 -p "$port" -r disk.img
same "$status" 1 "exit status of a port in use"
has err "another port"
stop

if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
    start --listen '[::1]:0' -r disk.img
    same "${uris[0]%:*}" "nbd://[::1]" "the URI"
    same "$(nbdinfo --size "${uris[0]}")" $((1 << 20)) "size over IPv6"
    stop
fi
exit 0
