"""Pixels of any dtype to floats in [-0.5, 0.5] and back to 8 bits, and pictures to latents or codes.

The last of these runs in a compiled kernel where that serves, and in torch otherwise.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import torch

from .bottleneck import code_dtype, latent_limit
from .encoder_kernel import PictureEncoder, fits_kernel
from .kernels import library
from .layers import from_weights, is_pointwise
from .reflection import extend, mirrored
from .runtime import is_traced

KERNEL_DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def encode_pixels(encoder: Any, pixels: torch.Tensor, step: float | None = None, margin: int = 0) -> torch.Tensor:
    """Pictures of any size, padded to whole blocks by reflection at the bottom and at the right.

    On a CPU without gradients the kernel works in bands of rows, so that no picture of floats is made.

    Args:
        encoder: a `WallocEncoder` of an image codec.
        pixels: uint8 (batch, num_channels, height, width).
        step: width of a quantisation cell, for codes; None for latents.
        margin: pixels of reflection to add on each side first, a multiple of `config.patch_size`.

    Returns:
        (batch, latent_channels, *grid) int8 codes, or latents in at least float32.
    """
    latents = encode_pictures(encoder, pixels, step, margin)
    if latents is None:
        latents = encoder(_padded(pixels, encoder.config.patch_size, margin))
        if step is not None:
            limit = int(latent_limit(encoder.config.latent_bits))
            latents = torch.round(latents / step).clamp(-limit, limit).to(code_dtype(encoder.config.latent_bits))
    return latents


def encode_pictures(
    encoder: Any, pixels: torch.Tensor, step: float | None = None, margin: int = 0
) -> torch.Tensor | None:
    """`encode_pixels` in the compiled kernel, also of floats; None where that does not serve.

    Raises:
        ValueError: NaN or infinite values.
    """
    kernel = picture_encoder(encoder, pixels)
    if kernel is None:
        return None
    if pixels.dtype != torch.uint8:
        pixels = pixels.detach().float()
    if pixels.stride(1) != 1 and pixels.stride(3) != 1:
        pixels = pixels.contiguous()
    pictures = [picture.permute(1, 2, 0).numpy() for picture in pixels]
    threads = torch.get_num_threads()
    if len(pictures) == 1 or threads == 1:
        results = [kernel.encode(picture, step, margin, threads) for picture in pictures]
    else:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(lambda picture: kernel.encode(picture, step, margin), pictures))
    return torch.from_numpy(results[0][None] if len(results) == 1 else np.stack(results))


def picture_encoder(encoder: Any, pixels: torch.Tensor) -> PictureEncoder | None:
    """The kernel with the weights that an encoder has now, or None where it does not serve."""
    if pixels.dtype not in KERNEL_DTYPES or pixels.device.type != "cpu":
        return None
    weights = list(encoder.parameters())
    if is_traced(pixels, *weights):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (pixels, *weights)):
        return None
    if not all(_is_plain(x) for x in (pixels, *weights)):
        return None
    if any(weight.device.type != "cpu" for weight in weights):
        return None
    if not (fits_kernel(encoder.config) and is_pointwise(encoder.projection)):
        return None

    def make() -> PictureEncoder | None:
        if not all(weight.isfinite().all() for weight in weights):
            return None
        weight, bias = (weight.detach().double().numpy() for weight in encoder.projection.parameters())
        return PictureEncoder(encoder.config, weight.reshape(len(weight), -1), bias)

    return from_weights(encoder, "picture", make)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether the values of a tensor are in its memory, and nobody counts or transforms what is done to it."""
    return type(x) in (torch.Tensor, torch.nn.Parameter) and torch._C._len_torch_dispatch_stack() == 0


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-0.5, 0.5], as the processor does it."""
    return pixels.float().sub_(127.5).div_(255)


def to_8_bits(pixel_values: torch.Tensor) -> torch.Tensor:
    """Floats in [-0.5, 0.5] of any shape as 8-bit levels, `round(255 * clip(x + 0.5, 0, 1))`, in uint8."""
    return pixel_values.detach().float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def find_channels(shape: tuple[int, ...], num_channels: int, is_tensor: bool) -> str:
    """ "channels_first" or "channels_last", told from a shape of three axes.

    Raises:
        ValueError: the shape fits both, or neither.
    """
    # The codec's own number of channels decides before the single channel that can be repeated.
    for count in (num_channels, 1) if num_channels == 3 else (num_channels,):
        first, last = shape[0] == count, shape[2] == count
        if first and last and not is_tensor:
            raise ValueError(
                f"the channel axis of an array of shape {shape} is ambiguous; pass input_data_format="
                "'channels_first' or 'channels_last'"
            )
        if first or last:
            return "channels_first" if first else "channels_last"
    raise ValueError(f"an image of shape {shape} has no axis of {num_channels} channels, first or last")


def channels_first(image: Any, num_channels: int, input_data_format: str | None, planar: bool) -> torch.Tensor:
    """Array or tensor of two or three axes -> (C, h, w) tensor, contiguous if `planar`."""
    shape = tuple(image.shape)
    if len(shape) == 2:
        image, input_data_format = image[None], "channels_first"
    if input_data_format is None:
        input_data_format = find_channels(shape, num_channels, isinstance(image, torch.Tensor))
    if isinstance(image, torch.Tensor):
        image = image.detach()
        pixels: torch.Tensor = image.permute(2, 0, 1) if input_data_format == "channels_last" else image
        pixels = pixels.contiguous() if planar else pixels
    else:
        if image.dtype.kind not in "buif":
            raise TypeError(f"an array of dtype {image.dtype} is no image; valid: integers and floats")
        image = image.transpose(2, 0, 1) if input_data_format == "channels_last" else image
        array = native(image)
        if planar or min(array.strides) < 0:
            array = np.ascontiguousarray(array)
        pixels = torch.from_numpy(array if array.flags.writeable else array.copy())
    if pixels.shape[0] != num_channels and not (pixels.shape[0] == 1 and num_channels == 3):
        raise ValueError(f"an image of shape {shape} has {pixels.shape[0]} channels; num_channels is {num_channels}")
    return pixels


def native(array: np.ndarray) -> np.ndarray:
    """The same array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def rescales_interleaved(num_channels: int) -> bool:
    """Whether a kernel takes apart and scales bytes of this many channels that lie side by side."""
    return num_channels == 3 and library() is not None


