#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# nbdinfo as a client: what an export offers, the list of exports, and both
# maps: base:allocation against qemu-img's view of the same image, and
# qemu:allocation-depth against qemu-nbd's answer for the same chain.
. "$(dirname "$0")/common.sh"
need nbdinfo qemu-img qemu-io qemu-nbd

make_raw base.raw 16
make_chain

# A field of the only export in nbdinfo --json.
field() { # NAME
    nbdinfo --json "$uri" | /usr/bin/python3 -c '
import json, sys
export = json.load(sys.stdin)["exports"][0]
print(export.get(sys.argv[1], "missing"))' "$1"
}

# A map as "start length type" lines; neighbours of one type joined, because
# how a server cuts extents is its own business.
map_of() { # CONTEXT URI
    nbdinfo --map="$1" --json "$2" | /usr/bin/python3 -c '
import json, sys
joined = []
for e in json.load(sys.stdin):
    if joined and joined[-1][2] == e["type"]:
        joined[-1][1] += e["length"]
    else:
        joined.append([e["offset"], e["length"], e["type"]])
for start, length, kind in joined:
    print(start, length, kind)'
}

# What base:allocation should say, from qemu-img's reading of the image: only
# the zero bit, since a cluster of zeroes may or may not count as a hole.
check_allocation() { # FORMAT IMAGE
    extents -f "$1" "$2" | awk '{ print $1, $2, $4 == "zero" }' >wanted
    map_of base:allocation "$uri" |
        awk '{ kind = int($3 / 2) % 2
               if (kind == last && NR > 1) { length_ += $2; next }
               if (NR > 1) print start, length_, last
               start = $1; length_ = $2; last = kind }
             END { print start, length_, last }' >found
    diff wanted found || fail "base:allocation of $2"
}

serve --snapshot -D 'a throw-away disk' -f raw base.raw
same "$(nbdinfo --size "$uri")" 16777216 "size"
same "$(field export-name)" disk "name"
same "$(field export-size)" 16777216 "size in JSON"
same "$(field description)" "a throw-away disk" "description"
same "$(field is_read_only)" False "read-only"
for flag in can_cache can_df can_fast_zero can_flush can_fua can_multi_conn \
    can_trim can_zero; do
    if [ -n "$peer" ] && [ $flag = can_multi_conn ]; then
        continue # qemu-nbd 7.2 offers it for read-only exports alone
    fi
    same "$(field $flag)" True "$flag"
done
same "$(field is_rotational)" False "rotational"
minimum=$(field block_size_minimum)
preferred=$(field block_size_preferred)
maximum=$(field block_size_maximum)
[ "$minimum" -le 512 ] || fail "a minimum block of $minimum"
[ "$preferred" -ge 512 ] || fail "a preferred block of $preferred"
[ "$maximum" -ge 33554432 ] || fail "a maximum block of $maximum"
nbdinfo "$uri" >info
grep -q 'base:allocation' info || fail "base:allocation is not listed"
nbdinfo --list "nbd+unix:///?socket=$sock" >list
grep -q 'export="disk"' list || fail "the export is not listed"
nbdinfo --list --json "nbd+unix:///?socket=$sock" | grep -q '"export-name": "disk"'
nbdinfo --can connect "$uri"
nbdinfo --can structured-reply "$uri"
nbdinfo --is tls "$uri" && fail "TLS without TLS"
must_fail nbdinfo --size "nbd+unix:///nosuch?socket=$sock" >/dev/null
check_allocation raw base.raw
nbdinfo --map --totals "$uri" >totals
awk '{ sum += $1 } END { exit sum != 16777216 }' totals ||
    fail "the totals do not add up"
unserve

serve -r -f raw base.raw
same "$(field is_read_only)" True "read-only"
same "$(field can_multi_conn)" True "multi-conn of a read-only export"
unserve

# The depths of a chain, as qemu-nbd tells them for the same image.
depths() { # OPTION...
    serve -A "$@"
    map_of qemu:allocation-depth "$uri" >depth_ours
    check_allocation qcow2 chain.qcow2
    unserve
    (
        peer=qemu-nbd
        serve -A "$@"
        map_of qemu:allocation-depth "$uri" >depth_theirs
        unserve
    )
    diff depth_theirs depth_ours || fail "allocation depth with $*"
}
depths -r -f qcow2 chain.qcow2
grep -q ' 3$' depth_ours || fail "nothing at depth 3"
depths --snapshot -f qcow2 chain.qcow2
grep -q ' 4$' depth_ours || fail "nothing at depth 4"
