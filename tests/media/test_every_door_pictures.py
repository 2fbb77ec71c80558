"""Every door reads every kind of picture alike: what is expected is computed from the samples each file was made of."""

import io
import logging
import warnings
from pathlib import Path

import kinds_of_files
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
import torch
from codec_fixtures import image_model
from kinds_of_files import PICTURES, PictureFile

from transformers_walloc import WallocImageProcessor
from transformers_walloc.cli.main import main
from transformers_walloc.evaluation import compare, inspection, plots
from transformers_walloc.evaluation.signals import Signals
from transformers_walloc.latents import distributed
from transformers_walloc.latents.datasets import RowReader
from transformers_walloc.latents.writing import write_latent_dataset
from transformers_walloc.media.paths import IMAGE_SUFFIXES, list_files
from transformers_walloc.training import fit_signals, fit_tables, scale
from transformers_walloc.training.data import MediaCache

# Mean difference, in levels of 8 bits, of what went through a codec that keeps all channels.
THROUGH_CODEC = 6


class Folder:
    """A file of each kind, and where results of doors that take a folder at once are kept."""

    def __init__(self, path: Path):
        self.path, self.files = path / "pictures", {name: make() for name, make in PICTURES.items()}
        self.path.mkdir()
        self.paths = {}
        for i, (name, file) in enumerate(self.files.items()):
            self.paths[name] = self.path / f"{i:02d}{file.suffix}"
            self.paths[name].write_bytes(file.data)
        self.codec, self.out = str(path / "codec"), path
        self.model = image_model(192)
        self.model.save_pretrained(self.codec)

    def in_order(self, results) -> dict:
        return dict(zip(self.paths, results, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("doors"))


def as_levels(pixels) -> np.ndarray:
    """(3, H, W) in [-0.5, 0.5] -> (H, W, 3) in 0..255."""
    return (pixels.float().numpy().transpose(1, 2, 0) + 0.5) * 255


def decoded(folder: Folder, codes: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return as_levels(folder.model.decode(codes[None].float())[0][0].clamp(-0.5, 0.5))


def by_compress(folder: Folder) -> dict:
    assert main(["compress", str(folder.path), "-o", f"{folder.out}/small/", "--model", folder.codec]) == 0
    assert main(["decompress", f"{folder.out}/small", "-o", f"{folder.out}/full/", "--model", folder.codec]) == 0
    results = {}
    for name, path in folder.paths.items():
        with PIL.Image.open(folder.out / "full" / f"{path.stem}.png") as image:
            results[name] = image.copy(), (folder.out / "full" / f"{path.stem}.png").read_bytes()
    return results


def by_compare(folder: Folder) -> dict:
    results = {}
    for name, path in folder.paths.items():
        out = folder.out / "side.png"
        assert main(["compare", str(path), "--model", folder.codec, "--output", str(out), "--force"]) == 0
        with PIL.Image.open(out) as image:
            shown = np.asarray(image.convert("RGB"), float)
        results[name] = shown[compare.CAPTION_HEIGHT :, : kinds_of_files.WIDTH]
    return results


def by_inspect(folder: Folder) -> dict:
    results = {}
    for name, path in folder.paths.items():
        shown = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plots, "reconstructions", shown.update)
            for drawn in ("channel_maps", "latent_histograms", "latent_atlas"):
                patch.setattr(plots, drawn, lambda *_: None)
            patch.setattr(plots, "save", lambda *_: [])
            patch.setattr(inspection, "formats_at_size", lambda *_: [])
            inspection.inspect(path, folder.model, folder.out / "drawn")
        results[name] = shown["original"].astype(float)
    return results


def by_evaluate(folder: Folder) -> dict:
    return folder.in_order(signal.array.astype(float) for signal in Signals(folder.path))


def by_train(folder: Folder) -> dict:
    cache = MediaCache(list_files(folder.path, IMAGE_SUFFIXES), "image", folder.out)
    return folder.in_order(cache[i].astype(float) for i in range(len(cache)))


def by_fit(folder: Folder) -> dict:
    signals = fit_signals.read_signals(str(folder.path), "image", num_channels=3)
    return folder.in_order(
        signal.values.transpose(1, 2, 0) * (255 / np.iinfo(signal.values.dtype).max) for signal in signals
    )


def by_fit_tables(folder: Folder) -> dict:
    processor = WallocImageProcessor()
    codes = fit_tables.codes_of_folder(folder.model, processor, "image", folder.path, None, 1.0, 1.0)
    return folder.in_order(decoded(folder, torch.from_numpy(c)) for c in codes)


def by_scale(folder: Folder) -> dict:
    return folder.in_order(as_levels(batch[0]) for batch in scale.read_signals(folder.model.config, [str(folder.path)]))


def by_dataset(folder: Folder) -> dict:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in folder.paths.values()]})
    rows = rows.cast_column("image", datasets.Image())
    write_latent_dataset(rows, folder.out / "latents", folder.codec, storage="int8", progress=False)
    (shard,) = (folder.out / "latents" / "data").glob("*.parquet")
    reader = RowReader(folder.model)
    return folder.in_order(
        decoded(folder, reader.codes(row["latents"])) for row in pa.parquet.read_table(shard).to_pylist()
    )


