import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from skimage import data

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.cli.main import main
from transformers_walloc.evaluation import plots
from transformers_walloc.evaluation.inspection import inspect
from transformers_walloc.media.messages import MediaError


@pytest.fixture
def image_model():
    torch.manual_seed(0)
    return WallocImageModel(
        WallocImageConfig(num_levels=2, latent_channels=6, decoder_hidden_size=8, decoder_num_layers=1)
    ).eval()


@pytest.fixture
def audio_model():
    torch.manual_seed(0)
    return WallocAudioModel(
        WallocAudioConfig(num_levels=4, latent_channels=5, decoder_hidden_size=8, decoder_num_layers=1)
    ).eval()


def is_picture(path):
    if path.suffix == ".html":  # which holds the pictures themselves
        return path.read_text().count('src="data:image/png;base64,') == 4
    pixels = np.asarray(Image.open(path).convert("L"))
    return pixels.std() > 2  # something is drawn


def test_inspect_an_image(image_model, tmp_path):
    Image.fromarray(data.astronaut()[:130, :171]).save(tmp_path / "a.png")
    paths = inspect(tmp_path / "a.png", image_model, tmp_path / "out")
    names = {"reconstruction.png", "channels.png", "histograms.png", "atlas.png", "index.html"}
    assert {path.name for path in paths} == names
    assert all(is_picture(path) for path in paths)
    assert "a.png by a codec without a name" in paths._repr_html_()
    blob = image_model.compress(torch.zeros(1, 3, 16, 16))[0]
    (tmp_path / "b.walloc").write_bytes(blob)
    assert len(inspect(tmp_path / "b.walloc", image_model, tmp_path / "out2")) == len(paths)


def test_inspect_audio(audio_model, image_model, tmp_path):
    t = np.arange(20000) / 44100
    soundfile.write(tmp_path / "a.wav", 0.3 * np.stack([np.sin(2000 * t), np.sin(3000 * t)], axis=1), 44100)
    paths = inspect(tmp_path / "a.wav", audio_model, tmp_path / "out")
    assert all(is_picture(path) for path in paths) and {"index.html", "channels.png"} <= {path.name for path in paths}
    with pytest.raises(MediaError, match="is audio, the codec is for image"):
        inspect(tmp_path / "a.wav", image_model, tmp_path / "out")
    with pytest.raises(MediaError, match=r"(?i)no such file"):
        inspect(tmp_path / "none.wav", audio_model, tmp_path / "out")


def test_atlas_has_a_panel_for_every_channel(image_model):
    figure = plots.latent_atlas(image_model)
    assert [axis.get_title() for axis in figure.axes] == ["1", "2", "3", "4", "5", "6"]
    # Panel 3 is the decoded impulse in channel 3, around mid-grey and at full range.
    shown = figure.axes[2].images[0].get_array()
    codes = torch.zeros(1, 6, 3, 3, dtype=torch.int8)
    base = image_model.decode(codes)[0][0]
    codes[0, 2, 1, 1] = plots.IMPULSE
    response = (image_model.decode(codes)[0][0] - base).detach().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown, 0.5 + response / np.abs(response).max() / 2, atol=1e-5)


def test_details_are_taken_where_the_texture_is():
    image = np.full((100, 120, 3), 128, np.uint8)
    image[60:80, 90:110] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    image[0:20, 0:20] = np.random.default_rng(0).integers(100, 156, (20, 20, 3))
    (top, left), second = plots.textured_crops(image, 20)
    assert abs(top - 60) <= 1 and abs(left - 90) <= 1 and max(second) <= 1


def test_histograms_show_entropy():
    figure = plots.latent_histograms(np.array([[0, 1, 2, 3], [5, 5, 5, 5]]))
    assert [axis.get_title() for axis in figure.axes] == ["1: 2.00 bit", "2: 0.00 bit"]
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}
    assert Image.open(io.BytesIO(figure._repr_png_())).format == "PNG"


def test_waveforms_show_every_channel_with_its_name():
    clip = np.stack([np.sin(np.arange(3000) / 9), np.zeros(3000)])
    figure = plots.waveforms({"original": clip, "decoded": clip / 2}, 44100)
    left, _, right, _ = figure.axes[:4]  # row by row
    for axis, name, channel in ((left, "left", clip[0]), (right, "right", clip[1])):
        (line,) = axis.get_lines()
        np.testing.assert_array_equal(line.get_ydata(), channel)
        assert axis.get_legend().get_texts()[0].get_text() == name


def test_atlas_of_audio_has_a_legend(audio_model):
    (legend,) = plots.latent_atlas(audio_model).legends
    assert [text.get_text() for text in legend.get_texts()] == ["left", "right"]


def test_inspect_on_the_command_line(image_model, tmp_path, capsys):
    image_model.save_pretrained(tmp_path / "codec")
    Image.fromarray(data.astronaut()[:60, :60]).save(tmp_path / "a.png")
    command = ["inspect", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "codec")]
    assert main([*command, "--device", "cpu"]) == 0
    assert str(tmp_path / "out" / "atlas.png") in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "codec" / "config.json"), "-o", str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()
