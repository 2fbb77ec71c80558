"""Latents as a model sees them: [`LatentView`] leads from pixels, latents or codes to a model's input, and back.

```
pixels --extend, encode--> latents --undo companding, scale--> values --windows--> model input
                           codes * step ^
```

An encoder is needed for pixels only. Everything takes batches and stays on their device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange

from ..codec.bottleneck import compand, companding_scale, decompand, latent_limit
from ..codec.configuration_walloc import WallocImageConfig
from ..codec.modeling_walloc import WallocImageEncoder, WallocImageModel
from ..codec.reflection import extend

Scale = Literal["none", "partial", "corpus"]
# Standard deviation of what rounding to whole codes adds. A channel that moves less than this holds noise.
ROUNDING_STD = math.sqrt(1 / 12)


@dataclass(frozen=True)
class LatentView:
    """What a model takes of the latents of an image codec: their scale, and the windows that its patches see.

    `scaled` chooses the scale by name. A model that [`load_on_latents`] made keeps its view in its config:
    `LatentView(codec_config, **config.walloc_latents)`.

    ```python
    view = LatentView.scaled(encoder.config)
    values = view.from_pixels(pixels, encoder)  # the same as view.from_latents(encoder(pixels).latents)
    values = view.from_latents(codes, step=2.0)  # of a file or a data set: no encoder
    ```

    Args:
        codec: config of the codec.
        patch_size: latents per side of a patch.
        halo: further latents on each side that the window of a patch holds.
        constant_channel: whether a channel of ones is appended, for patch embeddings without a bias.
        mean, std: of each latent channel, on the linear scale of `latent_values`: the model sees
            `(latent_values - mean) / std`. None for `latent_values` as they are.
    """

    codec: WallocImageConfig
    patch_size: int = 1
    halo: int = 0
    constant_channel: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.halo < 0:
            raise ValueError(
                f"patch_size is {self.patch_size} and halo {self.halo}; valid: at least 1 and at least 0 latents"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if len(numbers) != self.codec.latent_channels:
                raise ValueError(f"{name} has {len(numbers)} entries for {self.codec.latent_channels} latent channels")
            object.__setattr__(self, name, tuple(map(float, numbers)))

    @classmethod
    def scaled(cls, codec: WallocImageConfig, scale: Scale | None = None, **windows: Any) -> "LatentView":
        """A view whose scale is that of the codec's training corpus.

        Args:
            codec: its `latents_mean` and `latents_std` say what the corpus is like.
            scale: `corpus` brings every channel to a mean of 0 and a standard deviation of 1; `partial` divides by its
                square root, so that strong channels stay strong, and the strongest comes to 1; `none` leaves
                `latent_values`. None for `corpus` where the codec has statistics, else for `none`.
            **windows: `patch_size`, `halo` and `constant_channel`.

        Raises:
            ValueError: an unknown scale, or one for which the codec has no statistics.
        """
        if scale is None:
            scale = "none" if codec.latents_std is None else "corpus"
        if scale not in get_args(Scale):
            raise ValueError(f"unknown scale {scale!r}; valid: {', '.join(get_args(Scale))}")
        if scale == "none":
            return cls(codec, **windows)
        if codec.latents_mean is None or codec.latents_std is None:
            raise ValueError(f"scale {scale!r} needs latents_mean and latents_std, which this codec's config lacks")
        mean = latent_values(torch.tensor(codec.latents_mean, dtype=torch.float64), codec)
        std = value_std(torch.tensor(codec.latents_std, dtype=torch.float64), codec)
        if scale == "partial":
            std = (std * std.max()).sqrt()
        return cls(codec, mean=mean.tolist(), std=std.tolist(), **windows)

    def to_dict(self) -> dict[str, Any]:
        """All but the codec, for a model's config; the scale is left out where there is none."""
        names = ["patch_size", "halo", "constant_channel"] + ([] if self.std is None else ["mean", "std"])
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}

    @property
    def kernel_size(self) -> int:
        """Latents per side of a window."""
        return self.patch_size + 2 * self.halo

    @property
    def patch_pixels(self) -> int:
        """Pixels per side of a patch."""
        return self.patch_size * self.codec.patch_size

    def encode(self, pixels: torch.Tensor, encoder: WallocImageEncoder | WallocImageModel) -> torch.Tensor:
        """Latents of whole images and the halo around them.

        Args:
            pixels: (batch, num_channels, height, width) in [-0.5, 0.5] or uint8, of any size and on any device: they
                are reflected up to whole latents, and by the halo on all sides.
            encoder: of the codec; the result is on its device.

        Returns:
            (batch, latent_channels, h + 2 halo, w + 2 halo), companded and not rounded, float32.
        """
        pixels = pixels.to(encoder.device)
        if pixels.dtype != torch.uint8:
            pixels = pixels.float()
            check_range(pixels)
        latents: torch.Tensor = encoder.encode(self.extend(pixels)).latents
        return latents

    def extend(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images (..., height, width) reflected up to whole latents, and by the halo on all sides."""
        block, margin = self.codec.patch_size, self.halo * self.codec.patch_size
        bottom, right = (margin + -size % block for size in pixels.shape[-2:])
        return extend(pixels, ((margin, bottom), (margin, right)))

    def from_pixels(self, pixels: torch.Tensor, encoder: WallocImageEncoder | WallocImageModel) -> torch.Tensor:
        """What the model takes, `from_latents(encode(pixels, encoder))`."""
        return self.from_latents(self.encode(pixels, encoder))

    def from_latents(self, latents: torch.Tensor, step: float = 1.0, halo: int | None = None) -> torch.Tensor:
        """What the model takes.

        Args:
            latents: (batch, latent_channels, h + 2 halo, w + 2 halo), companded, or integer codes that `step` leads to
                latents.
            halo: of these latents, where it is larger than the view's.

        Returns:
            (batch, channels, h / patch_size * k, w / patch_size * k) with k = patch_size + 2 halo.
        """
        surplus = 0 if halo is None else halo - self.halo
        if surplus < 0:
            raise ValueError(f"the latents have a halo of {halo}, the model wants {self.halo}")
        height, width = latents.shape[2:]
        values = self.values(latents[:, :, surplus : height - surplus, surplus : width - surplus], step)
        return latent_windows(values, self.patch_size, self.halo, self.constant_channel)

    def values(self, latents: torch.Tensor, step: float = 1.0) -> torch.Tensor:
        """Latents or codes (batch, latent_channels, h, w) on the scale of the model, not laid out in windows."""
        values = latent_values(latents, self.codec, step)
        if self.std is None:
            return values
        return (values - self._channels(self.mean, values)) / self._channels(self.std, values)

    def to_latents(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of `values`: companded latents, for `decode` or `quantize`."""
        if self.std is not None:
            values = values * self._channels(self.std, values) + self._channels(self.mean, values)
        bits = self.codec.latent_bits
        return compand(values * companding_scale(bits), bits)

    def from_windows(self, windows: torch.Tensor) -> torch.Tensor:
        """Values of what the patches cover, without halo and channel of ones: (batch, latent_channels, h, w)."""
        k = self.kernel_size
        channels = windows.shape[1] - self.constant_channel
        split = rearrange(windows[:, :channels], "b c (gh i) (gw j) -> b c gh gw i j", i=k, j=k)
        inner = slice(self.halo, self.halo + self.patch_size)
        return rearrange(split[..., inner, inner], "b c gh gw i j -> b c (gh i) (gw j)")

    def _channels(self, numbers: Any, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


def check_range(pixels: torch.Tensor) -> None:
    """Refuse pixels in 0..1 or 0..255, or normalised ones, which would be encoded saturated."""
    if torch.compiler.is_compiling() or pixels.device.type == "meta" or not pixels.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(pixels.detach()))
    if low < -0.51 or high > 0.51:
        raise ValueError(
            f"pixels lie in {low:.3g}..{high:.3g}; valid: [-0.5, 0.5], a mean of 0.5 and a standard deviation of 1 in "
            "an image processor of transformers, or uint8"
        )


def latent_values(latents: torch.Tensor, config: WallocImageConfig, step: float = 1.0) -> torch.Tensor:
    """Latents with their companding undone: linear in the image, the same scale for all channels.

    Args:
        latents: companded latents as `encode` gives them, or integer codes (which are multiplied by `step`).

    Returns:
        float tensor of the same shape, within +-3.72.
    """
    u = latents if latents.is_floating_point() else latents.float() * step
    return decompand(u, config.latent_bits) / companding_scale(config.latent_bits)


def value_std(latent_std: torch.Tensor, config: WallocImageConfig) -> torch.Tensor:
    """Standard deviations of `latent_values` from those of companded latents, exact for Gaussians of mean 0.

    Both are floored: what rounding to whole codes adds is not to be blown up to the size of a signal. For x of standard
    deviation s, the variance of Phi(x) is arcsin(s^2 / (1 + s^2)) / 2 pi.
    """
    relative = latent_std.clamp_min(ROUNDING_STD) / (2 * latent_limit(config.latent_bits))
    # A uniform distribution over all latents, which no finite Gaussian reaches, has sine 1.
    sine = torch.sin((2 * math.pi * relative.square()).clamp_max(1.5))
    return (sine / (1 - sine)).sqrt()


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
    windows = values.unfold(2, window, patch_size).unfold(3, window, patch_size)
    return rearrange(windows, "b c gh gw i j -> b c (gh i) (gw j)")


def resize_pixels(pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bicubic and antialiased: (batch, channels, height, width) in [-0.5, 0.5] or uint8 -> (batch, channels, *size)."""
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    resized = F.interpolate(pixels, tuple(size), mode="bicubic", antialias=True)
    return resized if pixels.dtype == torch.uint8 else resized.clamp(-0.5, 0.5)
