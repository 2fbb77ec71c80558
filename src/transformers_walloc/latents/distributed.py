"""Data sets of latents beyond one machine: Ray Data reads, decodes on CPUs, encodes in a pool of actors and writes.

```
pictures -- decode (tasks) --> pixels -- encode (actors, on GPUs if asked) --> folder/data/*.parquet
                 \\__________ pictures that cannot be read _______\\----------> folder/errors/*.parquet
                                                       ids of rows written --> folder/checkpoint/*.parquet
```

Rows are those of `write_latent_dataset`. Ray starts as many tasks as memory allows and holds the readers back when the
actors are behind; it starts actors and tasks again that die.
"""

import functools
import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder
from ..extras import naming_extras
from ..media.paths import IMAGE_SUFFIXES, LATENT_DATASET
from .datasets import LATENTS, Storage, encode_rows_or_errors
from .writing import LATENTS_TYPE, options_to_state

with naming_extras():
    import pyarrow as pa
    import pyarrow.fs
    import pyarrow.parquet

if TYPE_CHECKING:
    import ray.data

ERRORS = pa.schema({"id": pa.string(), "error": pa.string()})
_CLASSES = b"walloc_classes"
# The column between both steps. Pixels travel as bytes: arrays of one column would have to be of one type.
PIXELS = "walloc_pixels"
PIXELS_TYPE = pa.struct({"data": pa.binary(), "shape": pa.list_(pa.int32()), "dtype": pa.string()})


@naming_extras()
def compress_with_ray(
    dataset: "ray.data.Dataset",
    folder: str,
    codec: str = "walloc/rgb-16x",
    image_column: str = "bytes",
    id_column: str = "path",
    storage: Storage = "webp",
    size: Sequence[int] | None = None,
    halo: int = 0,
    step: float = 1.0,
    num_workers: int | tuple[int, int] = 1,
    num_gpus: float = 0,
    batch_rows: int = 16,
    shard_rows: int | None = None,
    filesystem: Any = None,
) -> None:
    """Write a Ray data set of pictures as Parquet files of latents; a second call continues an interrupted one.

    Pictures that cannot be read do not stop the run: they become rows (id, error) of `folder/errors`, and the next run
    tries them again.

    Args:
        dataset: as one of `ray.data.read_*` gives it, with a column of pictures and one of stable ids;
            `read_binary_files(photos, include_paths=True)` has both. Pictures are bytes of image files, or structs with
            a field `bytes` as `datasets` stores them. The other columns are kept.
        folder: path or URL of a file system that pyarrow knows, reachable from all machines.
        codec: Hub id or folder, reachable from all machines.
        id_column: strings or integers, unique and the same in every run.
        storage, size, halo, step: see `encode_rows`.
        num_workers: actors that hold an encoder; a number or (least, most).
        num_gpus: of each actor; 0 encodes on one CPU core.
        batch_rows: pictures that an actor encodes at once.
        shard_rows: least rows of a file; Ray's blocks by default.
        filesystem: `pyarrow.fs.FileSystem` of `folder`, where its URL does not say all.

    Raises:
        ValueError: no such column, or the folder holds latents written with other options or by another codec.
    """
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    columns = dataset.schema().names
    for name in (image_column, id_column):
        if name not in columns:
            raise ValueError(f"the data set has no column {name!r}; it has {', '.join(columns)}")
    if LATENTS in columns and image_column != LATENTS:
        raise ValueError(f"the data set already has a column {LATENTS!r}")
    files, root = (filesystem, folder) if filesystem else pa.fs.FileSystem.from_uri(_uri(folder))
    encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
    options: dict[str, Any] = {"storage": storage, "size": size and list(size), "halo": halo, "step": step}
    stated, earlier = posixpath.join(root, LATENT_DATASET), None
    files.create_dir(root)
    if files.get_file_info(stated).type == pa.fs.FileType.File:
        with files.open_input_stream(stated) as file:
            earlier = file.read()
    facts = {"fingerprint": encoder.fingerprint(), "id_column": id_column, **options}
    to_state = options_to_state(root, earlier, facts)
    if to_state != earlier:
        with files.open_output_stream(stated) as file:
            file.write(to_state)
    errors = _Errors(files, posixpath.join(root, "errors"), id_column)
    tables: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": batch_rows}
    least, most = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    stages: Any = dataset  # the stubs of map_batches know functions with plain arguments only
    rows = stages.map_batches(
        _decode,
        fn_kwargs={"column": image_column, "num_channels": encoder.config.num_channels, "errors": errors},
        **tables,
    ).map_batches(
        _Encoder,
        fn_constructor_args=(codec, options, errors),
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=0 if num_gpus else 1,
        num_gpus=num_gpus,
        **tables,
    )
    rows.context.checkpoint_config = CheckpointConfig(
        id_column,
        posixpath.join(root, "checkpoint"),
        delete_checkpoint_on_success=False,
        override_filesystem=files,
    )
    rows.write_parquet(posixpath.join(root, "data"), filesystem=files, min_rows_per_file=shard_rows)


