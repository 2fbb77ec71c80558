"""Images in, padded batches for a WaLLoC codec out, and decoded batches back to images of the original sizes.

```
PIL, path, URL, array, tensor -> (C, h, w), its own dtype -> (B, C, H, W) float32 in [-0.5, 0.5], H and W padded
list of PIL images (or arrays) <- crop, round to 8 bits   <- (B, C, H, W)
```
"""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging

from .image_colours import to_gray, to_srgb
from .image_decoding import Picture, upright
from .image_sources import open_source
from .pixels import (
    FLOAT_DTYPES,
    channels_first,
    native,
    reflect,
    rescales_interleaved,
    to_picture,
    unbatch,
    write_pixels,
)
from .raster_format import RasterFormat

logger = logging.get_logger(__name__)

INTEGER_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32)
RANGES = {"num_channels": (1, 2**16), "patch_size": (1, 2**12)}
CHANNEL_ORDERS = ("channels_first", "channels_last")
# What transformers writes beside the options into preprocessor_config.json.
BOOKKEEPING_KEYS = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")


class WallocImageProcessorKwargs(TypedDict, total=False):
    """Options of [`WallocImageProcessor`], settable at construction and overridable in each call."""

    num_channels: int
    patch_size: int
    input_data_format: str | None
    do_rescale: bool
    device: str | torch.device | None
    return_tensors: str | None
    raster_format: dict[str, Any] | None


