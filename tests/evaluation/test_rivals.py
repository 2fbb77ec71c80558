"""Formats at the size of another file: the one rule of tables, `compare` and `inspect`."""

import dataclasses

import numpy as np
import pytest
from codec_fixtures import sound
from PIL import Image
from skimage import data

from transformers_walloc.evaluation.codecs import CodecUnavailableError
from transformers_walloc.evaluation.metrics import audio_psnr, psnr
from transformers_walloc.evaluation.rivals import AudioFormat, ImageFormat, Resizing, SameSize, same_size
from transformers_walloc.media.audio import read_audio
from transformers_walloc.media.messages import MediaWarning
from transformers_walloc.media.pictures import encode_image

PICTURE = data.astronaut()[50:114, 180:276]


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 10), (10, 10), (11, 20), (35, 40), (50, 50), (51, 50)], ids=lambda value: str(value)
)
def test_the_smallest_file_that_is_no_smaller(size, expected):
    asked = []

    def encode(length):
        asked.append(length)
        return bytes(length)

    setting, blob = same_size(encode, [{"length": length} for length in (10, 20, 30, 40, 50)], size)
    assert setting == {"length": expected} and len(blob) == expected
    assert len(asked) <= 4  # by bisection


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_image_formats_at_a_size(name):
    form = ImageFormat(name)
    setting, blob = form.at_size(PICTURE, 1500)
    assert len(blob) >= 1500
    smaller = ImageFormat(name, setting["quality"] - 1)
    options = {key: value for key, value in setting.items() if key != "quality"}
    smaller.form = dataclasses.replace(form.form, options={**form.form.options, **options})
    assert len(smaller.write(PICTURE)) < 1500
    assert psnr(PICTURE, form.read(blob, PICTURE)) > 25


def test_jpeg_takes_the_subsampling_that_serves_it_best():
    form, found = ImageFormat("jpeg"), {}
    for subsampling in ("4:2:0", "4:4:4"):
        only = ImageFormat("jpeg")
        only.form = type(form.form)(
            "JPEG", ".jpg", form.form.options, [{"subsampling": subsampling}], form.form.settings
        )
        _, blob = only.at_size(PICTURE, 2500)
        found[subsampling] = psnr(PICTURE, only.read(blob, PICTURE))
    setting, blob = form.at_size(PICTURE, 2500)
    assert psnr(PICTURE, form.read(blob, PICTURE)) == max(found.values()) == found[setting["subsampling"]]


def test_grey_images_stay_grey():
    grey = PICTURE[..., :1]
    form = ImageFormat("jpeg", 90)
    decoded = form.read(form.write(grey), grey)
    assert decoded.shape == grey.shape and psnr(grey, decoded) > 30


def test_same_size_as_another_codec():
    other = Resizing(4)
    matched = SameSize(ImageFormat("webp"), other)
    assert matched.name == "webp@like=resize@factor=4"
    assert len(matched.write(PICTURE)) >= len(other.write(PICTURE))
    assert matched.read(matched.write(PICTURE), PICTURE).shape == PICTURE.shape


@pytest.mark.parametrize("name", ["mp3", "vorbis", "opus"])
def test_audio_formats_come_back_in_time(name):
    clip = sound(0.5)
    form = AudioFormat(name, 44100, 0.2)
    decoded = form.read(form.write(clip), clip)
    assert decoded.shape == clip.shape
    assert audio_psnr(clip, decoded) > audio_psnr(clip, np.roll(clip, 3, axis=1))


def test_of_the_formats_files_nothing_is_said(recwarn):
    """MP3 of the lowest rates ends before the length that its header states."""
    clip = sound(0.5)
    form = AudioFormat("mp3", 44100, 0.99)
    with pytest.warns(MediaWarning, match="ends after"):
        read_audio("a.mp3", form.write(clip))
    recwarn.clear()
    assert form.read(form.write(clip), clip).shape == clip.shape and not recwarn.list


def test_what_this_machine_cannot_write(monkeypatch):
    from PIL import features

    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(CodecUnavailableError, match="without AVIF"):
        ImageFormat("avif")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_files_of_a_low_quality_are_small(suffix):
    picture = Image.fromarray(PICTURE)
    sizes = [len(encode_image(picture, f"-{suffix}", quality=quality)) for quality in (5, 50, 95)]
    assert 1.5 * sizes[0] < sizes[1] < sizes[2] / 1.5
