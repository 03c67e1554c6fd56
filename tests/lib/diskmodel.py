# SPDX-License-Identifier: BSD-2-Clause
"""What a disk must hold after what was done to it, byte by byte.

A byte is known or, after a trim, unknown until it is written again. Owns no
descriptors. One thread.
"""
from harness import expect_bytes

GRAIN = 4096


class DiskModel:
    def __init__(self, content, trim_zeroes=False):
        """`trim_zeroes`: whole grains inside a trim read as zeroes, which
        our overlay promises and NBD does not."""
        self.data = bytearray(content)
        self.mask = bytearray(b"\xff" * len(content))   # 0: unknown
        self.trim_zeroes = trim_zeroes
        self.history = []           # (number, text, offset, end)

    def remember(self, text, offset, length):
        self.history.append((len(self.history), text, offset,
                             offset + length))

    def write(self, offset, data):
        self.data[offset:offset + len(data)] = data
        self.mask[offset:offset + len(data)] = b"\xff" * len(data)

    def trim(self, offset, length):
        end = offset + length
        self.mask[offset:end] = bytes(length)
        if not self.trim_zeroes:
            return
        first = -(-offset // GRAIN) * GRAIN
        last = end if end == len(self.data) else end // GRAIN * GRAIN
        if first < last:
            self.write(first, bytes(last - first))

    def check(self, offset, found, what):
        """What was read agrees with all that is known."""
        end = offset + len(found)
        mask = self.mask[offset:end]
        wanted = bytes(self.data[offset:end])
        if found == wanted:
            return
        if 0 in mask:
            mask = int.from_bytes(mask, "big")
            mixed = (int.from_bytes(found, "big") & ~mask
                     | int.from_bytes(wanted, "big") & mask)
            wanted = mixed.to_bytes(len(found), "big")
        if found == wanted:
            return
        first = next(i for i in range(len(found)) if found[i] != wanted[i])
        expect_bytes(found, wanted, offset,
                     what + self.story(offset + first))

    def story(self, at):
        """Who touched this byte, in the order of the replies."""
        lines = ["%5d %s" % (n, text) for n, text, start, end in self.history
                 if start <= at < end]
        return "\n  at %#x, in grain %#x:\n    %s\n " % (
            at, at // GRAIN, "\n    ".join(lines[-12:]) or "(nothing)")

    def check_status(self, offset, extents, what):
        """What is said to be zero is known to be nothing else."""
        for length, status in extents:
            if status & 2:
                end = min(offset + length, len(self.data))
                both = (int.from_bytes(self.data[offset:end], "big")
                        & int.from_bytes(self.mask[offset:end], "big"))
                if both:
                    at = end - (both.bit_length() + 7) // 8
                    raise AssertionError("%s: %#x +%d is not all zero%s" % (
                        what, offset, length, self.story(at)))
            offset += length


