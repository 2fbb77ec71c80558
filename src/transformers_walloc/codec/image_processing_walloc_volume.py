"""Volumes and clips in, padded batches for a WaLLoC codec out, and decoded batches back to arrays in kind.

```
(D, H, W), (D, H, W, C), (C, D, H, W), lists of frames -> (B, C, D, H, W) float32 in [-0.5, 0.5], padded
list of arrays                                         <- crop, round to the type of the samples
```
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature

from .image_processing_walloc import WallocImageProcessor, check_options
from .pixels import find_channels, native, write_pixels
from .raster_format import RasterFormat
from .reflection import extend


class WallocVolumeImageProcessor(WallocImageProcessor):
    r"""
    Prepares volumes and video clips for a WaLLoC codec and turns decoded voxels back into arrays.

    Accepted are numpy arrays and torch tensors (D, H, W) of one channel, or (D, H, W, C) and (C, D, H, W), lists of PIL
    images (the frames of one clip), and lists of all these, or arrays with an axis more in front (a batch). The channel
    axis is the one of length `num_channels`; where both ends fit, a tensor is channels first and an array needs
    `input_data_format`. Sizes are padded at the end of each axis to multiples of `patch_size`, by reflection.

    Values are mapped to [-0.5, 0.5] by dtype as [`WallocImageProcessor`] does it, or as `raster_format` says.

    Args:
        num_channels (`int`, defaults to 1): channels of the codec.
        patch_size (`int`, defaults to 4): depth, height and width are padded to multiples of it; `2**num_levels`.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, of arrays with four axes.
        device (`str` or `torch.device`, *optional*): where the batch is returned.
        return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for a list of (C, D, H, W) tensors.
        raster_format (`dict`, *optional*): type, range and layout of the samples, see `RasterFormat`.
    """

    num_channels = 1
    patch_size = 4

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: one volume or clip, or a batch; see the class.
            **kwargs: the options of the class, for this call.

        Returns:
            `pixel_values` (B, C, D, H, W) float32 in [-0.5, 0.5], sizes the largest padded ones of the batch, and
            `original_sizes` (B, 3) int64 on the CPU: depth, height and width before padding.

        Raises:
            TypeError: an unknown option, or something that is no volume.
            ValueError: an empty batch or volume, a wrong number of channels, values without a known range, NaN.
        """
        check_options(kwargs)
        names = ("num_channels", "patch_size", "input_data_format", "raster_format", "device", "return_tensors")
        if not kwargs.get("do_rescale", self.do_rescale):
            raise ValueError("do_rescale is False; valid for volumes: True, since their codecs take floats alone")
        options: dict[str, Any] = {name: kwargs.get(name, getattr(self, name, None)) for name in names}
        stated = options["raster_format"]
        raster = RasterFormat.from_dict(stated) if stated else None
        volumes = [
            _to_unit(_channels_first(volume, options["num_channels"], options["input_data_format"]), raster)
            for volume in _volumes(images, options["num_channels"])
        ]
        if not volumes:
            raise ValueError("empty batch: there is no volume to process")
        sizes = [tuple(volume.shape[1:]) for volume in volumes]
        patch = options["patch_size"]
        whole = [-(-max(lengths) // patch) * patch for lengths in zip(*sizes, strict=True)]
        padded = [
            extend(torch.from_numpy(volume), [(0, n - size) for n, size in zip(whole, volume.shape[1:], strict=True)])
            for volume in volumes
        ]
        return self._as_feature(torch.stack(padded).to(options["device"] or "cpu"), sizes, options["return_tensors"])

    def post_process(  # type: ignore[override]
        self, pixels: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray], original_sizes: Any = None
    ) -> list[np.ndarray]:
        """
        Args:
            pixels: (B, C, D, H, W), (C, D, H, W), or a list of (C, d, h, w) as `model.decompress` gives; floats in
                [-0.5, 0.5], values outside are clipped.
            original_sizes: (B, 3) depths, heights and widths to crop to; nothing is cropped by default.

        Returns:
            A list of arrays in the type and layout of `raster_format`; without one (D, H, W) or (D, H, W, C) uint8.

        Raises:
            ValueError: a wrong shape or number of channels, NaN, sizes that do not fit.
        """
        batch = [torch.as_tensor(volume) for volume in (pixels if isinstance(pixels, list | tuple) else [pixels])]
        if len(batch) == 1 and batch[0].ndim == 5:
            batch = list(batch[0])
        for volume in batch:
            if volume.ndim != 4 or not volume.is_floating_point():
                raise ValueError(
                    f"voxels of {volume.dtype} and shape {tuple(volume.shape)}; valid: floats ({self.num_channels}, "
                    "depth, height, width)"
                )
        raster = RasterFormat(layout="single" if self.num_channels == 1 else "channels_last")
        if self.raster_format:
            raster = RasterFormat.from_dict(self.raster_format)
        results = []
        for volume in self._cropped(batch, original_sizes):
            planes = volume.detach().float().numpy(force=True)
            if np.isnan(planes).any():
                raise ValueError("the voxels hold NaN values; they cannot become a volume")
            results.append(raster.to_layout(raster.from_unit(planes)))
        return results


def _volumes(entry: Any, num_channels: int) -> list[Any]:
    """Volumes of any nesting of lists, and of arrays with an axis for the batch."""
    if isinstance(entry, list | tuple):
        if entry and all(isinstance(frame, PIL.Image.Image) for frame in entry):
            mode = {1: "L", 3: "RGB"}.get(num_channels)
            clip = np.stack([np.asarray(frame if mode is None else frame.convert(mode)) for frame in entry])
            return [torch.from_numpy(clip if clip.ndim == 3 else np.moveaxis(clip, -1, 0))]
        return [volume for part in entry for volume in _volumes(part, num_channels)]
    if not isinstance(entry, np.ndarray | torch.Tensor):
        raise TypeError(
            f"a volume cannot be of type {type(entry).__name__}; valid: numpy arrays, torch tensors, lists of them, "
            "and lists of PIL images"
        )
    batch_of_gray = entry.ndim == 4 and num_channels == 1 and 1 not in (entry.shape[0], entry.shape[3])
    return list(entry) if entry.ndim == 5 or batch_of_gray else [entry]


def _channels_first(volume: Any, num_channels: int, input_data_format: str | None) -> np.ndarray:
    """(D, H, W), (D, H, W, C) or (C, D, H, W) -> (C, D, H, W)."""
    shape, is_tensor = tuple(volume.shape), isinstance(volume, torch.Tensor)
    if 0 in shape or len(shape) not in (3, 4):
        raise ValueError(f"a volume of shape {shape}; valid: three axes, or four with the channels first or last")
    array = volume.numpy(force=True) if is_tensor else native(volume)
    if len(shape) == 3:
        array = array[None]
    else:
        found = input_data_format or find_channels((shape[0], 0, shape[3]), num_channels, is_tensor)
        array = array if found == "channels_first" else np.moveaxis(array, -1, 0)
    if len(array) != num_channels:
        raise ValueError(f"a volume of shape {shape} has {len(array)} channels; num_channels is {num_channels}")
    return array


def _to_unit(planes: np.ndarray, raster: RasterFormat | None) -> np.ndarray:
    if raster is not None:
        return raster.to_unit(planes)
    unit = torch.empty(planes.shape, dtype=torch.float32)
    write_pixels(unit, torch.from_numpy(np.ascontiguousarray(planes)))
    return unit.numpy()
