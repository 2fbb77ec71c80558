"""Writing data sets of latents: a `datasets.Dataset` of images, or whatever holds one, to Parquet shards of latents."""

import contextlib
import functools
import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..atomic import atomic_file, remove_partial_files, write_atomically
from ..codec.identity import codec_name
from ..codec.modeling_walloc import WallocImageEncoder
from ..extras import naming_extras
from ..loading import codec_path
from ..media.paths import IMAGE_SUFFIXES, LATENT_DATASET
from .dataset_card import write_card
from .datasets import LATENTS, Storage, encode_rows, encode_rows_or_errors

with naming_extras():
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

PATH = "path"  # the column of file names
LATENTS_TYPE = pyarrow.struct(
    {
        "bytes": pyarrow.binary(),
        "storage": pyarrow.string(),
        "shape": pyarrow.list_(pyarrow.int32()),
        "size": pyarrow.list_(pyarrow.int32()),
        "halo": pyarrow.int32(),
        "step": pyarrow.float32(),
        "codec": pyarrow.string(),
    }
)
BATCH_ROWS = 16  # images that are held and encoded together


@dataclass(frozen=True)
class WrittenLatents:
    """What `write_latent_dataset` has done.

    Args:
        folder: for `load_dataset`.
        num_rows: of the split, those of an earlier run included.
        new_rows: of these, written by this run.
        num_bytes: of the split's shards.
        num_errors: pictures that could not be read; `folder/errors` says which and why.
    """

    folder: Path
    num_rows: int
    new_rows: int
    num_bytes: int
    num_errors: int = 0


@naming_extras()
def write_latent_dataset(
    dataset: Any,
    folder: str | os.PathLike[str],
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

    `load_dataset(folder)` reads the result, streamed too, and `upload_folder` makes it a repository, whose card is
    there. A shard appears when it is whole; those of an earlier, interrupted run are kept. The image column gives way
    to `latents`; the names of its files, where they are known, become a column `path`; all other columns stay.

    Pictures that cannot be read do not stop the run: they become rows (id, error) of `folder/errors`.

    Args:
        dataset: with random access; an `IterableDataset` has to be stored first.
        codec: Hub id or folder.
        storage, size, halo, step: see `encode_rows`.
        shard_rows: rows of a shard.
        num_proc: processes, each on one thread and with its own copy of the encoder.
        device: of the encoder, in each process.
        progress: whether to show a bar.

    Raises:
        ValueError: no such column, or the folder holds latents written with other options or by another codec.
    """
    if image_column not in dataset.column_names:
        raise ValueError(f"the data set has no column {image_column!r}; it has {', '.join(dataset.column_names)}")
    if LATENTS in dataset.column_names and image_column != LATENTS:
        raise ValueError(f"the data set already has a column {LATENTS!r}")
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    encoder = _load(codec, device)
    options: dict[str, Any] = {"storage": storage, "size": size and list(size), "halo": halo, "step": step}
    blank = np.zeros((16, 16, encoder.config.num_channels), np.uint8)
    encode_rows([blank], encoder, **options)  # options that are wrong for every picture are no fault of the pictures
    stated = folder / LATENT_DATASET
    facts = {"codec": codec_name(codec), "fingerprint": encoder.fingerprint(), "shard_rows": shard_rows, **options}
    earlier = stated.read_bytes() if stated.exists() else None
    write_atomically(stated, options_to_state(folder, earlier, facts, {split: len(dataset)}))
    root = _root(dataset, image_column)
    count = max(1, -(-len(dataset) // shard_rows))
    paths = [folder / "data" / f"{split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    starts = range(0, max(1, len(dataset)), shard_rows)
    shards = [(range(i, min(i + shard_rows, len(dataset))), p) for i, p in zip(starts, paths, strict=True)]
    jobs = [(rows, str(path)) for rows, path in shards if not path.exists()]
    todo = sum(len(rows) for rows, _ in jobs)
    with tqdm(total=len(dataset), initial=len(dataset) - todo, desc=split, unit=" images", disable=not progress) as bar:
        if num_proc <= 1:
            for rows, path in jobs:
                for done in _write_shard(dataset, encoder, image_column, root, rows, path, options):
                    bar.update(done)
        else:
            state = (dataset, codec, device, image_column, root, options)
            others = set(active_children())
            pool = ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, state)
            try:
                for future in as_completed([pool.submit(_work, *job) for job in jobs]):
                    bar.update(future.result())
            except BaseException:
                for process in set(active_children()) - others:
                    process.terminate()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    counts = {str(path): pyarrow.parquet.read_metadata(path).num_rows for path in paths}
    errors = [pyarrow.parquet.read_metadata(path).num_rows for path in map(_errors_of, paths) if path.exists()]
    new_rows = sum(counts[path] for _, path in jobs)
    num_bytes = sum(path.stat().st_size for path in paths)
    write_card(folder)
    return WrittenLatents(folder, sum(counts.values()), new_rows, num_bytes, sum(errors))


@naming_extras()
def compress_dataset(
    source: str,
    folder: str | os.PathLike[str],
    codec: str = "walloc/rgb-16x",
    splits: Sequence[str] | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    config: str | None = None,
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
        config: which configuration of a data set that has several.
        **options: of `write_latent_dataset`.

    Returns:
        What was written, by split.

    Raises:
        ValueError: an unknown split, and as `write_latent_dataset` does.
    """
    found = _load_images(source, config)
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


def options_to_state(
    folder: str | Path, earlier: bytes | None, options: dict[str, Any], rows: dict[str, int] | None = None
) -> bytes:
    """What is to stand in a folder's `LATENT_DATASET`, which holds `earlier` where there were runs before this one.

    Args:
        folder: for messages.
        rows: of splits, which are stated with those of earlier runs.

    Raises:
        ValueError: the earlier runs had other options, or a split had other rows.
    """
    found = {} if earlier is None else json.loads(earlier)
    for name, value in options.items():
        if found and found.get(name) != value:
            raise ValueError(f"{folder} holds latents written with {name} {found.get(name)!r}, not {value!r}")
    if rows is not None:
        before = found.get("rows", {})
        if any(before.get(split, count) != count for split, count in rows.items()):
            raise ValueError(f"{folder} holds a split of {before} rows, not {rows}")
        options = {**options, "rows": {**before, **rows}}
    return json.dumps(options, indent=2).encode() + b"\n"


def _load_images(source: str, config: str | None = None) -> dict[str, Any]:
    """Splits by name."""
    from datasets import load_dataset, load_from_disk

    if config is not None:
        loaded = load_dataset(source, config)
    elif Path(source, "dataset_info.json").exists() or Path(source, "dataset_dict.json").exists():
        loaded = load_from_disk(source)
    elif Path(source).is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(source).rglob("*")):
        loaded = load_dataset("imagefolder", data_dir=source)
    else:
        loaded = load_dataset(source)
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


