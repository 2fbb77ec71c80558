"""Writing with Ray beside the one-machine writer.

The steps that Ray runs are functions of tables, tested as such; a local Ray and its workers take half a minute to
start, so that is slow.
"""

import io
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest
from codec_fixtures import image_model

from transformers_walloc.latents import distributed
from transformers_walloc.latents.datasets import encode_rows

SIZES = [(40, 56), (33, 47), (64, 64), (8, 100)]


@pytest.fixture(scope="module")
def ray():
    # Read when it is imported: no tokens in the user's home, no reports, and patience on a busy machine, where workers
    # of low priority would not register in time and others be started in their place, without end.
    patience = {
        "RAY_raylet_start_wait_time_s": "600",
        "RAY_agent_register_timeout_ms": "600000",
        "RAY_worker_register_timeout_seconds": "600",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **patience})
    ray = pytest.importorskip("ray")
    # Workers import this checkout and look for nothing on a network.
    names = ("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    ray.init(
        "local",  # whatever cluster this machine belongs to
        num_cpus=4,
        include_dashboard=False,
        runtime_env={"env_vars": variables},
        object_store_memory=2**27,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (*SIZES[i % 4], 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "40.png").write_bytes(b"no picture")
    (folder / "41.png").write_bytes((folder / "00.png").read_bytes()[:200])
    return folder


def _name(process) -> str:
    """Ray calls its workers by what they do."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def rows_of(folder: Path, part: str = "data") -> list[dict]:
    paths = sorted((folder / part).glob("*.parquet"))
    return [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]


def test_steps_give_the_rows_of_the_writer_and_a_side_table(photos, tmp_path):
    model = image_model()
    model.save_pretrained(tmp_path / "codec")
    names = sorted(photos.iterdir())
    batch = pa.table({"path": [path.name for path in names], "bytes": [path.read_bytes() for path in names]})
    structs = [{"bytes": data, "path": None} for data in batch.column("bytes").to_pylist()]
    errors = distributed._Errors(pyarrow.fs.LocalFileSystem(), str(tmp_path / "errors"), "path")
    for column in (batch.column("bytes"), pa.array(structs)):
        pixels = distributed._decode(batch.set_column(1, "image", column), "image", 3, errors)
        encoder = distributed._Encoder(str(tmp_path / "codec"), {"storage": "webp", "size": [16, 24]}, errors)
        rows = encoder(pixels).to_pylist()
        images = [PIL.Image.open(path) for path in names[:40]]
        expected = encode_rows(images, encoder.encoder, storage="webp", size=[16, 24])
        assert [row["latents"] for row in rows] == expected
        assert [row["path"] for row in rows] == [path.name for path in names[:40]]
    # The same pictures fail twice, and are there once.
    assert [row["id"] for row in rows_of(tmp_path, "errors")] == ["40.png", "41.png"]


def test_a_picture_that_cannot_be_encoded_is_set_aside(tmp_path):
    image_model().save_pretrained(tmp_path / "codec")
    errors = distributed._Errors(pyarrow.fs.LocalFileSystem(), str(tmp_path / "errors"), "id")
    encoder = distributed._Encoder(str(tmp_path / "codec"), {"storage": "int8"}, errors)
    good = np.zeros((3, 16, 16), np.uint8)
    images = (good, good.astype("f4") + 2, good)
    pixels = [{"data": x.tobytes(), "shape": x.shape, "dtype": x.dtype.str} for x in images]
    rows = encoder(pa.table({"id": [7, 8, 9], distributed.PIXELS: pa.array(pixels, distributed.PIXELS_TYPE)}))
    assert rows.column("id").to_pylist() == [7, 9]
    (row,) = rows_of(tmp_path, "errors")
    assert row["id"] == "8" and "must lie in [0, 1]" in row["error"]


@pytest.mark.slow
def test_same_rows_though_a_worker_dies(ray, photos, tmp_path):
    from transformers_walloc import WallocImageEncoder

    source = lambda: ray.data.read_binary_files(str(photos), include_paths=True, override_num_blocks=8)  # noqa: E731
    killed, done = [], threading.Event()

    def kill_one():
        while not killed and not done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                if _name(process).startswith("ray::") and "_Encoder" in _name(process) and not killed:
                    process.kill()
                    killed.append(process.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = {"codec": "walloc/rgb-16x", "storage": "int8", "num_workers": 2, "batch_rows": 2}
    try:
        distributed.compress_with_ray(source(), str(tmp_path / "out"), **options)
    finally:
        done.set()
        killer.join()
    assert killed

    encoder = WallocImageEncoder.from_pretrained("walloc/rgb-16x")
    rows = {Path(row["path"]).name: row["latents"] for row in rows_of(tmp_path / "out")}
    assert sorted(rows) == [f"{i:02d}.png" for i in range(40)]
    for i in range(40):
        (expected,) = encode_rows([PIL.Image.open(photos / f"{i:02d}.png")], encoder, storage="int8")
        assert rows[f"{i:02d}.png"] == expected
    errors = {Path(row["id"]).name: row["error"] for row in rows_of(tmp_path / "out", "errors")}
    assert sorted(errors) == ["40.png", "41.png"]
    assert "cannot identify" in errors["40.png"]

    # Again: nothing is written twice, and a picture that is whole now joins the others.
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(buffer, "PNG")
    (photos / "41.png").write_bytes(buffer.getvalue())
    distributed.compress_with_ray(source(), str(tmp_path / "out"), **options)
    names = sorted(Path(row["path"]).name for row in rows_of(tmp_path / "out"))
    assert names == [*(f"{i:02d}.png" for i in range(40)), "41.png"]

    with pytest.raises(ValueError, match="written with storage 'int8', not 'webp'"):
        distributed.compress_with_ray(source(), str(tmp_path / "out"), "walloc/rgb-16x")
    with pytest.raises(ValueError, match="no column 'image'; it has"):
        distributed.compress_with_ray(source(), str(tmp_path / "out"), image_column="image")


@pytest.mark.slow
def test_documentation(ray, photos, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda: None)  # it runs already
    (tmp_path / "photos").mkdir()
    for i in (0, 1, 40):
        shutil.copy(photos / f"{i:02d}.png", tmp_path / "photos")
    namespace: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(code, namespace)
    assert [row["latent_values"].shape for row in namespace["latents"]] == [(12, 5, 7), (12, 5, 6)]
