# SPDX-License-Identifier: BSD-2-Clause
"""The servers that are compared, and how each is started for one measurement:
a fresh process with a fresh overlay on a Unix socket."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time

TICK = os.sysconf('SC_CLK_TCK')
READY_S = 30


class Missing(Exception):
    """A server that is not installed here."""


def tool(name):
    path = shutil.which(name)
    if path is None:
        raise Missing(name)
    return path


class Place:
    """Where a benchmark works: its directory, and the program under test."""

    def __init__(self, directory, rewind):
        self.dir = directory
        self.rewind = rewind

    def path(self, *names):
        return os.path.join(self.dir, *names)


# Each returns the command line, given the place, the image, its format, and
# the socket. The overlay goes to place.path('overlay').

def rewind(engine):
    def command(place, image, fmt, sock):
        return [place.rewind, 'serve', '--ephemeral', '-f', fmt, '-k', sock,
                '--engine', engine, '--overlay-dir', place.path('overlay'),
                image]
    return command


def qemu_nbd(place, image, fmt, sock):
    return [tool('qemu-nbd'), '--snapshot', '-t', '-e', '0', '-f', fmt,
            '-k', sock, image]


def nbdkit_cow(block):
    def command(place, image, fmt, sock):
        if fmt != 'raw':
            raise Missing('nbdkit serves raw files only')
        return [tool('nbdkit'), '-f', '-U', sock, '--filter=cow', 'file',
                image, 'cow-block-size=%d' % block]
    return command


def storage_daemon(place, image, fmt, sock):
    overlay = place.path('overlay', 'qsd.qcow2')
    subprocess.run([tool('qemu-img'), 'create', '-q', '-f', 'qcow2', '-o',
                    'extended_l2=on,cluster_size=128k', '-b', image, '-F',
                    fmt, overlay], check=True)
    return [tool('qemu-storage-daemon'),
            '--blockdev', 'driver=file,node-name=f,aio=io_uring,filename=' +
            overlay,
            '--blockdev', 'driver=qcow2,node-name=q,file=f',
            '--nbd-server', 'addr.type=unix,max-connections=1000,addr.path=' +
            sock,
            '--export', 'type=nbd,id=e,node-name=q,name=x,writable=on']


def nbd_server(place, image, fmt, sock):
    if fmt != 'raw':
        raise Missing('nbd-server serves raw files only')
    config = place.path('overlay', 'nbd-server.conf')
    with open(config, 'w') as f:
        f.write('[generic]\nunixsock = %s\nallowlist = true\n'
                '[x]\nexportname = %s\nreadonly = true\n' % (sock, image))
    return [tool('nbd-server'), '-d', '-C', config]


def nbdkit_null(place, image, fmt, sock):
    return [tool('nbdkit'), '-f', '-U', sock, 'null', '1G']


class Kind:
    def __init__(self, command, export='', copy_on_write=True, peer=True):
        self.command = command
        self.export = export
        self.copy_on_write = copy_on_write
        self.peer = peer  # counts as a competitor in the ratios


SERVERS = {
    'rewind': Kind(rewind('io_uring'), peer=False),
    'rewind-threads': Kind(rewind('threads'), peer=False),
    'qemu-nbd': Kind(qemu_nbd),
    'nbdkit-64k': Kind(nbdkit_cow(65536)),
    'nbdkit-4k': Kind(nbdkit_cow(4096)),
    'qsd': Kind(storage_daemon, export='x'),
    'nbd-server': Kind(nbd_server, export='x', copy_on_write=False),
    'null': Kind(nbdkit_null, copy_on_write=False, peer=False),
}


def tree(pid):
    """`pid` and its descendants."""
    pids = [pid]
    for task in os.listdir('/proc/%d/task' % pid):
        try:
            with open('/proc/%d/task/%s/children' % (pid, task)) as f:
                for child in f.read().split():
                    pids += tree(int(child))
        except OSError:
            pass
    return pids


def cpu_seconds(pid):
    """User and system time of the process tree, ended children included."""
    total = 0
    for p in tree(pid):
        try:
            with open('/proc/%d/stat' % p) as f:
                fields = f.read().rsplit(')', 1)[1].split()
        except OSError:
            continue
        total += sum(int(x) for x in fields[11:15])
    return total / TICK


def rss_kib(pid):
    total = 0
    for p in tree(pid):
        with open('/proc/%d/status' % p) as f:
            for line in f:
                if line.startswith('VmRSS:'):
                    total += int(line.split()[1])
    return total


def disk_bytes(pid, directory):
    """What the open files below `directory`, named or not, take on disk."""
    seen = {}
    for p in tree(pid):
        for fd in os.listdir('/proc/%d/fd' % p):
            link = '/proc/%d/fd/%s' % (p, fd)
            try:
                if os.readlink(link).startswith(directory):
                    st = os.stat(link)
                    seen[st.st_ino] = st.st_blocks * 512
            except OSError:
                pass
    return sum(seen.values())


def answers(sock):
    """True once a server greets on the socket."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    try:
        s.connect(sock)
        got = s.recv(8, socket.MSG_WAITALL)
        # Leave in good order: some servers log a lost client.
        s.recv(10, socket.MSG_WAITALL)
        s.sendall(struct.pack('>IQII', 3, 0x49484156454f5054, 2, 0))
        s.recv(64)
        return got == b'NBDMAGIC'
    except OSError:
        return False
    finally:
        s.close()


class Running:
    """One started server. Use as a context."""

    def __init__(self, name, place, image, fmt):
        self.kind = SERVERS[name]
        self.place = place
        self.sock = place.path('sock')
        self.overlay = place.path('overlay')
        shutil.rmtree(self.overlay, ignore_errors=True)
        os.makedirs(self.overlay)
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        self.command = self.kind.command(place, image, fmt, self.sock)
        self.process = None

    def __enter__(self):
        env = dict(os.environ, TMPDIR=self.overlay)
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
        end = time.monotonic() + READY_S
        while not answers(self.sock):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError('%s did not start: %s' % (
                    self.command[0],
                    self.process.stderr.read().decode(errors='replace')))
            time.sleep(0.01)
        return self

    def __exit__(self, *unused):
        self.stop()

    def stop(self):
        """SIGTERM; returns the seconds until the process was gone."""
        begin = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stderr.close()
        return time.monotonic() - begin

    def load(self, client, *options):
        """Runs the lean client; returns its answer, with the server's CPU
        microseconds per request as server_us."""
        pid = self.process.pid
        before = cpu_seconds(pid)
        out = subprocess.run(
            [client, 'run', self.sock, self.kind.export] + list(options),
            check=True, stdout=subprocess.PIPE).stdout
        result = json.loads(out)
        if result['errors']:
            raise RuntimeError('%d requests failed' % result['errors'])
        result['server_us'] = ((cpu_seconds(pid) - before) * 1e6 /
                               max(1, result['ops']))
        return result
