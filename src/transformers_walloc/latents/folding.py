"""WaLLoC latents as the input of vision and vision-language models.

A patch embedding is a linear map of a patch of pixels; so are the resize in front of it and the linear synthesis of a
codec. Their composition is one linear map of a window of latents, and with it a pretrained model starts on latents at
the very point where it stood on resized pixels:

    pixels      image --resize-> (grid * P)^2 pixels --P x P patches, linear-> tokens
    latents     image --codec-> latents --windows of (p + 2 halo)^2, linear-> the same tokens

`p` latents cover the patch, `halo` more on each side are what the synthesis of its pixels reaches for. Windows that
overlap are laid out side by side (`latent_windows`), so that the model still has a patch embedding whose kernel equals
its stride and its own config describes it in full: saving, loading, `Trainer` and `generate` work unchanged.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..codec.bottleneck import companding_scale
from ..codec.configuration_walloc import WallocImageConfig
from ..codec.filter_banks import block_operator
from ..codec.image_colours import LUMA
from ..codec.modeling_walloc import WallocImageModel
from ..codec.wavelet_convolutions import band_order
from .values import value_std

Resample = Literal["box", "bilinear", "bicubic"]


def equal_cost_patch_size(codec: WallocImageConfig, pixel_patch_size: int) -> int:
    """Latents per side of a patch that holds as many numbers as a patch of pixels, the nearest whole number.

    The patch then covers sqrt(DR) times as many pixels per side: 8 for patches of 16 and 12 channels, an image of 896
    pixels in place of 224.
    """
    return max(1, round(pixel_patch_size * math.sqrt(codec.num_channels / codec.latent_channels)))


def resize_matrix(size_in: int, size_out: int, resample: Resample = "box") -> np.ndarray:
    """Antialiased resampling of one axis as a matrix (size_out, size_in); `box` averages the area of a pixel."""
    if resample not in get_args(Resample):
        raise ValueError(f"unknown resample {resample!r}; valid: {', '.join(get_args(Resample))}")
    if resample == "box":
        edges = np.arange(size_out + 1) * (size_in / size_out)
        pixels = np.arange(size_in)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        shares: np.ndarray = overlap.clip(min=0) * (size_out / size_in)
        return shares
    identity = torch.eye(size_in, dtype=torch.float64)[None, None]
    return F.interpolate(identity, (size_out, size_in), mode=resample, antialias=True)[0, 0].numpy()


def fold_patch_embedding(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    codec: WallocImageModel,
    patch_size: int,
    halo: int | None = None,
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
    resample: Resample = "box",
    stride: int | None = None,
    padding: int = 0,
    colours: Sequence[Sequence[float]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compose a pixel patch embedding with resize, normalisation and the codec's linear synthesis.

    It may also be the first convolution of a network, whose kernel is larger than its stride: it becomes a convolution
    over windows of latents in the same way.

    Args:
        weight: (D, channels, P, P) of the patch embedding, whose pixels are `(x01 - image_mean) / image_std` with
            x01 in [0, 1], resized by `resample` from `patch_size * 2**num_levels` to `stride` pixels per side.
        bias: (D,) or None.
        codec: a full model whose decoder has a linear synthesis (`restoration`, `residual` or `linear`).
        patch_size: latents per side of a patch.
        halo: latents on each side of the patch; None for the smallest with which the result is exact. With less, the
            lowest band goes on beyond the window as it ends there and the others stop, which keeps flat areas right.
        stride: of the convolution, in pixels; None for P, a patch embedding.
        padding: of the convolution, in pixels. Where it reaches beyond the image, the result sees a reflection of it,
            and not the zeros that the pixel model sees: exact for all but the outermost outputs.
        colours: what each channel of the pixel model is made of, in parts of the codec's channels (in [0, 1]); see
            `colour_matrix`.

    Returns:
        weight (D, latent_channels, k, k) with k = patch_size + 2 halo, for `latent_values`, and bias (D,), float64.
    """
    config, linear = codec.config, getattr(codec.decoder, "linear", None)
    if not isinstance(linear, nn.Conv2d) or linear.bias is None:
        raise ValueError(f"folding needs a linear synthesis, which decoder_type {config.decoder_type!r} does not have")
    channels, pixel_patch = config.num_channels, weight.shape[2]
    mixing = colour_matrix(channels, weight.shape[1], colours)
    stride = pixel_patch if stride is None else stride
    operator = _axis_operator(config, patch_size, stride, halo, resample, pixel_patch, padding)
    axis = torch.from_numpy(operator)  # (P, bands, k)
    bands = config.patch_size
    order = band_order(config.num_levels, 2, inverse=True)
    synthesis = linear.weight.detach().flatten(1).double().cpu() * companding_scale(config.latent_bits)
    synthesis = synthesis.unflatten(0, (channels, -1))[:, order].unflatten(1, (bands, bands))  # (c, rows, columns, k)
    constant = linear.bias.detach().double().cpu()
    constant = constant.unflatten(0, (channels, -1))[:, order].unflatten(1, (bands, bands))

    scaled = weight.detach().double().cpu() / _of_channels(image_std, len(mixing))
    by_channel = torch.einsum("dpyx,pc->dcyx", scaled, mixing)
    folded = torch.einsum("dcyx,yvi,xhj,cvhk->dkij", by_channel, axis, axis, synthesis)
    level = torch.einsum("yv,xh,cvh->cyx", axis.sum(2), axis.sum(2), constant) + 0.5  # what zero latents decode to
    level = torch.einsum("pc,cyx->pyx", mixing, level) - _of_channels(image_mean, len(mixing))
    shift = torch.einsum("dpyx,pyx->d", scaled, level)
    return folded, shift if bias is None else shift + bias.detach().double().cpu()


