"""Pictures in files: a TIFF's place travels beside the latents, and what a format cannot hold is said."""

import io

import numpy as np
import PIL.Image
import pytest
import tifffile
from codec_fixtures import image_model
from kinds_of_files import deep_photo, in_srgb, photo, pillow, tiff, wide_profile

from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.side_data import SideData
from transformers_walloc.loading import make_processor
from transformers_walloc.media import streams
from transformers_walloc.media.file_codec import FileCodec
from transformers_walloc.media.messages import MediaError, MediaWarning
from transformers_walloc.media.pictures import encode_picture, read_opaque, read_picture, read_pixels

SCALE, PLACE = (10.0, 10.0, 0.0), (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)


@pytest.fixture(scope="module")
def codec():
    model = image_model()
    return FileCodec("small", model, make_processor(model.config))


def placed(pixels: np.ndarray, orientation: int = 1) -> bytes:
    tags = [(33550, 12, 3, SCALE, True), (33922, 12, 6, PLACE, True), (274, 3, 1, orientation, True)]
    return tiff(pixels, photometric="rgb", extratags=tags)


@pytest.mark.parametrize("pixels", [photo(), deep_photo()], ids=["8", "16"])
def test_the_place_of_an_aerial_photograph_comes_back(codec, pixels):
    blob = codec.compress("a.tif", placed(pixels), "image")
    restored = codec.decompress(blob, "b.tif")
    with tifffile.TiffFile(io.BytesIO(restored)) as file:
        page = file.pages[0]
        assert page.tags[33550].value == SCALE and page.tags[33922].value == PLACE
        assert page.dtype == pixels.dtype and page.shape == pixels.shape
    with pytest.warns(MediaWarning, match=r"b\.png: PNG has no georeferencing"):
        codec.decompress(blob, "b.png")


def test_the_place_of_a_turned_photograph_is_not_kept_and_said(codec):
    with pytest.warns(MediaWarning, match=r"a\.tif: it is turned, and its georeferencing is not kept"):
        blob = codec.compress("a.tif", placed(photo(), 6), "image")
    assert not unpack(blob)[0].side_data and unpack(blob)[0].sizes == photo().shape[1::-1]


def test_files_of_usual_pictures_have_no_field_for_it(codec):
    assert not unpack(codec.compress("a.png", pillow(photo(), ".png"), "image"))[0].side_data


def test_what_is_seen_of_a_picture_in_other_colours():
    data = pillow(photo(), ".png", icc_profile=wide_profile())
    assert read_picture("a", data).profile == wide_profile()
    with pytest.warns(MediaWarning, match="a: colours are converted from Wide test to sRGB"):
        seen = read_pixels("a", data)
    assert np.abs(seen - 255 * in_srgb(photo() / 255)).max() < 2.5


def test_deep_pictures_keep_their_bits_where_they_can(recwarn):
    data = tiff(deep_photo(), photometric="rgb")
    assert np.array_equal(read_opaque("a", data).pixels, deep_photo()) and not recwarn
    with pytest.warns(MediaWarning, match="taken with 8 bits"):
        assert np.array_equal(read_pixels("a", data), np.rint(deep_photo() / 257).astype(np.uint8))
    with pytest.raises(MediaError, match="4 channels are read as rasters"):
        read_pixels("a", data, num_channels=4)


def test_twelve_bits_are_over_their_full_range():
    samples = np.linspace(0, 4095, 64 * 96).astype(np.uint16).reshape(64, 96)
    packed = np.stack(
        [samples[:, ::2] >> 4, (samples[:, ::2] & 15) << 4 | samples[:, 1::2] >> 8, samples[:, 1::2] & 255], 2
    )
    data = bytearray(tiff(packed.reshape(64, 144).astype(np.uint8)))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
        places = {number: tags[number].valueoffset for number in (256, 258)}
        sizes = {number: tags[number].valuebytecount for number in places}
    for number, value in ((256, 96), (258, 12)):
        data[places[number] : places[number] + sizes[number]] = value.to_bytes(sizes[number], "little")
    found = read_picture("a", bytes(data))
    assert np.abs(found.pixels / 65535 - samples / 4095).max() < 1e-4 and found.sample_format == "16-bit gray"


def test_many_bands_are_no_picture():
    bands = np.repeat(deep_photo(), 2, axis=2)
    with pytest.raises(MediaError, match="codec fitted to such rasters"):
        read_picture("a.tif", tiff(bands, photometric="minisblack", planarconfig="contig"))


def test_transparency_of_sixteen_bits_over_white():
    alpha = np.full(deep_photo().shape[:2], 16384, np.uint16)
    data = encode_picture(deep_photo(), SideData(alpha=alpha), "a.png")
    with pytest.warns(MediaWarning, match="transparent parts become white"):
        seen = read_opaque("a", data).pixels
    assert np.abs(seen - (deep_photo() * 0.25 + 65535 * 0.75)).max() < 2


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    data = pillow(photo(), ".jpg")
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="a: 96 x 64 pixels, more than the limit of 1000"):
        read_picture("a", data, max_pixels=1000)


@pytest.mark.parametrize("kind", ["alpha", "place", "16-bit"])
def test_large_results_lose_nothing_either(codec, tmp_path, monkeypatch, kind):
    """What is written piece by piece from some size on is what is written at once."""
    alpha = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    data = {
        "alpha": pillow(np.dstack([photo(), alpha]), ".png"),
        "place": placed(photo()),
        "16-bit": tiff(deep_photo(), photometric="rgb"),
    }[kind]
    blob = codec.compress("a.tif" if kind != "alpha" else "a.png", data, "image")
    header = unpack(blob)[0]
    monkeypatch.setattr(streams, "LARGE_SIGNAL", {"image": 1, "audio": 1})
    target = tmp_path / "b.tif"
    if not streams.decompress_stream(codec, blob, header, str(target), None, None):
        target.write_bytes(codec.decompress(blob, str(target), header))
    with tifffile.TiffFile(target) as file:
        page = file.pages[0]
        assert page.dtype == (np.uint16 if kind == "16-bit" else np.uint8)
        assert (33550 in page.tags) == (kind == "place")
        assert page.samplesperpixel == (4 if kind == "alpha" else 3)
        assert kind != "alpha" or np.array_equal(np.asarray(PIL.Image.open(target))[..., 3], alpha)
