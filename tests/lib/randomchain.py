# SPDX-License-Identifier: BSD-2-Clause
"""Random images and chains with their content, by seed.

Made by qemu-img and qemu-io alone; the content is what qemu-img convert says.
"""
import os

from images import (KIB, content, pattern, qcow2_image, raw_image, sha256)


def pieces(rng, size, count):
    """Random ranges within `size`."""
    for _ in range(count):
        length = rng.choice([512, 4096, 65536, 300000, 1 << 20])
        length = min(rng.randrange(1, length // 512 + 1) * 512, size)
        yield rng.randrange(0, (size - length) // 512 + 1) * 512, length


def random_raw(rng, path, size):
    """A raw image, part data, part holes. Returns its content."""
    data = bytearray(size)
    filled = []
    for n, (offset, length) in enumerate(pieces(rng, size, 12)):
        filled.append((offset, pattern(offset, length, n)))
        data[offset:offset + length] = filled[-1][1]
    raw_image(path, size, filled)
    return bytes(data)


def random_options(rng):
    """Creation options of one layer that qemu-img 7 knows."""
    extended = rng.random() < 0.3
    shift = rng.randrange(14 if extended else 9, 22)
    options = ["cluster_size=%d" % (1 << shift)]
    if extended:
        options.append("extended_l2=on")
    elif rng.random() < 0.15:
        return "compat=0.10,cluster_size=%d" % (1 << shift)
    if rng.random() < 0.3:
        options.append("refcount_bits=%d" % (1 << rng.randrange(7)))
    if rng.random() < 0.3:
        options.append("compression_type=zstd")
    return ",".join(options)


def random_writes(rng, size, options, has_backing):
    """qemu-io commands for one layer."""
    cluster = int(options.split("cluster_size=")[1].split(",")[0])
    old = "compat=0.10" in options
    # Compressed clusters first: they must not be there before.
    for n in rng.sample(range(size // cluster),
                        min(rng.randrange(4), size // cluster)):
        yield "write -c -P %d %d %d" % (rng.randrange(1, 256), n * cluster,
                                        cluster)
    for offset, length in pieces(rng, size, rng.randrange(1, 12)):
        kind = rng.random()
        if kind < 0.15 and not old:
            yield "write -z %s %d %d" % (rng.choice(["", "-u"]), offset,
                                         length)
        elif kind < 0.25 and not (old and has_backing):
            yield "discard %d %d" % (offset, length)
        else:
            yield "write -P %d %d %d" % (rng.randrange(1, 256), offset,
                                         length)


def random_chain(rng, directory, size, depth):
    """A chain of qcow2 images on a raw or qcow2 base. Returns the top's path,
    its content, and the paths of all layers."""
    paths, backing, backing_format = [], None, None
    if rng.random() < 0.5:
        backing, backing_format = os.path.join(directory, "base.raw"), "raw"
        random_raw(rng, backing, rng.choice([size, size // 2 // 512 * 512]))
        paths.append(backing)
    for n in range(depth):
        path = os.path.join(directory, "layer%d" % n)
        layer_size = size
        if n < depth - 1 and rng.random() < 0.3:
            layer_size = rng.randrange(64 * KIB // 512, size // 512) * 512
        options = random_options(rng)
        qcow2_image(path, layer_size, backing, backing_format or "qcow2",
                    options, list(random_writes(rng, layer_size, options,
                                                backing is not None)))
        backing, backing_format = path, "qcow2"
        paths.append(path)
    return backing, content(backing), paths


def fingerprints(paths):
    return [(p, sha256(p)) for p in paths]
