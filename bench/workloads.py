# SPDX-License-Identifier: BSD-2-Clause
"""What is measured. A workload takes a Bench and the name of a server, and
returns a dictionary of figures."""

import json
import os
import shutil
import subprocess
import time

from servers import (SERVERS, Missing, Running, disk_bytes, rss_kib, tool)
from chain import make_chain


class Bench:
    def __init__(self, place, client, quick):
        self.place = place
        self.client = client
        self.quick = quick
        self.ms = '150' if quick else '1500'
        self.size = (64 << 20) if quick else (1 << 30)
        self.fresh = '16M' if quick else '256M'
        self.hot = '4M' if quick else '64M'
        self.raw = place.path('base-%d.raw' % self.size)
        self.qcow2 = place.path('base-%d.qcow2' % self.size)

    def prepare(self):
        if not os.path.exists(self.raw):
            with open(self.raw + '.tmp', 'wb') as f:
                for _ in range(self.size >> 20):
                    f.write(os.urandom(1 << 20))
            os.rename(self.raw + '.tmp', self.raw)
        if not os.path.exists(self.qcow2):
            subprocess.run([tool('qemu-img'), 'convert', '-f', 'raw', '-O',
                            'qcow2', self.raw, self.qcow2 + '.tmp'],
                           check=True)
            os.rename(self.qcow2 + '.tmp', self.qcow2)

    def warm(self, path):
        with open(path, 'rb') as f:
            while f.read(4 << 20):
                pass

    def image(self, fmt):
        return self.raw if fmt == 'raw' else self.qcow2

    def start(self, server, image=None, fmt='raw'):
        image = image or self.image(fmt)
        if os.path.getsize(image) <= 2 << 30:
            self.warm(image)
        return Running(server, self.place, image, fmt)


def load(*options, fmt='raw', fill=False, writes=False):
    """A plain load, after a filling pass if `fill`."""
    def run(bench, server):
        if writes and not SERVERS[server].copy_on_write:
            raise Missing('it has no copy-on-write')
        with bench.start(server, fmt=fmt) as s:
            if fill:
                s.load(bench.client, '--rw', 'randwrite', '--once',
                       '--range', bench.hot)
            extra = [bench.hot if o == '@hot' else o for o in options]
            return s.load(bench.client, '--ms', bench.ms, *extra)
    return run


def fresh_write(bench, server):
    """Random first writes over a range, each block once."""
    if not SERVERS[server].copy_on_write:
        raise Missing('it has no copy-on-write')
    with bench.start(server) as s:
        before = disk_bytes(s.process.pid, s.overlay)
        r = s.load(bench.client, '--rw', 'randwrite', '--once', '--range',
                   bench.fresh, '--ms', '60000')
        after = disk_bytes(s.process.pid, s.overlay)
        r['disk_per_byte'] = (after - before) / r['bytes']
        return r


def fio(rw, qd):
    def run(bench, server):
        if not SERVERS[server].copy_on_write and rw == 'randwrite':
            raise Missing('it has no copy-on-write')
        with bench.start(server) as s:
            uri = 'nbd+unix:///%s?socket=%s' % (s.kind.export, s.sock)
            from servers import cpu_seconds
            before = cpu_seconds(s.process.pid)
            out = subprocess.run(
                [tool('fio'), '--name=x', '--ioengine=nbd', '--uri=' + uri,
                 '--rw=' + rw, '--bs=4k', '--iodepth=%d' % qd,
                 '--time_based', '--runtime=%d' % (1 if bench.quick else 3),
                 '--output-format=json', '--group_reporting'],
                check=True, stdout=subprocess.PIPE).stdout
            part = json.loads(out)['jobs'][0][
                'read' if 'read' in rw else 'write']
            cpu = cpu_seconds(s.process.pid) - before
            return {'iops': part['iops'],
                    'server_us': cpu * 1e6 / max(1, part['total_ios'])}
    return run


