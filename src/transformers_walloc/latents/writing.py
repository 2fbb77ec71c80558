"""Writing data sets of latents: a `datasets.Dataset` of images, or whatever holds one, to Parquet shards of latents."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..atomic import atomic_file, write_atomically
from ..codec.identity import codec_name
from ..codec.modeling_walloc import WallocImageEncoder
from ..media.paths import IMAGE_SUFFIXES
from .datasets import LATENTS, Storage, encode_rows

OPTIONS_FILE = "walloc_latents.json"
BATCH_ROWS = 16  # images that are held and encoded together


@dataclass(frozen=True)
class WrittenLatents:
    """What `write_latent_dataset` has done.

    Args:
        folder: for `load_dataset`.
        num_rows: of the split, those of an earlier run included.
        new_rows: written by this run.
        num_bytes: of the split's shards.
    """

    folder: Path
    num_rows: int
    new_rows: int
    num_bytes: int


def write_latent_dataset(
    dataset: Any,
    folder: str | os.PathLike,
    codec: str,
    split: str = "train",
    image_column: str = "image",
    storage: Storage = "webp",
    size: Sequence[int] | None = None,
    halo: int = 0,
    step: float = 1.0,
    shard_rows: int = 1000,
    num_proc: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> WrittenLatents:
    """Write a `datasets.Dataset` with an image column as Parquet shards of latents, `folder/data/*.parquet`.

    `load_dataset(folder)` reads the result, and `upload_folder` makes it a repository. A shard appears when it is
    whole; those of an earlier, interrupted run are kept.

    Args:
        dataset: with random access; an `IterableDataset` has to be stored first.
        codec: Hub id or folder.
        storage, size, halo, step: see `encode_rows`.
        shard_rows: rows of a shard.
        num_proc: processes, each on one thread and with its own copy of the encoder.
        device: of the encoder, in each process.
        progress: whether to show a bar.

    Raises:
        ValueError: no such column, an image that cannot be read, or the folder holds latents written with other options
            or by another codec.
    """
    if image_column not in dataset.column_names:
        raise ValueError(f"the data set has no column {image_column!r}; it has {', '.join(dataset.column_names)}")
    if LATENTS in dataset.column_names and image_column != LATENTS:
        raise ValueError(f"the data set already has a column {LATENTS!r}")
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    encoder = _load(codec, device)
    options: dict[str, Any] = {"storage": storage, "size": size and list(size), "halo": halo, "step": step}
    _state_options(
        folder / OPTIONS_FILE,
        {"codec": codec_name(codec), "fingerprint": encoder.fingerprint(), "shard_rows": shard_rows, **options},
        {split: len(dataset)},
    )
    count = max(1, -(-len(dataset) // shard_rows))
    paths = [folder / "data" / f"{split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    starts = range(0, max(1, len(dataset)), shard_rows)
    shards = [(range(i, min(i + shard_rows, len(dataset))), p) for i, p in zip(starts, paths, strict=True)]
    jobs = [(rows, str(path)) for rows, path in shards if not path.exists()]
    new_rows = sum(len(rows) for rows, _ in jobs)
    with tqdm(
        total=len(dataset), initial=len(dataset) - new_rows, desc=split, unit=" images", disable=not progress
    ) as bar:
        if num_proc <= 1:
            for rows, path in jobs:
                for done in _write_shard(dataset, encoder, image_column, rows, path, options):
                    bar.update(done)
        else:
            state = (dataset, codec, device, image_column, options)
            with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, state) as pool:
                for future in as_completed([pool.submit(_work, *job) for job in jobs]):
                    bar.update(future.result())
    return WrittenLatents(folder, len(dataset), new_rows, sum(path.stat().st_size for path in paths))


def compress_dataset(
    source: str,
    folder: str | os.PathLike,
    codec: str = "walloc/rgb-16x",
    splits: Sequence[str] | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    **options: Any,
) -> dict[str, WrittenLatents]:
    """Turn a data set of images into one of latents: a folder of images, a saved data set or a repository.

    The same call continues an interrupted run.

    Args:
        source: folder of images (of folders, for classes), folder of `save_to_disk`, or Hub id of a data set.
        folder: to write.
        splits: names; None for all.
        push_to_hub: repository to upload the result to.
        private: whether that repository is private, where it does not exist yet.
        **options: of `write_latent_dataset`.

    Returns:
        What was written, by split.

    Raises:
        ValueError: an unknown split, and as `write_latent_dataset` does.
    """
    found = _load_images(source)
    for name in splits or ():
        if name not in found:
            raise ValueError(f"no split {name!r}; the data set has {', '.join(found)}")
    written = {name: write_latent_dataset(found[name], folder, codec, name, **options) for name in splits or found}
    if push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push_to_hub, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=push_to_hub, folder_path=str(folder), repo_type="dataset", ignore_patterns=[".*.part"]
        )
    return written


def _load_images(source: str) -> dict[str, Any]:
    """Splits by name."""
    from datasets import load_dataset, load_from_disk

    if Path(source, "dataset_info.json").exists() or Path(source, "dataset_dict.json").exists():
        loaded = load_from_disk(source)
    elif Path(source).is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(source).rglob("*")):
        loaded = load_dataset("imagefolder", data_dir=source)
    else:
        loaded = load_dataset(source)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


_worker: tuple = ()


def _start_worker(dataset, codec, device, image_column, options):
    global _worker
    torch.set_num_threads(1)
    _worker = (dataset, _load(codec, device), image_column, options)


def _work(rows: range, path: str) -> int:
    dataset, encoder, image_column, options = _worker
    return sum(_write_shard(dataset, encoder, image_column, rows, path, options))


def _write_shard(dataset, encoder, image_column: str, rows: range, path: str, options: dict) -> Iterator[int]:
    """Yields the rows of each batch as it is encoded; the shard is there after the last."""
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    column = {
        "bytes": Value("binary"),
        "storage": Value("string"),
        "shape": List(Value("int32")),
        "size": List(Value("int32")),
        "halo": Value("int32"),
        "step": Value("float32"),
        "codec": Value("string"),
    }
    shard = dataset.select(rows)
    images = shard.select_columns([image_column])
    latents: list[dict[str, Any]] = []
    for start in range(0, len(rows), BATCH_ROWS):
        numbers = rows[start : start + BATCH_ROWS]
        latents += _encode_batch(images, start, numbers, encoder, image_column, options)
        yield len(numbers)
    result = Dataset.from_dict({LATENTS: latents}, features=Features({LATENTS: column}))
    rest = shard.remove_columns([image_column])
    if rest.column_names:
        result = concatenate_datasets([rest, result], axis=1)
    with atomic_file(path) as partial, open(partial, "wb") as file, _without_bars():
        result.to_parquet(file)


def _as_files(images: Any, column: str) -> Any:
    """Rows with the bytes of image files, which `datasets` would decode to less; None if there are none."""
    from datasets import Image

    feature = images.features[column]
    return images.cast_column(column, Image(decode=False)) if isinstance(feature, Image) and feature.decode else None


def _image_of(images: Any, files: Any, i: int, column: str) -> Any:
    file = None if files is None else files[i][column]
    known = file is not None and (file["bytes"] is not None or os.path.isfile(file["path"] or ""))
    return file if known else images[i][column]


def _encode_batch(images, start: int, numbers: range, encoder, column: str, options: dict) -> list[dict[str, Any]]:
    read: list[Any] = []
    files = _as_files(images, column)
    try:
        for i in range(start, start + len(numbers)):
            read.append(_image_of(images, files, i, column))
        return encode_rows(read, encoder, **options)
    except Exception:
        # One at a time, to name the image that is at fault.
        for i, number in enumerate(numbers):
            try:
                encode_rows([_image_of(images, files, start + i, column)], encoder, **options)
            except Exception as error:
                raise ValueError(f"row {number}: {error}") from error
        raise


@contextlib.contextmanager
def _without_bars():
    """`datasets` shows a bar for each shard."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _load(codec: str, device: str | None) -> WallocImageEncoder:
    encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
    return encoder if device is None else encoder.to(device)  # type: ignore[arg-type]


def _state_options(path: Path, options: dict[str, Any], rows: dict[str, int]) -> None:
    """Write what the folder holds beside its shards, or check that this run belongs to it."""
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in options.items():
            if earlier.get(name) != value:
                raise ValueError(
                    f"{path.parent} holds latents written with {name} {earlier.get(name)!r}, not {value!r}"
                )
        before = earlier["rows"]
        if any(before.get(split, count) != count for split, count in rows.items()):
            raise ValueError(f"{path.parent} holds a split of {before} rows, not {rows}")
        rows = {**before, **rows}
    write_atomically(path, json.dumps({**options, "rows": rows}, indent=2) + "\n")
