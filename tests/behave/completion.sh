#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# The completion scripts are ones that their shells take, and offer commands,
# options and values.
. "$REWIND_SRC/tests/lib/behave.sh"

rewind completion bash
same "$status" 0 "exit status"
mv out rewind.bash
bash -n rewind.bash || fail "bash does not take it"

# What bash would offer for a line whose last word is being typed.
offers() { # WORD...
    (
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        COMPREPLY=()
        # shellcheck disable=SC1091
        . ./rewind.bash
        _rewind
        printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
    )
}
offered() { # EXPECTED WORD...
    local expected=$1
    shift
    same "$(offers "$@" | sort | tr '\n' ' ')" "$expected " "offers for: $*"
}
touch image.qcow2
mkdir images
offered "serve" rewind s
offered "completion doctor help serve version" rewind ""
offered "--json" rewind --j
offered "--engine --ephemeral --exit-with-parent --export-name" \
    rewind serve --e
offered "qcow2 raw" rewind serve -f ""
offered "qcow2" rewind serve --format = q
offered "qcow2" rewind serve --format q
offered "io_uring" rewind --json serve --engine = i
offered "image.qcow2 images" rewind serve im
offered "images" rewind serve --overlay-dir im
offered "image.qcow2 images" rewind serve --pid-file im
touch 'my disk.img'
offered "my disk.img" rewind serve my
offered "my disk.img" rewind serve --pid-file my
offered "bash fish zsh" rewind completion ""
offered "serve" rewind --home x s
offered "" rewind serve -p ""

for shell in zsh fish; do
    rewind completion $shell
    same "$status" 0 "exit status for $shell"
    has out ephemeral
    mv out rewind.$shell
    if command -v $shell >/dev/null; then
        $shell -n rewind.$shell 2>err || fail "$shell does not take it"
    else
        echo "no $shell to try it"
    fi
done
rewind completion tcsh
same "$status" 2 "exit status for another shell"
has err "bash, zsh"
rewind completion
same "$status" 2 "exit status without a shell"
