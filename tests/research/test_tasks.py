"""The experiments on latents (research/tasks/*.py) on tiny data, against facts that do not come from the scripts."""

import copy
import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from transformers_walloc import WallocImageModel
from transformers_walloc.evaluation.metrics import psnr

CONFIGS = Path(__file__).parents[2] / "research" / "tasks" / "configs"
PAIRS = {"resize-64": "walloc-16x", "resize-128": "walloc-4x"}


@pytest.fixture(scope="module", autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of four pictures."""
    folder = tmp_path_factory.mktemp("classes")
    for name, picture in (("cat", skimage.data.chelsea()), ("coffee", skimage.data.coffee())):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(picture[20 * i : 20 * i + 200, :300]).save(folder / name / f"{i}.png")
    return folder


def load(records: list[dict]) -> dict[str, dict]:
    return {run["condition"]: run for run in records}


TINY = ["--steps=2", "--batch_size=2", "--width=32", "--layers=1", "--seeds", "0"]


# What all tasks share


def run_of(condition: str, seed: int, accuracy: float, order: int) -> dict:
    return {
        "task": "classification",
        "condition": condition,
        "title": condition,
        "order": order,
        "seed": seed,
        "metrics": {"accuracy": accuracy, "train_loss": 1.0},
        "model_inputs": 12288,
        "settings": {"steps": 10},
        "seconds": 90.0,
        "command": "python -m research.tasks.classification",
        "machine": {"threads": 1, "cores": 2, "processor": "P", "device": "cpu", "load": 1.0},
    }


def test_summary_and_picture(tmp_path, monkeypatch):
    from research.tasks import summary
    from research.tasks.runs import store_run

    # Sample standard deviations of (1, 2, 3) and (2, 4, 9) are 1 and sqrt(13).
    file = tmp_path / "classification.json"
    for seed, (first, second) in enumerate(((1, 2), (2, 4), (3, 9))):
        store_run(file, run_of("walloc-16x-klt", seed, second, 1))
        store_run(file, run_of("resize-64", seed, 0, 0))
        store_run(file, run_of("resize-64", seed, first, 0))  # a later run takes the place of an earlier one
    store_run(file, run_of("walloc-4x", 0, 5, 2))
    assert len(json.loads(file.read_text())) == 7 and len(file.read_text().splitlines()) == 9
    page = tmp_path / "page.md"
    marked = "<!-- answers:begin -->\nold\n<!-- answers:end -->\n<!-- tasks:begin -->\nold\n<!-- tasks:end -->\n"
    page.write_text(f"before\n{marked}after\n")
    monkeypatch.setattr(summary, "PAGE", page)
    monkeypatch.setattr(summary, "PICTURE", tmp_path / "pictures" / "tasks.png")
    summary.main(["--output", str(tmp_path)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    rows = [line for line in lines if line.startswith("| ") and ("12,288" in line or "64 px" in line)]
    assert rows == [
        # Pairs differ by 1, 2 and 6: a mean of 3, and Student's t of 4.303 times sqrt(7 / 3) around it.
        "| ViT from random weights | 64 px | 256 px, rgb-16x-klt | top-1 accuracy % | 2.0 | 5.0 "
        "| +3.0 (-3.6 to +9.6) | 3 |",
        "| resize-64 | 12,288 | 2.0 ± 1.0 | 1.000 ± 0.000 |  | 3 |",
        "| walloc-16x-klt | 12,288 | 5.0 ± 3.6 | 1.000 ± 0.000 | +3.0 (-3.6 to +9.6) | 3 |",
        "| walloc-4x | 12,288 | 5.0 | 1.000 | +4.0 | 1 |",
    ]
    assert Image.open(tmp_path / "pictures" / "tasks.png").width > 100


def test_nothing_to_summarise(tmp_path, capsys):
    from research.tasks import summary

    with pytest.raises(SystemExit):
        summary.main(["--output", str(tmp_path)])
    assert "has no results" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_configs_name_settings_that_exist(config):
    from research.tasks.runs import parse_arguments
    from research.tasks.summary import TASKS

    task = config.stem.partition("_")[0]
    assert task in TASKS
    module = importlib.import_module(f"research.tasks.{task}")
    # What a config cannot know, where the data lie, has no default in some tasks.
    needed = [f for f in dataclasses.fields(module.Settings) if f.default is f.default_factory is dataclasses.MISSING]
    options = ["--config", str(config), *(f"--{field.name}=here" for field in needed)]
    arguments, settings = parse_arguments("", module.Settings, module.CONDITIONS, options)
    for key, value in json.loads(config.read_text()).items():
        found = getattr(settings, key, getattr(arguments, key, None))
        assert (list(found) if isinstance(found, tuple) else found) == value
    over = parse_arguments("", module.Settings, module.CONDITIONS, [*options, "--steps", "7"])
    assert over[1].steps == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--conditions", "resize"],
            "unknown condition 'resize'; valid: resize-32, walloc-16x-klt-128, resize-64, walloc-16x, ",
        ),
        (["--config", "absent.json"], "absent.json"),
    ],
)
def test_bad_options(options, message, capsys):
    from research.tasks import classification as task_classification

    with pytest.raises(SystemExit):
        task_classification.main(options)
    assert message in capsys.readouterr().err


def test_unknown_setting(tmp_path, capsys):
    from research.tasks import classification as task_classification

    (tmp_path / "c.json").write_text('{"stepz": 3}')
    with pytest.raises(SystemExit):
        task_classification.main(["--config", str(tmp_path / "c.json")])
    assert "unknown setting 'stepz'; valid: output, seeds" in capsys.readouterr().err


# Classification


def test_classification(classes, tmp_path, capsys):
    from research.tasks.classification import main

    options = ["--data", str(classes), "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    options += ["--tokens=4", "--views=2", *TINY]
    records = main(options)
    runs = load(records)
    for resize, walloc in PAIRS.items():
        assert runs[resize]["model_inputs"] == runs[walloc]["model_inputs"]
        assert runs[resize]["parameters"] == runs[walloc]["parameters"]
        assert runs[resize]["tokens"] == runs[walloc]["tokens"] == 16
    assert runs["resize-32"]["model_inputs"] == runs["walloc-16x-klt-128"]["model_inputs"] == 32 * 32 * 3
    assert runs["resize-64"]["model_inputs"] == 64 * 64 * 3 and runs["resize-128"]["model_inputs"] == 128 * 128 * 3
    for run in runs.values():
        assert run["examples"] == {"training": 6, "test": 2}
        assert run["metrics"]["accuracy"] in (0.0, 50.0, 100.0)
        assert run["settings"]["data"] == classes.name  # and not where it lies
    # What is there is not run again; what was run with other settings is not taken for these.
    file = tmp_path / "out" / "classification.json"
    before = file.stat().st_mtime_ns
    assert main(options) == records == json.loads(file.read_text()) and file.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"result of other settings \(steps 2 and not 3\)"):
        main([*options, "--steps=3"])


def test_folding(classes, tmp_path):
    """The exact fold starts where the pixel model stands on the linear reconstruction of the latents."""
    from research.tasks import folding
    from transformers_walloc.codec.bottleneck import decompand
    from transformers_walloc.codec.wavelets import wavelet_packet_synthesis

    options = ["--data", str(classes), "--output", str(tmp_path), "--views=1", "--fine_tuning_steps=1", *TINY]
    runs = load(folding.main(options))
    assert set(runs) == set(folding.CONDITIONS)
    inputs = {name: run["model_inputs"] for name, run in runs.items()}
    assert inputs["resize-64"] == inputs["walloc-fold-0"] == inputs["walloc-average"] == 64 * 64 * 3
    assert inputs["walloc-fold-1"] == 12 * (8 * 6) ** 2 and all("start_accuracy" in r["metrics"] for r in runs.values())

    settings = folding.Settings(data=str(classes), views=1)
    given = folding.images(settings, "cpu")
    labels = dict(enumerate(given["pixels"]["names"]))
    torch.manual_seed(0)
    pixel_model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=64, patch_size=8, id2label=labels
        )
    ).eval()
    pixel_model.save_pretrained(tmp_path / "pretrained")
    model, found = folding.on_latents(str(tmp_path / "pretrained"), "walloc-fold-exact", given)
    codec = WallocImageModel.from_pretrained(folding.CODEC).eval()
    codes = given["codes"]["test"][0]  # of 352 pixels; the middle 256 are what the model sees
    with torch.no_grad():
        subbands = codec.decoder.linear(decompand(codes.float(), 8))
        pixels = wavelet_packet_synthesis(subbands, 3, codec.config.wavelet, "symmetric", 2)[:, :, 48:-48, 48:-48]
        mean, std = (torch.tensor(given[name])[:, None, None] for name in ("mean", "std"))
        resized = (torch.nn.functional.avg_pool2d(pixels, 4) + 0.5 - mean) / std
        expected = pixel_model(resized).logits
        logits = model.eval()(found["test"][0]["pixel_values"][None]).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_picture(classes, tmp_path):
    """All see as many numbers; the orthogonal picture shows the resized image; the folded stem gives what it gave."""
    from transformers import ResNetForImageClassification

    from research.tasks import picture
    from research.tasks.classification import make_model
    from research.tasks.folding import images

    options = ["--data", str(classes), "--output", str(tmp_path), "--views=1", "--fine_tuning_steps=1", *TINY]
    runs = load(picture.main(options))
    assert set(runs) == set(picture.CONDITIONS) and {run["model_inputs"] for run in runs.values()} == {64 * 64 * 3}

    settings = picture.Settings(data=str(classes), views=1, width=8, layers=1)
    given = images(settings, "cpu")
    pixels = given["pixels"]["test"]
    pixels = torch.stack([pixels[i]["pixel_values"] for i in range(len(pixels))])

    def shown(way: str) -> torch.Tensor:
        found = picture.on_latents(way, given)["test"]
        return torch.stack([found[i]["pixel_values"] for i in range(len(found))])

    def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])

    assert correlation(shown("walloc-picture"), pixels) > 0.7 and correlation(shown("walloc-plain"), pixels) < 0.5
    model = make_model(settings, 3, 64, given["pixels"]["names"]).eval()
    assert isinstance(model, ResNetForImageClassification)
    with torch.no_grad():
        expected = model.get_submodule(picture.STEM)(pixels)[..., 4:-4, 4:-4]
        picture.fold_stem(model, given)
        latents = shown("walloc-folded")
        folded = model.get_submodule(picture.STEM)(latents)[..., 4:-4, 4:-4]
        assert latents.shape[1:] == (12, 32, 32) and model(latents).logits.shape == (len(latents), 2)
    # What the codec and the pixels' rounding and resize leave of the difference.
    assert correlation(folded, expected) > 0.97
    assert float((folded - expected).norm() / expected.norm()) < 0.25
    with pytest.raises(ValueError, match=r"model is 'vit'; valid: resnet"):
        picture.Settings(model="vit")


class SmallNetwork(torch.nn.Module):
    """The parts of an EfficientNet that the task on ImageNet's weights touches."""

    def __init__(self):
        super().__init__()
        self._conv_stem = torch.nn.Conv2d(3, 8, 3, 2, bias=False)
        self._bn, self._fc = torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 1000)

    def extract_features(self, x: torch.Tensor) -> torch.Tensor:
        return self._bn(self._conv_stem(x)).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._fc(self.extract_features(x).mean((2, 3)))


