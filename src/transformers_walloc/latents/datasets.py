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

import contextlib
import importlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedConfig

from ..codec.bitstream import unpack
from ..codec.configuration_walloc import WallocImageConfig
from ..codec.identity import called, codec_name
from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder, WallocImageModel
from .codecs import check_identity, codec_of
from .families import family_of, merge_size
from .layouts import model_inputs
from .packing import codes_from_bytes, codes_to_image
from .values import LatentView, resize_pixels

Storage = Literal["webp", "walloc", "int8"]
Content = Literal["values", "latents", "codes"]
LATENTS = "latents"  # the column


def encode_rows(
    images: Sequence[Any],
    codec: WallocImageEncoder | WallocImageModel,
    storage: Storage = "webp",
    size: Sequence[int] | None = None,
    halo: int = 0,
    step: float = 1.0,
) -> list[dict[str, Any]]:
    """Images of any kind that [`WallocImageProcessor`] takes as rows of the column `latents`.

    Images that come to the same size are encoded together, on the codec's device.

    Args:
        size: (height, width) in pixels to resize to, bicubic and antialiased, 8-bit images in 8 bits; None to keep the
            images'.
        halo: latents on each side to add beyond the image, for windows of patches that overlap.
        step: width of a quantisation cell, at least 1; larger is smaller and coarser.
    """
    _check_storage(storage)
    config = codec.config
    # 8-bit images stay what they are until the encoder, which is a compiled kernel where there is one.
    to_pixels = WallocImageProcessor(num_channels=config.num_channels, patch_size=1, do_rescale=False)
    view = LatentView(config, halo=halo)
    prepared, groups = [], defaultdict(list)
    for i, image in enumerate(images):
        pixels = to_pixels(image, return_tensors="pt")["pixel_values"]
        prepared.append(pixels if size is None else resize_pixels(pixels, size))
        groups[prepared[i].dtype, tuple(prepared[i].shape)].append(i)
    codec_key = f"{codec_name(config.name_or_path)}:{codec.fingerprint()}"
    rows: list[dict[str, Any]] = [{} for _ in prepared]
    for (_, (_, _, height, width)), members in groups.items():
        pixels = view.extend(torch.cat([prepared[i] for i in members]).to(codec.device))
        with torch.no_grad():
            if storage == "walloc":
                blobs = codec.compress(pixels, step=step)
                shapes = [unpack(blob)[0].latent_shape for blob in blobs]
            else:
                codes = codec.encode_to_codes(pixels, step).cpu().numpy()
                blobs = [c.tobytes() if storage == "int8" else _webp(c, config.latent_bits) for c in codes]
                shapes = [c.shape for c in codes]
        for i, data, shape in zip(members, blobs, shapes, strict=True):
            rows[i] = {
                "bytes": data,
                "storage": storage,
                "shape": list(shape),
                "size": [height, width],
                "halo": halo,
                "step": float(np.float32(step)),
                "codec": codec_key,
            }
    return rows


def encode_rows_or_errors(
    images: Sequence[Callable[[], Any]],
    codec: WallocImageEncoder | WallocImageModel,
    caught: tuple[type[Exception], ...] = (Exception,),
    **options: Any,
) -> list[dict[str, Any] | str]:
    """Rows of images, or in the place of one what is wrong with it, so that it does not take its batch with it.

    Args:
        images: each is read when it is called.
        caught: what a picture may raise; decoders raise anything.
        options: of `encode_rows`.
    """
    with contextlib.suppress(*caught):
        return [*encode_rows([image() for image in images], codec, **options)]
    found: list[dict[str, Any] | str] = []
    for image in images:
        try:
            found += encode_rows([image()], codec, **options)
        except caught as error:
            found.append(" ".join(str(error).split()) or type(error).__name__)
    return found


@torch.inference_mode()
def decode_rows(rows: Sequence[dict[str, Any]], codec: str | WallocImageModel) -> list[PIL.Image.Image]:
    """The images of rows of the column `latents`, at the sizes that they were written with: `encode_rows` undone.

    ```python
    images = decode_rows(load_dataset("latents", split="train")[:8]["latents"], "walloc/rgb-16x")
    ```

    Args:
        codec: bundled name, Hub id, folder or model (with its decoder) of the codec that wrote them.

    Raises:
        ValueError: a row was written by another codec, or is damaged.
    """
    model = _loading().load_codec(codec)[0] if isinstance(codec, str) else codec
    processor = WallocImageProcessor(num_channels=model.config.num_channels)
    images: list[Any] = []
    for row, codes in zip(rows, RowReader(model).batch(rows), strict=True):
        (height, width), border = row["size"], row["halo"] * model.config.patch_size
        pixels = model.decode(codes[None].to(model.device).float() * row["step"])[0]
        pixels = pixels[..., border : border + height, border : border + width]
        images += processor.post_process(pixels)
    return images


