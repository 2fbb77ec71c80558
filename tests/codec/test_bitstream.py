import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_walloc.codec.bitstream import (
    MAX_DECODED_PIXELS,
    Header,
    WallocFormatError,
    pack,
    peek_kind,
    tables_id,
    unpack,
)

IMAGE = Header(
    kind="image",
    sizes=(512, 768),
    num_channels=3,
    num_levels=3,
    latent_channels=12,
    fingerprint="0123456789abcdef",
    tables="89abcdef",
    codec="rgb-16x",
)
AUDIO = Header(
    kind="audio",
    sizes=(100_001,),
    num_channels=2,
    num_levels=8,
    latent_channels=27,
    encoder_padding=1,
    fingerprint="0123456789abcdef",
    tables="89abcdef",
    sampling_rate=44100,
    gain=1.5,
    offset=-0.25,
    source=(1, 48000, 108_844),
    step=2.5,
    coded_channels=20,
)


def with_checksum(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_a_file_written_by_hand_from_the_documentation():
    body = b"\x89WLC" + bytes([1, 0x11, 0]) + bytes.fromhex("0123456789abcdef89abcdef") + bytes([0x03, 8])
    body += bytes([0x80, 0x04]) + bytes([0x80, 0x06]) + bytes([3, 12]) + bytes([7]) + b"rgb-16x" + b"payload"
    assert unpack(with_checksum(body)) == (IMAGE, b"payload")
    assert pack(IMAGE, b"payload") == with_checksum(body)


def test_audio_written_by_hand_from_the_documentation():
    body = b"\x89WLC" + bytes([1, 0x12, 7]) + bytes.fromhex("0123456789abcdef89abcdef") + bytes([0x18, 8])
    body += bytes([0xA1, 0x8D, 0x06]) + bytes([2, 27, 20]) + struct.pack("<f", 2.5)
    body += bytes([0xC4, 0xD8, 0x02]) + struct.pack("<ff", 1.5, -0.25)
    body += bytes([1]) + bytes([0x80, 0xF7, 0x02]) + bytes([0xAC, 0xD2, 0x06]) + bytes([0]) + b"payload"
    assert unpack(with_checksum(body)) == (AUDIO, b"payload")
    assert pack(AUDIO, b"payload") == with_checksum(body)


def test_derived_shapes():
    assert IMAGE.latent_shape == IMAGE.coded_shape == (12, 64, 96)
    assert AUDIO.latent_shape == (27, 393) and AUDIO.coded_shape == (20, 393)  # ceil(100001 / 256) + 2
    assert dataclasses.replace(IMAGE, sizes=(1, 17)).grid == (1, 3)
    assert peek_kind(pack(IMAGE, b"")[:8]) == "image" and peek_kind(pack(AUDIO, b"")[:8]) == "audio"
    assert peek_kind(b"\x89WLC") is None and peek_kind(b"\x89PNG\r\n\x1a\n") is None


def test_an_image_costs_no_more_than_40_bytes_of_header():
    assert len(pack(IMAGE, b"")) <= 40


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=16)
images = st.builds(
    Header,
    kind=st.just("image"),
    sizes=st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)),
    num_channels=st.integers(1, 2**16),
    num_levels=st.integers(4, 12),
    latent_channels=st.integers(2, 256),
    coded_channels=st.integers(1, 2),
    latent_bits=st.integers(2, 8),
    encoder_padding=st.integers(0, 1),
    step=st.floats(1, 2**16, width=32),
    fingerprint=st.binary(min_size=8, max_size=8).map(bytes.hex),
    tables=st.binary(min_size=4, max_size=4).map(bytes.hex),
    codec=names,
)
# Larger ones together lead beyond float32, which a header does not do.
level = st.floats(-(2.0**127), 2.0**127, width=32)


@given(images, st.binary(max_size=50))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_header(header, payload):
    assert unpack(pack(header, payload), max_pixels=None) == (header, payload)


@given(st.integers(1, 2**32 - 1), st.integers(1, 2**24), level, level, st.binary(max_size=9))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_audio(length, rate, gain, offset, payload):
    header = dataclasses.replace(
        AUDIO, sizes=(length,), sampling_rate=rate, gain=gain, offset=offset, source=None, coded_channels=0
    )
    assert unpack(pack(header, payload), max_samples=None) == (header, payload)


