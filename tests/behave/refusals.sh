#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# Options of qemu-nbd that can't be served are refused with a way out, under
# both names; wrong usage too. Nothing has happened then. The exit status is 2,
# and 1 under the name of qemu-nbd, which knows no other.
. "$REWIND_SRC/tests/lib/behave.sh"
as_qemu_nbd
image d

refused() { # ADVICE ARGUMENT...
    local advice=$1 program expected=2
    shift
    for program in "$REWIND serve" ./qemu-nbd; do
        # shellcheck disable=SC2086 # two words
        run $program "$@"
        same "$status" $expected "exit status of $program $*"
        expected=1
        has err "$advice"
        same "$(wc -l <err)" 2 "lines on standard error of $*"
        has err "--help"
        [ ! -s out ] || fail "output of $*"
        gone s pid
    done
}
refused "nbd-client -unix" -c /dev/nbd0 d
refused "nbd-client -d" -d /dev/nbd0
refused "ssh" --tls-creds=tls0 -k s d
refused "ssh" --object tls-creds-x509,id=tls0 -k s d
refused "qemu-nbd" -B map -k s d
refused "--format" --image-opts -k s driver=raw,file.filename=d
refused "directsync" --cache=fast -k s d
refused "runcon" --selinux-label=x -k s d
refused "qemu-img convert" -f vmdk -k s d
refused "did you mean --snapshot" --snapshto d
refused "no image" -k s
refused "--stats=FILE" --fork --stats -k s --pid-file pid d

rewind sevre d
same "$status" 2 "exit status of a misspelt command"
has err 'did you mean "serve"?'
rewind
same "$status" 2 "exit status without a command"
has err Usage
rewind --bogus serve d
same "$status" 2 "exit status of a bad global option"
rewind help nonsense
same "$status" 2 "exit status of help for nothing"
rewind doctor extra
same "$status" 2 "exit status of doctor with an argument"

# What qemu-nbd takes and we need not do is taken.
accepted() { # ARGUMENT...
    start -k s -r "$@" d
    stop
}
accepted --aio=native --cache=writeback --discard=unmap --detect-zeroes=off
accepted --aio=threads --cache=unsafe --discard=ignore --detect-zeroes=on
has "$err" "not detected"
accepted --cache=writethrough -T enable=nbd_* -A -e 3 --handshake-limit=5

# That the host's page cache is used all the same is told to who wants to know.
for words in --cache=none "--cache=none --aio=native" -n --cache=directsync; do
    # shellcheck disable=SC2086 # two words
    accepted $words
    same "$(cat "$err")" "" "what $words says"
    # shellcheck disable=SC2086
    accepted -v $words
    same "$(grep -c "page cache" "$err")" 1 "lines about the cache of $words"
done
accepted -v --cache=writeback
lacks "$err" "page cache"
exit 0
