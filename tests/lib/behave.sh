# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash disable=SC2034 # much is for the scripts
# What the scripts in tests/behave share: source it, then use the functions.
# The runner gives a fresh directory, $TMPDIR, which is where a script works.
# A server that is still there at the end is ended and the test fails.
set -u -o pipefail
cd "$TMPDIR" || exit 1
# Where a private socket goes must not depend on who runs the tests.
unset XDG_RUNTIME_DIR REWIND_HOME LISTEN_PID LISTEN_FDS

scale=${REWIND_TIMEOUT_SCALE:-1}
tests=$REWIND_SRC/tests
pids=()    # of servers that have not been stopped
pid=       # of the last one
out='' err='' # its output, so far
uris=()    # and its ready lines
status=0   # of the last thing that was run
count=0

fail() { # MESSAGE...
    echo "FAIL: $*" >&2
    for file in "$out" "$err"; do
        if [ -s "$file" ]; then
            echo "--- $file" >&2
            tail -n 40 "$file" >&2
        fi
    done
    exit 1
}

skip() { # REASON
    echo "SKIP: $*"
    exit 77
}

need() { # TOOL...
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || skip "no $tool"
    done
}

at_exit() {
    local code=$? left
    for left in ${pids[@]+"${pids[@]}"}; do
        kill -KILL "$left" 2>/dev/null && wait "$left" 2>/dev/null
    done
    exit $code
}
trap at_exit EXIT

same() { # FOUND EXPECTED WHAT
    [ "$1" = "$2" ] || fail "$3: found \"$1\", expected \"$2\""
}

has() { # FILE TEXT
    grep -qF -- "$2" "$1" || fail "no \"$2\" in $1: $(cat "$1")"
}

lacks() { # FILE TEXT
    ! grep -qF -- "$2" "$1" || fail "\"$2\" in $1: $(cat "$1")"
}

gone() { # PATH...
    local path
    for path in "$@"; do
        [ ! -e "$path" ] && [ ! -L "$path" ] || fail "$path is still there"
    done
}

# Runs a command that ends: $status, and its output in the files out and err.
run() { # COMMAND...
    out=out err=err status=0
    timeout -k 5 $((20 * scale)) "$@" >out 2>err </dev/null || status=$?
}

# The same for the program itself.
rewind() { # ARGUMENT...
    run "$REWIND" "$@"
}

wait_for() { # WHAT COMMAND...
    local what=$1 end=$((SECONDS + 20 * scale))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.02
    done
}

alive() { # PID
    kill -0 "$1" 2>/dev/null && [ "$(ps -o state= -p "$1")" != Z ]
}

dead() { # PID
    ! alive "$1"
}

# Starts a server in the background and waits until it is ready: $pid, $uris.
start() { # ARGUMENT...
    begin "$REWIND" serve "$@"
    wait_for "the ready line" ready_or_dead
    alive "$pid" || fail "the server has ended"
    mapfile -t uris <"$out"
}

ready_or_dead() {
    [ -s "$out" ] || dead "$pid"
}

# Starts any program in the background, to be ended by stop.
begin() { # COMMAND...
    count=$((count + 1))
    out=$TMPDIR/server$count.out err=$TMPDIR/server$count.err
    "$@" >"$out" 2>"$err" </dev/null &
    pid=$!
    pids+=("$pid")
}

# Waits for the end of the last one that was started: $status.
ended() {
    wait_for "the server's end" dead "$pid"
    status=0
    wait "$pid" || status=$?
    unset 'pids[-1]'
}

stop_with() { # SIGNAL
    kill -"$1" "$pid" || fail "no server to stop"
    ended
    same "$status" 0 "exit status after $1"
}

stop() {
    stop_with TERM
}

# A client that is connected until release: $holder.
hold() { # URI
    rm -f hold.out
    mkfifo hold.fifo
    /usr/bin/python3 "$tests/lib/hold.py" "$1" <hold.fifo >hold.out 2>&1 &
    holder=$!
    exec 9>hold.fifo
    wait_for "the client" held_or_dead
    has hold.out connected
}

held_or_dead() {
    [ -s hold.out ] || dead "$holder"
}

release() {
    exec 9>&-
    wait "$holder" || fail "the client: $(cat hold.out)"
    rm hold.fifo
}

image() { # NAME [SIZE]
    truncate -s "${2:-1M}" "$1"
    printf 'this is %s' "$1" | dd of="$1" conv=notrunc status=none
}

uri_of() { # SOCKET [EXPORT]
    echo "nbd+unix:///${2-}?socket=$1"
}

# A link to the program under qemu-nbd's name: ./qemu-nbd
as_qemu_nbd() {
    ln -s "$REWIND" qemu-nbd
}

# A port that is free now.
free_port() {
    /usr/bin/python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}
