"""Source separation in the latent domain of a WaLLoC audio codec: a mix of sounds in, one waveform per source out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from ..codec.bottleneck import compand, companding_scale, decompand
from ..codec.clips import normalise_clip
from ..codec.configuration_walloc import WallocAudioConfig
from ..codec.modeling_walloc import WallocAudioModel
from ..codec.outputs import can_return_tuple

# Latents that the network runs on at a time in `separate`: 95 s of `stereo-20x`.
CHUNK_SIZE = 2**14


@strict
class WallocSeparationConfig(PreTrainedConfig):
    r"""
    Configuration of a [`WallocForAudioSourceSeparation`].

    Args:
        codec_config (`WallocAudioConfig` or `dict`): of the codec whose latents the network works on.
        source_names (`list[str]`): what a mix consists of, in the order of the outputs.
        hidden_size (`int`): width of the network.
        num_layers (`int`): residual blocks.
        kernel_size (`int`): odd kernel size of their convolutions, in latents.
        dilation_cycle (`int`): dilations go 1, 2, 4 ... through that many blocks and start anew.

    ```python
    >>> from transformers_walloc import WallocForAudioSourceSeparation, WallocSeparationConfig

    >>> config = WallocSeparationConfig(source_names=["speech", "noise"], hidden_size=64, num_layers=4)
    >>> model = WallocForAudioSourceSeparation(config)
    ```"""

    model_type = "walloc_separation"
    sub_configs = {"codec_config": WallocAudioConfig}  # noqa: RUF012 - the type transformers asks for

    codec_config: dict[str, Any] | PreTrainedConfig | None = None
    source_names: list[str] | tuple[str, ...] = ("drums", "bass", "other", "vocals")
    hidden_size: int = 256
    num_layers: int = 10
    kernel_size: int = 3
    dilation_cycle: int = 5

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.codec_config, WallocAudioConfig):
            given = self.codec_config or {}
            self.codec_config = WallocAudioConfig(**(given if isinstance(given, dict) else given.to_dict()))
        self.source_names = list(self.source_names)
        if len(self.source_names) < 2 or len(set(self.source_names)) < len(self.source_names):
            raise ValueError(f"source_names is {self.source_names}; valid: two or more different names")
        for name in ("hidden_size", "num_layers", "dilation_cycle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; it must be odd")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms, in Hz."""
        codec: Any = self.codec_config
        return int(codec.sampling_rate)


