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
from datasets import Dataset, Features, Image, load_dataset, load_from_disk
from huggingface_hub import DatasetCard

from transformers_walloc import WallocImageEncoder
from transformers_walloc.latents.datasets import RowReader, decode_rows, encode_rows, latent_transform
from transformers_walloc.latents.values import latent_values, latent_windows
from transformers_walloc.latents.writing import compress_dataset, write_latent_dataset


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
    row = encode_rows([image], codec, storage)[0]
    assert RowReader(codec).codes(row).equal(_codes(codec, image))
    assert (row["size"], row["shape"]) == ([60, 80], [12, 8, 10])
    coarse = encode_rows([image], codec, storage, step=4.0)[0]
    assert (RowReader(codec).codes(coarse) - _codes(codec, image) / 4).abs().max() <= 1
    if storage != "int8":
        assert len(coarse["bytes"]) < len(row["bytes"]) < 12 * 8 * 10


def test_windows(codec):
    """Stored with a halo, windows are those that the model would make itself, up to rounding."""
    image, size = _images(1)[0], (64, 96)
    windows = {"patch_size": 4, "halo": 1, "constant_channel": True}
    row = encode_rows([image], codec, "int8", size, halo=2)[0]
    transform = latent_transform(codec, windows=windows, output_name="pixel_values")
    result = transform({"latents": [row], "label": [3]})
    assert result["label"] == [3] and set(result) == {"label", "pixel_values"}
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    x = F.interpolate(x, size, mode="bicubic", antialias=True) / 255 - 0.5  # in 8 bits
    with torch.no_grad():
        latents = codec.encode(F.pad(x, (16,) * 4, mode="reflect")).latents[:, :, 1:-1, 1:-1]
    expected = latent_windows(latent_values(codec.quantize(latents), codec.config), **windows)
    torch.testing.assert_close(result["pixel_values"][0], expected[0])
    with pytest.raises(ValueError, match="have a halo of 2, the model wants 3"):
        latent_transform(codec, windows={**windows, "halo": 3})({"latents": [row]})


def test_batches(codec):
    """Images of several sizes in one call, in their order; reading them takes no encoder."""
    images = [_images(3)[i] for i in (0, 1, 0, 2)]
    rows = encode_rows(images, codec, "int8", halo=1)
    assert rows[0] == rows[2] != rows[1] and [row["size"] for row in rows] == [[60, 80], [60, 88], [60, 80], [60, 96]]
    for image, row in zip(images, rows, strict=True):
        height, width = image.shape[:2]
        margins = ((8, 8 + -height % 8), (8, 8 + -width % 8), (0, 0))
        x = torch.from_numpy(np.pad(image, margins, mode="reflect")).permute(2, 0, 1)[None] / 255 - 0.5
        with torch.no_grad():
            expected = codec.quantize(codec.encode(x).latents)[0]
        difference = (RowReader(codec).codes(row) - expected).abs()
        assert difference.max() <= 1 and difference.float().mean() < 1e-3  # batches may round another way


def test_reading_takes_no_encoder(codec, codec_folder, monkeypatch):
    rows = {storage: encode_rows(_images(1), codec, storage)[0] for storage in ("webp", "int8", "walloc")}
    loaded = []
    original = WallocImageEncoder.from_pretrained.__func__
    monkeypatch.setattr(
        WallocImageEncoder, "from_pretrained", classmethod(lambda *a, **k: loaded.append(1) or original(*a, **k))
    )
    transform = latent_transform(codec_folder, content="codes")
    codes = [transform({"latents": [rows[name]]})["latent_values"][0] for name in ("webp", "int8")]
    assert not loaded and codes[0].equal(codes[1])
    assert transform({"latents": [rows["walloc"]]})["latent_values"][0].equal(codes[0]) and loaded