def write_pixels(target: torch.Tensor, image: torch.Tensor) -> None:
    """Writes `image` (C, h, w) into the view `target` of the same shape, mapped to [-0.5, 0.5] if that is float32."""
    if target.dtype == torch.uint8:
        target.copy_(image)
        return
    if _rescale_interleaved(target, image):
        return
    if image.dtype in FLOAT_DTYPES:
        low, high = (bound.item() for bound in torch.aminmax(image))
        if not (low >= 0 and high <= 1):
            if not torch.isfinite(image).all():
                raise ValueError("the image holds NaN or infinite values; floats must lie in [0, 1]")
            raise ValueError(f"float images must lie in [0, 1]; this one spans [{low:g}, {high:g}]")
        middle, span = 0.5, 1.0
    else:
        limits = torch.iinfo(torch.uint8 if image.dtype == torch.bool else image.dtype)
        high = 1 if image.dtype == torch.bool else limits.max
        middle, span = (limits.min + high) / 2, float(high - limits.min)
    # In this form, and in place, the ends of the range become exactly -0.5 and 0.5.
    target.copy_(image).sub_(middle)
    if span != 1:
        target.div_(span)


def _rescale_interleaved(target: torch.Tensor, image: torch.Tensor) -> bool:
    """`write_pixels` in one pass by the kernel; False where it does not serve."""
    kernels = library()
    if kernels is None or image.dtype != torch.uint8 or not all(_is_plain(x) and x.is_cpu for x in (target, image)):
        return False
    if len(image) != 3 or (image.stride(0), image.stride(2), target.stride(2)) != (1, 3, 1):
        return False
    _, height, width = image.shape
    kernels.walloc_rescale(
        ctypes.c_void_p(image.data_ptr()), ctypes.c_int64(image.stride(1)), height, width,
        ctypes.c_void_p(target.data_ptr()), ctypes.c_int64(target.stride(1)), ctypes.c_int64(target.stride(0)),
    )  # fmt: skip
    return True


def reflect(padded: torch.Tensor, height: int, width: int) -> None:
    """Fills everything right of `width` and below `height` in (C, H, W) by reflection, in place."""
    if width < padded.shape[2]:
        padded[:, :height, width:] = padded[:, :height, mirrored(width, padded.shape[2], width, padded.device)]
    if height < padded.shape[1]:
        padded[:, height:] = padded[:, mirrored(height, padded.shape[1], height, padded.device)]


def _padded(pixels: torch.Tensor, block: int, margin: int) -> torch.Tensor:
    bottom, right = (-size % block + margin for size in pixels.shape[2:])
    return extend(pixels, ((margin, bottom), (margin, right)))


def unbatch(pixels: Any) -> list[torch.Tensor]:
    """Decoded pixels, one image, a batch or a list -> a list of (C, h, w); errors name what they are instead."""
    is_list = isinstance(pixels, list | tuple)
    entries = [torch.as_tensor(entry) for entry in (pixels if is_list else [pixels])]
    if not is_list and entries[0].ndim == 4:
        entries = list(entries[0])
    if not entries:
        raise ValueError("empty batch: there are no pixels to turn into images")
    for entry in entries:
        if entry.ndim != 3:
            raise ValueError(
                f"pixels of shape {tuple(entry.shape)}; valid: (B, C, H, W), (C, H, W), or a list of (C, h, w)"
            )
        if not entry.is_floating_point():
            raise TypeError(f"pixels of {entry.dtype}; valid: floats in [-0.5, 0.5] (decode codes first)")
    return entries


def to_picture(pixels: torch.Tensor) -> PIL.Image.Image | np.ndarray:
    """(C, h, w) floats in [-0.5, 0.5] -> PIL image or (h, w, C) array."""
    if torch.isnan(pixels).any():
        raise ValueError("the pixels hold NaN values; they cannot become an image")
    planes = to_8_bits(pixels).cpu().numpy()
    if len(planes) == 1:
        return PIL.Image.fromarray(planes[0])
    if len(planes) == 3:
        return PIL.Image.merge("RGB", [PIL.Image.fromarray(plane) for plane in planes])
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