def by_ray(folder: Folder) -> dict:
    names = [str(path) for path in folder.paths.values()]
    batch = pa.table({"path": names, "bytes": [file.data for file in folder.files.values()]})
    errors = distributed._Errors(pa.fs.LocalFileSystem(), str(folder.out / "errors"), "path")
    rows = distributed._decode(batch, "bytes", 3, errors).to_pylist()
    assert [row["path"] for row in rows] == names
    results = []
    for row in rows:
        data, shape, dtype = row[distributed.PIXELS].values()
        values = torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())
        results.append(as_levels(WallocImageProcessor()(values, return_tensors="pt")["pixel_values"][0]))
    return folder.in_order(results)


def by_processor(folder: Folder) -> dict:
    paths = [str(path) for path in folder.paths.values()]
    return folder.in_order(
        as_levels(WallocImageProcessor()(path, return_tensors="pt")["pixel_values"][0]) for path in paths
    )


DOORS = {
    "compress": by_compress,
    "compare": by_compare,
    "inspect": by_inspect,
    "evaluate": by_evaluate,
    "train": by_train,
    "fit": by_fit,
    "fit-tables": by_fit_tables,
    "scale": by_scale,
    "dataset": by_dataset,
    "ray": by_ray,
    "processor": by_processor,
}


@pytest.fixture(scope="module")
def results(folder):
    """Of each door when it is first asked for, with what it said."""
    kept: dict[str, tuple[dict, str]] = {}

    def of(door: str) -> tuple[dict, str]:
        if door not in kept:
            said, handler = io.StringIO(), logging.StreamHandler()
            handler.setStream(said)
            logging.getLogger("transformers_walloc").addHandler(handler)
            with warnings.catch_warnings(record=True) as found, pytest.MonkeyPatch.context() as patch:
                warnings.simplefilter("always")
                patch.setattr(compare, "IMAGE_RIVALS", ())
                patch.setattr("sys.stderr", said)
                kept[door] = DOORS[door](folder), ""
            logging.getLogger("transformers_walloc").removeHandler(handler)
            kept[door] = kept[door][0], said.getvalue() + "".join(str(warning.message) + "\n" for warning in found)
        return kept[door]

    return of


def seen(file: PictureFile, door: str) -> np.ndarray:
    if door == "compare" and file.alpha is not None:  # which keeps transparency and codes colours
        return np.where(file.alpha[..., None] > 0, 255 * file.colours, 255)
    if file.profile and door != "compare":
        return 255 * kinds_of_files.in_srgb(file.colours)
    return file.on_white


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("door", [door for door in DOORS if door != "compress"])
def test_pictures_are_what_they_show(results, folder, door, kind):
    found, file = results(door)[0][kind], folder.files[kind]
    expected = seen(file, door)
    difference = np.abs(found[: expected.shape[0], : expected.shape[1]] - expected)
    assert found.shape[2] == 3 and max(found.shape[0] - expected.shape[0], found.shape[1] - expected.shape[1]) < 8
    if door in ("dataset", "fit-tables"):
        # Edges of two levels, and colours as strong as no photograph has them, cost a codec more.
        assert difference.mean() < THROUGH_CODEC * (2.5 if file.profile or kind == "1-bit" else 1)
    else:
        assert difference.max() <= max(file.tolerance, 2.5 if file.profile else 0.51), difference.max()


@pytest.mark.parametrize("kind", PICTURES)
def test_compress_keeps_what_a_picture_is(results, folder, kind):
    (image, data), file = results("compress")[0][kind], folder.files[kind]
    deep = "16" in kind or "float" in kind
    gray = kind in ("L", "LA", "1-bit", "I;16", "I;16 TIFF", "16-bit LA", "float TIFF") or "white is zero" in kind
    assert data[24] == (16 if deep else 8) and data[25] in ((0, 4) if gray else (2, 6))  # PNG's depth and kind
    assert ("icc_profile" in image.info) == file.profile
    image = image if image.mode[0] != "I" else PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    levels = np.asarray(image.convert("RGBA"), float)
    opacity = np.ones(levels.shape[:2]) if file.alpha is None else file.alpha
    assert np.abs(levels[..., 3] / 255 - opacity).max() < 0.005  # without loss
    shown = levels[..., :3] * opacity[..., None] + 255 * (1 - opacity[..., None])
    assert np.abs(shown - file.on_white).mean() < THROUGH_CODEC * (2.5 if kind == "1-bit" else 1)


@pytest.mark.parametrize("door", DOORS)
def test_what_is_lost_is_said(results, folder, door):
    said = results(door)[1]
    for kind in ("animation", "pages"):
        name = folder.paths[kind].name
        assert any(name in line and "first of 2 frames" in line for line in said.splitlines()), (kind, said)
    for kind in ("extra band", "16-bit extra band"):
        name = folder.paths[kind].name
        assert any(name in line and "more band" in line for line in said.splitlines()), kind
    if door not in ("compress", "compare"):
        assert "are converted from Wide test to sRGB" in said