def test_folder_of_images(photos, codec, codec_folder, tmp_path):
    """Photographs in, a data set with labels out, continued where it was interrupted."""
    output = tmp_path / "latents"
    options = {"codec": codec_folder, "shard_rows": 2, "progress": False}
    written = compress_dataset(str(photos), output, **options)["train"]
    shards = sorted((output / "data").iterdir())
    assert [p.name for p in shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert (written.num_rows, written.new_rows, written.num_bytes) == (5, 5, sum(p.stat().st_size for p in shards))
    untouched, missing = shards[0].stat().st_mtime_ns, shards[1]
    missing.unlink()
    assert compress_dataset(str(photos), output, **options)["train"].new_rows == 2
    assert missing.exists() and shards[0].stat().st_mtime_ns == untouched

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
    with pytest.raises(ValueError, match="holds latents written with storage 'webp', not 'int8'"):
        compress_dataset(str(photos), output, **options, storage="int8")
    with pytest.raises(ValueError, match="no split 'test'; the data set has train"):
        compress_dataset(str(photos), output, **options, splits=["test"])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_broken_picture(photos, codec_folder, tmp_path, processes):
    """Is passed over and said; the others keep names and labels. Streamed, and as pictures again."""
    (photos / "cat" / "1.jpg").write_bytes((photos / "cat" / "1.jpg").read_bytes()[:200])
    output, options = tmp_path / "latents", {"shard_rows": 2, "progress": False, "num_proc": processes}
    written = compress_dataset(str(photos), output, codec_folder, **options, halo=1)["train"]
    assert (written.num_rows, written.new_rows, written.num_errors) == (4, 4, 1)
    assert compress_dataset(str(photos), output, codec_folder, **options, halo=1)["train"].num_errors == 1
    cache = {"cache_dir": str(tmp_path / "cache")}
    (error,) = load_dataset("parquet", data_files=str(output / "errors" / "*.parquet"), split="train", **cache)
    assert error["id"] == os.path.join("cat", "1.jpg") and error["error"]

    dataset = load_dataset(str(output), split="train", **cache)
    assert dataset["path"] == [
        os.path.join(*name) for name in (("cat", "3.jpg"), *[("dog", f"{i}.jpg") for i in (0, 2, 4)])
    ]
    assert [dataset.features["label"].int2str(i) for i in dataset["label"]] == ["cat", "dog", "dog", "dog"]
    stream = load_dataset(str(output), split="train", streaming=True)
    stream = stream.map(latent_transform(codec_folder), batched=True, remove_columns=["latents"])
    stored = dataset.with_transform(latent_transform(codec_folder))
    for row, other in zip(stream, stored, strict=True):
        assert row["path"] == other["path"] and torch.equal(
            torch.as_tensor(row["latent_values"]), other["latent_values"]
        )

    for image, path in zip(decode_rows(dataset["latents"], codec_folder), dataset["path"], strict=True):
        original = np.asarray(PIL.Image.open(photos / path), np.float64)
        assert image.size == original.shape[1::-1]
        assert ((np.asarray(image) - original) ** 2).mean() < 0.2 * original.var()


def test_card(photos, codec_folder, tmp_path):
    """Says how to read the folder, which is a repository once it is uploaded; a card of somebody else stays."""
    output = tmp_path / "latents"
    compress_dataset(str(photos), output, codec_folder, progress=False)
    card = DatasetCard.load(output / "README.md")
    assert "5 of train" in card.text and "decode_rows" in card.text
    (output / "README.md").write_text("mine")
    compress_dataset(str(photos), output, codec_folder, progress=False)
    assert (output / "README.md").read_text() == "mine"


def test_key_is_checked(codec, tmp_path):
    """Neither another codec under the same name nor rows of another size, step or halo pass unnoticed."""
    codec.save_pretrained(tmp_path / "codec")
    images = [PIL.Image.fromarray(image) for image in _images(1)]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    write_latent_dataset(dataset, tmp_path / "out", str(tmp_path / "codec"), size=(32, 32), progress=False)
    for changed in ({"size": (32, 40)}, {"step": 2.0}, {"halo": 1}):
        options = {"size": (32, 32), **changed}
        with pytest.raises(ValueError, match=f"written with {next(iter(changed))} "):
            write_latent_dataset(dataset, tmp_path / "out", str(tmp_path / "codec"), **options)
    other = WallocImageEncoder(codec.config)
    other.config.latent_fingerprint = None
    other.save_pretrained(tmp_path / "other" / "codec")
    with pytest.raises(ValueError, match="written with fingerprint "):
        write_latent_dataset(dataset, tmp_path / "out", str(tmp_path / "other" / "codec"), size=(32, 32))
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="written by codec 'codec'"):
        rows.with_transform(latent_transform(str(tmp_path / "other" / "codec")))[0]
    with pytest.raises(ValueError, match=r"an image of \[32, 32\] pixels, the model wants \[64, 64\]"):
        rows.with_transform(latent_transform(codec, size=(64, 64)))[0]


