"""Hostile input: only the documented error, in bounded time and memory."""

import dataclasses

import pytest
import torch
from codec_fixtures import audio_inputs, audio_model, image_inputs, image_model, pictures, printed_by, sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformers_walloc.codec.bitstream import Header, WallocFormatError, pack, unpack

MODELS = {"image": image_model(), "audio": audio_model()}
FILES = {
    "image": MODELS["image"].compress(**image_inputs(pictures()[0][:30, :40]))[0],
    "audio": MODELS["audio"].compress(**audio_inputs(sound(0.05)))[0],
}
kinds = st.sampled_from(["image", "audio"])
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decode(kind: str, data: bytes) -> list[torch.Tensor] | None:
    limit = {"image": {"max_pixels": 2**16}, "audio": {"max_samples": 2**16}}[kind]
    try:
        return MODELS[kind].decompress([data], **limit)
    except WallocFormatError as error:
        assert str(error)
        return None


@pytest.mark.parametrize("kind", FILES)
def test_truncation_at_every_byte(kind):
    data = FILES[kind]
    assert decode(kind, data) is not None
    for length in range(len(data)):
        assert decode(kind, data[:length]) is None


@pytest.mark.parametrize("kind", FILES)
def test_a_payload_cut_anywhere_under_a_valid_checksum(kind):
    header, payload = unpack(FILES[kind])
    for length in range(len(payload)):
        signals = decode(kind, pack(header, payload[:length]))
        assert signals is None or signals[0].shape[1:] == header.sizes


@given(kind=kinds, bit=st.integers(0), more=st.lists(st.integers(0), max_size=4))
@settings(quick, max_examples=300)
def test_flipped_bits(kind, bit, more):
    data = bytearray(FILES[kind])
    for position in {bit % (8 * len(data)), *(b % (8 * len(data)) for b in more)}:
        data[position // 8] ^= 1 << position % 8
    assert decode(kind, bytes(data)) is None


@given(kind=kinds, start=st.integers(0, 6), data=st.binary(max_size=300))
@settings(quick, max_examples=300)
def test_random_bytes(kind, start, data):
    assert decode(kind, FILES[kind][:start] + data) is None


@given(kind=kinds, payload=st.binary(max_size=400))
@settings(quick, max_examples=300)
def test_random_payloads_under_a_valid_checksum(kind, payload):
    header, _ = unpack(FILES[kind])
    signals = decode(kind, pack(header, payload))
    assert signals is None or (signals[0].shape[1:] == header.sizes and signals[0].isfinite().all())


sizes = st.integers(1, 2**32 - 1) | st.integers(1, 500)


@given(height=sizes, width=sizes, channels=st.integers(1, 2**16), latents=st.integers(1, 2**16))
@settings(quick, max_examples=200)
def test_oversized_headers(height, width, channels, latents):
    header, payload = unpack(FILES["image"])
    try:
        bomb = dataclasses.replace(
            header, sizes=(height, width), num_channels=channels, latent_channels=latents, coded_channels=0
        )
    except WallocFormatError:
        return
    if (channels, latents) != (3, 12):
        assert decode("image", pack(bomb, payload)) is None


@given(seed=st.integers(0, 2**32 - 1))
@settings(quick, max_examples=20)
def test_the_wrong_model(seed):
    header, payload = unpack(FILES["image"])
    other = dataclasses.replace(header, fingerprint=f"{seed:016x}")
    assert decode("image", pack(other, payload)) is None
    assert decode("audio", FILES["image"]) is None and decode("image", FILES["audio"]) is None


DECODE = """
import sys, tracemalloc
from pathlib import Path
from transformers_walloc import WallocImageModel

model = WallocImageModel.from_pretrained(sys.argv[1]).eval()
data, limit = Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
reset_peak()
before = peak()
tracemalloc.start()
refusal = ""
try:
    model.decompress([data], max_pixels=limit)
except ValueError as error:
    refusal = str(error)
traced = tracemalloc.get_traced_memory()[1]
print(peak() - before, traced, refusal)
"""


def memory_of_decoding(folder, data: bytes, limit: int) -> tuple[int, int, str]:
    """Bytes that the process grew by, bytes that Python took, and why the file was refused."""
    MODELS["image"].save_pretrained(folder / "model")
    (folder / "file.walloc").write_bytes(data)
    grown, traced, *refusal = printed_by(DECODE, str(folder / "model"), str(folder / "file.walloc"), str(limit))
    return int(grown), int(traced), " ".join(refusal)


def test_bombs_allocate_nothing(tmp_path):
    header, payload = unpack(FILES["image"])
    data = pack(dataclasses.replace(header, sizes=(2**31, 2**31)), payload)
    for limit in (1, 2**20):
        with pytest.raises(WallocFormatError, match="max_pixels"):
            MODELS["image"].decompress([data], max_pixels=limit)
    grown, traced, refusal = memory_of_decoding(tmp_path, data, 178_956_970)
    assert "max_pixels" in refusal and traced < 2**20 and grown < 2**25


def test_memory_grows_with_the_limit_and_not_with_the_file(tmp_path):
    header, _ = unpack(FILES["image"])
    data = pack(dataclasses.replace(header, sizes=(1024, 1024)), b"\0" * 48)
    grown, *_ = memory_of_decoding(tmp_path, data, 2**20)
    # 3 channels of float32 are 12 bytes for a pixel; the way there takes some of these.
    assert grown < 16 * 12 * 2**20


def test_the_fuzzer_finds_nothing_in_600_inputs():
    from research import fuzz_bitstream as fuzzer

    counts, failures = fuzzer.fuzz(600, seed=1, report=lambda line: None)
    assert not failures and sum(counts.values()) == 600
    assert {mutation for mutation, _ in counts} == {mutate.__name__ for mutate in fuzzer.MUTATIONS}


def test_headers_are_immutable():
    header, _ = unpack(FILES["image"])
    assert isinstance(header, Header)
    with pytest.raises(dataclasses.FrozenInstanceError):
        header.sizes = (1, 1)