def test_imagenet(classes, tmp_path, monkeypatch):
    """All see as many numbers on the network's scale; the folded stem gives what it gave; the probe names two."""
    from research.tasks import imagenet

    torch.manual_seed(0)
    network = SmallNetwork()
    monkeypatch.setattr(imagenet, "load_network", lambda: copy.deepcopy(network))
    options = ["--data", str(classes), "--output", str(tmp_path), "--fine_tuning_steps=1", *TINY]
    runs = load(imagenet.main(options))
    assert set(runs) == set(imagenet.CONDITIONS) and {run["model_inputs"] for run in runs.values()} == {64 * 64 * 3}
    assert all(run["metrics"]["start_accuracy"] == 100 for run in runs.values())

    settings = imagenet.Settings(data=str(classes))
    shown = {}
    for condition in imagenet.CONDITIONS:
        found = imagenet.views_of(condition, settings, "cpu")["test"]
        shown[condition] = torch.stack([found[i]["pixel_values"] for i in range(len(found))])
    pixels, picture = shown["resize-64"], shown["walloc-picture"]
    assert -1 <= pixels.min() < 0 < pixels.max() <= 1
    assert float((picture - pixels).square().mean().sqrt()) < 0.4 * float(pixels.std())
    expected = network._conv_stem(pixels)[..., 2:30, 2:30].detach()
    imagenet.fold_stem(network)
    folded = network._conv_stem(shown["walloc-folded"]).detach()
    assert folded.shape == (2, 8, 32, 32)
    folded = folded[..., 2:-2, 2:-2]
    # What the codec, the halo and the pixels' rounding and resize leave of the difference.
    assert float((folded - expected).norm() / expected.norm()) < 0.25