def first_byte(size):
    """From exec to the first 4 KiB read of a sparse raw disk."""
    def run(bench, server):
        image = bench.place.path('sparse-%d.raw' % size)
        if not os.path.exists(image):
            with open(image, 'wb') as f:
                try:
                    f.truncate(size)
                except OSError as e:
                    os.unlink(image)
                    raise Missing('the filesystem: %s' % e)
        s = Running(server, bench.place, image, 'raw')
        env = dict(os.environ, TMPDIR=s.overlay)
        p = subprocess.Popen(
            [bench.client, 'first', s.sock, s.kind.export, str(size // 2),
             '--'] + s.command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=env)
        try:
            line = None
            while not line or not line.startswith(b'{"first'):
                line = p.stdout.readline()
                if not line:
                    raise Missing('it did not start')
            answer = json.loads(line)
            answer['rss_kib'] = rss_kib(answer.pop('pid'))
            return answer
        finally:
            p.stdin.close()
            p.stdout.close()
            p.wait()
    return run


def waiting(bench, s, *args):
    """A client command that holds something until its input ends."""
    p = subprocess.Popen([bench.client, args[0], s.sock, s.kind.export] +
                         list(args[1:]), stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
    if not p.stdout.readline():
        raise RuntimeError('%s: the server refused it' % args[0])
    return p


def end_waiting(p):
    p.stdin.close()
    p.stdout.close()
    p.wait()


def memory(bench, server):
    """Resident memory: idle, and beside a reader that never reads."""
    with bench.start(server) as s:
        time.sleep(0.2)
        idle = rss_kib(s.process.pid)
        p = waiting(bench, s, 'stuck')
        time.sleep(1)
        stuck = rss_kib(s.process.pid)
        end_waiting(p)
    return {'idle_kib': idle, 'stuck_kib': stuck}


def crowd(bench, server):
    """A good client alone, and beside 500 idle sessions."""
    options = ['--rw', 'randread', '--qd', '16', '--ms', bench.ms]
    with bench.start(server) as s:
        alone = s.load(bench.client, *options)
        p = waiting(bench, s, 'idle', '20' if bench.quick else '500')
        beside = s.load(bench.client, *options)
        rss = rss_kib(s.process.pid)
        end_waiting(p)
    return {'iops': beside['iops'], 'iops_ratio':
            beside['iops'] / alone['iops'],
            'p99_ratio': beside['p99_us'] / max(0.1, alone['p99_us']),
            'crowd_kib': rss}


def stop_under_load(bench, server):
    """Seconds from SIGTERM to the end of the process, while a client reads."""
    with bench.start(server) as s:
        p = subprocess.Popen(
            [bench.client, 'run', s.sock, s.kind.export, '--ms', '20000'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        seconds = s.stop()
        left = os.path.exists(s.sock)
        p.wait()
    return {'stop_ms': seconds * 1000, 'socket_left': int(left)}


def chain(depth):
    def run(bench, server):
        if not SERVERS[server].copy_on_write or server.startswith('nbdkit'):
            raise Missing('it reads no qcow2 chains')
        if depth > 128 and SERVERS[server].peer:
            raise Missing('too slow to measure')
        # Beside the base, so that the names in the images stay plain.
        home = bench.place.path('chain-%d' % bench.size)
        os.makedirs(home, exist_ok=True)
        base = os.path.join(home, 'base.raw')
        if not os.path.exists(base):
            os.link(bench.raw, base)
        top = make_chain(home, 'base.raw', 'raw', bench.size, depth)
        with bench.start(server, image=top, fmt='qcow2') as s:
            s.load(bench.client, '--rw', 'read', '--bs', '1M', '--once',
                   '--qd', '4', '--ms', '60000')
            return s.load(bench.client, '--rw', 'randread', '--ms', bench.ms)
    return run


def pingpong(bench, server):
    out = subprocess.run([bench.client, 'pingpong', '--ms', bench.ms],
                         check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    answer = json.loads(out.stdout)
    answer['server_us'] = (json.loads(out.stderr)['server_cpu_s'] * 1e6 /
                           answer['ops'])
    return answer


COW = ['rewind', 'rewind-threads', 'qemu-nbd', 'nbdkit-64k', 'nbdkit-4k',
       'qsd']
ALL = COW + ['nbd-server', 'null']
GIB, TIB = 1 << 30, 1 << 40

WORKLOADS = {
    'randread-4k-qd32': (load('--rw', 'randread'), ALL),
    'randread-4k-qd1': (load('--rw', 'randread', '--qd', '1'), ALL),
    'randread-4k-qcow2': (load('--rw', 'randread', fmt='qcow2'),
                          ['rewind', 'qemu-nbd', 'qsd']),
    'randwrite-4k-fresh': (fresh_write, COW),
    'rewrite-4k-qd32': (load('--rw', 'randwrite', '--range', '@hot',
                             fill=True, writes=True), COW),
    'read-64k': (load('--rw', 'read', '--bs', '64K', '--qd', '8'), ALL),
    'read-1m': (load('--rw', 'read', '--bs', '1M', '--qd', '4'), ALL),
    'write-64k': (load('--rw', 'write', '--bs', '64K', '--qd', '8',
                       writes=True), COW),
    'write-1m': (load('--rw', 'write', '--bs', '1M', '--qd', '4',
                      writes=True), COW),
    'mixed-70-30-flush': (load('--rw', 'randrw', '--mix', '70',
                               '--flush-every', '32', writes=True), COW),
    'randread-4k-1x16': (load('--rw', 'randread', '--qd', '16'), ALL),
    'randread-4k-4x16': (load('--rw', 'randread', '--qd', '16', '--conns',
                              '4'), ALL),
    'first-byte-1g': (first_byte(GIB), COW),
    'first-byte-64g': (first_byte(64 * GIB), COW),
    'first-byte-1t': (first_byte(TIB), COW),
    'first-byte-64t': (first_byte(64 * TIB), COW),
    'memory': (memory, COW),
    'crowd-500': (crowd, COW),
    'stop-under-load': (stop_under_load, COW),
    'chain-1': (chain(1), COW),
    'chain-8': (chain(8), COW),
    'chain-32': (chain(32), COW),
    'chain-128': (chain(128), COW),
    'chain-500': (chain(500), COW),
    'pingpong': (pingpong, ['socket']),
}

FIO = {
    'fio-randread-4k-qd32': (fio('randread', 32), ALL),
    'fio-randread-4k-qd1': (fio('randread', 1), ALL),
    'fio-randwrite-4k-qd32': (fio('randwrite', 32), COW),
}
