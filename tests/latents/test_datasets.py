"""Data sets of latents, written in shards by the command and read back as what a model takes."""

import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from codec_fixtures import image_model
from datasets import Dataset, load_dataset, load_from_disk

from transformers_walloc.latents.datasets import decode_latents, encode_image, latent_transform, write_latent_dataset
from transformers_walloc.latents.folding import latent_values, latent_windows


@pytest.fixture(scope="module")
def codec():
    return image_model(12)


@pytest.fixture(scope="module")
def codec_folder(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs") / "tiny"
    codec.save_pretrained(folder)
    return str(folder)


def _images(count: int) -> list[np.ndarray]:
    picture = skimage.data.astronaut()
    return [picture[i * 20 : i * 20 + 60, 100 : 180 + 8 * i] for i in range(count)]


@pytest.fixture
def photos(tmp_path):
    """Two classes in folders, as `imagefolder` takes them."""
    for i, image in enumerate(_images(5)):
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path, quality=90)
    return tmp_path / "photos"


def _codes(codec, image: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 - 0.5
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="reflect")
    with torch.no_grad():
        return codec.quantize(codec.encode(x).latents)[0]


@pytest.mark.parametrize("storage", ["webp", "walloc", "int8"])
def test_codes_survive(storage, codec):
    image = _images(1)[0]
    row = encode_image(image, codec, storage)
    assert decode_latents(row, codec).equal(_codes(codec, image))
    assert (row["size"], row["shape"]) == ([60, 80], [12, 8, 10])
    coarse = encode_image(image, codec, storage, step=4.0)
    assert (decode_latents(coarse, codec) - _codes(codec, image) / 4).abs().max() <= 1
    if storage != "int8":
        assert len(coarse["bytes"]) < len(row["bytes"]) < 12 * 8 * 10


def test_windows(codec):
    """Stored with a halo, windows are those that the model would make itself, up to rounding."""
    image, size = _images(1)[0], (64, 96)
    windows = {"patch_size": 4, "halo": 1, "constant_channel": True}
    row = encode_image(image, codec, "int8", size, halo=2)
    transform = latent_transform(codec, windows=windows, output_name="pixel_values")
    result = transform({"latents": [row], "label": [3]})
    assert result["label"] == [3] and set(result) == {"label", "pixel_values"}
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 - 0.5
    x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-0.5, 0.5)
    with torch.no_grad():
        latents = codec.encode(F.pad(x, (16,) * 4, mode="reflect")).latents[:, :, 1:-1, 1:-1]
    expected = latent_windows(latent_values(codec.quantize(latents), codec.config), **windows)
    torch.testing.assert_close(result["pixel_values"][0], expected[0])
    with pytest.raises(ValueError, match="has a halo of 2, the model wants 3"):
        latent_transform(codec, windows={**windows, "halo": 3})({"latents": [row]})


def test_command(photos, codec, codec_folder, tmp_path, capsys):
    """A folder of photographs in, a data set with labels out, continued where it was interrupted."""
    from transformers_walloc.latents import compress_dataset as script

    output = tmp_path / "latents"
    command = [str(photos), str(output), "--codec", codec_folder, "--shard_rows", "2"]
    script.main(command)
    shards = sorted((output / "data").iterdir())
    assert [p.name for p in shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    untouched, missing = shards[0].stat().st_mtime_ns, shards[1]
    missing.unlink()
    script.main([*command, "--benchmark", "5"])
    assert missing.exists() and shards[0].stat().st_mtime_ns == untouched
    table = capsys.readouterr().out
    assert (
        all(f"| latents, {name} |" in table for name in ("webp", "walloc", "int8"))
        and "5 images, 0.01 megapixels each" in table
    )

    dataset = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features["label"].names == ["cat", "dog"]
    original = load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache"))
    read = dataset.with_transform(latent_transform(codec_folder, content="codes"))
    for before, after in zip(original, read, strict=True):
        assert after["label"] == before["label"]
        assert after["latent_values"].equal(_codes(codec, np.array(before["image"])))
    dataset.save_to_disk(tmp_path / "saved")
    values = load_from_disk(tmp_path / "saved").with_transform(latent_transform(codec_folder))[0]["latent_values"]
    assert values.equal(latent_values(read[0]["latent_values"], codec.config))
    with pytest.raises(SystemExit, match="holds latents written with storage 'webp', not 'int8'"):
        script.main([*command, "--storage", "int8"])


@pytest.mark.slow
def test_processes(photos, codec_folder, tmp_path):
    dataset = load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache"))
    for name, count in (("one", 1), ("two", 2)):
        rows = list(write_latent_dataset(dataset, tmp_path / name, codec_folder, shard_rows=2, num_proc=count))
        assert rows[-1] == 5 and len(rows) == 3
    for a, b in zip(sorted((tmp_path / "one/data").iterdir()), sorted((tmp_path / "two/data").iterdir()), strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_repository(photos, codec_folder, tmp_path, hub):
    """To the Hub with one command, and from there to a model's input."""
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    pushed = [
        "-m",
        "transformers_walloc.latents.compress_dataset",
        str(photos),
        str(tmp_path / "latents"),
        "--codec",
        codec_folder,
        "--push_to_hub",
        "me/photos",
    ]
    read = f"""
import torch
from datasets import load_dataset
from transformers_walloc import latent_transform
dataset = load_dataset("me/photos", split="train").with_transform(latent_transform({codec_folder!r}))
print(len(dataset), tuple(dataset[0]["latent_values"].shape))
"""
    for arguments in (pushed, ["-c", read]):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "5 (12, 8, 11)"


def test_errors(codec, codec_folder, tmp_path):
    dataset = Dataset.from_dict({"photo": [None], "label": [1]})
    with pytest.raises(ValueError, match="no column 'image'; it has photo, label"):
        list(write_latent_dataset(dataset, tmp_path, codec_folder))
    with pytest.raises(ValueError, match="row 0: an image cannot be of type NoneType"):
        list(write_latent_dataset(dataset, tmp_path, codec_folder, image_column="photo"))
    assert not list((tmp_path / "data").iterdir())
    with pytest.raises(ValueError, match="unknown storage 'png'; valid: webp, walloc, int8"):
        encode_image(_images(1)[0], codec, "png")
    with pytest.raises(ValueError, match="unknown content 'pixels'; valid: values, latents, codes"):
        latent_transform(codec, content="pixels")
    row = encode_image(_images(1)[0], codec, "int8")
    with pytest.raises(ValueError, match=r"written by codec 'other' \(0123\), this is"):
        decode_latents({**row, "codec": "other:0123"}, codec)
    assert json.loads((tmp_path / "walloc_latents.json").read_text())["codec"] == "tiny"
