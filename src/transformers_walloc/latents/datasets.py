"""Data sets of latents: `datasets` repositories whose images are WaLLoC codes, written once and read without decoding.

The image column gives way to a column `latents` of one struct a row; all other columns stay as they are:

```
bytes    codes as storage says: a WebP image, a .walloc file, or the int8 codes themselves in C order
storage  "webp" (lossless, the paper's), "walloc" (a checked file of its own, slow to read), "int8" (large, fast)
shape    (channels, height, width) of the codes
size     (height, width) of the image in pixels, after resizing and without padding and halo
halo     latents on each side beyond the image, which was extended by reflection
step     width of a quantisation cell: codes times step are latents
codec    name and fingerprint of the codec
```
"""

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from ..codec.bitstream import unpack
from ..codec.identity import codec_name
from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder, WallocImageModel
from .folding import latent_values, latent_windows
from .packing import latents_from_bytes, latents_to_image

Storage = Literal["webp", "walloc", "int8"]
Content = Literal["values", "latents", "codes"]
LATENTS = "latents"  # the column
OPTIONS_FILE = "walloc_latents.json"


def encode_image(
    image: Any,
    codec: WallocImageEncoder | WallocImageModel,
    storage: Storage = "webp",
    size: tuple[int, int] | None = None,
    halo: int = 0,
    step: float = 1.0,
) -> dict[str, Any]:
    """One image of any kind that [`WallocImageProcessor`] takes as a row of the column `latents`.

    Args:
        codec: on any device.
        size: (height, width) in pixels to resize to, bicubic and antialiased; None to keep the image's.
        halo: latents on each side to add beyond the image, for windows of patches that overlap.
        step: width of a quantisation cell, at least 1; larger is smaller and coarser.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"unknown storage {storage!r}; valid: {', '.join(get_args(Storage))}")
    config = codec.config
    inputs = WallocImageProcessor(num_channels=config.num_channels, patch_size=1)(image, return_tensors="pt")
    pixels = inputs["pixel_values"].to(codec.device)
    if size is not None and tuple(pixels.shape[2:]) != tuple(size):
        pixels = F.interpolate(pixels, tuple(size), mode="bicubic", antialias=True).clamp(-0.5, 0.5)
    height, width = pixels.shape[2:]
    margin = halo * config.patch_size
    right, bottom = (-length % config.patch_size + margin for length in (width, height))
    # Through numpy, whose reflection may be longer than the image.
    padded = np.pad(pixels[0].cpu().numpy(), ((0, 0), (margin, bottom), (margin, right)), mode="reflect")
    pixels = torch.from_numpy(padded)[None].to(codec.device)
    with torch.no_grad():
        if storage == "walloc":
            data = codec.compress(pixels, step=step)[0]
            shape = unpack(data)[0].latent_shape
        else:
            codes = codec.quantize(codec.encode(pixels).latents, step)[0].cpu().numpy()
            shape = codes.shape
            data = codes.tobytes() if storage == "int8" else _webp(codes, config.latent_bits)
    return {
        "bytes": data,
        "storage": storage,
        "shape": list(shape),
        "size": [height, width],
        "halo": halo,
        "step": float(np.float32(step)),
        "codec": f"{codec_name(config.name_or_path)}:{codec.fingerprint()}",
    }


def decode_latents(row: dict[str, Any], codec: WallocImageEncoder | WallocImageModel) -> torch.Tensor:
    """Codes (channels, height, width), int8 on the CPU, of a row of the column `latents`.

    Raises:
        ValueError: the row was written by another codec, or is damaged.
    """
    written = row["codec"].rpartition(":")
    if written[2] != codec.fingerprint():
        raise ValueError(
            f"the latents were written by codec {written[0]!r} ({written[2]}), this is "
            f"{codec_name(codec.config.name_or_path)!r} ({codec.fingerprint()})"
        )
    data, shape = row["bytes"], tuple(row["shape"])
    if row["storage"] == "walloc":
        return codec.decompress_codes(data)[0]
    if row["storage"] == "webp":
        return torch.from_numpy(latents_from_bytes(data, shape, codec.config.latent_bits))
    if row["storage"] != "int8":
        raise ValueError(f"unknown storage {row['storage']!r}; valid: {', '.join(get_args(Storage))}")
    return torch.from_numpy(np.frombuffer(data, np.int8).reshape(shape).copy())


class LatentTransform:
    """For `dataset.with_transform`: rows of latents to what a model takes.

    ```python
    dataset = load_dataset("user/latents", split="train").with_transform(LatentTransform("walloc/rgb-16x"))
    dataset[0]["latent_values"]  # (12, h, w), what a patch embedding on latents takes
    ```

    Args:
        codec: Hub id, folder or model of the codec that wrote the data set.
        content: `values` (`latent_values`: companding undone, of a scale of about 1), `latents` (companded) or `codes`
            (int8, times the row's step they are latents).
        windows: `config.walloc_latents` of the model, to lay out its windows; the data set must have their halo.
        output_name: key of the result; processors and models of vision call it `pixel_values`.
    """

    def __init__(
        self,
        codec: str | WallocImageEncoder | WallocImageModel,
        content: Content = "values",
        windows: dict[str, Any] | None = None,
        output_name: str = "latent_values",
    ):
        if content not in get_args(Content):
            raise ValueError(f"unknown content {content!r}; valid: {', '.join(get_args(Content))}")
        if windows and content != "values":
            raise ValueError(f"windows are of values, not of {content}")
        self.codec = codec if not isinstance(codec, str) else WallocImageEncoder.from_pretrained(codec)
        self.content, self.windows, self.output_name = content, windows, output_name

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        batch = dict(batch)
        batch[self.output_name] = [self._read(row) for row in batch.pop(LATENTS)]
        return batch

    def _read(self, row: dict[str, Any]) -> torch.Tensor:
        codes = decode_latents(row, self.codec)
        if self.content == "codes":
            return codes
        if self.content == "latents":
            return codes.float() * row["step"]
        values = latent_values(codes, self.codec.config, row["step"])
        if self.windows is None:
            return values
        surplus = row["halo"] - self.windows["halo"]
        if surplus < 0:
            raise ValueError(f"the data set has a halo of {row['halo']}, the model wants {self.windows['halo']}")
        height, width = values.shape[1:]
        return latent_windows(values[None, :, surplus : height - surplus, surplus : width - surplus], **self.windows)[0]


def latent_transform(codec: str | WallocImageEncoder | WallocImageModel, **options: Any) -> LatentTransform:
    """[`LatentTransform`] as a function."""
    return LatentTransform(codec, **options)


def write_latent_dataset(
    dataset: Any,
    folder: str | os.PathLike,
    codec: str,
    split: str = "train",
    image_column: str = "image",
    shard_rows: int = 1000,
    num_proc: int = 1,
    device: str | None = None,
    **options: Any,
) -> Iterator[int]:
    """Write a `datasets.Dataset` with an image column as Parquet shards of latents, `folder/data/*.parquet`.

    `load_dataset(folder)` reads the result, and `upload_folder` makes it a repository. A shard appears when it is
    whole; those of an earlier, interrupted run are kept.

    Args:
        dataset: with random access; an `IterableDataset` has to be stored first.
        codec: Hub id or folder.
        num_proc: processes, each on one thread and with its own copy of the encoder.
        device: of the encoder, in each process.
        **options: `storage`, `size`, `halo` and `step` of [`encode_image`].

    Yields:
        Rows done so far, after each shard.

    Raises:
        ValueError: no such column, or the folder holds latents written with other options.
    """
    if image_column not in dataset.column_names:
        raise ValueError(f"the data set has no column {image_column!r}; it has {', '.join(dataset.column_names)}")
    if LATENTS in dataset.column_names and image_column != LATENTS:
        raise ValueError(f"the data set already has a column {LATENTS!r}")
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    encoder = _load(codec, device)
    stated = {
        "codec": codec_name(codec),
        "fingerprint": encoder.fingerprint(),
        "rows": {split: len(dataset)},
        "shard_rows": shard_rows,
        **{"storage": "webp", "size": None, "halo": 0, "step": 1.0, **options},
    }
    _check_options(folder / OPTIONS_FILE, json.loads(json.dumps(stated)))
    count = max(1, -(-len(dataset) // shard_rows))
    jobs, done = [], 0
    for i in range(count):
        path = folder / "data" / f"{split}-{i:05d}-of-{count:05d}.parquet"
        rows = range(i * shard_rows, min((i + 1) * shard_rows, len(dataset)))
        if path.exists():
            done += len(rows)
        else:
            jobs.append((rows, str(path)))
    if done:
        yield done
    if num_proc <= 1:
        for job in jobs:
            done += _write_shard(dataset, encoder, image_column, *job, options)
            yield done
        return
    state = (dataset, codec, device, image_column, options)
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _start_worker, state) as pool:
        for future in as_completed([pool.submit(_work, *job) for job in jobs]):
            done += future.result()
            yield done


_worker: tuple = ()


def _start_worker(dataset, codec, device, image_column, options):
    global _worker
    torch.set_num_threads(1)
    _worker = (dataset, _load(codec, device), image_column, options)


def _work(rows: range, path: str) -> int:
    dataset, encoder, image_column, options = _worker
    return _write_shard(dataset, encoder, image_column, rows, path, options)


def _write_shard(dataset, encoder, image_column: str, rows: range, path: str, options: dict) -> int:
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
    latents = []
    for i, row in zip(rows, shard.select_columns([image_column]), strict=True):
        try:
            latents.append(encode_image(row[image_column], encoder, **options))
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"row {i}: {error}") from error
    result = Dataset.from_dict({LATENTS: latents}, features=Features({LATENTS: column}))
    rest = shard.remove_columns([image_column])
    if rest.column_names:
        result = concatenate_datasets([rest, result], axis=1)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        result.to_parquet(partial)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return len(rows)


def _webp(codes: np.ndarray, bits: int) -> bytes:
    buffer = io.BytesIO()
    # The most effort (method 6, quality 100) saves another 1% and takes twenty times as long.
    latents_to_image(codes, "RGB", bits).save(buffer, "WEBP", lossless=True, method=4, quality=75)
    return buffer.getvalue()


def _load(codec: str, device: str | None) -> WallocImageEncoder:
    encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
    return encoder if device is None else encoder.to(device)  # type: ignore[arg-type]


def _check_options(path: Path, options: dict[str, Any]) -> None:
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in options.items():
            before = earlier.get(name)
            if name == "rows":
                if any(before.get(split, count) != count for split, count in value.items()):
                    raise ValueError(f"{path.parent} holds a split of {before} rows, not {value}")
            elif before != value:
                raise ValueError(f"{path.parent} holds latents written with {name} {before!r}, not {value!r}")
        options = {**options, "rows": {**earlier["rows"], **options["rows"]}}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
