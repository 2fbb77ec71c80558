"""The parts of a header: numbers of variable length, and a reader that never goes beyond the end."""

import struct


class WallocFormatError(ValueError):
    """The data is no .walloc file that can be decoded; the message says why."""


class Reader:
    """Takes fields off the front of `data`, which ends `end` bytes in."""

    def __init__(self, data: bytes, position: int, end: int):
        self.data, self.position, self.end = data, position, end

    def take(self, count: int) -> bytes:
        """The next `count` bytes; WallocFormatError if there are fewer."""
        if count > self.end - self.position:
            raise WallocFormatError("the header is longer than the file")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        """The next number, see `varint`; WallocFormatError if it is longer than 35 bits."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise WallocFormatError("a number in the header is not in its shortest form")
                return value
        raise WallocFormatError("a number in the header is longer than 5 bytes")

    def floats(self, count: int) -> tuple[float, ...]:
        """The next `count` floats of 32 bits, little endian."""
        return struct.unpack(f"<{count}f", self.take(4 * count))


def key_of(table: dict[int, str], value: str) -> int:
    """The number by which a header names something."""
    return next(key for key, name in table.items() if name == value)


def varint(value: int) -> bytes:
    """Little-endian groups of 7 bits, the highest bit of a byte set if more follow (LEB128)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
