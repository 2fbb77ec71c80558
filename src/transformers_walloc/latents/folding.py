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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from ..codec.bottleneck import companding_scale, decompand
from ..codec.configuration_walloc import WallocImageConfig
from ..codec.filter_banks import block_operator
from ..codec.modeling_walloc import WallocImageModel
from ..codec.wavelet_convolutions import band_order

Initialization = Literal["fold", "average", "random"]
Resample = Literal["box", "bilinear", "bicubic"]


@dataclass(frozen=True)
class _Family:
    """Where a family of models keeps its patch embedding and what its config calls the shape of it."""

    embedding: str  # suffix of the parameter's name
    channels: str = "num_channels"
    bias: bool = True
    flat_patches: bool = False  # tokens come as rows of flattened patches (Qwen) and not as an image


_IMAGE_EMBEDDING = _Family("embeddings.patch_embedding")
_FAMILIES = {
    "vit": _Family("embeddings.patch_embeddings.projection"),
    "clip": _Family("embeddings.patch_embedding", bias=False),
    "clip_vision_model": _Family("embeddings.patch_embedding", bias=False),
    "siglip": _IMAGE_EMBEDDING,
    "siglip_vision_model": _IMAGE_EMBEDDING,
    "paligemma": _IMAGE_EMBEDDING,
    "idefics3": _IMAGE_EMBEDDING,
    "smolvlm": _IMAGE_EMBEDDING,
    "qwen2_vl": _Family("visual.patch_embed.proj", "in_channels", bias=False, flat_patches=True),
    "qwen2_5_vl": _Family("visual.patch_embed.proj", "in_channels", bias=False, flat_patches=True),
}


def latent_values(latents: torch.Tensor, config: WallocImageConfig, step: float = 1.0) -> torch.Tensor:
    """What a model sees of latents: companding undone, on a scale of about 1, linear in the image.

    Args:
        latents: companded latents as `encode` gives them, or integer codes (which are multiplied by `step`).

    Returns:
        float tensor of the same shape, within +-3.72.
    """
    u = latents if latents.is_floating_point() else latents.float() * step
    return decompand(u, config.latent_bits) / companding_scale(config.latent_bits)