class WallocImageProcessor(PilBackend):
    r"""
    Prepares images for a WaLLoC codec and turns decoded pixels back into images.

    Images keep their resolution: there is no resizing. What the codec needs is added at the bottom and at the right by
    reflection (`numpy.pad(mode="reflect")`: mirrored at the border pixel, repeated where the image is smaller than the
    padding, constant along an axis of one pixel), so a padded pixel depends on its image alone and not on the batch.
    `original_sizes` records what to crop back to.

    Accepted images, one or any nesting of lists of them, sizes may differ:

    * `PIL.Image.Image` of any mode; paths, `http(s)` URLs, base64 strings, bytes of files and dicts of `bytes` and
      `path` as `datasets` has them, these of at most 2^26 pixels. The EXIF orientation is applied, palettes are
      resolved, colours become sRGB if a profile says that they are not, transparency is composited on white, and the
      mode is converted to RGB for `num_channels=3` and to grey (ITU-R 601 luma) for 1. 16-bit and float modes keep
      their precision, and so do files of 16 bits in several bands. For other channel counts the image must have as many
      bands (RGBA or CMYK for 4).
    * numpy arrays (H, W), (H, W, C) or (C, H, W), torch tensors (C, H, W) or (H, W), and batches of them with an axis
      more in front. The channel axis is the one of length `num_channels`; where both fit, a tensor is channels first
      and an array needs `input_data_format`. One channel is repeated to three for `num_channels=3`.

    Values are mapped to [-0.5, 0.5] by dtype: `uint8` is `x / 255 - 0.5`, and bool, `int8`, `uint16`, `int16` and
    `uint32` are mapped by their full range in the same way. Floats must lie in [0, 1]. Other integers, usually 8-bit
    values in a wider type, have no known range and are refused.

    Args:
        num_channels (`int`, defaults to 3): channels of the codec.
        patch_size (`int`, defaults to 8): height and width are padded to multiples of it, in pixels; `2**num_levels`.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, for arrays and tensors.
        do_rescale (`bool`, defaults to `True`): `False` leaves 8-bit images (if all of a call are) as they are, uint8
            with the channels of a pixel side by side. The models scale them, on a CPU in a compiled kernel.
        device (`str` or `torch.device`, *optional*): where to process and return the pixels. By default tensors stay
            on their device and everything else is on the CPU.
        return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for a list of (C, H, W) tensors.
        raster_format (`dict`, *optional*): type and range of the samples of a codec for other than 8-bit images, see
            `RasterFormat`: it then maps values instead of their dtype's full range, missing samples are filled, and
            `post_process` gives arrays of its type and layout.

    ```python
    >>> from transformers_walloc import WallocImageProcessor

    >>> processor = WallocImageProcessor()
    >>> inputs = processor("photo.png", return_tensors="pt")
    >>> inputs["pixel_values"].shape, inputs["original_sizes"]  # of a photo of 198 x 125 pixels
    (torch.Size([1, 3, 128, 200]), tensor([[125, 198]]))
    >>> image = processor.post_process(inputs["pixel_values"], inputs["original_sizes"])[0]  # the same 8-bit pixels
    ```"""

    model_input_names = ["pixel_values", "original_sizes"]  # noqa: RUF012 - transformers' own convention
    valid_kwargs = WallocImageProcessorKwargs  # type: ignore[assignment]
    num_channels = 3
    patch_size = 8
    raster_format = None
    do_rescale = True
    _in_pipeline = False

    def __init__(self, **kwargs: Any) -> None:
        check_options(kwargs, also=BOOKKEEPING_KEYS)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The processor of a pipeline does not join images to batches, since their sizes differ."""
        loaded = super().from_pretrained(*args, **kwargs)
        if isinstance(loaded, WallocImageProcessor):
            loaded._in_pipeline = kwargs.get("_from_pipeline") is not None
        return loaded

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_channels} channels, sizes padded to multiples of {self.patch_size})"

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: one image, a batch, or any nesting of lists of images; see the class for what an image may be.
            **kwargs: the options of the class, for this call.

        Returns:
            `pixel_values` (B, C, H, W) float32 in [-0.5, 0.5], or uint8 (see `do_rescale`), H and W the largest padded
            sizes of the batch, and `original_sizes` (B, 2) int64 on the CPU: height and width in pixels before padding.

        Raises:
            TypeError: an unknown option, something that is no image, or a dtype without a known range.
            ValueError: an empty batch or image, a wrong number of channels, an ambiguous channel axis, floats outside
                [0, 1], NaN, an unreadable file.
        """
        check_options(kwargs)
        inputs: BatchFeature = super().preprocess(images, **kwargs)
        return inputs

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths, URLs, base64 strings and bytes as they are; transformers' own loader converts to 8-bit RGB."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(entry) for entry in image_url_or_urls]
        if isinstance(image_url_or_urls, str | Path | bytes | Mapping):
            return open_source(image_url_or_urls)
        return image_url_or_urls

    def process_image(  # type: ignore[override]
        self,
        image: Any,
        num_channels: int,
        input_data_format: Any = None,
        device: Any = None,
        do_rescale: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One image of any kind -> (num_channels, h, w) tensor, values and dtype untouched."""
        planar = do_rescale and not rescales_interleaved(num_channels)
        if isinstance(image, PIL.Image.Image | Picture):
            to_array: Any = _pil_to_array if isinstance(image, PIL.Image.Image) else _picture_to_array
            pixels = torch.from_numpy(to_array(image, num_channels, planar=planar))
            # The base class hands over tensors alone. A copy of the picture would cost time in every call.
            pixels.unshared = True  # type: ignore[attr-defined]
        else:
            pixels = channels_first(image, num_channels, input_data_format, planar=planar)
        if min(pixels.shape[1:]) == 0:
            raise ValueError(f"empty image: height {pixels.shape[1]}, width {pixels.shape[2]}")
        if pixels.shape[0] == 1 and num_channels == 3:
            pixels = pixels.expand(3, -1, -1)
        if pixels.dtype not in FLOAT_DTYPES + INTEGER_DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in INTEGER_DTYPES + FLOAT_DTYPES)
            raise TypeError(f"pixels of {pixels.dtype} have no known range; convert them to one of {valid}")
        if options := kwargs.get("raster_format"):
            unit = RasterFormat.from_dict(options).to_unit(pixels.numpy(force=True))
            pixels = torch.from_numpy(unit).add_(0.5).clamp_(0, 1).to(pixels.device)
        return pixels if device is None else pixels.to(device)

    def post_process(
        self,
        pixels: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray],
        original_sizes: torch.Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
    ) -> list[PIL.Image.Image | np.ndarray]:
        """
        Decoded pixels -> 8-bit images, `round(255 * clip(x + 0.5, 0, 1))`.

        Args:
            pixels: (B, C, H, W), (C, H, W), or a list of (C, h, w) as `model.decompress` gives; floats in [-0.5, 0.5],
                values outside are clipped.
            original_sizes: (B, 2) heights and widths to crop to, in pixels; nothing is cropped by default.

        Returns:
            A list of PIL images: RGB for three channels, L for one. For any other number of channels, a list of
            (h, w, C) uint8 arrays.

        Raises:
            TypeError: pixels that are not floats (codes have to be decoded first).
            ValueError: a wrong shape or number of channels, NaN, sizes that do not fit the pixels.
        """
        cropped = self._cropped(unbatch(pixels), original_sizes)
        if self.raster_format:
            raster = RasterFormat.from_dict(self.raster_format)
            return [raster.to_layout(raster.from_unit(image.detach().float().numpy(force=True))) for image in cropped]
        return [to_picture(image) for image in cropped]

    def _cropped(self, batch: list[torch.Tensor], original_sizes: Any) -> list[torch.Tensor]:
        """(C, *padded sizes) of images or volumes -> (C, *sizes)."""
        sizes = [tuple(pixels.shape[1:]) for pixels in batch]
        if original_sizes is not None:
            sizes = [tuple(map(int, size)) for size in torch.as_tensor(original_sizes).reshape(-1, len(sizes[0]))]
            if len(sizes) != len(batch):
                raise ValueError(f"original_sizes has {len(sizes)} entries for a batch of {len(batch)}")
        for pixels, size in zip(batch, sizes, strict=True):
            if len(pixels) != self.num_channels:
                raise ValueError(f"pixels have {len(pixels)} channels; this processor has {self.num_channels}")
            if not all(1 <= n <= most for n, most in zip(size, pixels.shape[1:], strict=True)):
                wanted, there = ("x".join(map(str, lengths)) for lengths in (size, pixels.shape[1:]))
                raise ValueError(f"cannot crop to the original size {wanted}: the pixels are {there} (width last)")
        return [pixels[(slice(None), *map(slice, size))] for pixels, size in zip(batch, sizes, strict=True)]

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        flat = _flatten(self.fetch_images(images), expected_ndims)
        if not flat:
            raise ValueError("empty batch: there is no image to process")
        return flat

    def _preprocess(  # type: ignore[override]
        self,
        images: list[torch.Tensor],
        patch_size: int,
        do_rescale: bool = True,
        device: Any = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        devices = {image.device for image in images}
        if len(devices) > 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"the images of one batch are on several devices ({names}); choose one with device=")
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (-(-max(lengths) // patch_size) * patch_size for lengths in zip(*sizes, strict=True))
        channels = images[0].shape[0]
        if do_rescale or any(image.dtype != torch.uint8 for image in images):
            shape = len(images), channels, height, width
            batch = torch.empty(shape, dtype=torch.float32, device=images[0].device)
        else:
            batch = torch.empty((len(images), height, width, channels), dtype=torch.uint8, device=images[0].device)
            batch = batch.permute(0, 3, 1, 2)
        if len(images) == 1 and batch.dtype == torch.uint8 and sizes == [(height, width)] and _is_unshared(images[0]):
            batch, images = images[0][None], []  # nobody else has this memory: no need for a copy
        for padded, image in zip(batch, images, strict=bool(images)):
            write_pixels(padded[:, : image.shape[1], : image.shape[2]], image)
            reflect(padded, image.shape[1], image.shape[2])
        return self._as_feature(batch, sizes, return_tensors)

    def _as_feature(self, batch: torch.Tensor, sizes: Any, return_tensors: Any) -> BatchFeature:
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(batch), "original_sizes": sizes})
        if self._in_pipeline:
            return BatchFeature({"pixel_values": list(batch), "original_sizes": torch.tensor(sizes)})
        if str(getattr(return_tensors, "value", return_tensors)) == "np":
            return BatchFeature({"pixel_values": batch.cpu().numpy(), "original_sizes": np.array(sizes)})
        return BatchFeature({"pixel_values": batch, "original_sizes": torch.tensor(sizes)})

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        """`check_options` did; the inherited one wants a factor with `do_rescale`."""

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        # The inherited one adds size, crop_size and the like, which would end up in preprocessor_config.json.
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """What `preprocessor_config.json` holds."""
        options = super().to_dict()
        options.pop("_in_pipeline", None)
        if options.get("do_rescale") is True:
            del options["do_rescale"]  # unknown to earlier versions
        if "device" in options:
            options["device"] = str(options["device"])
        return options


def check_options(options: dict[str, Any], also: tuple[str, ...] = ()) -> None:
    """Raises TypeError for unknown options and ValueError for values out of range; `also` names further options."""
    valid = tuple(WallocImageProcessorKwargs.__annotations__)
    for name, value in options.items():
        if name not in valid + also:
            raise TypeError(f"unknown option {name!r} of WallocImageProcessor; valid: {', '.join(valid)}")
        if name in RANGES:
            low, high = RANGES[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} is {reprlib.repr(value)}; valid: whole numbers from {low} to {high}")
        if name == "do_rescale" and not isinstance(value, bool):
            raise TypeError(f"do_rescale must be a bool, not {value!r}")
        if name == "input_data_format" and value is not None and value not in CHANNEL_ORDERS:
            raise ValueError(f"unknown input_data_format {value!r}; valid: {', '.join(CHANNEL_ORDERS)}")
        if name == "return_tensors" and value is not None and getattr(value, "value", value) not in ("pt", "np"):
            raise ValueError(f"unknown return_tensors {value!r}; valid: 'pt', 'np', None")


def _flatten(images: Any, expected_ndims: int) -> list[Any]:
    if isinstance(images, list | tuple):
        return [leaf for entry in images for leaf in _flatten(entry, expected_ndims)]
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim == expected_ndims + 1:
            return list(images)
        if images.ndim not in (expected_ndims - 1, expected_ndims):
            raise ValueError(
                f"an image of shape {tuple(images.shape)}; valid: (H, W), three axes with the channels first or last, "
                "and batches of those with an axis more"
            )
    elif not isinstance(images, PIL.Image.Image | Picture):
        raise TypeError(
            f"an image cannot be of type {type(images).__name__}; valid: PIL images, paths, URLs, bytes, numpy arrays, "
            "torch tensors, and lists of them"
        )
    return [images]


def _picture_to_array(picture: Picture, num_channels: int, planar: bool) -> np.ndarray:
    """(C, h, w), as `_pil_to_array`."""
    if num_channels not in (1, 3):
        count = 1 if picture.pixels.ndim == 2 else 3
        raise ValueError(f"a file of {count} bands of {picture.pixels.dtype}; num_channels is {num_channels}")
    pixels = picture.on_white(logger.warning)
    if pixels.ndim == 2:
        return native(pixels)[None]
    if num_channels == 1:
        return to_gray(pixels)[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar else pixels.transpose(2, 0, 1)


def _pil_to_array(image: PIL.Image.Image, num_channels: int, planar: bool) -> np.ndarray:
    """(C, h, w); of 8 bits, and not `planar`, a view of (h, w, C)."""
    image = upright(image, logger.warning)
    if image.mode == "F" or image.mode.startswith("I"):
        array = np.array(image)
        if image.mode == "I":
            # Pillow opens some 16-bit files in this 32-bit mode; a full range of 32 bits would turn them black.
            if array.size and (array.min() < 0 or array.max() > 65535):
                raise ValueError(
                    f"PIL mode 'I' with values in [{array.min()}, {array.max()}]: only 16-bit data, 0 to 65535, has a "
                    "known range; pass a float array in [0, 1]"
                )
            array = array.astype(np.uint16)
        if num_channels not in (1, 3):
            raise ValueError(f"a PIL image of mode {image.mode!r} has 1 band; num_channels is {num_channels}")
        return native(array)[None]
    if image.mode in ("P", "PA") and num_channels not in (1, 3):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if num_channels in (1, 3):
        if image.info.get("icc_profile"):
            image = to_srgb(
                image.convert("RGBA" if image.has_transparency_data else "RGB") if image.mode in ("P", "PA") else image,
                logger.warning,
            )
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        mode = "RGB" if num_channels == 3 else "L"
        if image.mode != mode:
            try:
                image = image.convert(mode)
            except ValueError as error:
                raise ValueError(f"cannot convert an image of mode {image.mode!r} to {mode}: {error}") from error
    count = len(image.getbands())
    if count != num_channels:
        raise ValueError(f"a PIL image of mode {image.mode!r} has {count} bands; num_channels is {num_channels}")
    if planar:
        # Band by band is twice as fast as converting the interleaved image and transposing it.
        return np.stack([np.asarray(band) for band in image.split()])
    # In two steps: several times as fast as `np.array(image)`.
    return np.asarray(image).copy().reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _is_unshared(image: torch.Tensor) -> bool:
    return getattr(image, "unshared", False)
