"""Pictures in bands of rows and in windows are those of the whole."""

import numpy as np
import pytest
import skimage.data
import torch

from transformers_walloc import WallocImageConfig, WallocImageModel, WallocImageProcessor, bundled_path
from transformers_walloc.codec import kernels
from transformers_walloc.media import bands
from transformers_walloc.media.bands import compress_rows, decoding_halo, decompress_rows


@pytest.fixture(scope="module")
def picture():
    return skimage.data.coffee()[:203, :301]


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    monkeypatch.setattr(bands, "BAND_PIXELS", 24 * 301)


def tiny_model(**options) -> WallocImageModel:
    torch.manual_seed(0)
    config = WallocImageConfig(latent_channels=12, decoder_width=8, decoder_num_layers=1, **options)
    model = WallocImageModel(config).eval()
    with torch.no_grad():
        model.encoder.projection.weight.mul_(40)
        if hasattr(model.decoder, "head"):
            model.decoder.head.weight.normal_(0, 0.05)
    return model


def whole(model, picture) -> tuple[bytes, np.ndarray]:
    processor = WallocImageProcessor(patch_size=model.config.patch_size)
    inputs = processor(picture, do_rescale=False, return_tensors="pt")
    (blob,) = model.compress(**inputs)
    (image,) = processor.post_process(model.decompress(blob))
    return blob, np.asarray(image)


@pytest.mark.parametrize("num_levels", [2, 3])
def test_bands_are_the_whole(picture, num_levels):
    model = tiny_model(num_levels=num_levels)
    blob, decoded = whole(model, picture)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return picture[start:stop]

    assert compress_rows(model, *picture.shape[:2], read) == blob
    assert len(reads) > 3 and max(stop - start for start, stop in reads) < 120
    parts = list(decompress_rows(model, blob))
    assert len(parts) > 3
    assert np.array_equal(np.concatenate(parts), decoded)
    for top, left, rows, columns in ((0, 0, 1, 1), (70, 33, 60, 100), (202, 300, 1, 1), (11, 0, 192, 301)):
        part = np.concatenate(list(decompress_rows(model, blob, window=(top, left, rows, columns))))
        assert np.array_equal(part, decoded[top : top + rows, left : left + columns])


def test_published_codec(picture):
    model = WallocImageModel.from_pretrained(bundled_path("rgb-16x"))
    blob, decoded = whole(model, picture)
    assert np.array_equal(np.concatenate(list(decompress_rows(model, blob))), decoded)


def test_without_kernels(picture):
    model = tiny_model()
    with kernels.switched_off():
        blob, _ = whole(model, picture)
        codes = model.decompress_codes(compress_rows(model, *picture.shape[:2], lambda a, b: picture[a:b]))[0]
    different = (codes.int() - model.decompress_codes(blob)[0].int()).abs()
    # Products of other shapes are rounded differently in the last bits.
    assert different.max() <= 1 and different.float().mean() < 1e-4


def test_refusals(picture):
    model = tiny_model()
    blob, _ = whole(model, picture)
    with pytest.raises(ValueError, match="window"):
        next(decompress_rows(model, blob, window=(0, 0, 204, 10)))
    with pytest.raises(ValueError, match="more than the limit"):
        next(decompress_rows(model, blob, max_pixels=1000))
    with pytest.raises(ValueError, match="must be uint8"):
        compress_rows(model, 203, 300, lambda start, stop: picture[start:stop])
    with pytest.raises(ValueError, match="boundary"):
        compress_rows(tiny_model(boundary="periodization"), 203, 301, lambda start, stop: picture[start:stop])
    assert decoding_halo(tiny_model(boundary="periodization")) is None