@naming_extras()
def read_images(source: str) -> "ray.data.Dataset":
    """The image files below a folder or URL, as `compress_with_ray` takes them.

    Columns are `path`, `bytes`, and `label` where every file is in one of several folders, all as deep: the number of
    its folder among their sorted names, as `datasets` has it of a folder of images.
    """
    import ray.data

    suffixes = [suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES]
    images = ray.data.read_binary_files(_uri(source), include_paths=True, file_extensions=suffixes)
    classes = _classes(_uri(source))
    if classes is None:
        return images
    return images.map_batches(_add_labels, fn_kwargs={"classes": classes}, batch_format="pyarrow")


def _classes(source: str) -> list[str] | None:
    """Names of the folders of pictures; None where they are no classes."""
    files, root = pa.fs.FileSystem.from_uri(source)
    found = files.get_file_info(pa.fs.FileSelector(root, recursive=True))
    paths = [info.path for info in found if info.type == pa.fs.FileType.File]
    folders = [posixpath.dirname(path) for path in paths if path.lower().endswith(tuple(IMAGE_SUFFIXES))]
    names = sorted({posixpath.basename(folder) for folder in folders})
    return names if len(names) > 1 and len({folder.count("/") for folder in folders}) == 1 else None


def _add_labels(batch: pa.Table, classes: list[str]) -> pa.Table:
    """A column of class numbers; the names travel in the schema's metadata, which all steps keep."""
    paths = batch.column("path").to_pylist()
    labels = [classes.index(posixpath.basename(posixpath.dirname(path))) for path in paths]
    table = batch.append_column("label", pa.array(labels, pa.int64()))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _CLASSES: json.dumps(classes)})


def _with_features(table: pa.Table) -> pa.Table:
    """Metadata by which `datasets` knows the names of the classes, if there are some."""
    metadata = table.schema.metadata or {}
    if _CLASSES not in metadata:
        return table
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(table.schema)
    features["label"] = ClassLabel(names=json.loads(metadata[_CLASSES]))
    return table.replace_schema_metadata(features.arrow_schema.metadata)


class _Errors:
    """The side table. A file is called by what it holds, so that a batch that is done again leaves no second one."""

    def __init__(self, files: pa.fs.FileSystem, folder: str, id_column: str):
        self.files, self.folder, self.id_column = files, folder, id_column

    def write(self, batch: pa.Table, messages: dict[int, str]) -> None:
        """Messages by row of the batch."""
        if not messages:
            return
        ids = batch.column(self.id_column)
        rows = {"id": [str(ids[i].as_py()) for i in messages], "error": list(messages.values())}
        name = hashlib.sha256(json.dumps(rows["id"]).encode()).hexdigest()[:32]
        self.files.create_dir(self.folder)
        path = posixpath.join(self.folder, f"{name}.parquet")
        pa.parquet.write_table(pa.table(rows, ERRORS), path, filesystem=self.files)


def _decode(batch: pa.Table, column: str, num_channels: int, errors: _Errors) -> pa.Table:
    """The pictures give way to pixels (channels, height, width); rows that cannot be read go."""
    processor = WallocImageProcessor(num_channels=num_channels)
    pixels, kept, messages = [], [], {}
    ids = batch.column(errors.id_column)
    for i, value in enumerate(batch.column(column)):
        try:
            image = processor.fetch_images({"bytes": _bytes_of(value.as_py()), "path": str(ids[i].as_py())})
            array = processor.process_image(image, num_channels).numpy()
        except Exception as error:  # decoders raise anything; one picture must not end the run
            messages[i] = str(error) or type(error).__name__
            continue
        kept.append(i)
        pixels.append({"data": array.tobytes(), "shape": list(array.shape), "dtype": array.dtype.str})
    errors.write(batch, messages)
    rest = batch.take(pa.array(kept, pa.int64())).drop_columns([column])
    return rest.append_column(PIXELS, pa.array(pixels, PIXELS_TYPE))


def _bytes_of(value: Any) -> bytes:
    data = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise TypeError(f"a picture must be the bytes of an image file, got {type(data).__name__}")
    return data


class _Encoder:
    """An actor of the pool."""

    def __init__(self, codec: str, options: dict[str, Any], errors: _Errors):
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
        self.encoder = encoder.to(device)
        self.options, self.errors = options, errors

    def __call__(self, batch: pa.Table) -> pa.Table:
        images = [functools.partial(_as_tensor, value) for value in batch.column(PIXELS)]
        found = encode_rows_or_errors(images, self.encoder, (TypeError, ValueError), **self.options)
        rest, messages = batch.drop_columns([PIXELS]), {i: row for i, row in enumerate(found) if isinstance(row, str)}
        self.errors.write(rest, messages)
        kept = [i for i in range(len(found)) if i not in messages]
        rows = pa.array([found[i] for i in kept], LATENTS_TYPE)
        table = rest.take(pa.array(kept, pa.int64())).append_column(LATENTS, rows)
        return _with_features(table)


def _as_tensor(value: Any) -> torch.Tensor:
    data, shape, dtype = value.as_py().values()
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())


def _uri(folder: str) -> str:
    # pyarrow takes absolute paths for URLs, but not relative ones.
    return folder if "://" in folder else pa.fs.LocalFileSystem().normalize_path(os.path.abspath(folder))
