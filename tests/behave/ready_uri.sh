#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# When ready, the server prints one URI per address and export, which work as
# they are; with --json one object a line.
. "$REWIND_SRC/tests/lib/behave.sh"
need nbdinfo jq
image disk.img 3M

start -s -f raw -k ./s -x 'a b/ü' disk.img
same "${#uris[@]}" 1 "ready lines"
same "${uris[0]}" "nbd+unix:///a%20b/%C3%BC?socket=$(pwd -P)/s" "the URI"
same "$(nbdinfo --size "${uris[0]}")" $((3 << 20)) "size through the URI"
stop
gone s

# A socket of our own choosing, which only we may reach.
start -r disk.img
dir=$TMPDIR/rewind-$(id -u)
case ${uris[0]} in
"nbd+unix:///?socket="*"/rewind-$(id -u)/$pid-0.sock") ;;
*) fail "not a private socket: ${uris[0]}" ;;
esac
same "$(stat -c %a "$dir" "$dir"/*)" "$(printf '700\n600')" "modes"
same "$(nbdinfo --size "${uris[0]}")" $((3 << 20)) "size through the URI"
stop
gone "$dir"

# All addresses, all exports.
image two.img 2M
start --json -r -k ./s --listen localhost:0 disk.img -x 2nd two.img
same "$(jq -r .export "$out" | sort | uniq -c | tr -s ' \n' ' ')" \
    " 2 2nd 2 disk " "exports"
same "$(jq -s 'map(select(.export == "2nd").size) | unique[]' "$out")" \
    $((2 << 20)) "size"
same "$(jq -s 'map(.read_only) | unique[]' "$out")" true "read-only"
while read -r uri; do
    nbdinfo --size "$uri" >size || fail "does not work: $uri"
done < <(jq -r .uri "$out")
stop