class LatentTransform:
    """For `dataset.with_transform`: rows of latents to what a model takes.

    ```python
    dataset = load_dataset("user/latents", split="train").with_transform(LatentTransform("walloc/rgb-16x"))
    dataset[0]["latent_values"]  # (12, h, w), what a patch embedding on latents takes

    stream = load_dataset("user/latents", split="train", streaming=True)  # row by row, nothing stored
    stream = stream.map(LatentTransform("walloc/rgb-16x"), batched=True, remove_columns=["latents"])
    ```

    The codec's encoder is loaded only where its entropy coder is needed, for rows stored as "walloc".

    Args:
        codec: Hub id, folder or model of the codec that wrote the data set.
        content: `values` (companding undone, scaled), `latents` (companded) or `codes` (int8, times the
            row's step they are latents).
        windows: the model's config, to give it its windows and scale, laid out as it takes an image, and to check that
            it is on latents of this codec; or its `walloc_latents` alone. The data set must have their halo. By default
            no windows and the scale of the codec's corpus, [`LatentView.scaled`].
        output_name: key of the result; processors and models of vision call it `pixel_values`.
        size: (height, width) in pixels that every row must have been written at; None for any.
        augmentation: what is done to the latents of every row anew, such as a [`LatentAugmentation`], called with
            (1, latent_channels, h, w) codes and their step. Rows must have no halo.
    """

    def __init__(
        self,
        codec: str | WallocImageEncoder | WallocImageModel,
        content: Content = "values",
        windows: dict[str, Any] | PreTrainedConfig | None = None,
        output_name: str = "latent_values",
        size: Sequence[int] | None = None,
        augmentation: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
    ):
        if content not in get_args(Content):
            raise ValueError(f"unknown content {content!r}; valid: {', '.join(get_args(Content))}")
        if windows and content != "values":
            raise ValueError(f"windows are of values, not of {content}")
        self.reader = RowReader(codec)
        config = self.reader.config
        self.model_config = None
        if isinstance(windows, PreTrainedConfig):
            self.model_config, windows = windows, windows.walloc_latents
            check_identity(codec_of(self.model_config), self.reader, "the data set")
        self.view = LatentView.scaled(config) if windows is None else LatentView(config, **windows)
        self.content, self.output_name, self.size = content, output_name, size
        self.augmentation = augmentation

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of rows -> the same columns, with what models take in place of stored latents."""
        batch = dict(batch)
        rows = batch.pop(LATENTS)
        codes = self.reader.batch(rows)
        images = [self._convert(*pair) for pair in zip(rows, codes, strict=True)]
        if self.model_config is None:
            batch[self.output_name] = images
            return batch
        layout, merge = family_of(self.model_config).layout, merge_size(self.model_config)
        for image in images:
            inputs = model_inputs([image], self.view.kernel_size, layout, merge)
            # Rows of patches have no axis for the image; all else has one.
            flat = layout in ("rows", "patches")
            for name, value in inputs.items():
                name = self.output_name if name == "pixel_values" else name
                batch.setdefault(name, []).append(value if flat and name == self.output_name else value[0])
        return batch

    def _convert(self, row: dict[str, Any], codes: torch.Tensor) -> torch.Tensor:
        if self.size is not None and list(row["size"]) != list(self.size):
            raise ValueError(f"the latents are of an image of {row['size']} pixels, the model wants {list(self.size)}")
        if self.augmentation is not None:
            if row["halo"]:
                raise ValueError(
                    f"the latents have a halo of {row['halo']}, with which they cannot be augmented: write 0"
                )
            codes = self.augmentation(codes[None], row["step"])[0]
        if self.content == "codes":
            if codes.is_floating_point():
                raise ValueError("an augmentation of colours gives latents, not codes: take content='latents'")
            return codes
        if self.content == "latents":
            return codes if codes.is_floating_point() else codes.float() * row["step"]
        return self.view.from_latents(codes[None], row["step"], row["halo"])[0]


def latent_transform(codec: str | WallocImageEncoder | WallocImageModel, **options: Any) -> LatentTransform:
    """[`LatentTransform`] as a function."""
    return LatentTransform(codec, **options)


class RowReader:
    """Codes of rows of the column `latents`.

    Args:
        codec: Hub id, folder or model of the codec that wrote them. Of an id or a folder, the config alone is read
            until a row asks for more.
    """

    def __init__(self, codec: str | WallocImageEncoder | WallocImageModel):
        self._source = codec
        self._loaded: Any = None if isinstance(codec, str) else codec
        if isinstance(codec, str):
            self.config = WallocImageConfig.from_pretrained(_loading().codec_path(codec))
            self._read = {self.config.latent_fingerprint}
        else:
            self.config, self._read = codec.config, {codec.fingerprint()}

    def batch(self, rows: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
        """`codes` of rows; files are decoded together, by as many threads as torch has."""
        for row in rows:
            self._check(row)
        files = [row["bytes"] for row in rows if row["storage"] == "walloc"]
        decoded = iter(self._encoder().decompress_codes(files) if files else ())
        others = [row for row in rows if row["storage"] != "walloc"]
        threads = min(torch.get_num_threads(), sum(row["storage"] == "webp" for row in others))
        read: Iterator[torch.Tensor]
        if threads > 1:  # Pillow decodes without Python's lock
            with ThreadPoolExecutor(threads) as pool:
                read = iter(list(pool.map(self.codes, others)))
        else:
            read = map(self.codes, others)
        return [next(decoded if row["storage"] == "walloc" else read) for row in rows]

    def codes(self, row: dict[str, Any]) -> torch.Tensor:
        """(channels, height, width), int8 on the CPU.

        Raises:
            ValueError: the row was written by another codec, or is damaged.
        """
        self._check(row)
        data, shape = row["bytes"], tuple(row["shape"])
        if row["storage"] == "walloc":
            return self._encoder().decompress_codes(data)[0]
        if row["storage"] == "webp":
            return torch.from_numpy(codes_from_bytes(data, shape, self.config.latent_bits))
        return torch.from_numpy(np.frombuffer(data, np.int8).reshape(shape).copy())

    def reads(self, fingerprint: str) -> bool:
        """Whether codes of an encoder with this fingerprint are those of this codec."""
        if fingerprint not in self._read and self._encoder().reads(fingerprint):
            self._read.add(fingerprint)
        return fingerprint in self._read

    def fingerprint(self) -> str:
        """That of the codec's encoder."""
        return self._encoder().fingerprint()

    def _check(self, row: dict[str, Any]) -> None:
        name, _, fingerprint = row["codec"].rpartition(":")
        if not self.reads(fingerprint):
            own = codec_name(self.config.name_or_path)
            raise ValueError(
                f"the latents were written by {called(name)} ({fingerprint}), this is {called(own)} "
                f"({self.fingerprint()})"
            )
        _check_storage(row["storage"])

    def _encoder(self) -> WallocImageEncoder | WallocImageModel:
        if self._loaded is None:
            self._loaded = WallocImageEncoder.from_pretrained(
                _loading().codec_path(str(self._source)), dtype=torch.float32
            )
        loaded: WallocImageEncoder | WallocImageModel = self._loaded
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without what use brings: the hash that `datasets` takes of it stays the same."""
        if not isinstance(self._source, str):
            return self.__dict__
        return {**self.__dict__, "_loaded": None, "_read": {self.config.latent_fingerprint}}


def _loading() -> Any:
    """The package's `loading`. By name, because this module goes into the folders of models without that one."""
    return importlib.import_module("transformers_walloc.loading")


def _check_storage(storage: str) -> None:
    if storage not in get_args(Storage):
        raise ValueError(f"unknown storage {storage!r}; valid: {', '.join(get_args(Storage))}")


def _webp(codes: np.ndarray, bits: int) -> bytes:
    buffer = io.BytesIO()
    # The most effort (method 6, quality 100) saves another 1% and takes twenty times as long.
    codes_to_image(codes, "RGB", bits).save(buffer, "WEBP", lossless=True, method=4, quality=75)
    return buffer.getvalue()