@torch.no_grad()
def fold_convolution(
    convolution: nn.Conv2d,
    codec: WallocImageModel,
    pixels_per_latent: int,
    halo: int | None = None,
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
    padding: int | None = None,
    **options: Any,
) -> nn.Sequential:
    """The first convolution of a network as a module on latents, where a latent covers several of its outputs.

    A convolution over latents computes all outputs of a latent at once, as channels, and a pixel shuffle puts them in
    their places: (B, latent_channels, h, w) -> (B, D, h n, w n) with n = pixels_per_latent / stride.

    Args:
        convolution: with a square kernel, stride and padding, without groups or dilation.
        codec: as for `fold_patch_embedding`.
        pixels_per_latent: pixels of the network that a side of a latent stands for, after the resize from
            `2**num_levels`; a multiple of the stride.
        padding: of the convolution, in pixels, at the top and at the left; None for its own. The rest goes to the
            bottom and right, as in networks of TensorFlow, whose padding is 0 here for a kernel of 3 and a stride of 2.
        halo, image_mean, image_std, options: as for `fold_patch_embedding`.

    Returns:
        A module for `latent_values`, which it continues by reflection.

    Raises:
        ValueError: a convolution of another kind, or numbers that do not fit.
    """
    kernel, strides = convolution.kernel_size, convolution.stride
    if len({*kernel}) > 1 or len({*strides}) > 1 or convolution.groups > 1 or {*convolution.dilation} != {1}:
        raise ValueError(f"{convolution} cannot be folded; valid: a square kernel and stride, no groups, no dilation")
    stride, side = strides[0], kernel[0]
    if pixels_per_latent < stride or pixels_per_latent % stride:
        raise ValueError(f"pixels_per_latent is {pixels_per_latent}; valid: a multiple of the stride, {stride}")
    if padding is None:
        if isinstance(convolution.padding, str) or len({*convolution.padding}) > 1:
            raise ValueError(f"the padding of {convolution} is not one number of pixels: say `padding`")
        padding = convolution.padding[0]
    n, outputs = pixels_per_latent // stride, convolution.out_channels
    window = side + (n - 1) * stride  # of the pixels that the outputs of a latent see
    weight = torch.zeros(outputs, n, n, convolution.in_channels, window, window, dtype=torch.float64)
    for i, j in itertools.product(range(n), repeat=2):
        top, left = i * stride, j * stride
        weight[:, i, j, :, top : top + side, left : left + side] = convolution.weight.detach().double().cpu()
    bias = None if convolution.bias is None else convolution.bias.detach().repeat_interleave(n * n)
    options = {"image_mean": image_mean, "image_std": image_std, "stride": pixels_per_latent, **options}
    folded, shift = fold_patch_embedding(weight.flatten(0, 2), bias, codec, 1, halo, padding=padding, **options)
    reach = folded.shape[-1] // 2
    module = nn.Conv2d(folded.shape[1], len(folded), folded.shape[-1], padding=reach, padding_mode="reflect")
    like = convolution.weight
    module.weight = nn.Parameter(folded.to(like.device, like.dtype))
    module.bias = nn.Parameter(shift.to(like.device, like.dtype))
    return nn.Sequential(module, nn.PixelShuffle(n))


