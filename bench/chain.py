# SPDX-License-Identifier: BSD-2-Clause
"""Chains of qcow2 overlays for the depth benchmark, written directly.

`qemu-img create` opens the whole chain below each new overlay, so a chain of
500 takes it minutes. This writes minimal version 3 images (64 KiB clusters,
16-bit refcounts) with a few scattered clusters each, and correct refcounts:
`qemu-img check` accepts them. Format: docs/interop/qcow2 of QEMU.
"""

import os
import random
import struct

CLUSTER = 65536
L2_ENTRIES = CLUSTER // 8
COPIED = 1 << 63


def write_overlay(path, size, backing, clusters, fill):
    """An overlay of `size` bytes on `backing` (a name and a format) that holds
    the guest clusters in `clusters`, each filled with the byte `fill`."""
    name, fmt = backing
    l1_entries = (size + CLUSTER * L2_ENTRIES - 1) // (CLUSTER * L2_ENTRIES)
    assert l1_entries * 8 <= CLUSTER
    tables = sorted({c // L2_ENTRIES for c in clusters})
    # header, refcount table, refcount block, L1, L2 tables, data
    l2_at = {t: 4 + i for i, t in enumerate(tables)}
    data_at = {c: 4 + len(tables) + i for i, c in enumerate(sorted(clusters))}
    total = 4 + len(tables) + len(data_at)
    assert total <= CLUSTER // 2
    ext = struct.pack('>II', 0xe2792aca, len(fmt)) + fmt.encode()
    ext += b'\0' * (-len(fmt) % 8) + struct.pack('>II', 0, 0)
    name_at = 104 + len(ext)
    header = struct.pack(
        '>IIQIIQIIQQIIQQQQII', 0x514649fb, 3, name_at, len(name), 16, size, 0,
        l1_entries, 3 * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104)
    with open(path, 'wb') as f:
        f.write(header + ext + name.encode())
        f.seek(CLUSTER)
        f.write(struct.pack('>Q', 2 * CLUSTER))
        f.seek(2 * CLUSTER)
        f.write(struct.pack('>H', 1) * total)
        f.seek(3 * CLUSTER)
        l1 = [0] * l1_entries
        for t in tables:
            l1[t] = l2_at[t] * CLUSTER | COPIED
        f.write(struct.pack('>%dQ' % l1_entries, *l1))
        for t in tables:
            for c in sorted(clusters):
                if c // L2_ENTRIES == t:
                    f.seek(l2_at[t] * CLUSTER + c % L2_ENTRIES * 8)
                    f.write(struct.pack('>Q', data_at[c] * CLUSTER | COPIED))
        for c in sorted(clusters):
            f.seek(data_at[c] * CLUSTER)
            f.write(bytes([fill]) * CLUSTER)
        f.truncate(total * CLUSTER)


def make_chain(directory, base, base_format, size, depth, per_layer=16, seed=1):
    """`depth` overlays on `base` (a name in `directory`); returns the path of
    the top. Keeps what is there already."""
    rng = random.Random(seed)
    below, fmt = base, base_format
    for i in range(depth):
        name = 'chain-%04d.qcow2' % i
        path = os.path.join(directory, name)
        clusters = rng.sample(range(size // CLUSTER), per_layer)
        if not os.path.exists(path):
            write_overlay(path + '.tmp', size, (below, fmt), set(clusters),
                          i % 255 + 1)
            os.rename(path + '.tmp', path)
        below, fmt = name, 'qcow2'
    return os.path.join(directory, below)