def latent_windows(
    values: torch.Tensor, patch_size: int, halo: int = 0, constant_channel: bool = False
) -> torch.Tensor:
    """Lay the overlapping windows of all patches side by side.

    Args:
        values: (batch, channels, h + 2 halo, w + 2 halo), h and w multiples of `patch_size`.
        constant_channel: append a channel of ones, for patch embeddings without a bias.

    Returns:
        (batch, channels [+ 1], h / patch_size * k, w / patch_size * k) with k = patch_size + 2 halo.
    """
    height, width = (size - 2 * halo for size in values.shape[2:])
    if height <= 0 or width <= 0 or height % patch_size or width % patch_size:
        raise ValueError(
            f"latents of {tuple(values.shape[2:])} are not patches of {patch_size} with a halo of {halo} on each side"
        )
    if constant_channel:
        values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    if halo == 0:
        return values
    window = patch_size + 2 * halo
    windows = values.unfold(2, window, patch_size).unfold(3, window, patch_size)  # (B, C, gh, gw, k, k)
    return windows.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def flatten_patches(windows: torch.Tensor, patch_size: int, merge_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows as rows in the order of Qwen2-VL, where the `merge_size`^2 patches of a token stand together.

    Returns:
        (batch * gh * gw, channels * patch_size^2) and the grid (batch, 3) of (1, gh, gw).
    """
    batch, channels, height, width = windows.shape
    gh, gw = height // patch_size, width // patch_size
    if gh % merge_size or gw % merge_size:
        raise ValueError(f"a grid of {gh} x {gw} patches cannot be merged by {merge_size}")
    x = windows.reshape(
        batch, channels, gh // merge_size, merge_size, patch_size, gw // merge_size, merge_size, patch_size
    )
    rows = x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch * gh * gw, channels * patch_size**2)
    return rows, torch.tensor([[1, gh, gw]] * batch, device=windows.device)


def latents_to_pixels(values: torch.Tensor, num_channels: int = 3) -> torch.Tensor:
    """The `pixel_shuffle` view: latents as an image of few channels that a vision model takes without any change.

    Every pixel of the view is one number of the latents. The first `factor`^2 channels, those of the largest variance,
    make its first channel: 12 channels at H/8 become 3 at H/4, 48 become 3 at H/2.

    Args:
        values: (batch, channels, h, w), channels `num_channels` times a square.

    Returns:
        (batch, num_channels, h * factor, w * factor) with factor = sqrt(channels / num_channels).
    """
    channels = values.shape[1]
    factor = math.isqrt(channels // num_channels)
    if channels != num_channels * factor**2:
        raise ValueError(f"{channels} channels of latents are not {num_channels} times a square")
    return F.pixel_shuffle(values, factor)


def pixels_to_latents(view: torch.Tensor, latent_channels: int) -> torch.Tensor:
    """Inverse of `latents_to_pixels`: (batch, num_channels, H, W) -> (batch, latent_channels, H/factor, W/factor)."""
    num_channels = view.shape[1]
    factor = math.isqrt(latent_channels // num_channels)
    if latent_channels != num_channels * factor**2:
        raise ValueError(f"{latent_channels} channels of latents are not {num_channels} times a square")
    return F.pixel_unshuffle(view, factor)


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
        return overlap.clip(min=0) * (size_out / size_in)
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compose a pixel patch embedding with resize, normalisation and the codec's linear synthesis.

    Args:
        weight: (D, num_channels, P, P) of the patch embedding, whose pixels are `(x01 - image_mean) / image_std` with
            x01 in [0, 1], resized by `resample` from `patch_size * 2**num_levels` to P pixels per side.
        bias: (D,) or None.
        codec: a full model whose decoder has a linear synthesis (`residual` or `linear`).
        patch_size: latents per side of a patch.
        halo: latents on each side of the patch; None for the smallest with which the result is exact. With less, the
            lowest band goes on beyond the window as it ends there and the others stop, which keeps flat areas right.

    Returns:
        weight (D, latent_channels, k, k) with k = patch_size + 2 halo, for `latent_values`, and bias (D,), float64.
    """
    config, linear = codec.config, getattr(codec.decoder, "linear", None)
    if not isinstance(linear, nn.Conv2d) or linear.bias is None:
        raise ValueError(f"folding needs a linear synthesis, which decoder_type {config.decoder_type!r} does not have")
    channels, pixel_patch = weight.shape[1:3]
    if channels != config.num_channels:
        raise ValueError(f"the patch embedding takes {channels} channels, the codec {config.num_channels}")
    axis = torch.from_numpy(_axis_operator(config, patch_size, pixel_patch, halo, resample))  # (P, bands, k)
    bands = config.patch_size
    order = band_order(config.num_levels, 2, inverse=True)
    synthesis = linear.weight.detach().flatten(1).double().cpu() * companding_scale(config.latent_bits)
    synthesis = synthesis.unflatten(0, (channels, -1))[:, order].unflatten(1, (bands, bands))  # (c, rows, columns, k)
    constant = linear.bias.detach().double().cpu()
    constant = constant.unflatten(0, (channels, -1))[:, order].unflatten(1, (bands, bands))

    std = torch.tensor(image_std, dtype=torch.float64)
    scaled = weight.detach().double().cpu() / std[:, None, None]
    folded = torch.einsum("dcyx,yvi,xhj,cvhk->dkij", scaled, axis, axis, synthesis)
    level = torch.einsum("yv,xh,cvh->cyx", axis.sum(2), axis.sum(2), constant)  # what zero latents decode to
    level = level + 0.5 - torch.tensor(image_mean, dtype=torch.float64)[:, None, None]
    shift = torch.einsum("dcyx,cyx->d", scaled, level)
    return folded, shift if bias is None else shift + bias.detach().double().cpu()


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
    return mean[:, None] * _unit_variance(codec)[:, None, None]


def exact_halo(config: WallocImageConfig, patch_size: int, pixel_patch_size: int, resample: Resample = "box") -> int:
    """Smallest halo with which `fold_patch_embedding` is exact."""
    return (_axis_operator(config, patch_size, pixel_patch_size, None, resample).shape[2] - patch_size) // 2


def _axis_operator(
    config: WallocImageConfig, patch_size: int, pixel_patch: int, halo: int | None, resample: Resample
) -> np.ndarray:
    """(P, bands, k): resized pixels of a patch, along one axis, from the subbands of a window of latents."""
    operator = block_operator("synthesis", config.num_levels, config.wavelet, config.boundary)
    block, reach = operator.block, max(operator.before, operator.after)
    # Enough patches around the middle one that neither the synthesis nor the resize feels the ends.
    margin = math.ceil((reach + 2 + 3 * patch_size * block / pixel_patch / block) / patch_size) + 1
    patches = 2 * margin + 1
    latents = patches * patch_size
    synthesis = np.zeros((latents * block, latents + 2 * reach, block))
    taps = operator.taps.reshape(block, -1, block)  # (sample, offset, band)
    for i in range(latents):
        start = i + reach - operator.before
        synthesis[i * block : (i + 1) * block, start : start + taps.shape[1]] = taps
    resize = resize_matrix(latents * block, patches * pixel_patch, resample)[margin * pixel_patch :][:pixel_patch]
    whole = np.einsum("ys,sib->ybi", resize, synthesis)  # (P, bands, latents + 2 reach)
    first = reach + margin * patch_size
    if halo is None:
        used = np.flatnonzero(np.abs(whole).max(axis=(0, 1)) > 1e-12)
        halo = int(max(first - used[0], used[-1] - (first + patch_size - 1), 0))
    start, end = first - halo, first + patch_size + halo
    window = whole[:, :, start:end].copy()
    window[:, 0, 0] += whole[:, 0, :start].sum(axis=1)
    window[:, 0, -1] += whole[:, 0, end:].sum(axis=1)
    return window


def load_on_latents(
    pretrained: str,
    codec: WallocImageModel,
    auto_class: Any = AutoModel,
    patch_size: int | None = None,
    halo: int | None = 0,
    initialization: Initialization = "fold",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    resample: Resample = "box",
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained vision or vision-language model so that it takes WaLLoC latents in place of pixels.

    The grid of tokens stays as it is; every patch covers `patch_size` latents, `patch_size * 2**num_levels` pixels. The
    returned model is of the pretrained class and carries its new shape in its config, and what its windows are as
    `config.walloc_latents`. Feed it `latent_windows(latent_values(latents, codec.config), **config.walloc_latents)`, or
    what [`WallocLatentImageProcessor.for_model`] makes of images.

    Args:
        pretrained: Hub id or folder of a ViT, CLIP, SigLIP, PaliGemma, Idefics3, SmolVLM, Qwen2-VL or Qwen2.5-VL model.
        codec: whose latents it is to take.
        auto_class: class to load with, such as `AutoModelForImageClassification`.
        patch_size: latents per side of a patch; None for as many numbers per token as before (`equal_cost_patch_size`).
        halo: further latents on each side that the patch embedding sees; None for as many as an exact fold takes, 0
            for patches that do not overlap.
        initialization: of the patch embedding: `fold` composes the pretrained one with the codec's synthesis, `average`
            gives every latent channel the mean of the pretrained one over its colours (`average_patch_embedding`),
            `random` draws weights (from torch's generator) that give every latent channel the same say.
        image_mean, image_std: normalisation of the pixels that the model was trained on; None to read them from its
            image processor.
        resample: filter of the resize that the fold reproduces.
        **kwargs: for `from_pretrained` (`dtype`, `device_map`, ...).

    Raises:
        ValueError: an unknown family or initialization.
    """
    if initialization not in get_args(Initialization):
        raise ValueError(f"unknown initialization {initialization!r}; valid: {', '.join(get_args(Initialization))}")
    # CLIPVisionModel and the like are a part of what their folder holds, and know their own config.
    config = (getattr(auto_class, "config_class", None) or AutoConfig).from_pretrained(pretrained)
    family = _family(config)
    vision = getattr(config, "vision_config", config)
    pixel_patch = vision.patch_size
    for name in ("patch_size", "image_size"):
        if not isinstance(getattr(vision, name, 0), int):
            raise ValueError(f"{name} of {pretrained} is {getattr(vision, name)}; valid: one number, for squares")
    if (patch_size is not None and patch_size < 1) or (halo is not None and halo < 0):
        raise ValueError(f"patch_size is {patch_size} and halo {halo}; valid: at least 1 and at least 0 latents")
    patch_size = patch_size or equal_cost_patch_size(codec.config, pixel_patch)
    if halo is None:
        halo = exact_halo(codec.config, patch_size, pixel_patch, resample)
    if image_mean is None or image_std is None:
        processor = AutoImageProcessor.from_pretrained(pretrained)
        image_mean, image_std = image_mean or processor.image_mean, image_std or processor.image_std

    pixel_model = auto_class.from_pretrained(pretrained, **kwargs)
    weight, bias = _embedding_parameters(pixel_model, family)
    del pixel_model
    _reshape_config(vision, family, codec.config.latent_channels, patch_size + 2 * halo)
    model = auto_class.from_pretrained(pretrained, config=config, ignore_mismatched_sizes=True, **kwargs)
    new_weight, new_bias = _embedding_parameters(model, family)
    model.config.walloc_latents = {"patch_size": patch_size, "halo": halo, "constant_channel": not family.bias}
    if weight.ndim == 5:
        weight = weight.sum(dim=2)  # a still image fills all frames of a patch alike
    if initialization == "random":
        folded, shift = _random_embedding(new_weight, codec), torch.zeros(len(new_weight), dtype=torch.float64)
    elif initialization == "average":
        folded = average_patch_embedding(weight, codec, patch_size + 2 * halo)
        shift = torch.zeros(len(folded), dtype=torch.float64) if bias is None else bias.detach().double().cpu()
    else:
        folded, shift = fold_patch_embedding(weight, bias, codec, patch_size, halo, image_mean, image_std, resample)
    with torch.no_grad():
        if new_bias is not None:
            new_bias.copy_(shift)
        elif initialization != "random":  # which draws the weights of the constant channel too, as zeros
            ones = (shift / folded[0, 0].numel())[:, None, None, None].expand(-1, 1, *folded.shape[2:])
            folded = torch.cat([folded, ones], dim=1)
        new_weight.copy_(folded.reshape(new_weight.shape))
    return model


def needs_constant_channel(config: PreTrainedConfig) -> bool:
    """Whether a model's patch embedding has no bias, so that its latents need a channel of ones for one."""
    return not _family(config).bias


def _family(config: PreTrainedConfig) -> _Family:
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"no patch embedding known for model type {config.model_type!r}; valid: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[config.model_type]


def _embedding_parameters(model: Any, family: _Family) -> tuple[torch.Tensor, torch.Tensor | None]:
    for name, module in model.named_modules():
        if name.endswith(family.embedding):
            return module.weight, module.bias
    raise ValueError(f"{type(model).__name__} has no module {family.embedding!r}")


def _reshape_config(vision: PreTrainedConfig, family: _Family, channels: int, patch_size: int) -> None:
    old = vision.patch_size
    setattr(vision, family.channels, channels + (not family.bias))
    vision.patch_size = patch_size
    if family.flat_patches:
        vision.temporal_patch_size = 1  # a still image is one frame
        if hasattr(vision, "window_size"):  # of attention, in pixels; it is used in patches
            vision.window_size = vision.window_size // old * patch_size
    else:
        vision.image_size = vision.image_size // old * patch_size


def _random_embedding(weight: torch.Tensor, codec: WallocImageModel) -> torch.Tensor:
    """Normal weights that give every latent channel the same say, whatever its variance."""
    scale = _unit_variance(codec)
    if weight.shape[1] > len(scale):  # the channel of ones
        scale = torch.cat([scale, scale.new_zeros(1)])
    fan_in = weight[0].numel()
    noise = torch.randn(weight.shape[0], weight.shape[1], fan_in // weight.shape[1], dtype=torch.float64)
    return noise * scale[None, :, None] / math.sqrt(fan_in)


def _unit_variance(codec: WallocImageModel) -> torch.Tensor:
    """What `latent_values` are to be multiplied by for a variance of 1 in each channel; (latent_channels,) float64."""
    std = getattr(codec.decoder, "latent_std", None)
    std = torch.ones(codec.config.latent_channels) if std is None else std.cpu()
    return companding_scale(codec.config.latent_bits) / std.double().clamp_min(1e-6)
