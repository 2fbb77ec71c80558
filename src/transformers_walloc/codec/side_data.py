"""What a .walloc file keeps of an image beside its latents, without loss: transparency, colour profile, TIFF's tags.

```
side data = records of | type 1 | length varint | content |, types in increasing order
1 alpha    bytes of a sample 1 (1 or 2), zlib stream of what each sample differs from its neighbours
2 profile  zlib stream of an ICC profile
3 tags     zlib stream of TIFF tags: georeferencing, orientation (tiff_tags.py)
```

docs/concepts/format.md has the details. Records are told apart when a header is read; what is compressed in them is
expanded only when it is asked for, and never beyond what the image's size or `MAX_PROFILE` allows.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tiff_tags import MAX_BYTES, unpack_tags
from .varints import Reader, WallocFormatError, varint

MAX_PROFILE = 2**22
_ALPHA, _PROFILE, _TAGS = 1, 2, 3
RECORDS = {_ALPHA: "transparency", _PROFILE: "colour_profile", _TAGS: "tiff_tags"}
_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype("<u2")}


@dataclass(frozen=True, kw_only=True)
class SideData:
    """Args:
    alpha: (height, width) uint8 or uint16, 0 where the image is transparent; None if it is opaque.
    profile: an ICC profile, of the colours as they are coded; empty for sRGB.
    tags: of the TIFF that it was, `pack_tags` of them; empty for none.
    """

    alpha: np.ndarray | None = None
    profile: bytes = b""
    tags: bytes = b""

    def pack(self) -> bytes:
        """Bytes for a header; empty if there is nothing to keep.

        Raises:
            ValueError: alpha of another type or shape, a profile of more than `MAX_PROFILE` bytes, tags of more than
                `tiff_tags.MAX_BYTES`.
        """
        records = {}
        if self.alpha is not None:
            itemsize = self.alpha.dtype.itemsize
            if self.alpha.dtype.kind != "u" or itemsize not in _TYPES or self.alpha.ndim != 2:
                raise ValueError(f"alpha must be (height, width) of uint8 or uint16, got {self.alpha.dtype}")
            records[_ALPHA] = bytes([itemsize]) + zlib.compress(_differences(self.alpha), 9)
        if len(self.profile) > MAX_PROFILE:
            raise ValueError(f"a colour profile of {len(self.profile)} bytes; valid: at most {MAX_PROFILE}")
        if self.profile:
            records[_PROFILE] = zlib.compress(self.profile, 9)
        if len(self.tags) > MAX_BYTES:
            raise ValueError(f"TIFF tags of {len(self.tags)} bytes; valid: at most {MAX_BYTES}")
        if self.tags:
            records[_TAGS] = zlib.compress(self.tags, 9)
        return b"".join(bytes([kind]) + varint(len(content)) + content for kind, content in records.items())

    @classmethod
    def unpack(cls, data: bytes, sizes: Sequence[int]) -> "SideData":
        """The inverse of `pack`, for an image of `sizes` (height, width).

        Raises:
            WallocFormatError: damaged, or not of this image.
        """
        records = split_records(data)
        alpha, profile, tags = None, b"", b""
        if _ALPHA in records:
            itemsize, stream = records[_ALPHA][0], records[_ALPHA][1:]
            size = sizes[0] * sizes[1] * itemsize
            raw = _expand("transparency", stream, size)
            if len(raw) != size:
                raise WallocFormatError("the transparency is not that of the image")
            alpha = _sums(np.frombuffer(raw, _TYPES[itemsize]).reshape(tuple(sizes)))
        if _PROFILE in records:
            profile = _expand("colour profile", records[_PROFILE], MAX_PROFILE)
        if _TAGS in records:
            tags = _expand("list of TIFF tags", records[_TAGS], MAX_BYTES)
            unpack_tags(tags)
        return cls(alpha=alpha, profile=profile, tags=tags)


def split_records(data: bytes) -> dict[int, bytes]:
    """Contents by type, still compressed, which takes no more memory than the file.

    Raises:
        WallocFormatError: cut off, an unknown type, types that are not in increasing order.
    """
    reader, records = Reader(data, 0, len(data)), dict[int, bytes]()
    while reader.position < reader.end:
        kind = reader.take(1)[0]
        content = reader.take(reader.varint())
        if kind not in RECORDS or any(kind <= earlier for earlier in records):
            raise WallocFormatError(f"side data of an unknown type {kind}, or not in order")
        if kind == _ALPHA and (not content or content[0] not in _TYPES):
            raise WallocFormatError("transparency of an unknown number of bytes for a sample")
        records[kind] = content
    return records


def _differences(plane: np.ndarray) -> bytes:
    """Each sample less the one to its left, and then each row less the one above, modulo the range of the type."""
    differences = plane.astype(_TYPES[plane.dtype.itemsize])
    differences[:, 1:] -= plane[:, :-1]
    differences[1:] -= differences[:-1].copy()
    return differences.tobytes()


def _sums(differences: np.ndarray) -> np.ndarray:
    dtype = differences.dtype.newbyteorder("=")
    return np.cumsum(np.cumsum(differences, axis=0, dtype=dtype), axis=1, dtype=dtype)


def _expand(what: str, stream: bytes, limit: int) -> bytes:
    """A zlib stream of at most `limit` bytes; a longer one is not expanded further."""
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(stream, limit + 1)
    except zlib.error as error:
        raise WallocFormatError(f"the {what} is damaged: {error}") from error
    if len(raw) > limit or not reader.eof or reader.unused_data:
        raise WallocFormatError(f"the {what} is damaged: it does not end where it should")
    return raw
