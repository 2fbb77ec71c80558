"""What commands and functions say where somebody in a first hour goes wrong: what was met, and what is valid."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from codec_fixtures import audio_model, image_model, sound

from transformers_walloc import WallocForAudioSourceSeparation
from transformers_walloc.cli.main import main
from transformers_walloc.latents.datasets import decode_rows, encode_rows
from transformers_walloc.latents.writing import compress_dataset


@pytest.mark.parametrize("missing", ["codec.pth", "codec.json"])
def test_convert_names_the_file_that_is_missing(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": {"a": torch.zeros(1)}}, "codec.pth")
    arguments = {"channels": 3, "J": 3, "Ne": None, "Nd": 32, "latent_dim": 12, "latent_bits": 8}
    (tmp_path / "codec.json").write_text(json.dumps({**arguments, "lightweight_encode": True}))
    (tmp_path / missing).unlink()
    assert main(["convert", "codec.pth", "codec.json", "out"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("walloc: error: no ") and missing in said and said.count("\n") == 1


def test_codecs_without_a_name_are_called_that():
    """Those of models that were never saved."""
    picture = PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    rows = encode_rows([picture], image_model(12))
    other = image_model(12)
    with torch.no_grad():
        other.encoder.projection.weight += 1
    with pytest.raises(ValueError, match=r"by a codec without a name \(\w{16}\), this is a codec without a name \("):
        decode_rows(rows, other)
    blob = image_model(12).compress(torch.zeros(1, 3, 16, 16))[0]
    with pytest.raises(ValueError, match=r"by a codec without a name .*this model is a codec without a name"):
        other.decompress([blob])
    with pytest.raises(ValueError, match="holds image of a codec without a name; a codec without a name is for audio"):
        audio_model().decompress([blob])


@pytest.mark.parametrize("command", ["decompress", "info", "compress"])
def test_a_data_set_of_latents_is_no_folder_of_files(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    PIL.Image.new("RGB", (16, 16)).save("photos/a.png")
    compress_dataset("photos", "latents", "walloc/rgb-16x-klt", progress=False)
    assert main([command, "latents"]) == 1
    assert "is a data set of latents: transformers_walloc.decode_rows gives its pictures" in capsys.readouterr().err


def test_separate_takes_arrays():
    torch.manual_seed(0)
    model = WallocForAudioSourceSeparation.from_codec(audio_model(), ["voice", "rest"], hidden_size=8, num_layers=1)
    mix = sound(0.1)
    expected = model.eval().separate(torch.from_numpy(mix))
    assert expected.shape == (2, *mix.shape)
    for same in (mix, mix.tolist(), mix.astype(np.float64)):
        torch.testing.assert_close(model.separate(same), expected)
    with pytest.raises(ValueError, match=r"waveform must be \(\[batch,\] 2, length\), got \(3, 5\)"):
        model.separate(np.zeros((3, 5)))