_worker: tuple[Any, ...] = ()


def _start_worker(dataset: Any, codec: str, device: Any, image_column: str, root: str, options: dict[str, Any]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent says what is to be done
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)
    _worker = (dataset, _load(codec, device), image_column, root, options)


def _leave(*_: Any) -> None:
    remove_partial_files()
    os._exit(143)


def _work(rows: range, path: str) -> int:
    dataset, encoder, image_column, root, options = _worker
    return sum(_write_shard(dataset, encoder, image_column, root, rows, path, options))


def _write_shard(
    dataset: Any, encoder: Any, image_column: str, root: str, rows: range, path: str, options: dict[str, Any]
) -> Iterator[int]:
    """Yields the rows of each batch as it is encoded; the shard is there after the last."""
    from datasets import Dataset, Features, concatenate_datasets

    shard = dataset.select(rows)
    images, names = shard.select_columns([image_column]), _file_names(shard, image_column, root)
    latents: list[Any] = []
    kept: list[int] = []
    errors: dict[int, str] = {}
    for start in range(0, len(rows), BATCH_ROWS):
        numbers = range(start, min(start + BATCH_ROWS, len(rows)))
        files = _as_files(images, image_column)
        read = [functools.partial(_image_of, images, files, i, image_column) for i in numbers]
        encoded = encode_rows_or_errors(read, encoder, **options)
        for number, value in zip(numbers, encoded, strict=True):
            if isinstance(value, str):
                errors[number] = value
            else:
                latents.append(value)
                kept.append(number)
        yield len(numbers)
    columns, fields = {LATENTS: latents}, [(LATENTS, LATENTS_TYPE)]
    if names is not None and PATH not in shard.column_names:
        columns, fields = {PATH: [names[i] for i in kept], **columns}, [(PATH, pyarrow.string()), *fields]
    result = Dataset.from_dict(columns, features=Features.from_arrow_schema(pyarrow.schema(fields)))
    rest = shard.remove_columns([image_column])
    if rest.column_names:
        result = concatenate_datasets([rest.select(kept), result], axis=1)
    if errors:
        ids = [str(rows[i]) if names is None else names[i] for i in errors]
        with atomic_file(_errors_of(Path(path))) as partial:
            pyarrow.parquet.write_table(pyarrow.table({"id": ids, "error": list(errors.values())}), partial)
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


def _errors_of(shard: Path) -> Path:
    return shard.parent.parent / "errors" / shard.name


def _root(dataset: Any, image_column: str) -> str:
    """The folder that all files of a data set are in; "" where they have no paths or come from several places."""
    column = dataset.data.table.column(image_column)
    if not pyarrow.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return ""
    paths = pyarrow.compute.struct_field(column, "path").to_pylist()
    if not paths or not all(path and os.path.isabs(path) for path in paths):
        return ""
    return str(os.path.commonpath([os.path.dirname(path) for path in paths]))


def _file_names(shard: Any, image_column: str, root: str) -> list[str] | None:
    """Where the pictures came from: below the folder of the data set, or by their names; None if nothing is known."""
    from datasets import Image

    if not isinstance(shard.features[image_column], Image):
        return None
    stored = shard.cast_column(image_column, Image(decode=False)).select_columns([image_column])
    paths = [(row[image_column] or {}).get("path") for row in stored]
    if not any(paths):
        return None
    return [os.path.relpath(path, root) if root and path else os.path.basename(path or "") for path in paths]


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
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
    encoder = WallocImageEncoder.from_pretrained(codec_path(codec), dtype=torch.float32)
    moved: WallocImageEncoder = encoder if device is None else encoder.to(device)
    return moved
