"""The experiments on latents (scripts/task_*.py) on tiny data, against facts that do not come from the scripts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from transformers_walloc import WallocImageModel
from transformers_walloc.metrics import psnr

SCRIPTS = Path(__file__).parents[1] / "scripts"
PAIRS = {"resize-64": "walloc-16x", "resize-128": "walloc-4x"}


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(SCRIPTS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of four pictures."""
    folder = tmp_path_factory.mktemp("classes")
    for name, picture in (("cat", skimage.data.chelsea()), ("coffee", skimage.data.coffee())):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(picture[20 * i : 20 * i + 200, :300]).save(folder / name / f"{i}.png")
    return folder


def load(paths: list[Path]) -> dict[str, dict]:
    return {run["condition"]: run for run in (json.loads(path.read_text()) for path in paths)}


TINY = ["--steps=2", "--batch_size=2", "--width=32", "--layers=1", "--seeds", "0"]


# What all tasks share


def write_run(folder: Path, condition: str, seed: int, accuracy: float, order: int) -> None:
    run = {
        "task": "classification",
        "condition": condition,
        "title": condition,
        "order": order,
        "seed": seed,
        "metrics": {"accuracy": accuracy, "train_loss": 1.0},
        "model_inputs": 12288,
        "settings": {"steps": 10},
        "seconds": 90.0,
        "command": "python scripts/task_classification.py",
        "machine": {"threads": 1, "cores": 2, "processor": "P", "device": "cpu", "load": 1.0},
    }
    (folder / f"classification_{condition}_{seed}.json").write_text(json.dumps(run))


def test_summary_and_picture(tmp_path, monkeypatch):
    import task_runs

    # Sample standard deviations of (1, 2, 3) and (2, 4, 9) are 1 and sqrt(13).
    for seed, (first, second) in enumerate(((1, 2), (2, 4), (3, 9))):
        write_run(tmp_path, "walloc-16x", seed, second, 1)
        write_run(tmp_path, "resize-64", seed, first, 0)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tasks:begin -->\nold\n<!-- tasks:end -->\nafter\n")
    monkeypatch.setattr(task_runs, "PAGE", page)
    monkeypatch.setattr(task_runs, "PICTURE", tmp_path / "pictures" / "tasks.png")
    task_runs.main(["summarise", "--output", str(tmp_path)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    rows = [line for line in lines if line.startswith("| ") and "12,288" in line]
    assert rows == [
        "| resize-64 | 12,288 | 2.0 ± 1.0 | 1.000 ± 0.000 | 3 |",
        "| walloc-16x | 12,288 | 5.0 ± 3.6 | 1.000 ± 0.000 | 3 |",
    ]
    assert Image.open(tmp_path / "pictures" / "tasks.png").width > 100


def test_nothing_to_summarise(tmp_path, capsys):
    import task_runs

    with pytest.raises(SystemExit):
        task_runs.main(["summarise", "--output", str(tmp_path)])
    assert "has no results" in capsys.readouterr().err


def test_configs_name_settings_that_exist():
    import task_classification
    import task_colourisation
    from task_runs import parse_arguments

    modules = {"classification": task_classification, "colourisation": task_colourisation}
    for name, module in modules.items():
        for config in sorted((SCRIPTS / "configs").glob(f"{name}_*.json")):
            values = json.loads(config.read_text())
            arguments, settings = parse_arguments("", module.Settings, module.CONDITIONS, ["--config", str(config)])
            for key, value in values.items():
                assert getattr(settings, key, getattr(arguments, key, None)) == value
            over = parse_arguments("", module.Settings, module.CONDITIONS, ["--config", str(config), "--steps", "7"])
            assert over[1].steps == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--conditions", "resize"], "unknown condition 'resize'; valid: resize-64, walloc-16x, resize-128, walloc-4x"),
        (["--config", "absent.json"], "absent.json"),
    ],
)
def test_bad_options(options, message, capsys):
    import task_classification

    with pytest.raises(SystemExit):
        task_classification.main(options)
    assert message in capsys.readouterr().err


def test_unknown_setting(tmp_path, capsys):
    import task_classification

    (tmp_path / "c.json").write_text('{"stepz": 3}')
    with pytest.raises(SystemExit):
        task_classification.main(["--config", str(tmp_path / "c.json")])
    assert "unknown setting 'stepz'; valid: output, seeds" in capsys.readouterr().err


# Classification


