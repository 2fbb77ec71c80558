"""Training, evaluation, scales and entropy tables see a file as it is: one reader serves all of them."""

import numpy as np
import PIL.Image
import pytest
import soundfile
from codec_fixtures import audio_model, image_model, pictures, sound

from transformers_walloc.evaluation.signals import Signals
from transformers_walloc.loading import make_processor
from transformers_walloc.training.data import MediaCache
from transformers_walloc.training.fit_tables import codes_of_folder
from transformers_walloc.training.scale import read_signals


def seen_by(door: str, folder) -> np.ndarray:
    """The picture in a folder as a door sees it: levels of 8 bits, or the codes that they become."""
    model = image_model(12)
    if door == "train":
        return MediaCache(sorted(folder.iterdir()), "image", folder.parent / f"cache-{folder.name}")[0]
    if door == "evaluate":
        return next(iter(Signals(folder))).array
    if door == "scale":
        (pixels,) = read_signals(model.config, [str(folder)])
        return pixels.numpy()
    (codes,) = codes_of_folder(model, make_processor(model.config), "image", folder, None, 30.0, 1.0)
    return codes


@pytest.mark.parametrize("door", ["train", "evaluate", "scale", "fit-tables"])
def test_sixteen_bits_turns_and_transparency_are_those_of_a_plain_twin(tmp_path, door):
    gray = pictures()[0][..., 1]
    colours = pictures()[0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    hidden = np.dstack([colours, np.where(np.arange(colours.shape[1]) < 40, 0, 255) * np.ones_like(gray)])
    white = np.where(hidden[..., 3:] == 0, 255, colours).astype(np.uint8)
    twins = {
        "deep": (PIL.Image.fromarray(gray.astype(np.uint16) * 257), {}, PIL.Image.fromarray(gray)),
        "turned": (
            PIL.Image.fromarray(colours),
            {"exif": exif},
            PIL.Image.fromarray(np.ascontiguousarray(np.rot90(colours, -1))),
        ),
        "transparent": (PIL.Image.fromarray(hidden.astype(np.uint8)), {}, PIL.Image.fromarray(white)),
    }
    for name, (image, options, plain) in twins.items():
        for kind, picture in ((name, image), (f"{name}-plain", plain)):
            (tmp_path / kind).mkdir()
            picture.save(tmp_path / kind / "a.png", **(options if picture is image else {}))
        np.testing.assert_array_equal(seen_by(door, tmp_path / name), seen_by(door, tmp_path / f"{name}-plain"))


def test_six_channels_are_mixed_to_those_of_the_codec(tmp_path):
    """Only the centre sounds: in both channels of stereo alike, and not silence, as the first two channels are."""
    silence = np.zeros(44100)
    centre = sound(1.0, 1)[0]
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", np.stack([silence, silence, centre, *[silence] * 3], axis=1), 44100)
    trained = MediaCache([tmp_path / "in" / "a.wav"], "audio", tmp_path)[0]
    evaluated = next(iter(Signals(tmp_path / "in", "audio"))).array
    (scaled,) = read_signals(audio_model(8).config, [str(tmp_path / "in")])
    for clip in (trained.T, evaluated, scaled[0, :, :44100].numpy()):
        assert clip.shape[0] == 2 and np.array_equal(clip[0], clip[1])
        assert np.corrcoef(clip[0], centre)[0, 1] > 0.999
