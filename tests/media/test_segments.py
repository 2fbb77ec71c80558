"""Recordings in segments are those of the whole."""

import numpy as np
import pytest
import torch

from transformers_walloc import WallocAudioConfig, WallocAudioFeatureExtractor, WallocAudioModel
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.media import segments
from transformers_walloc.media.segments import compress_segments, decompress_segments, find_level

LENGTH = 256 * 200 + 77


@pytest.fixture(scope="module")
def recording():
    rng = np.random.default_rng(0)
    t = np.arange(LENGTH) / 44100
    tones = np.stack([np.sin(2000 * t + 3 * np.sin(9 * t)), np.sin(900 * t)])
    return (0.4 * tones + 0.02 * rng.normal(size=tones.shape) + 0.05).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = WallocAudioConfig(latent_channels=27, decoder_hidden_size=16, decoder_num_layers=1, post_filter_size=9)
    model = WallocAudioModel(config).eval()
    with torch.no_grad():
        model.encoder.projection.weight.mul_(40)
        model.decoder.head.weight.normal_(0, 0.05)
    return model


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 256 * 30)


def test_segments_are_the_whole(model, recording):
    inputs = WallocAudioFeatureExtractor()(recording, sampling_rate=44100, return_tensors="pt")
    (blob,) = model.compress(**inputs)
    (decoded,) = model.decompress(blob)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return recording[:, start:stop]

    gain, offset = find_level(LENGTH, read)
    assert (gain, offset) == pytest.approx((inputs["gain"].item(), inputs["offset"].item()), rel=1e-5)
    part = compress_segments(model, LENGTH, read, gain=inputs["gain"].item(), offset=inputs["offset"].item())
    assert max(stop - start for start, stop in reads) < LENGTH // 4
    different = model.decompress_codes(part)[0].int() - model.decompress_codes(blob)[0].int()
    # Products of other shapes are rounded differently in the last bits.
    assert different.abs().max() <= 1 and (different != 0).float().mean() < 1e-4
    assert unpack(part)[0].sizes == (LENGTH,)
    pieces = list(decompress_segments(model, blob))
    assert len(pieces) > 5
    np.testing.assert_allclose(np.concatenate(pieces, 1), decoded.numpy(), atol=1e-5)
    for start, length in ((0, 1), (7000, 9000), (LENGTH - 5, 5)):
        window = np.concatenate(list(decompress_segments(model, blob, window=(start, length))), 1)
        np.testing.assert_allclose(window, decoded[:, start : start + length].numpy(), atol=1e-5)


def test_refusals(model, recording):
    blob = compress_segments(model, LENGTH, lambda start, stop: recording[:, start:stop])
    with pytest.raises(ValueError, match="window"):
        next(decompress_segments(model, blob, window=(LENGTH - 4, 5)))
    with pytest.raises(ValueError, match="more than the limit"):
        next(decompress_segments(model, blob, max_samples=1000))
    other = WallocAudioModel(WallocAudioConfig(latent_channels=27, decoder_type="linear", boundary="periodization"))
    with pytest.raises(ValueError, match="boundary"):
        compress_segments(other, LENGTH, lambda start, stop: recording[:, start:stop])
    with pytest.raises(ValueError, match="NaN"):
        find_level(10, lambda start, stop: np.full((2, stop - start), np.nan, np.float32))
