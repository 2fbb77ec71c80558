"""Files of the published codecs, written once: what is read and written today is what was written then.

Beside each file lies the signal that it was made of. `python tests/codec/test_stored_files.py` writes them anew, which
only a new encoder or new entropy tables under an old name can call for, and nothing should.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import AutoModel

from transformers_walloc import WallocAudioFeatureExtractor, WallocImageProcessor, bundled_path
from transformers_walloc.bundled import bundled_reader
from transformers_walloc.codec.bitstream import pack, unpack
from transformers_walloc.codec.entropy_coding import decode_codes, encode_codes

FOLDER = Path(__file__).parents[1] / "data"
# Of another machine's float32, in code units: one latent in thousands may round to the other side.
NEARLY_ALL = 0.998
SIGNALS = {"rgb-4x": "astronaut.png", "rgb-16x": "astronaut.png", "stereo-5x": "notes.flac", "stereo-20x": "notes.flac"}


def load(name: str):
    """The codec that wrote the file. One that is trained further leaves its old weights to another folder."""
    path = FOLDER / f"{name}.walloc"
    reader = bundled_reader(name, unpack(path.read_bytes())[0].fingerprint) if path.exists() else name
    model = AutoModel.from_pretrained(bundled_path(reader or name))
    model.config._name_or_path = f"walloc/{name}"
    return model


def inputs_of(name: str):
    signal = FOLDER / SIGNALS[name]
    if signal.suffix == ".png":
        return WallocImageProcessor()(Image.open(signal), return_tensors="pt")
    samples, rate = soundfile.read(signal, dtype="float32", always_2d=True)
    return WallocAudioFeatureExtractor()(samples.T, sampling_rate=rate, return_tensors="pt")


def quality(model, inputs, decoded: torch.Tensor) -> float:
    """PSNR in dB of the 8-bit image, or of the normalised clip."""
    if "pixel_values" in inputs:
        height, width = inputs["original_sizes"][0].tolist()
        levels = [torch.round((x + 0.5) * 255) for x in (inputs["pixel_values"][0, :, :height, :width], decoded)]
        return (20 * np.log10(255) - 10 * torch.log10((levels[0] - levels[1]).square().mean())).item()
    clip = inputs["input_values"][0, :, : decoded.shape[1]]
    error = (decoded - inputs["offset"]) / inputs["gain"] - clip
    return (-10 * torch.log10(error.square().mean())).item()


@pytest.mark.parametrize("name", SIGNALS)
def test_codes_of_a_stored_file_and_back(name):
    """Integers throughout, so the same on every machine."""
    blob = (FOLDER / f"{name}.walloc").read_bytes()
    header, payload = unpack(blob)
    model = load(name)
    (codes,) = model.decompress_codes(blob)
    expected = np.load(FOLDER / f"{name}.npy")
    assert np.array_equal(codes.numpy(), expected)
    tables = model.get_entropy_tables()
    assert np.array_equal(decode_codes(payload, header.coded_shape, tables), expected)
    assert pack(header, encode_codes(expected, tables)) == blob


@pytest.mark.parametrize("name", SIGNALS)
def test_the_same_signal_gives_the_stored_file(name):
    model = load(name)
    (blob,) = model.compress(**inputs_of(name))
    stored = (FOLDER / f"{name}.walloc").read_bytes()
    assert unpack(blob)[0] == unpack(stored)[0]
    if blob != stored:
        difference = np.abs(model.decompress_codes(blob)[0].numpy() - np.load(FOLDER / f"{name}.npy"))
        assert difference.max() <= 1 and np.mean(difference == 0) > NEARLY_ALL


@pytest.mark.parametrize("name", SIGNALS)
def test_a_stored_file_decodes_as_well_as_ever(name):
    """A decoder may be replaced by a better one, which opens the same files."""
    model = load(name)
    (decoded,) = model.decompress((FOLDER / f"{name}.walloc").read_bytes())
    floor = json.loads((FOLDER / "psnr.json").read_text())[name]
    assert quality(model, inputs_of(name), decoded) > floor - 0.05


def write():
    import skimage.data
    from codec_fixtures import sound

    Image.fromarray(skimage.data.astronaut()[60:131, 180:290]).save(FOLDER / "astronaut.png", optimize=True)
    soundfile.write(FOLDER / "notes.flac", sound(0.4)[:, :10_007].T, 44100, subtype="PCM_16")
    psnr = {}
    for name in SIGNALS:
        model, inputs = load(name), inputs_of(name)
        (blob,) = model.compress(**inputs)
        (FOLDER / f"{name}.walloc").write_bytes(blob)
        np.save(FOLDER / f"{name}.npy", model.decompress_codes(blob)[0].numpy())
        psnr[name] = round(quality(model, inputs, model.decompress(blob)[0]), 2)
    (FOLDER / "psnr.json").write_text(json.dumps(psnr, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    write()