def test_split_by_file(classes):
    from research.tasks.classification import Settings, read_images

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

    from research.tasks.classification import Settings, open_image, read_images

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
    from research.tasks.classification import Settings, prepare
    from research.tasks.preparation import CODECS, Preparation

    settings, item = Settings(views=2), [classes / "coffee" / "0.png"]
    for resize, walloc in [*PAIRS.items(), ("resize-32", "walloc-16x-klt-128")]:
        pixels, codes = (prepare(Preparation(name), item, settings, True)[0] for name in (resize, walloc))
        side = codes.shape[-1]
        assert (
            pixels.dtype == torch.uint8
            and codes.dtype == torch.int8
            and side == (18 if walloc.endswith("-128") else 36)
        )
        unit = pixels.shape[-1] // side
        codec = WallocImageModel.from_pretrained(CODECS[walloc]).eval()
        with torch.no_grad():
            decoded = codec.decode(codes).pixel_values + 0.5
        small = F.interpolate(decoded, (side * unit,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        for view in range(2):
            assert psnr(pixels[view].numpy() / 255, small[view].numpy()) > 28
        assert psnr(pixels[0].numpy(), pixels[1].numpy()) < 25  # the views differ


def test_scales_of_latents():
    """By the codec's corpus, not by the sample: what is silent there stays silent."""
    from research.tasks.preparation import Preparation
    from transformers_walloc import WallocImageEncoder, latent_values

    config = WallocImageEncoder.from_pretrained("walloc/rgb-4x-klt").config
    codes = torch.randint(-30, 31, (5, 48, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    codes[:, 40:] = 0
    codes[0, 40:, 0, 0] = 1
    corpus, none, task = (Preparation(f"walloc-4x-klt{at}").transform(codes)(codes) for at in ("", "@none", "@task"))
    torch.testing.assert_close(none, latent_values(codes, config))
    torch.testing.assert_close(task.std((0, 2, 3)), torch.ones(48))
    ratio = corpus.std((0, 2, 3)) / none.std((0, 2, 3))  # one scale for each channel, whatever the sample
    other = Preparation("walloc-4x-klt").transform(codes[:1])(codes[1:])
    torch.testing.assert_close(other.std((0, 2, 3))[:40] / none[1:].std((0, 2, 3))[:40], ratio[:40])
    assert corpus[:, 40:].std() < 0.2 < 0.9 < task[:, 40:].std()
    with pytest.raises(ValueError, match="unknown scale 'loud'"):
        Preparation("walloc-4x-klt@loud").transform(codes)


def test_crops_lie_on_the_grid():
    from research.tasks.classification import Views

    data = torch.arange(72 * 72, dtype=torch.int32).reshape(1, 1, 1, 72, 72)
    views = Views(data, [5], unit=2, crop=64, random=True, transform=lambda x: x)
    torch.manual_seed(0)
    corners = {int(views[0]["pixel_values"][0, 0, 0]) for _ in range(200)}
    assert {(c // 72 % 2, c % 72 % 2) for c in corners} == {(0, 0)}
    assert {c // 72 for c in corners} == {c % 72 for c in corners} == {0, 2, 4, 6, 8}
    middle = Views(data, [5], unit=2, crop=64, random=False, transform=lambda x: x)[0]
    assert int(middle["pixel_values"][0, 0, 0]) == 4 * 72 + 4 and middle["labels"] == 5


def test_bad_data_and_settings(tmp_path):
    from research.tasks.classification import Settings, main

    with pytest.raises(ValueError, match="0 folders with images; valid: one for each class, at least two"):
        main(["--data", str(tmp_path), "--output", str(tmp_path / "out"), *TINY])
    with pytest.raises(ValueError, match="unknown model 'mlp'; valid: vit, convnext, resnet"):
        Settings(model="mlp")
    with pytest.raises(ValueError, match="5 tokens a side; valid: a number that divides 32"):
        Settings(tokens=5)


# Source separation

RATE = 44100


@pytest.fixture(scope="module")
def multitracks(tmp_path_factory):
    """Two songs of three stems for training, one for the test, a second each."""
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("multitracks")
    time = np.arange(RATE) / RATE
    for split, song in (("train", "a"), ("train", "b"), ("test", "c")):
        (folder / split / song).mkdir(parents=True)
        rng = np.random.default_rng(ord(song))
        for name, pitch in (("drums", 3000), ("bass", 80), ("other", 600)):
            wave = np.sin(2 * np.pi * pitch * rng.uniform(0.8, 1.2) * time) * np.exp(-3 * time)
            samples = 0.2 * wave[:, None] * rng.uniform(0.5, 1, 2)
            soundfile.write(folder / split / song / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return folder


def test_separation(multitracks, tmp_path):
    import soundfile

    from research.tasks import separation as task_separation

    argv = ["--data", str(multitracks), "--output", str(tmp_path), "--save", str(tmp_path / "models"), "--steps=2"]
    argv += ["--batch_size=2", "--frames=32", "--hidden_size=8", "--num_layers=2", "--seeds", "0"]
    paths = task_separation.main(argv)
    runs = load(paths)
    assert list(runs) == list(task_separation.CONDITIONS)
    # 44,100 samples of two channels, a quarter, a sixteenth; 27 and 108 latents of 256 samples.
    inputs = {name: run["model_inputs"] for name, run in runs.items()}
    assert inputs["samples_44k"] == 88200 and inputs["resample_11k"] == 22050 and inputs["resample_3k"] == 5512
    assert inputs["walloc_5x"] == round(108 * RATE / 256) and inputs["walloc_20x"] == round(27 * RATE / 256)
    # The floor by hand: the scale in which the mix has a peak of 0.5, and a third of it for each stem.
    files = [multitracks / "test" / "c" / f"{name}.wav" for name in ("drums", "bass", "other")]
    stems = np.stack([soundfile.read(file)[0].T for file in files])
    mix = stems.sum(0)
    gain = 2 * np.abs(mix - mix.mean()).max()
    psnrs = [-10 * np.log10(np.mean(((mix / 3 - stem) / gain) ** 2)) for stem in stems]
    assert runs["mix"]["metrics"]["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    ratios = []
    for stem in stems:
        for x, y in zip(stem - stem.mean(1, keepdims=True), mix - mix.mean(1, keepdims=True), strict=True):
            target = x * (x @ y) / (x @ x)
            ratios.append(10 * np.log10(target @ target / ((y - target) @ (y - target))))
    assert runs["mix"]["metrics"]["si_sdr"] == pytest.approx(np.mean(ratios), abs=1e-2)
    for name in ("resample_11k", "resample_3k", "walloc_5x", "walloc_20x"):
        assert runs[name]["metrics"]["psnr_bound"] > runs[name]["metrics"]["psnr"]
    # 3 kHz does not survive 2.8 kHz samples.
    assert runs["resample_3k"]["metrics"]["si_sdr_bound"] < runs["walloc_5x"]["metrics"]["si_sdr_bound"]
    from transformers import AutoModel

    saved = AutoModel.from_pretrained(tmp_path / "models" / "walloc_20x_0")
    separated = saved.separate(torch.from_numpy(mix).float()).numpy()
    psnrs = [-10 * np.log10(np.mean(((a - b) / gain) ** 2)) for a, b in zip(stems, separated, strict=True)]
    assert runs["walloc_20x"]["metrics"]["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    with pytest.raises(ValueError, match="no vocals"):
        task_separation.main([*argv[:-2], "--sources", "drums", "vocals", "--output", str(tmp_path / "other")])


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_samples_in_frames(factor):
    """Folding is undone; a slow tone survives resampling; a mix is the sum of its stems in frames too."""
    from research.tasks import separation as task_separation

    model = task_separation.Samples(factor, task_separation.Settings(data=""))
    tone = torch.sin(2 * torch.pi * 200 * torch.arange(256 * 100) / RATE) * torch.hann_window(256 * 100)
    x = torch.stack([tone, -0.5 * tone])
    values = model.encode(x)
    assert values.shape == (512 // factor, 100)
    torch.testing.assert_close(model.decode(values), x, atol=1e-3 if factor > 1 else 0.0, rtol=0)
    other = torch.randn(2, 256 * 100)
    torch.testing.assert_close(model.encode(x + other), values + model.encode(other), atol=1e-4, rtol=0)


def test_remixes():
    """The same excerpts for the same seed, mixes that are sums, gains within their bounds."""
    from research.tasks import separation as task_separation

    songs = [np.full((3, 5, 40), 1 + i, np.float16) for i in range(2)]
    settings = task_separation.Settings(data="", steps=5, batch_size=4, frames=16, gain_db=6.0)
    first, second = (task_separation.Remixes(songs, settings, 1) for _ in range(2))
    assert len(first) == 20
    for i in range(20):
        row, again = first[i], second[i]
        assert row["values"].shape == (5, 16) and row["values"].equal(again["values"])
        torch.testing.assert_close(row["values"], row["source_values"].sum(0))
        assert row["source_values"].min() > 0.49 and row["source_values"].max() < 4.01


def score() -> bytes:
    """Twenty seconds of a drum, a bass (program 33) and a piano, at 120 beats a minute; the bass from 8 s on."""
    mido = pytest.importorskip("mido")
    import io

    events = []  # (ticks, message)
    for beat in range(40):
        events += [(480 * beat, mido.Message("note_on", channel=9, note=36, velocity=100))]
        events += [(480 * beat + 100, mido.Message("note_off", channel=9, note=36))]
        for channel, note, first in ((0, 60, 0), (1, 40, 16)):
            if beat >= first:
                events += [(480 * beat, mido.Message("note_on", channel=channel, note=note, velocity=90))]
                events += [(480 * beat + 400, mido.Message("note_on", channel=channel, note=note, velocity=0))]
    track = mido.MidiTrack([mido.Message("program_change", channel=1, program=33)])
    now = 0
    for ticks, message in sorted(events, key=lambda event: event[0]):
        track.append(message.copy(time=ticks - now))
        now = ticks
    file = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=480, tracks=[track]).save(file=file)
    return file.getvalue()


def test_scores():
    """Each note goes to one role, the excerpt is where all play, and its score is as long as it says."""
    mido = pytest.importorskip("mido")
    import io

    from research.corpora import multitracks

    events = multitracks.timed_events(score())
    part = multitracks.best_excerpt(events, 8)
    assert part is not None and part[0] >= 8 and part[1] - part[0] == 8
    found = {}
    for role in multitracks.ROLES:
        midi = mido.MidiFile(file=io.BytesIO(multitracks.excerpt_of_role(events, role, *part)))
        assert midi.length == pytest.approx(8)
        found[role] = {(m.channel, m.note) for m in midi if m.type == "note_on" and m.velocity}
        programs = [m.program for m in midi if m.type == "program_change"]
        assert programs == [33]  # set before the excerpt began
    assert found == {"drums": {(9, 36)}, "bass": {(1, 40)}, "other": {(0, 60)}}
    assert multitracks.best_excerpt([e for e in events if e[2] != "bass"], 8) is None


def test_multitracks_are_written(tmp_path, monkeypatch):
    """From a WAD to folders of stems that sum up without clipping, once; a score in two packages only once."""
    soundfile = pytest.importorskip("soundfile")
    import struct

    from research.corpora import multitracks

    midi = score()
    wad = b"IWAD" + struct.pack("<ii", 2, 12) + struct.pack("<ii8s", 44, len(midi), b"D_E1M1\0\0")
    wad += struct.pack("<ii8s", 44, 8, b"SPRITE\0\0") + midi
    assert list(multitracks.wad_music(wad)) == [("d_e1m1", midi)]
    out = tmp_path / "out"
    for source, name, content in zip(
        multitracks.SCORES, ("freedoom1.wad", "freedm.wad", "openmsx/a.mid"), (wad, wad, score()[:-4] + b"\0\xff/\0"),
        strict=True,
    ):  # fmt: skip
        file = out / "unpacked" / source.package / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    for font in multitracks.SOUNDFONTS.values():
        (out / "unpacked" / font.package).mkdir()
        (out / "unpacked" / font.package / font.pattern.split("/")[-1]).write_bytes(b"")
    calls = []

    def play(midi, soundfont, scratch, part):
        calls.append(soundfont.name)
        noise = np.random.default_rng(len(midi)).normal(size=(round((part[1] - part[0]) * 44100), 2))
        return noise

    monkeypatch.setattr(multitracks, "play", play)
    monkeypatch.setattr(multitracks.shutil, "which", lambda name: name)
    argv = ["--out", str(out), "--seconds", "5"]
    assert multitracks.main(argv) == 0
    assert calls == ["FluidR3_GM.sf2"] * 3 + ["sf_GMbank.sf2"] * 3  # the other two scores have the same notes
    stems = [soundfile.read(out / "train/freedoom-freedoom1-d_e1m1-GMbank" / f"{r}.flac")[0] for r in multitracks.ROLES]
    assert all(stem.shape == (5 * 44100, 2) for stem in stems) and np.abs(sum(stems)).max() < 0.91
    entry = json.loads((out / "manifest.jsonl").read_text().splitlines()[-1])
    assert entry["licence"] == "BSD-3-clause" and entry["seconds"] == 5
    for stem, role in zip(stems, multitracks.ROLES, strict=True):
        assert 20 * np.log10(np.sqrt(np.mean(stem**2))) == pytest.approx(entry["rms_db"][role], abs=0.02)
    assert multitracks.main(argv) == 0 and len(calls) == 6


# Receipts


@pytest.fixture(scope="module")
def receipts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("receipts")
    (folder / "images").mkdir()
    answers = {}
    for i in range(6):
        picture = np.random.default_rng(i).integers(0, 256, (90, 45), dtype=np.uint8)
        Image.fromarray(picture).resize((300, 600)).save(folder / "images" / f"{i:03}.png")
        answers[f"{i:03}"] = {"company": "Kitten" if i < 5 else "sitting", "date": f"0{i}/01/2018", "total": "1.00"}
    (folder / "answers.json").write_text(json.dumps(answers))
    return folder


def test_anls():
    """Textbook distances: kitten -> sitting is 3, flaw -> lawn 2; similarity below 0.5 counts as 0."""
    from research.tasks import receipts as task_receipts

    assert task_receipts.levenshtein("kitten", "sitting") == 3
    assert task_receipts.levenshtein("flaw", "lawn") == 2
    assert task_receipts.levenshtein("", "abc") == task_receipts.levenshtein("abc", "") == 3
    assert task_receipts.anls("Sitting", " kitten") == pytest.approx(1 - 3 / 7)
    assert task_receipts.anls("flaw", "lawn") == 0.0  # 2 of 4 is not below 0.5
    assert task_receipts.anls("9.00", "9.00") == 1.0 and task_receipts.anls("9.00", "") == 0.0


def test_rendered_receipts():
    """The same for the same seed; what is to be read can be spelled; the total is that of the cents."""
    from research.tasks import receipts as task_receipts

    for seed in range(3):
        receipt = task_receipts.Receipt([], seed)
        again = task_receipts.Receipt([], seed)
        assert receipt.facts == again.facts and receipt.image.tobytes() == again.image.tobytes()
        assert receipt.image.size == (448, 896)
        facts = list(receipt.facts.values())
        assert set("".join(facts)) <= set(task_receipts.CHARACTERS)
        assert float(receipt.facts["total"]) > 0 and len(receipt.facts["date"]) == 10


# Reading


def test_reading(receipts, tmp_path):
    from research.tasks import reading as task_reading

    argv = ["--data", str(receipts), "--output", str(tmp_path), "--test=1", "--seeds=0", "--steps=1", "--batch_size=2"]
    argv += ["--width=16", "--layers=1", "--rendered=1", "--rendered_test=1", "--real=2", f"--cache={tmp_path}"]
    # What PP-OCR, whose package is not needed here, would have read of the two pages of 300 x 600 that are learnt from.
    words = [
        [[[30, 30], [60, 30], [60, 50], [30, 50]], "Total", 0.99],
        [[[90, 32], [120, 32], [120, 52], [90, 52]], "1.00", 0.99],
    ]
    (tmp_path / f"ocr_lines_{receipts.name}.json").write_text(json.dumps({"000": words, "001": words}))
    runs = load(task_reading.main(argv))
    assert list(runs) == list(task_reading.CONDITIONS)
    for name, run in runs.items():
        real = name.endswith("+real")
        assert ("real_character_errors" in run["metrics"]) == real
        assert run["examples"]["training lines"] == runs["resize-224"]["examples"]["training lines"] + real
    for resize, walloc, numbers in (("resize-224", "walloc-16x", 2688), ("resize-448", "walloc-4x", 10752)):
        assert runs[resize]["model_inputs"] == runs[walloc]["model_inputs"] == numbers
        assert runs[resize]["parameters"] == runs[walloc]["parameters"]
        assert runs[resize]["examples"] == runs[walloc]["examples"]
    with pytest.raises(ValueError, match="rendered is 0"):
        task_reading.main([*argv, "--rendered=0"])


def test_lines_of_rendered_receipts():
    """Where a line is said to stand there is ink, and the places of its characters spell it."""
    from research.tasks import reading as task_reading

    receipt = task_reading.DenseReceipt([], 3)
    page = np.asarray(receipt.image.convert("L"), dtype=float)
    ink = np.abs(page - np.median(page)) > 60
    lines = receipt.found()
    assert len(lines) > 20
    for line in lines:
        assert len(line.columns) == len(line.text) and list(line.columns) == sorted(line.columns)
        row = task_reading.window_of(line.middle)
        assert row % 8 == 0 and 0 <= row <= 864 and (row in (0, 864) or abs(row + 16 - line.middle) <= 4)
        for character, column in zip(line.text, line.columns, strict=True):
            if character.isalnum():
                assert ink[row : row + 32, int(column) - 5 : int(column) + 6].any()
    examples = [{"pixel_values": torch.zeros(1), "labels": line} for line in lines]
    batch = task_reading.collate(examples)
    spelled = task_reading.to_text(torch.nn.functional.one_hot(batch["places"]).float())
    assert np.mean([a == line.text for a, line in zip(spelled, lines, strict=True)]) > 0.7  # narrow ones may collide
    assert all(task_reading.levenshtein(a, line.text) <= 3 for a, line in zip(spelled, lines, strict=True))


def test_lines_that_ocr_read():
    """Boxes of a page of another size: parts of a line are joined, unsure, tall and unspelled ones leave it out."""
    from research.tasks.receipt_text import lines_of_boxes

    def box(left, top, right, bottom):
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])

    boxes = [
        (box(400, 104, 480, 136), "9.00", 0.99),  # to the right of the next one
        (box(40, 100, 140, 132), "Total", 0.95),
        (box(40, 200, 140, 232), "smudge", 0.5),
        (box(40, 300, 140, 380), "LOGO", 0.99),
        (box(40, 400, 140, 432), "\N{CJK UNIFIED IDEOGRAPH-4E00}", 0.99),
        (box(40, 500, 140, 532), "a", 0.99),
        (box(240, 502, 340, 534), "blur", 0.2),
    ]
    (line,) = lines_of_boxes(boxes, (896, 1792))  # twice the page of the task
    assert line.text == "TOTAL 9.00" and line.middle == 59
    assert line.columns[0] == 25 and line.columns[4] == 65 and line.columns[6] == 205 and line.columns[-1] == 235
    assert line.columns[5] == (65 + 200) / 2 and list(line.columns) == sorted(line.columns)
    every = [line.text for line in lines_of_boxes(boxes, (896, 1792), everything=True)]
    assert every == ["TOTAL 9.00", "SMUDGE", "LOGO", "A BLUR"]


def test_answers_picked():
    from research.tasks.receipt_text import answers_in

    lines = [
        "RECEIPT OF",
        "KITTEN & CO SDN BHD",
        "TEL 07-3507405",
        "DATE: 19/10/201820:49",
        "SUB TOTAL 60.00",
        "TOTAL 60.31",
    ]
    lines += ["TOTAL QTY 2 9.00", "ROUNDED TOTAL 60.30", "TOTAL GST 3.00", "CASH 70.30", "19-10-18"]
    picked = answers_in(lines)
    assert picked == {"company": "KITTEN & CO SDN BHD", "date": "19/10/2018", "total": "60.30"}
    assert answers_in(["TOTAL 1.00", "TOTAL 2.00", "TOTAL 2.00"])["total"] == "2.00"  # a line seen twice counts more
    assert answers_in(["12 MAR 2018"])["date"] == "12 MAR 2018" and answers_in(["1.50"])["total"] == "1.50"
    assert answers_in([]) == {"company": "", "date": "", "total": ""}


def test_answers_found():
    from research.tasks import reading as task_reading

    assert task_reading.is_found("Kitten & Co", ["xKITTEN &CO.", ""])
    assert not task_reading.is_found("9.00", ["9.0", "0"]) and not task_reading.is_found("", ["a"])
    path = [0, 5, 5, 0, 5, 0]  # a blank between tells a repeated character from a long one
    logits = torch.nn.functional.one_hot(torch.tensor([path]), 60).float()
    assert task_reading.to_text(logits) == [task_reading.CHARACTERS[4] * 2]