def test_levels_that_lead_beyond_float32_are_refused():
    with pytest.raises(WallocFormatError, match="beyond float32"):
        dataclasses.replace(AUDIO, gain=2.0**127, offset=1.6 * 2.0**127)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "video"),
        ("sizes", (0, 5)),
        ("sizes", (5,)),
        ("sizes", (2**32, 5)),
        ("num_channels", 0),
        ("num_levels", 13),
        ("latent_channels", 193),  # more than the subbands
        ("coded_channels", 13),
        ("latent_bits", 9),
        ("latent_bits", True),
        ("encoder_padding", 2),
        ("step", 0.5),
        ("step", float("nan")),
        ("step", 1e39),
        ("fingerprint", "xyz"),
        ("tables", "0123456789abcdef"),
        ("codec", "x" * 65),
        ("codec", "two\nlines"),
        ("sampling_rate", 44100),
        ("gain", 2.0),
        ("coder", "zip"),
    ],
)
def test_headers_that_make_no_sense(field, value):
    with pytest.raises(WallocFormatError):
        dataclasses.replace(IMAGE, **{field: value})


@pytest.mark.parametrize("source", [(3, 48000, 108_844), (1, 48000, 10**9), (1, 0, 1), (0, 48000, 108_844)])
def test_a_source_must_be_the_same_recording(source):
    with pytest.raises(WallocFormatError):
        dataclasses.replace(AUDIO, source=source)


@pytest.mark.parametrize("header", [IMAGE, AUDIO])
def test_every_truncation_and_every_flipped_bit_is_noticed(header):
    data = pack(header, bytes(range(20)))
    for length in range(len(data)):
        with pytest.raises(WallocFormatError):
            unpack(data[:length])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WallocFormatError):
            unpack(bytes(damaged))
    with pytest.raises(WallocFormatError, match="checksum"):
        unpack(data + b"\0")


def test_a_newer_version_says_what_to_do():
    data = bytearray(pack(IMAGE, b""))
    data[4] = 2
    with pytest.raises(WallocFormatError, match=r"version 2 .* upgrade"):
        unpack(with_checksum(bytes(data[:-4])))


def test_not_bytes():
    with pytest.raises(TypeError, match="str"):
        unpack("photo.walloc")  # type: ignore[arg-type]
    assert unpack(bytearray(pack(IMAGE, b"x")))[1] == b"x"


@pytest.mark.parametrize("sizes", [(2**31, 2**31), (20_000, 10_000), (MAX_DECODED_PIXELS, 1)])
def test_bombs_are_refused_by_their_header(sizes):
    header = dataclasses.replace(IMAGE, sizes=sizes)
    with pytest.raises(WallocFormatError, match="max_pixels"):
        unpack(pack(header, b""))
    assert unpack(pack(header, b""), max_pixels=None)[0] == header


def test_the_limit_counts_padding_and_is_exact():
    data = pack(dataclasses.replace(IMAGE, sizes=(9, 9)), b"")
    assert unpack(data, max_pixels=256)
    with pytest.raises(WallocFormatError, match="256"):
        unpack(data, max_pixels=255)
    data = pack(AUDIO, b"")
    assert unpack(data, max_pixels=1, max_samples=108_844)
    with pytest.raises(WallocFormatError, match="max_samples"):
        unpack(data, max_samples=108_843)  # the source is longer than the audio


@pytest.mark.parametrize("field", [b"\x80\x00", b"\xff\xff\xff\xff\xff\x01"])
def test_numbers_have_one_spelling(field):
    body = b"\x89WLC" + bytes([1, 0x11, 0]) + bytes(12) + bytes([3, 8]) + field + bytes([8, 3, 12, 0])
    with pytest.raises(WallocFormatError, match="a number in the header"):
        unpack(with_checksum(body))


def test_tables_id_sees_names_dtypes_shapes_and_values_but_not_byte_order_of_the_machine():
    arrays = {"a": np.arange(6, dtype=np.int16), "b": np.zeros(3, np.uint8)}
    reference = tables_id(arrays)
    assert tables_id({"b": arrays["b"], "a": arrays["a"].astype(">i2")}) == reference
    others = [
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": arrays["a"].astype(np.int32), "b": arrays["b"]},
        {"a": arrays["a"].reshape(2, 3), "b": arrays["b"]},
        {"a": arrays["a"] + 1, "b": arrays["b"]},
    ]
    assert len({reference, *map(tables_id, others)}) == 5


@pytest.mark.parametrize(("gain", "offset"), [(3.4e38, 3.4e38), (1e38, -3e38), (-3.4e38, 2e38)])
def test_levels_that_would_overflow(gain, offset):
    fields = {"kind": "audio", "sizes": (8,), "num_channels": 1, "num_levels": 3, "latent_channels": 2}
    with pytest.raises(WallocFormatError, match="lead to samples beyond float32"):
        Header(**fields, fingerprint="0" * 16, tables="0" * 8, sampling_rate=8000, gain=gain, offset=offset)
