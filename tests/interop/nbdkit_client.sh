#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# nbdkit's nbd plugin as a client: it passes reads, writes, zeroes, trims,
# cache hints, flushes and extents through from its own clients, over one
# connection and over a pool of them that share a file.
. "$(dirname "$0")/common.sh"
need nbdkit nbdcopy nbdinfo qemu-img qemu-io
nbdkit nbd --dump-plugin >/dev/null 2>&1 || skip "nbdkit has no nbd plugin"

make_raw base.raw 32
make_raw new.raw 32 new
sum=$(sha256sum base.raw)

# Runs a script with $uri of an nbdkit in front of the server; nbdkit ends
# with it. What the script says of failure, nbdkit passes on.
through_nbdkit() { # PLUGIN_PARAMETER... SCRIPT
    local script=${*: -1}
    nbdkit -U - nbd socket="$sock" export=disk "${@:1:$#-1}" \
        --run "export uri; bash -euc '$script'" || fail "through nbdkit ${*:1:$#-1}"
}

for engine in $(engines); do
    for shared in shared=false shared=true; do
        serve "$engine" --snapshot -f raw base.raw
        extents -f raw "$uri" >wanted
        # shellcheck disable=SC2016 # nbdkit sets $uri
        through_nbdkit $shared '
            test $(nbdinfo --size "$uri") = 33554432
            for can in trim zero flush fua cache; do
                nbdinfo --can $can "$uri"
            done
            nbdinfo --map "$uri" >map
            nbdcopy "$uri" out.raw
            cmp base.raw out.raw
            qemu-img map --output=json -f raw "$uri" >map.json
            nbdcopy --requests=32 --flush new.raw "$uri"
            qemu-io -f raw -d unmap -c "write -P 7 1M 100001" \
                -c "write -z -u 1100000 5000" -c "write -z -u 2M 1M" \
                -c "discard 4M 1M" -c "write -z 4M 1M" \
                -c "write -f -P 8 5M 64k" -c flush "$uri" >/dev/null
        '
        # The holes that nbdkit saw are those that qemu-img sees without it.
        /usr/bin/python3 -c '
import json
print(sum(e["length"] for e in json.load(open("map.json")) if e["zero"]))
' >zeros
        same "$(cat zeros)" \
            "$(awk '$4 == "zero" { sum += $2 } END { print sum }' wanted)" \
            "bytes of zeroes through nbdkit"
        # What went through nbdkit is there for a client that comes directly.
        cp --sparse=always new.raw model.raw
        qemu-io -f raw -c 'write -P 7 1M 100001' -c 'write -z 1100000 5000' \
            -c 'write -z 2M 1M' -c 'write -z 4M 1M' -c 'write -P 8 5M 64k' \
            model.raw >/dev/null
        qemu-img compare -q -f raw -F raw model.raw "$uri" ||
            fail "what was written through nbdkit differs ($shared)"
        unserve
    done
done

serve -r -f raw base.raw
# shellcheck disable=SC2016
through_nbdkit shared=true '
    nbdinfo --is read-only "$uri"
    nbdinfo --can multi-conn "$uri"
    nbdcopy --connections=4 "$uri" out.raw
    cmp base.raw out.raw'
unserve

same "$(sha256sum base.raw)" "$sum" "checksum of the base"
