"""Tags of a TIFF that say where its samples lie and how they are meant: on Earth, turned, white at zero, multiplied.

As files keep them:
```
each: number uint16 | type uint16 | count uint32 | values, little-endian, in increasing order of the numbers
```
"""

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from .varints import WallocFormatError

# GeoTIFF's (OGC 19-008) scale, tie points, transformation and keys, and RPC00B's rational coefficients.
GEOREFERENCING = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
PHOTOMETRIC, ORIENTATION, EXTRA_SAMPLES = 262, 274, 338
KEPT = (PHOTOMETRIC, ORIENTATION, EXTRA_SAMPLES, *GEOREFERENCING)
MAX_BYTES = 2**20
_ASCII = 2
_CODES = {1: "B", _ASCII: "s", 3: "H", 4: "I", 11: "f", 12: "d"}  # struct's, by TIFF's numbers of types
_ENTRY = struct.Struct("<HHI")
_INSTALL = "pip install 'transformers-walloc[rasters]'"


class MissingTiffReaderError(ValueError):
    """A TIFF that only a package which is not installed can read; the message has the command that installs it."""


@contextlib.contextmanager
def reading_tiff() -> Iterator[Any]:
    """Gives tifffile; inside, what it does not read without imagecodecs says so.

    Raises:
        MissingTiffReaderError: one of both is missing.
        ValueError: no TIFF that can be read.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingTiffReaderError(f"TIFF files need tifffile: {_INSTALL}") from error
    try:
        yield tifffile
    except Exception as error:
        if "imagecodecs" in str(error):
            found = re.search(r"(?:COMPRESSION|PREDICTOR)\.(\w+)", str(error))
            coding = f"{found[1]} coding of TIFF files" if found else "this coding of TIFF files"
            raise MissingTiffReaderError(f"{coding} needs imagecodecs: {_INSTALL}") from error
        if isinstance(error, tifffile.TiffFileError):
            raise ValueError(str(error)) from error
        raise


def pack_tags(tags: Mapping[int, tuple[int, Any]]) -> bytes:
    """Bytes of tags, number -> (TIFF's type, value or values); those of other numbers and types are left out."""
    parts = []
    for number in sorted(set(tags) & set(KEPT)):
        kind, value = tags[number]
        if kind not in _CODES:
            continue
        if kind == _ASCII:
            text = value if isinstance(value, bytes) else str(value).encode()
            text = text.rstrip(b"\0") + b"\0"
            parts += [_ENTRY.pack(number, kind, len(text)), text]
        else:
            values = (
                value if isinstance(value, tuple | list) else tuple(value) if isinstance(value, bytes) else (value,)
            )
            parts += [_ENTRY.pack(number, kind, len(values)), struct.pack(f"<{len(values)}{_CODES[kind]}", *values)]
    return b"".join(parts)


def extra_tags(data: bytes) -> list[tuple[int, int, int, Any, bool]]:
    """Packed tags as tifffile takes them to write."""
    return [(number, kind, len(value), value, True) for number, (kind, value) in unpack_tags(data).items()]


def unpack_tags(data: bytes) -> dict[int, tuple[int, Any]]:
    """The inverse of `pack_tags`; ASCII as bytes, all others as tuples.

    Raises:
        WallocFormatError: damaged, or tags that no file keeps.
    """
    tags: dict[int, tuple[int, Any]] = {}
    position, last = 0, 0
    while position < len(data):
        try:
            number, kind, count = _ENTRY.unpack_from(data, position)
            position += _ENTRY.size
            if number not in KEPT or kind not in _CODES or number <= last:
                raise WallocFormatError(f"TIFF tag {number} of type {kind} is none that files keep, or not in order")
            values = struct.unpack_from(f"<{count}{_CODES[kind]}", data, position)
        except struct.error as error:
            raise WallocFormatError(f"the TIFF tags are damaged: {error}") from error
        position += struct.calcsize(f"<{count}{_CODES[kind]}")
        tags[number], last = (kind, values[0] if kind == _ASCII else values), number
    return tags
