# SPDX-License-Identifier: BSD-2-Clause
"""qcow2 images written byte by byte, so that anything in them can be wrong.

A Qcow2 is a description; its fields are what a good image would hold until a
test changes them. write() makes the file. Clusters, in order: header, refcount
table, refcount block, L1, L2, then data.
"""
import struct
import zlib

MAGIC = 0x514649fb
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
COPIED, PACKED = 1 << 63, 1 << 62
FORMAT, NAMES, DATA_NAME = 0xe2792aca, 0x6803f857, 0x44415441


def deflate(data):
    pack = zlib.compressobj(9, zlib.DEFLATED, -12)
    return pack.compress(data) + pack.flush()


class Qcow2:
    def __init__(self, bits=16, size=1 << 20, version=3):
        self.cluster = 1 << bits
        self.version = version
        self.magic = MAGIC
        self.bits = bits
        self.size = size
        self.backing = None         # bytes, put at the end of the extensions
        self.backing_off = None     # None: computed
        self.backing_len = None
        self.crypt = 0
        self.l1 = [4 * self.cluster]
        self.l1_size = None
        self.l1_off = 3 * self.cluster
        self.reftable_off = self.cluster
        self.reftable_clusters = 1
        self.snapshot_count = 0
        self.snapshots_off = 0
        self.incompatible = 0
        self.compatible = 0
        self.autoclear = 0
        self.refcount_order = 4
        self.header_length = 112
        self.compression = 0
        self.extensions = []        # (type, data) or (type, data, length)
        self.end_marker = True
        self.l2 = {}                # entry number: value, or (value, bitmap)
        self.pieces = []            # (offset, bytes) put in at the end
        self.length = 16 * self.cluster     # of the file

    def header(self):
        extensions = b""
        for kind, data, *length in self.extensions:
            extensions += struct.pack(">II", kind,
                                      length[0] if length else len(data))
            extensions += data.ljust((len(data) + 7) // 8 * 8, b"\0")
        if self.end_marker:
            extensions += bytes(8)
        known = 112 if self.version >= 3 else 72
        off = self.backing_off
        if off is None:
            off = known + len(extensions) if self.backing else 0
        backing = self.backing or b""
        count = len(backing) if self.backing_len is None else self.backing_len
        head = struct.pack(
            ">IIQIIQIIQQIIQ", self.magic, self.version, off, count, self.bits,
            self.size, self.crypt,
            len(self.l1) if self.l1_size is None else self.l1_size,
            self.l1_off, self.reftable_off, self.reftable_clusters,
            self.snapshot_count, self.snapshots_off)
        if self.version >= 3:
            head += struct.pack(">QQQIIB7x", self.incompatible,
                                self.compatible, self.autoclear,
                                self.refcount_order, self.header_length,
                                self.compression)
        return head + extensions + backing

    def write(self, path):
        extended = bool(self.incompatible & EXTENDED_L2)
        with open(path, "wb") as f:
            f.write(self.header())
            f.seek(3 * self.cluster)
            f.write(struct.pack(">%dQ" % len(self.l1), *self.l1))
            for i, entry in self.l2.items():
                f.seek(4 * self.cluster + i * (16 if extended else 8))
                entry = entry if isinstance(entry, tuple) else (entry,)
                f.write(struct.pack(">%dQ" % len(entry), *entry))
            for offset, data in self.pieces:
                f.seek(offset)
                f.write(data)
            f.truncate(max(self.length, 0))
        return path
