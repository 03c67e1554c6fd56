#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# --pid-file writes in place. A regular file is locked while the server runs,
# and another server is refused; links, pipes and devices stay what they are.
# All that it writes to is in this test's own directory.
. "$REWIND_SRC/tests/lib/behave.sh"
image disk.img
dir=$(pwd -P)

# An older file is used again, whatever it says: its server is no more.
echo 4711471147114711 >pid
chmod 600 pid
inode=$(stat -c %i pid)
start --pid-file pid -k a -r disk.img
same "$(cat pid)" "$pid" "the pid file"
same "$(stat -c %i,%a pid)" "$inode,600" "the file itself and its mode"
first=$pid

# Two servers can't have the same one; the second leaves nothing, in the
# background neither.
for more in "" --fork; do
    # shellcheck disable=SC2086 # perhaps no word
    run "$REWIND" serve $more --pid-file "$dir/pid" -k b -r disk.img
    same "$status" 1 "exit status of a second server $more"
    has err "$dir/pid is locked"
    has err "another file"
    same "$(cat pid)" "$first" "the pid file after a second server $more"
    gone b
done
same "$(stat -c %i pid)" "$inode" "the file after that"
stop
gone pid a

# After --fork it is the child, which stays, that holds the lock.
umask 077
"$REWIND" serve --fork --pid-file pid -k a -r disk.img >ready || fail "--fork"
pid=$(cat pid)
pids+=("$pid")
same "$(stat -c %a pid)" 600 "the mode, by umask 077"
umask 022
run "$REWIND" serve --pid-file pid -k b -r disk.img
same "$status" 1 "exit status beside a forked server"
same "$(cat pid)" "$pid" "the forked server's pid file"
gone b
# One that was killed has left the file and no lock.
kill -KILL "$pid"
# Its last thread may end a little later than what ps shows.
wait_for "the end" /usr/bin/python3 -c 'import fcntl
fcntl.lockf(open("pid", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null
pids=()
rm -f a
start --pid-file pid -k a -r disk.img
same "$(cat pid)" "$pid" "the pid file after a kill"

# What is at the path by the end may be somebody else's file.
mv pid moved
echo "$pid" >pid
stop
same "$(cat pid)" "$pid" "another file at the path"
rm pid moved

# A qemu-nbd that runs has its file too, if it locks as we do.
if command -v qemu-nbd >/dev/null; then
    begin qemu-nbd -t -r -f raw --pid-file "$dir/pid" -k "$dir/q" disk.img
    wait_for "qemu-nbd's pid file" test -s pid
    run "$REWIND" serve --pid-file pid -k b -r disk.img
    same "$status" 1 "exit status beside qemu-nbd"
    has err locked
    same "$(cat pid)" "$pid" "qemu-nbd's pid file"
    kill "$pid"
    ended
    rm -f pid q
fi

# An image that is served is not a pid file, named by mistake.
before=$(sha256sum <disk.img)
run "$REWIND" serve --pid-file disk.img -k b -r disk.img
same "$status" 1 "exit status with the image as the pid file"
same "$(sha256sum <disk.img)" "$before" "the image"
run "$REWIND" serve --pid-file "$dir" -k b -r disk.img
same "$status" 1 "exit status with a directory as the pid file"
has err "$dir"
gone b

# A link stays, and so does the file that it leads to; the pid does not.
echo old >target
ln -s target link
start --pid-file link -k a -r disk.img
same "$(cat target)" "$pid" "the link's target"
stop
[ -L link ] || fail "the link is gone"
same "$(readlink link),$(stat -c %s target)" target,0 "the link and its target"
rm link target

# A pipe is written through: one by a name of its own, one by its number.
mkfifo fifo
begin "$REWIND" serve --pid-file fifo -k a -r disk.img
read -r -t $((20 * scale)) told <fifo || fail "nothing came through the fifo"
same "$told" "$pid" "what came through the fifo"
wait_for "the ready line" ready_or_dead
first=$pid
start --pid-file fifo -k b -r disk.img # nothing there is locked
stop
kill "$first"
pid=$first
ended
same "$status" 0 "exit status of the first server"
[ -p fifo ] || fail "the fifo is gone"
rm fifo
if [ -e /dev/fd/0 ]; then
    begin bash -c 'exec "$@" 7> >(cat >told)' - "$REWIND" serve \
        --pid-file /dev/fd/7 -k a -r disk.img
    wait_for "the ready line" ready_or_dead
    stop
    wait_for "the pid through the pipe" test -s told
    same "$(cat told)" "$pid" "what came through the pipe"

    # Standard output, by a link of our own: the pid, and then the ready line.
    ln -s /dev/fd/1 stdout
    "$REWIND" serve --pid-file stdout -k a -r disk.img 2>err </dev/null |
        cat >through &
    reader=$!
    wait_for "the ready line" grep -qs nbd+unix through
    pid=$(head -n 1 through)
    pids+=("$pid")
    same "$(tail -n 1 through)" "$(uri_of "$dir/a")" "the ready line"
    kill "$pid" || fail "no pid: $pid"
    wait "$reader" || fail "the server: $(cat err)"
    pids=()
    same "$(readlink stdout)" /dev/fd/1 "the link to standard output"
fi

# A device too. One like /dev/null, but ours; it takes a right to make it, and
# a file system that allows it.
if mknod null c 1 3 2>/dev/null && : 2>/dev/null >null; then
    device=$(stat -c %i,%F,%t,%T null)
    start --pid-file null -k a -r disk.img
    stop
    same "$(stat -c %i,%F,%t,%T null)" "$device" "the device"
fi
exit 0
