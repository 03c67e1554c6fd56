# SPDX-License-Identifier: BSD-2-Clause
"""From figures to a table, ratios and the list of targets."""

import statistics

SHOWN = ['iops', 'mb_s', 'p50_us', 'p99_us', 'server_us', 'disk_per_byte',
         'first_byte_ms', 'rss_kib', 'idle_kib', 'stuck_kib', 'crowd_kib',
         'iops_ratio', 'p99_ratio', 'stop_ms', 'socket_left']


class Results:
    """results[workload][server] = list of figures, one for each round."""

    def __init__(self):
        self.rounds = {}

    def add(self, workload, server, figures):
        self.rounds.setdefault(workload, {}).setdefault(
            server, []).append(figures)

    def median(self, workload, server, key):
        values = [r[key] for r in self.rounds.get(workload, {}).get(
            server, []) if key in r]
        return statistics.median(values) if values else None

    def best_peer(self, workload, key):
        """The best copy-on-write peer other than qemu-nbd."""
        values = [self.median(workload, s, key)
                  for s in ('nbdkit-64k', 'nbdkit-4k', 'qsd')]
        values = [v for v in values if v is not None]
        return max(values) if values else None

    def ratio(self, workload, peer, key='iops'):
        """rewind over `peer`, the median of the rounds' own ratios: both
        halves of each were measured within seconds of one another."""
        ours = self.rounds.get(workload, {}).get('rewind', [])
        theirs = self.rounds.get(workload, {}).get(peer, [])
        pairs = [a[key] / b[key] for a, b in zip(ours, theirs)
                 if key in a and b.get(key)]
        return statistics.median(pairs) if pairs else None

    def ratio_to_best(self, workload):
        values = [self.ratio(workload, s)
                  for s in ('nbdkit-64k', 'nbdkit-4k', 'qsd')]
        values = [v for v in values if v is not None]
        return min(values) if values else None


def table(results, out):
    for workload, servers in results.rounds.items():
        keys = [k for k in SHOWN
                if any(k in r for rs in servers.values() for r in rs)]
        out.write('\n%s\n  %-16s' % (workload, ''))
        for k in keys:
            out.write('%14s' % k)
        out.write('%12s\n' % ('vs rewind' if 'iops' in keys else ''))
        for server in servers:
            out.write('  %-16s' % server)
            for k in keys:
                v = results.median(workload, server, k)
                out.write('%14s' % ('-' if v is None else '%.2f' % v
                                    if v < 1000 else '%.0f' % v))
            r = results.ratio(workload, server) if 'iops' in keys else None
            out.write('%12s\n' % ('' if r is None or server == 'rewind'
                                  else '%.2f x' % (1 / r)))


# What section 6 of the plan asks for: text, how it is measured, the bound, and
# whether the figure must be at least or at most that.
def targets(r):
    def med(workload, key, server='rewind'):
        return lambda: r.median(workload, server, key)

    def over(workload, peer):
        return lambda: r.ratio(workload, peer)

    def best(workload):
        return lambda: r.ratio_to_best(workload)

    def depth(deep, key):
        def value():
            a = r.median('chain-%d' % deep, 'rewind', key)
            b = r.median('chain-1', 'rewind', key)
            return a / b if a and b else None
        return value

    def scale():
        a = r.median('randread-4k-4x16', 'rewind', 'iops')
        b = r.median('randread-4k-1x16', 'rewind', 'iops')
        return a / b if a and b else None

    rows = [
        ('4 KiB random read / qemu-nbd', over('randread-4k-qd32', 'qemu-nbd'),
         5, 'min'),
        ('4 KiB random read / best peer', best('randread-4k-qd32'), 2.5,
         'min'),
        ('4 KiB random read, CPU us', med('randread-4k-qd32', 'server_us'), 3,
         'max'),
        ('4 KiB first write / qemu-nbd', over('randwrite-4k-fresh',
                                              'qemu-nbd'), 12, 'min'),
        ('4 KiB first write / best peer', best('randwrite-4k-fresh'), 2.5,
         'min'),
        ('4 KiB first write, CPU us', med('randwrite-4k-fresh', 'server_us'),
         5, 'max'),
        ('bytes on disk per byte written', med('randwrite-4k-fresh',
                                               'disk_per_byte'), 1.02, 'max'),
        ('4 KiB rewrite / qemu-nbd', over('rewrite-4k-qd32', 'qemu-nbd'), 2.2,
         'min'),
        ('4 KiB rewrite / best peer', best('rewrite-4k-qd32'), 1.15, 'min'),
        ('QD1 read / qemu-nbd', over('randread-4k-qd1', 'qemu-nbd'), 2.5,
         'min'),
        ('QD1 read / best peer', best('randread-4k-qd1'), 1.3, 'min'),
        ('4 connections over 1', scale, 1, 'min'),
        ('64 KiB read / qemu-nbd', over('read-64k', 'qemu-nbd'), 2, 'min'),
        ('64 KiB read / best peer', best('read-64k'), 2, 'min'),
        ('1 MiB read / qemu-nbd', over('read-1m', 'qemu-nbd'), 4, 'min'),
        ('1 MiB read / nbd-server', over('read-1m', 'nbd-server'), 0.95,
         'min'),
        ('1 MiB write / qemu-nbd', over('write-1m', 'qemu-nbd'), 1.5, 'min'),
        ('1 MiB write / best peer', best('write-1m'), 1.2, 'min'),
        ('64 KiB write / qemu-nbd', over('write-64k', 'qemu-nbd'), 1.5,
         'min'),
        ('64 KiB write / best peer', best('write-64k'), 1.2, 'min'),
        ('mixed with flushes / qemu-nbd', over('mixed-70-30-flush',
                                               'qemu-nbd'), 2.5, 'min'),
        ('mixed with flushes / best peer', best('mixed-70-30-flush'), 1.8,
         'min'),
        ('idle, KiB resident', med('memory', 'idle_kib'), 6144, 'max'),
        ('beside a stuck reader, KiB', med('memory', 'stuck_kib'), 65536,
         'max'),
        ('SIGTERM under load, ms', med('stop-under-load', 'stop_ms'), 50,
         'max'),
        ('beside 500 idle sessions, iops', med('crowd-500', 'iops_ratio'),
         0.9, 'min'),
    ]
    for size in ('1g', '1t', '64t'):
        rows.append(('first byte at %s, ms' % size.upper(),
                     med('first-byte-' + size, 'first_byte_ms'), 5, 'max'))
    for deep in (128, 500):
        rows.append(('depth %d over 1, iops' % deep, depth(deep, 'iops'), 0.9,
                     'min'))
        rows.append(('depth %d over 1, CPU' % deep,
                     depth(deep, 'server_us'), 1.1, 'max'))
    return rows


def target_table(results, out):
    out.write('\n%-36s%12s%12s   %s\n' % ('target', 'wanted', 'measured',
                                          'met'))
    for text, value, bound, way in targets(results):
        v = value()
        if v is None:
            continue
        met = v >= bound if way == 'min' else v <= bound
        out.write('%-36s%12s%12.2f   %s\n' % (
            text, ('>= %g' if way == 'min' else '<= %g') % bound, v,
            'yes' if met else 'NO'))