@dataclass
class WallocSeparationOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): squared error of the sources' values, relative to the mix's power.
        source_values (`torch.FloatTensor` of shape `(batch, sources, latent_channels, frames)`):
            The sources in the linear latent domain; they add up to the mix.
        audio_values (`torch.FloatTensor` of shape `(batch, sources, num_channels, length)`):
            Decoded, in the scale of the input. Only where waveforms were asked for.
    """

    loss: torch.Tensor | None = None
    source_values: torch.Tensor | None = None
    audio_values: torch.Tensor | None = None


class LatentSeparator(nn.Module):
    """Splits frames of numbers, linear in the waveform, into the same frames of each source.

    ```
    values --+-----------------------------------------------------------------+
             |                                                                 |
             +-- asinh(3 v / scale) -- k -- N x [norm, k dilated, GELU, 1, +] -+- mask_s * values + scale * detail_s
    ```

    The masks are a softmax over sources and the details have their mean over sources removed, so the sources add up to
    the mix by construction. The last layer starts at zero: every source begins as an equal share of the mix.

    Args:
        num_channels: numbers in a frame: the codec's latent channels, or samples folded into frames.
        num_sources: sources of a mix.
        hidden_size, num_layers, kernel_size, dilation_cycle: see [`WallocSeparationConfig`].
    """

    scale: torch.Tensor

    def __init__(
        self,
        num_channels: int,
        num_sources: int,
        hidden_size: int = 256,
        num_layers: int = 10,
        kernel_size: int = 3,
        dilation_cycle: int = 5,
    ):
        super().__init__()
        self.num_sources = num_sources
        dilations = [2 ** (i % dilation_cycle) for i in range(num_layers)]
        # Standard deviations of the values of a mix.
        self.register_buffer("scale", torch.ones(num_channels))
        self.stem = nn.Conv1d(num_channels, hidden_size, kernel_size, padding="same")
        self.blocks = nn.ModuleList(_Block(hidden_size, kernel_size, dilation) for dilation in dilations)
        self.head = nn.Conv1d(hidden_size, 2 * num_sources * num_channels, 1)
        self.receptive_field = kernel_size // 2 * (1 + sum(dilations))
        nn.init.zeros_(self.head.weight)
        for module in self.modules():
            if isinstance(module, nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) -> (batch, sources, channels, frames)."""
        scale = self.scale.float()[:, None]
        hidden = self.stem(torch.asinh(3.0 * values.float() / scale).to(self.stem.weight.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        masks, details = self.head(hidden).float().unflatten(1, (2, self.num_sources, -1)).unbind(1)
        details = details - details.mean(1, keepdim=True)
        sources: torch.Tensor = masks.softmax(1) * values.float()[:, None] + details * scale
        return sources


class _Block(GradientCheckpointingLayer):
    def __init__(self, width: int, kernel_size: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)  # over channels, position by position: chunks give what the whole gives
        self.conv1 = nn.Conv1d(width, width, kernel_size, padding="same", dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        result: torch.Tensor = hidden + self.conv2(F.gelu(self.conv1(normed)))
        return result


class WallocForAudioSourceSeparation(PreTrainedModel):
    r"""
    Separates the sources of a mix on the latents of a frozen WaLLoC codec, which are 5 to 20 times fewer numbers than
    the samples. Latents are linear in the waveform (companding is undone), so those of the sources add up to those of
    the mix.

    ```
    mix --encoder--> values --LatentSeparator--> values of each source --decoder--> waveforms
    ```

    ```python
    >>> from transformers import AutoModel
    >>> from transformers_walloc import WallocForAudioSourceSeparation

    >>> codec = AutoModel.from_pretrained("walloc/stereo-20x")
    >>> model = WallocForAudioSourceSeparation.from_codec(codec, ["drums", "bass", "other"], hidden_size=64)
    >>> waveforms = model.separate(mix)  # (2, length) in any level -> (3, 2, length)
    ```"""

    config: WallocSeparationConfig
    codec: WallocAudioModel
    config_class = WallocSeparationConfig
    base_model_prefix = ""
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean: Trainer must not rescale it under gradient accumulation
    _keep_in_fp32_modules_strict = {"codec"}  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocSeparationConfig, codec: WallocAudioModel | None = None):
        super().__init__(config)
        self.codec = codec if codec is not None else WallocAudioModel._from_config(config.codec_config)
        for module in codec.modules() if codec is not None else ():
            module._is_hf_initialized = True  # type: ignore[assignment]  # post_init must not draw them anew
        config.codec_config = self.codec.config
        self.separator = LatentSeparator(
            self.codec.config.latent_channels,
            len(config.source_names),
            config.hidden_size,
            config.num_layers,
            config.kernel_size,
            config.dilation_cycle,
        )
        self.codec.requires_grad_(False)
        self.post_init()

    @classmethod
    def from_codec(
        cls, codec: WallocAudioModel, source_names: Sequence[str] | None = None, **kwargs: Any
    ) -> "WallocForAudioSourceSeparation":
        """A new model with random weights of the network.

        Args:
            codec: a full codec, which becomes a part of the model.
            source_names: what a mix consists of; those of music by default.
            **kwargs: further fields of [`WallocSeparationConfig`].
        """
        if source_names is not None:
            kwargs["source_names"] = list(source_names)
        model: WallocForAudioSourceSeparation = cls(
            WallocSeparationConfig(codec_config=codec.config.to_dict(), **kwargs), codec
        ).eval()
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of other models; the codec is frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).codec.requires_grad_(False)  # loading makes new parameters
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Conv1d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LatentSeparator):  # comes after its parts
            init.ones_(module.scale)
            init.zeros_(module.head.weight)

    def train(self, mode: bool = True) -> "WallocForAudioSourceSeparation":
        """As of other modules; the frozen codec stays in evaluation mode."""
        super().train(mode)
        self.codec.eval()  # frozen: latents without noise
        return self

    @torch.no_grad()
    def encode(self, input_values: torch.Tensor) -> torch.Tensor:
        """Latents on a linear scale, zero for silence.

        Args:
            input_values: (..., num_channels, length) in [-0.5, 0.5], length a multiple of the codec's `patch_size`.

        Returns:
            (..., latent_channels, frames), float32.
        """
        bits = self.codec.config.latent_bits
        latents = self.codec.encode(input_values.float().reshape(-1, *input_values.shape[-2:])).latents
        values = decompand(latents, bits) / companding_scale(bits) - self._silence()
        return values.reshape(*input_values.shape[:-2], *values.shape[1:])

    @torch.no_grad()
    def decode(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of `encode`: (..., latent_channels, frames) -> (..., num_channels, length).

        Not clamped, because a source may be louder than the mix.
        """
        bits = self.codec.config.latent_bits
        z = (values.reshape(-1, *values.shape[-2:]).float() + self._silence()) * companding_scale(bits)
        audio = self.codec._decode(compand(z, bits), 1.0, None)
        return audio.reshape(*values.shape[:-2], *audio.shape[1:])

    @torch.no_grad()
    def set_scale(self, values: torch.Tensor) -> None:
        """Let the network know the standard deviation of each latent channel; do so before training.

        Args:
            values: (batch, latent_channels, frames) of mixes, as `encode` returns them.
        """
        self.separator.scale.copy_(values.float().std((0, 2)).clamp_min(1e-6))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        source_values: torch.Tensor | None = None,
        return_loss: bool = True,
        return_waveforms: bool = False,
    ) -> WallocSeparationOutput:
        """
        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5]: what the codec's feature extractor returns.
            labels: (batch, sources, num_channels, length), the sources in the scale of the mix.
            padding_mask, gain, offset: the extractor's other outputs, accepted so that it can be passed as it is.
            values: (batch, latent_channels, frames) in place of `input_values`, as `encode` returns them.
            source_values: (batch, sources, latent_channels, frames) in place of `labels`.
            return_loss: whether to compute the loss where there are labels.
            return_waveforms: whether to decode.

        Raises:
            ValueError: neither or both of `input_values` and `values`, or labels of another shape.
        """
        if input_values is not None and values is None:
            values = self.encode(input_values)
        elif input_values is not None or values is None:
            raise ValueError("valid: either input_values or values")
        if labels is not None:
            source_values = self.encode(labels)
        sources = self.separator(values)
        loss = None
        if source_values is not None:
            loss = separation_loss(sources, source_values, values)
        audio = self.decode(sources) if return_waveforms else None
        return WallocSeparationOutput(loss=loss, source_values=sources, audio_values=audio)

    @torch.no_grad()
    def separate(self, waveform: Any, chunk_size: int = CHUNK_SIZE) -> torch.Tensor:
        """Separate audio of any length and level.

        Args:
            waveform: (num_channels, length) or (batch, num_channels, length), at the codec's sampling rate: a tensor
                on any device, or an array.
            chunk_size: latents that the network runs on at a time. Chunks overlap by its receptive field, so that they
                give the same as the whole.

        Returns:
            ([batch,] sources, num_channels, length) on the model's device, the sources in the order of
            `config.source_names`.

        Raises:
            ValueError: another shape, or a chunk size below 1.
        """
        channels, patch = self.codec.config.num_channels, self.codec.config.patch_size
        waveform = torch.as_tensor(waveform, device=self.separator.scale.device)
        if waveform.ndim not in (2, 3) or waveform.shape[-2] != channels or 0 in waveform.shape:
            raise ValueError(f"waveform must be ([batch,] {channels}, length), got {tuple(waveform.shape)}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1 latent")
        x = waveform.reshape(-1, *waveform.shape[-2:]).float()
        length = x.shape[2]
        clips, gains, _ = zip(*map(normalise_clip, x), strict=True)
        values = self.encode(F.pad(torch.stack(clips), (0, -length % patch)))
        halo, parts = self.separator.receptive_field, []
        for start in range(0, values.shape[2], chunk_size):
            first = max(start - halo, 0)
            part = self.separator(values[:, :, first : start + chunk_size + halo])
            parts.append(part[..., start - first : start - first + chunk_size])
        audio = self.decode(torch.cat(parts, 3))[..., :length]
        audio = audio * audio.new_tensor(gains)[:, None, None, None]
        return audio.reshape(*waveform.shape[:-2], *audio.shape[1:])

    def _silence(self) -> torch.Tensor:
        """(latent_channels, 1): what the encoder makes of zeros; it subtracts the mean of its training material."""
        bias = self.codec.encoder.projection.bias
        scale = companding_scale(self.codec.config.latent_bits)
        return bias.float()[:, None] / scale if bias is not None else self.separator.scale.new_zeros(1, 1)


def separation_loss(sources: torch.Tensor, labels: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Squared error summed over sources, relative to the power of the mix; 1 or below after any learning.

    Args:
        sources, labels: (batch, sources, channels, frames).
        mix: (batch, channels, frames).
    """
    if sources.shape != labels.shape:
        raise ValueError(f"labels must be {tuple(sources.shape)}, got {tuple(labels.shape)}")
    error = (sources.float() - labels.float()).square().sum((1, 2)).mean()
    return error / mix.float().square().sum(1).mean().clamp_min(1e-8)
