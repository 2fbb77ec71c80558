"""A door that cannot serve a kind of file says so, and names the file, the kind or the column."""

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from codec_fixtures import audio_model, image_model
from kinds_of_files import PICTURES, SOUNDS

from transformers_walloc import WallocAudioFeatureExtractor, WallocImageProcessor
from transformers_walloc.cli.main import main
from transformers_walloc.evaluation.inspection import inspect
from transformers_walloc.evaluation.signals import Signals
from transformers_walloc.latents import distributed
from transformers_walloc.latents.writing import write_latent_dataset
from transformers_walloc.media.file_codec import FileCodec
from transformers_walloc.training import fit_tables, scale
from transformers_walloc.training.fit import fit_codec


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    generator = np.random.default_rng(0)
    for name, shape, kind in (("raster", (4, 64, 80), "image"), ("volume", (16, 40, 48), "volume")):
        array = generator.integers(0, 4000, shape, dtype=np.uint16)
        np.save(folder / f"{name}.npy", array)
        quick = {"table_steps": 0, "progress": False, "dimensionality_reduction": 4, "num_levels": 2}
        fit_codec([array], folder / name, kind=kind, **quick)
    return folder


@pytest.mark.parametrize("command", ["compare", "inspect"])
@pytest.mark.parametrize("name, said", [("raster", "raster|images of 4 bands"), ("volume", "volume")])
def test_rasters_and_volumes(fitted, tmp_path, capsys, command, name, said):
    options = ["--model", str(fitted / name), "--output", str(tmp_path / "out")]
    options = options[:2] if command == "compare" else options
    assert main([command, str(fitted / f"{name}.npy"), *options]) == 1
    message = capsys.readouterr().err
    assert f"{name}.npy: " in message and any(words in message for words in said.split("|")), message
    assert f"{command} " in message and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A picture and a recording, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("other")
    for kind, file in (("picture", PICTURES["RGB"]()), ("sound", SOUNDS["stereo"]())):
        (folder / kind).mkdir()
        (folder / kind / f"{kind}{file.suffix}").write_bytes(file.data)
    image_model().save_pretrained(folder / "codec")
    return folder


def by_dataset(folder):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"audio": [str(folder / "sound" / "sound.wav")]})
    write_latent_dataset(rows, folder / "latents", str(folder / "codec"), progress=False)


def by_ray(folder):
    batch = pa.table({"path": ["sound.wav"], "bytes": [(folder / "sound" / "sound.wav").read_bytes()]})
    errors = distributed._Errors(pa.fs.LocalFileSystem(), str(folder / "errors"), "path")
    assert distributed._decode(batch, "bytes", 3, errors).num_rows == 0
    (table,) = (pa.parquet.read_table(path) for path in (folder / "errors").iterdir())
    raise ValueError(table.to_pylist()[0]["error"])


NOT_READ = "cannot read .*sound.wav' as an image"
NO_FILE = "the folder has no file of type"
DOORS = {
    "processor": (lambda folder: WallocImageProcessor()(str(folder / "sound" / "sound.wav")), NOT_READ),
    "ray": (by_ray, NOT_READ),
    "dataset": (by_dataset, "no column 'image'; it has audio"),
    "evaluate": (lambda folder: Signals(folder / "sound"), NO_FILE),
    "scale": (lambda folder: list(scale.read_signals(image_model().config, [str(folder / "sound")])), NO_FILE),
    "fit-tables": (lambda folder: fit_tables.fit_tables(folder / "codec", folder / "sound"), NO_FILE),
    "compress": (
        lambda folder: FileCodec("mine", image_model(), WallocImageProcessor()).compress(
            str(folder / "sound" / "sound.wav")
        ),
        "'mine' is for image and the file is audio",
    ),
    "inspect": (
        lambda folder: inspect(folder / "picture" / "picture.png", audio_model(), folder / "out"),
        "picture.png is image, the codec is for audio",
    ),
    "extractor": (
        lambda folder: WallocAudioFeatureExtractor()(str(folder / "picture" / "picture.png")),
        "cannot read .*picture.png' as audio",
    ),
    "evaluate audio": (lambda folder: Signals(folder / "picture", "audio"), NO_FILE),
}


@pytest.mark.parametrize("door", DOORS)
def test_files_of_the_other_kind(other, door):
    call, message = DOORS[door]
    with pytest.raises(ValueError, match=message):
        call(other)
