"""Pictures in .walloc files through Pillow, and through what reads pictures with it."""

import contextlib
import io

import numpy as np
import PIL.Image
import pytest
import skimage.data
from datasets import Dataset, Features, Image

import transformers_walloc.pillow as plugin
from transformers_walloc.loading import load_codec

PHOTO = PIL.Image.fromarray(skimage.data.astronaut()[:75, 100:210])


def _psnr(a, b) -> float:
    error = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return 10 * np.log10(255**2 / np.square(error).mean())


@pytest.mark.parametrize(
    ("mode", "opened"), [("RGB", "RGB"), ("L", "L"), ("RGBA", "RGBA"), ("P", "RGB"), ("CMYK", "RGB"), ("1", "L")]
)
def test_round_trip(mode, opened, tmp_path):
    picture = PHOTO.convert(mode)
    if mode == "RGBA":
        picture.putalpha(PIL.Image.linear_gradient("L").resize(PHOTO.size))
    said = pytest.warns(UserWarning, match="converted from CMYK") if mode == "CMYK" else contextlib.nullcontext()
    with said:
        picture.save(tmp_path / "photo.walloc")
    with PIL.Image.open(tmp_path / "photo.walloc") as image:
        assert (image.format, image.size, image.mode) == ("WALLOC", PHOTO.size, opened)  # before it is decoded
        image.load()
        assert image.mode == opened
        expected = picture.convert(opened)
        assert _psnr(image, expected) > {"1": 6, "P": 20}.get(mode, 22)  # dithered pictures are noise
        if mode == "RGBA":
            assert image.getchannel("A").tobytes() == picture.getchannel("A").tobytes()


def test_the_codecs_own_pixels(tmp_path):
    """What is opened is what the model decodes, with the codec and the rate that were chosen."""
    PHOTO.save(tmp_path / "photo.walloc", codec="rgb-4x", step=2.0)
    model, processor = load_codec("rgb-4x")
    inputs = processor(PHOTO, return_tensors="pt")
    expected = processor.post_process(model.decompress(model.compress(**inputs, step=2.0)))[0]
    opened = PIL.Image.open(tmp_path / "photo.walloc")
    assert opened.info["codec"] == "rgb-4x"
    assert np.abs(np.asarray(opened, int) - np.asarray(expected, int)).max() <= 1


def test_columns_of_datasets(tmp_path):
    """The column `Image` opens the bytes with Pillow."""
    buffer = io.BytesIO()
    PHOTO.save(buffer, "WALLOC")
    rows = Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}]}, Features({"image": Image()}))
    assert _psnr(rows[0]["image"], PHOTO) > 25


def test_webdataset():
    buffer = io.BytesIO()
    PHOTO.save(buffer, "WALLOC")
    assert plugin.decode_webdataset(".walloc", buffer.getvalue()).size == PHOTO.size
    assert plugin.decode_webdataset(".jpg", b"") is None


def test_damaged(tmp_path):
    buffer = io.BytesIO()
    PHOTO.save(buffer, "WALLOC")
    data = bytearray(buffer.getvalue())
    data[-5] ^= 1
    for damaged in (bytes(data), buffer.getvalue()[:100], buffer.getvalue()[:4]):
        with pytest.raises(OSError):
            PIL.Image.open(io.BytesIO(damaged)).load()
