"""Rows of both writers of data sets of latents have the same columns: path, label with its names, latents."""

from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
import skimage.data
from codec_fixtures import image_model
from datasets import load_dataset

from transformers_walloc.latents import distributed
from transformers_walloc.latents.writing import compress_dataset


@pytest.fixture
def photos(tmp_path) -> Path:
    picture = PIL.Image.fromarray(skimage.data.astronaut())
    for i in range(5):
        path = tmp_path / "photos" / ("cat", "dog", "ant")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((40 * i, 0, 40 * i + 24, 16)).save(path)
    return tmp_path / "photos"


def test_columns_of_both_writers(photos, tmp_path):
    """The steps that Ray runs, on one table."""
    codec = tmp_path / "codec"
    image_model().save_pretrained(codec)
    compress_dataset(str(photos), tmp_path / "one", codec=str(codec))
    one = load_dataset(str(tmp_path / "one"), split="train")

    paths = sorted(str(path) for path in photos.rglob("*.png"))
    table = pa.table({"path": paths, "bytes": [Path(path).read_bytes() for path in paths]})
    errors = distributed._Errors(pyarrow.fs.LocalFileSystem(), str(tmp_path / "errors"), "path")
    classes = distributed._classes(str(photos))
    labelled = distributed._add_labels(table, classes)
    encoder = distributed._Encoder(str(codec), {"storage": "webp"}, errors)
    (tmp_path / "many" / "data").mkdir(parents=True)
    written = encoder(distributed._decode(labelled, "bytes", 3, errors))
    pyarrow.parquet.write_table(written, tmp_path / "many" / "data" / "0.parquet")
    many = load_dataset(str(tmp_path / "many"), split="train")

    assert set(many.column_names) == set(one.column_names) == {"path", "label", "latents"}
    assert many.features["label"] == one.features["label"] and many.features["label"].names == ["ant", "cat", "dog"]
    assert many.features["latents"] == one.features["latents"]
    by_name = {Path(row["path"]).name: row for row in many}
    assert len(by_name) == 5
    for row in one:
        other = by_name[Path(row["path"]).name]
        assert other["label"] == row["label"] and other["latents"] == row["latents"]


def test_folders_that_are_no_classes(photos):
    assert distributed._classes(str(photos / "cat")) is None  # of one class
    PIL.Image.new("RGB", (8, 8)).save(photos / "above.png")
    assert distributed._classes(str(photos)) is None