def colour_matrix(
    codec_channels: int, pixel_channels: int, colours: Sequence[Sequence[float]] | None = None
) -> torch.Tensor:
    """What each channel of a pixel model is made of, in parts of the codec's channels.

    Args:
        codec_channels, pixel_channels: how many there are.
        colours: rows of the matrix, for example `[[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]` for the third, second and
            first of four bands as red, green and blue. If None, equal numbers are the same channels, gray is all
            colours alike, and gray is made of three as ITU-R BT.601 luma, as Pillow does it.

    Returns:
        (pixel_channels, codec_channels) float64.

    Raises:
        ValueError: a matrix of another shape, or channels for which there is no usual one.
    """
    if colours is not None:
        matrix = torch.tensor(colours, dtype=torch.float64)
        if matrix.shape != (pixel_channels, codec_channels):
            raise ValueError(f"colours must be {pixel_channels} rows of {codec_channels}, got {tuple(matrix.shape)}")
        return matrix
    if codec_channels == pixel_channels:
        return torch.eye(codec_channels, dtype=torch.float64)
    if codec_channels == 1:
        return torch.ones(pixel_channels, 1, dtype=torch.float64)
    if (codec_channels, pixel_channels) == (3, 1):
        return torch.tensor([LUMA], dtype=torch.float64)
    raise ValueError(
        f"the patch embedding takes {pixel_channels} channels, the codec {codec_channels}: say with colours what each "
        "is made of"
    )


def average_patch_embedding(weight: torch.Tensor, codec: WallocImageModel, kernel_size: int) -> torch.Tensor:
    """The plain way to change the number of input channels: the mean of the kernels over colours, for every channel.

    It knows nothing of what the channels hold, and is here to be compared with the fold. The mean is resized to the new
    kernel, divided by the standard deviation of each latent channel, and scaled so that a token has the variance that
    it has for pixels, both taken as uncorrelated numbers of variance 1.

    Args:
        weight: (D, num_channels, P, P) of the patch embedding on pixels.
        kernel_size: latents per side of a window.

    Returns:
        (D, latent_channels, kernel_size, kernel_size), for `latent_values`, float64.
    """
    pixels = weight.detach().double().cpu()
    resize = torch.from_numpy(resize_matrix(pixels.shape[-1], kernel_size))
    mean = resize @ pixels.mean(dim=1) @ resize.T
    channels = codec.config.latent_channels
    # A filter of differences between colours has no mean, and stays at zero.
    norm = mean.flatten(1).norm(dim=1).clamp_min(1e-6 * float(pixels.norm()) + 1e-300)
    mean = mean * (pixels.flatten(1).norm(dim=1) / norm / math.sqrt(channels))[:, None, None]
    latents: torch.Tensor = mean[:, None] * _unit_variance(codec)[:, None, None]
    return latents


