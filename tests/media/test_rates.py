"""A size that was asked for is that of the finished file: facts, masks and side planes are inside rate control."""

import io

import numpy as np
import pytest
import torch
from codec_fixtures import image_model, pictures

from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.side_data import SideData
from transformers_walloc.loading import make_processor
from transformers_walloc.media.file_codec import FileCodec
from transformers_walloc.media.pictures import encode_picture
from transformers_walloc.media.rasters import compress_raster, decompress_raster, describe
from transformers_walloc.training.fit import fit_codec


def scene(bands: int, seed: int) -> np.ndarray:
    """(bands, 160, 200) uint16 with holes that make a mask of many bytes."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:160, :200]
    waves = [
        1000 + 800 * np.sin(x / (9 + k)) * np.cos(y / (7 + k)) + 60 * generator.standard_normal(x.shape)
        for k in range(bands)
    ]
    values = np.stack(waves).clip(1, 4000).astype(np.uint16)
    values[:, generator.random(x.shape) < 0.02] = 0
    return values


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_bits_per_pixel_of_rasters(share):
    codec = fit_codec([scene(4, 0)], table_steps=0, progress=False, nodata=0, dimensionality_reduction=4).model
    array = scene(4, 1)
    raster = describe(array, "channels_first", 0)
    finest, coarsest = (8 * len(compress_raster(codec, array, raster, step=step)) / (160 * 200) for step in (1, 256))
    wanted = coarsest + share * (finest - coarsest)
    blob = compress_raster(codec, array, raster, bpp=wanted)
    assert 0.98 * wanted <= 8 * len(blob) / (160 * 200) <= wanted
    assert len(unpack(blob)[0].raster) > 500  # the mask, which takes a good part of the file
    back, _ = decompress_raster(codec, blob)
    assert np.array_equal(back == 0, array == 0)


def test_bits_per_voxel_and_refined_codes_of_volumes():
    z, y, x = np.mgrid[:24, :40, :48]
    generator = np.random.default_rng(0)
    clip = (120 + 60 * np.sin(x / 5 + z / 3) * np.cos(y / 6) + 9 * generator.standard_normal(x.shape)).astype(np.uint8)
    codec = fit_codec([clip], kind="volume", table_steps=0, progress=False, dimensionality_reduction=2).model
    wanted = 0.6 * 8 * len(compress_raster(codec, clip)) / clip.size
    blob = compress_raster(codec, clip, frame_rate=25.0, bpp=wanted)
    assert 0.98 * wanted <= 8 * len(blob) / clip.size <= wanted and unpack(blob)[0].frame_rate == 25
    pixels = torch.from_numpy(clip.astype(np.float32) / 255 - 0.5)[None, None]

    plain, refined = (codec.compress(pixels, step=4.0, refine=steps)[0] for steps in (0, 5))
    errors = [(codec.decompress(blob)[0] - pixels[0]).square().mean().item() for blob in (plain, refined)]
    assert len(refined) < 0.75 * len(plain) and errors[1] < 1.03 * errors[0]

    file = io.BytesIO()
    np.save(file, clip)
    blob = FileCodec("tiny", codec, make_processor(codec.config)).compress("clip.npy", file.getvalue(), psnr=30.0)
    back, _ = decompress_raster(codec, blob)
    assert 29.9 < 10 * np.log10(255**2 / np.mean((back.astype(float) - clip) ** 2)) < 30.6


def test_bits_per_pixel_of_pictures_with_a_plane_of_transparency():
    model = image_model(12)
    picture = pictures()[0]
    alpha = np.random.default_rng(0).integers(0, 256, picture.shape[:2], np.uint8)
    data = encode_picture(picture, SideData(alpha=alpha), "a.png")
    codec = FileCodec("tiny", model, make_processor(model.config))
    plane = 8 * alpha.size / alpha.size
    finest = 8 * len(codec.compress("a.png", data, "image")) / alpha.size
    wanted = (plane + finest) / 2
    blob = codec.compress("a.png", data, "image", bpp=wanted)
    assert 0.98 * wanted <= 8 * len(blob) / alpha.size <= wanted
    with pytest.raises(ValueError, match="out of reach"):
        codec.compress("a.png", data, "image", bpp=0.5 * plane)
