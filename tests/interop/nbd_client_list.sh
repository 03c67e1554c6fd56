#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# nbd-client, the kernel client's own tool, lists exports: over a Unix socket,
# and over TCP on IPv4 and IPv6. That is as far as it goes without the
# kernel's driver.
. "$(dirname "$0")/common.sh"
need nbd-client

make_raw base.raw 4

listed() { # NBD_CLIENT_ARGUMENT...
    nbd-client -l "$@" >list 2>list.err || {
        cat list list.err >&2
        fail "nbd-client -l $*"
    }
    grep -qx 'disk: a throw-away disk' list || {
        cat list >&2
        fail "the export is not in the list"
    }
}

serve --snapshot -D 'a throw-away disk' -f raw base.raw
listed -unix "$sock"
unserve

free_port() { # ADDRESS
    /usr/bin/python3 -c '
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.bind((sys.argv[1], 0))
print(s.getsockname()[1])' "$1"
}

# Serves on a free port of the address. Another program may take the port
# between our look and the bind, so a server that ends at once gets another.
serve_tcp() { # ADDRESS
    local try argv deadline
    mapfile -t argv < <(server_argv)
    for try in 1 2 3 4 5; do
        port=$(free_port "$1")
        "${argv[@]}" --snapshot -b "$1" -p "$port" -x disk \
            -D 'a throw-away disk' -f raw base.raw \
            >"server$1.out" 2>"server$1.err" </dev/null &
        server_pid=$!
        server_pids+=("$server_pid")
        deadline=$((SECONDS + 20 * scale))
        while kill -0 "$server_pid" 2>/dev/null; do
            if (exec 3<>"/dev/tcp/$1/$port") 2>/dev/null; then
                return
            fi
            [ $SECONDS -lt $deadline ] || fail "nobody listens on $1"
            sleep 0.02
        done
        unset 'server_pids[-1]'
        echo "attempt $try on $1: $(cat "server$1.err")" >&2
    done
    fail "the server does not listen on $1"
}

for address in 127.0.0.1 ::1; do
    if ! free_port $address >/dev/null 2>&1; then
        echo "note: this machine has no $address" >&2
        continue
    fi
    serve_tcp $address
    listed $address "$port"
    sock=$tmp/none
    unserve
done
