"""Evaluation on tiny codecs and signals."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from skimage import data

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.training.klt import SubbandStatistics, fit_klt


@pytest.fixture(scope="module", autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def image_codec(tmp_path_factory):
    torch.manual_seed(0)
    model = WallocImageModel(WallocImageConfig(latent_channels=12, decoder_hidden_size=8, decoder_num_layers=1))
    statistics = SubbandStatistics(model.config)
    x = torch.from_numpy(data.coffee()[:400, :600].copy()).permute(2, 0, 1)[None] / 255 - 0.5
    statistics.update(x)
    fit_klt(model, statistics, 0.1)
    torch.nn.init.normal_(model.decoder.head.weight, std=1e-3)  # so that the network does something
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(data.astronaut()[100:276, 100:300]).save(folder / "a.png")
    Image.fromarray(data.chelsea()[20:201, 30:231]).save(folder / "b.png")
    return folder


def run(*arguments):
    from transformers_walloc.cli.evaluate import main

    return main([str(argument) for argument in arguments])


def test_own_pictures_are_answered_with_few_codecs_and_no_timing(image_codec, images, tmp_path, capsys):
    result = run("tables", "--data", images, "--out", tmp_path, "--models", image_codec)
    assert [row["codec"] for row in result["rows"]] == ["tiny", "resize@factor=2", "resize@factor=4", "jpeg@like=tiny"]
    assert all("speed" not in row and row["files"] == 2 for row in result["rows"])
    assert set(result["rows"][0]) >= {"psnr", "ssim", "bpp"} and "ssimulacra2" not in result["rows"][0]
    bars = capsys.readouterr().err.replace("\r", "\n")
    assert "8/8" in bars and "codec" not in bars  # one bar, of two files and four codecs


def test_tables_of_images(image_codec, images, tmp_path):
    from transformers_walloc.evaluation.specs import make_codec

    specs = [image_codec, f"{image_codec}@refine=2", f"{image_codec}@linear", f"jpeg@like={image_codec}"]
    specs += ["webp@quality=50", "resize@factor=4"]
    command = ["tables", "--data", images, "--out", tmp_path, "--codecs", *specs, "--threads", 1]
    command += ["--full", "--speed_sizes", "1x32x48", "--repeats", 1]
    result = run(*command)
    rows = {row["codec"]: row for row in result["rows"]}
    assert list(rows) == [
        "tiny",
        "tiny@refine=2",
        "tiny@linear",
        "jpeg@like=tiny",
        "webp@quality=50",
        "resize@factor=4",
    ]
    assert rows["tiny"]["dimensionality_reduction"] == rows["resize@factor=4"]["dimensionality_reduction"] == 16
    assert rows["tiny"]["psnr"] != rows["tiny@linear"]["psnr"]
    assert set(rows["tiny@refine=2"]["speed"]) == set(rows["webp@quality=50"]["speed"])  # through files
    assert rows["tiny"]["bpp"] == rows["tiny@linear"]["bpp"] > rows["jpeg@like=tiny"]["bpp"] * 0.8

    # One number from first principles: files written by the model itself.
    codec = make_codec(str(image_codec), "image")
    arrays = [np.asarray(Image.open(path)) for path in sorted(images.iterdir())]
    blobs = [codec.write(array) for array in arrays]
    assert rows["tiny"]["compression_ratio"] == pytest.approx(sum(a.size for a in arrays) / sum(map(len, blobs)))
    errors = [np.mean((codec.read(b, a).astype(float) - a) ** 2) for a, b in zip(arrays, blobs, strict=True)]
    assert rows["tiny"]["psnr"] == pytest.approx(np.mean([10 * np.log10(255**2 / e) for e in errors]))
    sizes = [len(make_codec(f"jpeg@like={image_codec}", "image").write(array)) for array in arrays]
    assert all(size >= len(blob) for size, blob in zip(sizes, blobs, strict=True))

    # Absent weights leave absent numbers, with the reason.
    for name in ("lpips_db", "dists_db"):
        assert (name in result["metrics_unavailable"]) != (name in rows["tiny"])
    assert set(rows["tiny"]["speed"]["1x32x48"]["seconds"]) >= {"prepare", "encode", "entropy_encode", "decode"}
    assert json.loads((tmp_path / "results.json").read_text()) == result
    markdown = (tmp_path / "results.md").read_text()
    assert f"| `tiny` | 16 | {rows['tiny']['compression_ratio']:.1f} |" in markdown
    assert str(images.parent) not in markdown and str(image_codec.parent) not in markdown
    assert "* JPEG files: optimize, progressive, at a given size the better of subsampling 4:2:0" in markdown
    assert (tmp_path / "results.csv").read_text().startswith("codec,dimensionality_reduction,")


def test_a_stopped_run_goes_on(image_codec, images, tmp_path, monkeypatch):
    from transformers_walloc.evaluation.codecs import WallocCodec

    command = ["tables", "--data", images, "--out", tmp_path, "--codecs", image_codec, "--no_speed", "--threads", 1]
    first = run(*command)
    lines = (tmp_path / "files.jsonl").read_text().splitlines()
    assert len(lines) == 2
    # As if the power had failed in the middle of the second line.
    (tmp_path / "files.jsonl").write_text(lines[0] + "\n" + lines[1][:25])
    measured = []
    write = WallocCodec.write
    monkeypatch.setattr(WallocCodec, "write", lambda codec, signal: measured.append(1) or write(codec, signal))
    assert run(*command)["rows"] == first["rows"]
    assert len(measured) == 1
    assert run(*command)["rows"] == first["rows"]
    assert len(measured) == 1


def test_curves_and_their_figures(image_codec, images, tmp_path):
    specs = [f"{image_codec}@step={s}" for s in (1, 2, 4)] + [f"{image_codec}@channels=4"]
    specs += [f"jpeg@quality={q}" for q in (5, 20, 60)]
    result = run(
        *["curves", "--data", images, "--out", tmp_path, "--codecs", *specs, "--metrics", "psnr", "--threads", 1]
    )
    rates = [row["bpp"] for row in result["rows"]]
    assert rates[0] > rates[1] > rates[2] and rates[3] < rates[0]
    assert result["rows"][3]["dimensionality_reduction"] == 48
    assert set(result["bd_rate"]) == {"tiny"} and set(result["bd_rate"]["tiny"]) == {"jpeg"}
    for name in ("rate_distortion", "three_axes"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_tables_of_audio(tmp_path):
    torch.manual_seed(0)
    model = WallocAudioModel(
        WallocAudioConfig(num_levels=4, latent_channels=8, decoder_hidden_size=8, decoder_num_layers=1)
    )
    rng = np.random.default_rng(0)
    tones = np.sin(2 * np.pi * np.outer([220, 330, 440, 560], np.arange(44100) / 44100))
    music = 0.2 * rng.random((2, 4)) @ tones + 0.01 * rng.standard_normal((2, 44100))
    statistics = SubbandStatistics(model.config)
    statistics.update(torch.from_numpy(music[None, :, :44096]).float())
    fit_klt(model, statistics, 0.02)
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", music.T, 44100)
    result = run(
        *["tables", "--kind", "audio", "--data", tmp_path / "clips", "--out", tmp_path / "out", "--seconds", 0.5],
        *["--codecs", tmp_path / "tiny", f"mp3@like={tmp_path / 'tiny'}", "opus@quality=0.9", "--no_speed"],
        *["--metrics", "psnr", "ssdr", "srdr", "si_sdr"],
    )
    ours, mp3, opus = result["rows"]
    assert ours["dimensionality_reduction"] == 4
    assert all(row["psnr"] > 20 and row["srdr"] > 5 for row in (ours, mp3, opus))
    assert ours["kbps"] == pytest.approx(2 * 16 * 44.1 / ours["compression_ratio"])


def test_neural_codecs_without_weights_are_timed_only(tmp_path):
    result = run("speed", "--out", tmp_path, "--kind", "audio", "--codecs", "encodec", "--speed_only", "--repeats", 1,
                 "--speed_sizes", "1x0.2")  # fmt: skip
    (row,) = result["rows"]
    assert row["dimensionality_reduction"] == 5 and "random weights" in row["note"]
    assert "psnr" not in row and row["speed"]["1x0.2"]["seconds"]["decode"] > 0


def test_what_cannot_be_had_is_named(images, tmp_path, capsys):
    result = run("tables", "--data", images, "--out", tmp_path, "--codecs", "someone/codec", "--no_speed")
    assert not result["rows"] and len(result["codecs_unavailable"]) == 1
    with pytest.raises(SystemExit):
        run("tables", "--data", images, "--out", tmp_path, "--codecs", "rgb16x")
    assert "did you mean 'rgb-16x'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("tables", "--data", images, "--out", tmp_path, "--codecs", "jpeg@speed=3")
    assert "unknown option speed in 'jpeg@speed=3'; valid: quality, like" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("tables", "--data", images, "--out", tmp_path, "--metrics", "vmaf")
    assert "unknown metric 'vmaf'" in capsys.readouterr().err


def test_reports_and_cards_are_made_from_stored_results(image_codec, images, tmp_path, monkeypatch):
    import shutil

    from research import pages, report

    folder = tmp_path / "model_cards" / "rgb-16x"
    shutil.copytree(image_codec, folder)
    first = {"kind": "image", "train": ["photos:0.9"], "minutes": 9.5, "sources": ["holiday pictures"]}
    second = {"kind": "image", "train": ["photos:0.9"], "minutes": 20.0, "earlier": first}
    last = {"kind": "image", "train": ["photos:0.9"], "step": 0.1, "cpu": True, "machine": "a box", "earlier": second}
    (folder / "recipe.json").write_text(json.dumps(last))
    specs = [folder, f"{folder}@refine=1", f"{folder}@linear", f"jpeg@like={folder}"]
    result = run("tables", "--data", images, "--out", tmp_path / "out", "--codecs", *specs, "--no_speed")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "docs" / "results")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "table1.json").write_text(json.dumps(result))
    (tmp_path / "README.md").write_text("# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n")
    report.main(["docs"])
    report.main(["card", str(folder)])
    psnr = f"{result['rows'][0]['psnr']:.2f}"
    assert psnr in (tmp_path / "docs" / "results.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert psnr in readme and "old" not in readme and readme.endswith("rest\n")
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: transformers" in front and f"value: {psnr}" in front
    assert psnr in card and "walloc train --kind image --train photos:0.9 --step 0.1 --cpu" in card
    assert card.count("walloc train") == 3
    assert "* holiday pictures\n" in card and "29.5 minutes of training in all, on a box." in card
    assert json.loads((folder / "results.json").read_text())["rows"] == result["rows"]


def test_a_datasets_repository_in_place_of_a_folder(images, tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        files = sorted(str(path) for path in images.iterdir())
        return datasets.Dataset.from_dict({"picture": files, "label": [0, 1]}).cast_column("picture", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    command = ["--codecs", "webp@quality=30", "--metrics", "psnr", "--no_speed"]
    here = run("tables", "--data", images, "--out", tmp_path / "folder", *command)
    there = run("tables", "--data", "someone/pictures", "--split", "train", "--out", tmp_path / "hub", *command)
    assert asked == [("someone/pictures", "train")]
    assert there["rows"] == here["rows"] and there["data"]["name"] == "someone/pictures"