@pytest.mark.slow
def test_processes(photos, codec_folder, tmp_path):
    dataset = load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache"))
    for name, count in (("one", 1), ("two", 2)):
        written = write_latent_dataset(dataset, tmp_path / name, codec_folder, shard_rows=2, num_proc=count)
        assert written.new_rows == 5
    for a, b in zip(sorted((tmp_path / "one/data").iterdir()), sorted((tmp_path / "two/data").iterdir()), strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_repository(photos, codec_folder, tmp_path, hub):
    """To the Hub with one call, and from there to a model's input."""
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    call = f"""
from transformers_walloc.latents.writing import compress_dataset
compress_dataset({str(photos)!r}, {str(tmp_path / "latents")!r}, {codec_folder!r}, push_to_hub="me/photos")
"""
    read = f"""
import torch
from datasets import load_dataset
from transformers_walloc import latent_transform
dataset = load_dataset("me/photos", split="train").with_transform(latent_transform({codec_folder!r}))
print(len(dataset), tuple(dataset[0]["latent_values"].shape))
"""
    for code in (call, read):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "5 (12, 8, 11)"


def test_errors(codec, codec_folder, tmp_path):
    dataset = Dataset.from_dict({"photo": [None], "label": [1]})
    with pytest.raises(ValueError, match="no column 'image'; it has photo, label"):
        write_latent_dataset(dataset, tmp_path, codec_folder)
    with pytest.raises(ValueError, match="unknown storage 'png'"):
        write_latent_dataset(dataset, tmp_path, codec_folder, image_column="photo", storage="png")
    assert not list((tmp_path / "data").iterdir())
    written = write_latent_dataset(dataset, tmp_path, codec_folder, image_column="photo", progress=False)
    assert (written.num_rows, written.num_errors) == (0, 1)
    (error,) = load_dataset("parquet", data_files=str(tmp_path / "errors" / "*"), cache_dir=str(tmp_path))["train"]
    assert error == {"id": "0", "error": "an image cannot be of type NoneType"} or "NoneType" in error["error"]
    with pytest.raises(ValueError, match="unknown storage 'png'; valid: webp, walloc, int8"):
        encode_rows(_images(1), codec, "png")
    with pytest.raises(ValueError, match="unknown content 'pixels'; valid: values, latents, codes"):
        latent_transform(codec, content="pixels")
    row = encode_rows(_images(1), codec, "int8")[0]
    with pytest.raises(ValueError, match=r"written by codec 'other' \(0123\), this is"):
        RowReader(codec).codes({**row, "codec": "other:0123"})
    assert json.loads((tmp_path / "walloc_latents.json").read_text())["codec"] == "tiny"


def test_folders_of_the_same_name_are_two_data_sets(photos, codec_folder, tmp_path, monkeypatch):
    """Whatever the cache of `datasets` holds of the other."""
    for name, size in (("one", (32, 32)), ("two", (64, 64))):
        compress_dataset(str(photos), tmp_path / name / "latents", codec_folder, size=size, progress=False)
    cache = {"cache_dir": str(tmp_path / "cache")}
    for name, size in (("one", [32, 32]), ("two", [64, 64])):
        rows = load_dataset(str(tmp_path / name / "latents"), split="train", **cache)
        assert rows[0]["latents"]["size"] == size
