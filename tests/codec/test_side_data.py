"""Transparency and colour profiles in .walloc files: kept exactly, and bounded whatever a file claims."""

import dataclasses
import tracemalloc
import zlib

import numpy as np
import pytest
from codec_fixtures import image_inputs, image_model, pictures

from transformers_walloc.codec.bitstream import WallocFormatError, pack, unpack
from transformers_walloc.codec.side_data import MAX_PROFILE, SideData
from transformers_walloc.codec.varints import varint

SIZES = (30, 41)


def record(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + varint(len(content)) + content


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("profile", [b"", b"a profile" * 100])
def test_round_trip(dtype, profile):
    alpha = np.random.default_rng(0).integers(np.iinfo(dtype).max + 1, size=SIZES).astype(dtype)
    for plane in (alpha, np.zeros(SIZES, dtype), None):
        packed = SideData(alpha=plane, profile=profile).pack()
        back = SideData.unpack(packed, SIZES)
        assert back.profile == profile
        if plane is None:
            assert back.alpha is None and bool(packed) == bool(profile)
        else:
            assert back.alpha.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(back.alpha, plane)


def test_bytes_of_the_documentation():
    """By hand: the differences to the left and then to above, as docs/concepts/format.md says."""
    alpha = np.array([[10, 12], [10, 255]], np.uint8)
    packed = SideData(alpha=alpha).pack()
    assert packed[0] == 1 and packed[1] == len(packed) - 2 and packed[2] == 1
    assert zlib.decompress(packed[3:]) == bytes([10, 2, 0, 243])  # 245 - 2


def test_in_a_file():
    model = image_model()
    (blob,) = model.compress(**image_inputs(pictures()[0][:30, :40]))
    header, payload = unpack(blob)
    alpha = np.arange(1200).reshape(30, 40).astype(np.uint8)
    kept = dataclasses.replace(header, side_data=SideData(alpha=alpha, profile=b"x").pack())
    back, same = unpack(pack(kept, payload))
    assert back == kept and same == payload and np.array_equal(back.read_side_data().alpha, alpha)
    assert pack(header, payload) == blob  # files without side data are what they were
    assert model.decompress([pack(kept, payload)])[0].equal(model.decompress([blob])[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01", "longer than the file"),
        (record(4, b"x"), "unknown type 4"),
        (record(2, b"x") + record(1, b"\x01x"), "not in order"),
        (record(2, b"x") * 2, "not in order"),
        (record(1, b""), "number of bytes"),
        (record(1, b"\x03"), "number of bytes"),
    ],
)
def test_records_that_are_refused_with_the_header(data, message):
    header, payload = unpack(image_model().compress(**image_inputs(pictures()[0][:30, :40]))[0])
    with pytest.raises(WallocFormatError, match=message):
        unpack(pack(dataclasses.replace(header, side_data=data), payload))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (record(1, b"\x01garbage"), "damaged"),
        (record(1, b"\x01" + zlib.compress(bytes(30 * 41 - 1))), "not that of the image"),
        (record(1, b"\x01" + zlib.compress(bytes(30 * 41 + 1))), "does not end"),
        (record(1, b"\x02" + zlib.compress(bytes(30 * 41))), "not that of the image"),
        (record(1, b"\x01" + zlib.compress(bytes(30 * 41)) + b"more"), "does not end"),
        (record(1, b"\x01" + zlib.compress(bytes(30 * 41))[:-3]), "does not end"),
        (record(2, zlib.compress(bytes(MAX_PROFILE + 1))), "does not end"),
    ],
)
def test_contents_that_are_refused(data, message):
    with pytest.raises(WallocFormatError, match=message):
        SideData.unpack(data, SIZES)


def test_bombs_are_not_expanded():
    bomb = zlib.compress(bytes(2**26))
    for kind, content in ((1, b"\x01" + bomb), (2, bomb)):
        tracemalloc.start()
        with pytest.raises(WallocFormatError):
            SideData.unpack(record(kind, content), SIZES)
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_PROFILE + 2**20
        tracemalloc.stop()


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="uint8 or uint16"):
        SideData(alpha=np.zeros(SIZES)).pack()
    with pytest.raises(ValueError, match="colour profile of"):
        SideData(profile=bytes(MAX_PROFILE + 1)).pack()