def test_classification(classes, tmp_path, capsys):
    from task_classification import main

    options = ["--data", str(classes), "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    options += ["--tokens=4", "--views=2", *TINY]
    paths = main(options)
    runs = load(paths)
    for resize, walloc in PAIRS.items():
        assert runs[resize]["model_inputs"] == runs[walloc]["model_inputs"]
        assert runs[resize]["parameters"] == runs[walloc]["parameters"]
        assert runs[resize]["tokens"] == runs[walloc]["tokens"] == 16
    assert runs["resize-64"]["model_inputs"] == 64 * 64 * 3 and runs["resize-128"]["model_inputs"] == 128 * 128 * 3
    for run in runs.values():
        assert run["examples"] == {"training": 6, "test": 2}
        assert run["metrics"]["accuracy"] in (0.0, 50.0, 100.0)
        assert run["settings"]["data"] == classes.name  # and not where it lies
    # What is there is not run again; what was run with other settings is not taken for these.
    before = [path.stat().st_mtime_ns for path in paths]
    assert main(options) == paths and [path.stat().st_mtime_ns for path in paths] == before
    with pytest.raises(SystemExit, match=r"result of other settings \(steps 2 and not 3\)"):
        main([*options, "--steps=3"])


def test_split_by_file(classes):
    from task_classification import Settings, read_images

    def split(fraction, seed):
        settings = Settings(data=str(classes), test_fraction=fraction, split_seed=seed)
        train, train_labels, test, test_labels, names = read_images(settings)
        assert names == ["cat", "coffee"]
        assert [names[label] for label in train_labels] == [path.parent.name for path in train]
        assert [names[label] for label in test_labels] == [path.parent.name for path in test]
        assert not set(train) & set(test) and len(train) + len(test) == 8
        return set(test)

    assert len(split(0.25, 0)) == 2 and len(split(0.5, 0)) == 4
    assert any(split(0.5, 0) != split(0.5, seed) for seed in range(1, 5))


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], ["dog", "cat", "dog", "cat"]])
def test_images_of_a_repository(labels, monkeypatch):
    import datasets
    from task_classification import Settings, open_image, read_images

    label = datasets.ClassLabel(names=["dog", "cat"]) if labels[0] == 0 else datasets.Value("string")
    images = [Image.new("L", (8, 6), 50 * i) for i in range(4)]
    rows = {"picture": images, "label": labels}
    features = datasets.Features({"picture": datasets.Image(), "label": label})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {"train": dataset, "test": dataset}[split])
    settings = Settings(data="user/name", image_column="picture", test_split="test")
    train, train_labels, test, test_labels, names = read_images(settings)
    assert sorted(names) == ["cat", "dog"] and len(train) == len(test) == 4
    for item, label in zip(train + test, train_labels + test_labels, strict=True):
        image = open_image(item, "picture")
        assert image.mode == "RGB" and image.size == (8, 6)
        assert names[label] == ["dog", "cat"][image.getpixel((0, 0))[0] // 50 % 2]


def test_conditions_see_the_same(classes):
    """Latents of a view decode to what the resized view shows, at the same place of the grid."""
    from task_classification import CODECS, Settings, prepare

    settings, item = Settings(views=2), [classes / "coffee" / "0.png"]
    for resize, walloc in PAIRS.items():
        pixels, codes = (prepare(item, name, settings, True, "cpu")[0] for name in (resize, walloc))
        side = codes.shape[-1]
        assert pixels.dtype == torch.uint8 and codes.dtype == torch.int8 and side == 36
        unit = pixels.shape[-1] // side
        codec = WallocImageModel.from_pretrained(CODECS[walloc]).eval()
        with torch.no_grad():
            decoded = codec.decode(codes).pixel_values + 0.5
        small = F.interpolate(decoded, (side * unit,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        for view in range(2):
            assert psnr(pixels[view].numpy() / 255, small[view].numpy()) > 28
        assert psnr(pixels[0].numpy(), pixels[1].numpy()) < 25  # the views differ


def test_crops_lie_on_the_grid():
    from task_classification import Views

    data = torch.arange(72 * 72, dtype=torch.int32).reshape(1, 1, 1, 72, 72)
    views = Views(data, [5], unit=2, crop=64, random=True, transform=lambda x: x)
    torch.manual_seed(0)
    corners = {int(views[0]["pixel_values"][0, 0, 0]) for _ in range(200)}
    assert {(c // 72 % 2, c % 72 % 2) for c in corners} == {(0, 0)}
    assert {c // 72 for c in corners} == {c % 72 for c in corners} == {0, 2, 4, 6, 8}
    middle = Views(data, [5], unit=2, crop=64, random=False, transform=lambda x: x)[0]
    assert int(middle["pixel_values"][0, 0, 0]) == 4 * 72 + 4 and middle["labels"] == 5


def test_bad_data_and_settings(tmp_path):
    from task_classification import Settings, main

    with pytest.raises(ValueError, match="0 folders with images; valid: one for each class, at least two"):
        main(["--data", str(tmp_path), "--output", str(tmp_path / "out"), *TINY])
    with pytest.raises(ValueError, match="unknown model 'resnet'; valid: vit, convnext"):
        Settings(model="resnet")
    with pytest.raises(ValueError, match="5 tokens a side; valid: a number that divides 32"):
        Settings(tokens=5)


# Colourisation


def test_colourisation(tmp_path):
    from task_colourisation import main

    for name, picture in (("train", skimage.data.coffee()), ("test", skimage.data.astronaut())):
        (tmp_path / name).mkdir()
        Image.fromarray(picture[:300, :400]).save(tmp_path / name / "a.png")
    options = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--output", str(tmp_path / "out")]
    runs = load(main([*options, "--crops=3", "--local_width=8", *TINY]))
    for resize, walloc in PAIRS.items():
        assert runs[resize]["model_inputs"] == runs[walloc]["model_inputs"]
        assert runs[resize]["parameters"] == runs[walloc]["parameters"]
    assert runs["resize-64"]["model_inputs"] == 64 * 64 * 3 and runs["resize-128"]["model_inputs"] == 128 * 128 * 3
    # The energy of the chroma of the test crops, as PIL converts them.
    picture = Image.fromarray(skimage.data.astronaut()[:300, :400])
    crops = [picture.resize((256, 256), Image.Resampling.BICUBIC, box=(x, 0, x + 300, 300)) for x in (0, 100)]
    planes = np.stack([np.asarray(crop.convert("YCbCr"))[..., 1:].astype(float) - 128 for crop in crops])
    expected = -10 * np.log10((planes**2).mean() / 255**2)
    for run in runs.values():
        assert run["examples"] == {"training": 3, "test": 2}
        assert run["metrics"]["grey_chroma_psnr"] == pytest.approx(expected, abs=0.05)
        assert run["metrics"]["oracle_chroma_psnr"] > run["metrics"]["chroma_psnr"] + 3


def test_chroma_is_that_of_jpeg():
    from task_colourisation import chroma, with_luma

    pixels = skimage.data.chelsea()[:64, :96]
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5
    expected = np.asarray(Image.fromarray(pixels).convert("YCbCr"))[..., 1:].astype(float) - 128
    assert np.abs(chroma(x)[0].permute(1, 2, 0).numpy() - expected).max() < 1.01  # PIL rounds
    torch.testing.assert_close(with_luma(chroma(x), x), x)
    torch.testing.assert_close(
        chroma(with_luma(torch.zeros(1, 2, 64, 96), x)), torch.zeros(1, 2, 64, 96), atol=1e-4, rtol=0
    )


def test_colourfulness():
    from task_colourisation import colourfulness

    assert colourfulness(np.full((4, 4, 3), 77)) == 0
    # Half red, half green at 255: rg is +-255, yb 127.5 everywhere, so sigma = (255, 0) and mu = (0, 127.5).
    image = np.zeros((2, 2, 3))
    image[0, :, 0] = image[1, :, 1] = 255
    assert colourfulness(image) == pytest.approx(255 + 0.3 * 127.5)


@pytest.mark.parametrize("condition", ["resize-64", "resize-128", "walloc-16x", "walloc-4x"])
def test_an_untrained_model_leaves_grey(condition):
    from task_colourisation import Colouriser, Pairs, Settings, chroma, evaluate, grey_of, view_of

    settings = Settings(width=32, layers=1, local_width=8)
    crops = torch.from_numpy(skimage.data.astronaut()[None, 100:356, 100:356].copy()).permute(0, 3, 1, 2)
    view = view_of(condition, settings, "cpu")
    pairs = Pairs(view, crops, "cpu")
    model = Colouriser(pairs.grey.shape[1], settings, pairs.scale())
    metrics = evaluate(model, view, crops, "cpu")
    # What a codec decodes of a grey image is grey but for its own error.
    assert metrics["chroma_psnr"] == pytest.approx(metrics["grey_chroma_psnr"], abs=0.3)
    with torch.no_grad():
        x = crops / 255 - 0.5
        decoded = view.decode(view.encode(grey_of(x)))
        assert chroma(decoded).abs().mean() < 2
        assert psnr((x + 0.5).numpy(), (view.decode(view.encode(x)) + 0.5).numpy()) > 24
