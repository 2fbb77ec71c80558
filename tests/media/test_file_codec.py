"""Files to .walloc files and back in Python, as README shows it."""

import io

import numpy as np
import PIL.Image
import pytest
from codec_fixtures import pictures

from transformers_walloc import FileCodec, WallocFormatError


def test_a_path_becomes_a_file_and_comes_back(tmp_path):
    picture = pictures()[1]
    PIL.Image.fromarray(picture).save(tmp_path / "photo.png")
    codec = FileCodec.from_pretrained("rgb-16x")
    blob = codec.compress(str(tmp_path / "photo.png"), bpp=1.0)
    assert 8 * len(blob) / picture[..., 0].size <= 1.0
    back = np.asarray(PIL.Image.open(io.BytesIO(codec.decompress(blob, "photo.png"))))
    assert back.shape == picture.shape and np.abs(back.astype(float) - picture).mean() < 10
    with pytest.raises(WallocFormatError, match=r"not a \.walloc file"):
        codec.decompress(b"something else", "photo.png")
    with pytest.raises(ValueError, match=r"nothing\.png: No such file"):
        codec.compress(str(tmp_path / "nothing.png"))
