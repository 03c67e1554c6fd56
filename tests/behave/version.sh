#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# version, --version and help say what they should and end well; a full disk
# behind standard output is an error.
. "$REWIND_SRC/tests/lib/behave.sh"
need jq

rewind version
same "$status" 0 "exit status"
version=$(sed -n '1s/^rewind //p' out)
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || fail "no version: $(cat out)"
has out compiler
has out engines
for arguments in --version -V "serve --version" "serve -V"; do
    # shellcheck disable=SC2086 # two words
    rewind $arguments
    same "$status" 0 "exit status of $arguments"
    same "$(head -n 1 out)" "rewind $version" "$arguments"
done
rewind version --json
same "$(jq -r .version out)" "$version" "version in JSON"

for command in serve doctor version completion help; do
    rewind $command --help
    same "$status" 0 "exit status of $command --help"
    has out "Usage: rewind $command"
    has out "Examples:"
    same "$(awk 'length > 80' out)" "" "lines of $command --help beyond 80"
    cp out help
    rewind help $command
    diff help out || fail "help $command is not $command --help"
done
rewind help
has out "Commands:"
rewind --help
has out "Commands:"

if [ -e /dev/full ]; then
    "$REWIND" help >/dev/full 2>err
    same $? 1 "exit status when standard output is full"
    has err "standard output"
fi
exit 0