def random_patch_embedding(num_outputs: int, codec: WallocImageModel, kernel_size: int) -> torch.Tensor:
    """Normal weights from torch's generator that give every latent channel the same say, whatever its variance.

    Returns:
        (num_outputs, latent_channels, kernel_size, kernel_size), for `latent_values`, float64.
    """
    scale = _unit_variance(codec)
    noise = torch.randn(num_outputs, len(scale), kernel_size, kernel_size, dtype=torch.float64)
    return noise * scale[:, None, None] / math.sqrt(noise[0].numel())


def exact_halo(config: WallocImageConfig, patch_size: int, pixel_patch_size: int, resample: Resample = "box") -> int:
    """Smallest halo with which `fold_patch_embedding` of a patch embedding is exact."""
    return int(_axis_operator(config, patch_size, pixel_patch_size, None, resample).shape[2] - patch_size) // 2


def _axis_operator(
    config: WallocImageConfig,
    patch_size: int,
    pixel_patch: int,
    halo: int | None,
    resample: Resample,
    kernel: int | None = None,
    padding: int = 0,
) -> np.ndarray:
    """(kernel, bands, k): resized pixels under a kernel, along one axis, from the subbands of a window of latents."""
    kernel = pixel_patch if kernel is None else kernel
    operator = block_operator("synthesis", config.num_levels, config.wavelet, config.boundary)
    block, reach = operator.block, max(operator.before, operator.after)
    # Enough patches around the middle one that neither the synthesis nor the resize feels the ends.
    beyond = max(padding, kernel - padding - pixel_patch) * patch_size / pixel_patch  # latents under the kernel's ends
    margin = math.ceil((reach + 2 + 3 * patch_size / pixel_patch + beyond) / patch_size) + 1
    patches = 2 * margin + 1
    latents = patches * patch_size
    synthesis = np.zeros((latents * block, latents + 2 * reach, block))
    taps = operator.taps.reshape(block, -1, block)  # (sample, offset, band)
    for i in range(latents):
        start = i + reach - operator.before
        synthesis[i * block : (i + 1) * block, start : start + taps.shape[1]] = taps
    resize = resize_matrix(latents * block, patches * pixel_patch, resample)
    resize = resize[margin * pixel_patch - padding :][:kernel]
    whole = np.einsum("ys,sib->ybi", resize, synthesis)  # (P, bands, latents + 2 reach)
    first = reach + margin * patch_size
    if halo is None:
        used = np.flatnonzero(np.abs(whole).max(axis=(0, 1)) > 1e-12)
        halo = int(max(first - used[0], used[-1] - (first + patch_size - 1), 0))
    start, end = first - halo, first + patch_size + halo
    window: np.ndarray = whole[:, :, start:end].copy()
    window[:, 0, 0] += whole[:, 0, :start].sum(axis=1)
    window[:, 0, -1] += whole[:, 0, end:].sum(axis=1)
    return window


def _unit_variance(codec: WallocImageModel) -> torch.Tensor:
    """What `latent_values` are to be multiplied by for a variance of 1 in each channel; (latent_channels,) float64."""
    config = codec.config
    if config.latents_std is not None:
        return 1 / value_std(torch.tensor(config.latents_std, dtype=torch.float64), config)
    std = getattr(codec.decoder, "latent_std", None)
    std = torch.ones(config.latent_channels) if std is None else std.cpu()
    return companding_scale(config.latent_bits) / std.double().clamp_min(1e-6)


def _of_channels(numbers: Sequence[float], channels: int) -> torch.Tensor:
    """A number for each channel as (channels, 1, 1) float64; equal ones stand for any number of channels."""
    values = torch.tensor(numbers, dtype=torch.float64).flatten()
    if len(values) != channels:
        if not len(values) or values.min() != values.max():
            raise ValueError(f"image_mean and image_std have {len(values)} numbers for {channels} channels")
        values = values[:1].expand(channels)
    return values[:, None, None]
