"""WaLLoC codecs for images and audio as transformers models (arXiv 2412.09405)."""

import hashlib
import itertools
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .bottleneck import QuantizationMode, code_dtype, compand, decompand, latent_limit, quantize
from .compression import AudioCompression, AudioDecompression, ImageCompression, ImageDecompression
from .configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig
from .decoders import (
    LinearDecoder,
    ResidualDecoder,
    RestorationNetwork,
    convolution_class,
    make_decoder,
    pointwise_float32,
)
from .wavelets import analyse_and_project, wavelet_packet_analysis, wavelet_packet_synthesis

# Decoding runs in tiles of latents above this many positions, so that the decoder's activations stay bounded.
MAX_TILE_POSITIONS = 2**16


@dataclass
class WallocEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`):
            Companded, not rounded; within `+-(2**(latent_bits - 1) - 0.5)`.
    """

    latents: torch.Tensor | None = None


@dataclass
class WallocImageDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): in [-0.5, 0.5].
    """

    pixel_values: torch.Tensor | None = None


@dataclass
class WallocAudioDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, num_channels, length)`): in [-0.5, 0.5].
    """

    audio_values: torch.Tensor | None = None


@dataclass
class WallocModelOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error of the reconstruction, before clamping.
        reconstruction (`torch.FloatTensor`, shaped as the input): in [-0.5, 0.5].
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`): companded, not rounded.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    latents: torch.Tensor | None = None


class WallocEncoder(nn.Module):
    """Wavelet packet transform, projection and companding: (batch, num_channels, *sizes) -> latents."""

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.config = config
        self.projection = convolution_class(config)(
            config.subband_channels, config.latent_channels, 1, padding=config.encoder_padding
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        config, projection = self.config, self.projection
        with torch.autocast(x.device.type, enabled=False):
            z = analyse_and_project(
                x,
                projection.weight.flatten(1),
                projection.bias,
                config.num_levels,
                config.wavelet,
                config.boundary,
                config.num_dims,
            )
            # Before companding, which makes infinite values finite.
            _check_finite(z, "pixel_values" if config.num_dims == 2 else "input_values")
            return compand(self._pad(z), config.latent_bits)

    def from_subbands(self, subbands: torch.Tensor) -> torch.Tensor:
        """Latents of subbands that are already at hand, (batch, subband_channels, *grid)."""
        with torch.autocast(subbands.device.type, enabled=False):
            return compand(self._pad(pointwise_float32(subbands, self.projection)), self.config.latent_bits)

    def _pad(self, z: torch.Tensor) -> torch.Tensor:
        padding = self.config.encoder_padding
        if not padding:
            return z
        # The original pads the subbands with zeros, which the projection turns into its bias.
        edge = self.projection.get_parameter("bias").to(z.dtype)[None, :, None].expand(len(z), -1, padding)
        return torch.cat([edge, z, edge], dim=2)


class PostFilter(nn.Conv1d):
    """Filters the waveform behind the synthesis; starts as the identity."""


class WallocPreTrainedModel(PreTrainedModel):
    config: WallocConfig
    config_class = WallocConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    # Trainer must not rescale the loss under gradient accumulation: it is a mean, not a sum over tokens.
    accepts_loss_kwargs = False
    # Encoder and decoders read the weights of their parts directly, so each stays on one device.
    _no_split_modules = ["WallocEncoder", "LinearDecoder", "ResidualDecoder", "RestorationDecoder"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (SafetensorError, pickle.UnpicklingError) as error:
            raise ValueError(f"the weights of {pretrained_model_name_or_path} are corrupted: {error}") from error

    @torch.no_grad()
    def _init_weights(self, module: Any):
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.Linear):
            if isinstance(module, PostFilter):
                init.dirac_(module.weight)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif type(module).__name__ == "Snake1d":
            init.zeros_(module.alpha)
            init.zeros_(module.beta)
        # Modules come after their parts, so that the following has the last word.
        elif isinstance(module, WallocEncoder):
            init.orthogonal_(module.projection.weight)
        elif isinstance(module, _EncoderModel) and module.entropy_tables is not None:
            init.zeros_(module.entropy_tables)
        elif isinstance(module, RestorationNetwork):
            init.zeros_(module.head.weight)
        elif isinstance(module, LinearDecoder | ResidualDecoder):
            init.orthogonal_(module.linear.weight)
            if isinstance(module, ResidualDecoder):
                init.ones_(module.latent_std)
                init.ones_(module.subband_scale)
                init.zeros_(module.head.weight)


class _EncoderModel(WallocPreTrainedModel):
    """What encoder-only and full models of all signals share."""

    def __init__(self, config: WallocConfig):
        # By model type: transformers loads a folder's own code once for the configuration and once for the model, and
        # the two copies of a class are not the same class.
        if getattr(config, "model_type", None) != self.config_class.model_type:
            raise TypeError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        super().__init__(config)
        self.encoder = WallocEncoder(config)
        # Serialised `EntropyTables`; zero where a checkpoint has none, which stands for the generic ones.
        self.entropy_tables: torch.Tensor | None
        size = config.entropy_tables_size
        self.register_buffer("entropy_tables", torch.zeros(size, dtype=torch.uint8) if size else None)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        self._check_signal(x)
        return self.encoder(x).to(x.dtype)

    def quantize(self, latents: torch.Tensor, step: float = 1.0) -> torch.Tensor:
        """Round latents to integer codes.

        Args:
            latents: (batch, latent_channels, *grid) as `encode` returns them.
            step: latents are divided by it first, at least 1; larger is coarser. `decode` must be given the same.

        Returns:
            Codes of the same shape, int8 for up to 8 `latent_bits`, else int16.
        """
        self._check_latents(latents)
        if not latents.is_floating_point():
            raise TypeError(f"latents must be floating point, got {latents.dtype}; are they codes already?")
        _check_step(step)
        _check_finite(latents, "latents")
        limit = int(latent_limit(self.config.latent_bits))
        return torch.round(latents.float() / step).clamp(-limit, limit).to(code_dtype(self.config.latent_bits))

    def fingerprint(self) -> str:
        """Identifies what codes of this model mean: 16 hexadecimal digits over the encoder and its configuration.

        Codecs with equal fingerprints read each other's codes; the decoder network is left out, so that a better one
        for the same encoder opens older files.
        """
        weights = [parameter.detach() for parameter in self.encoder.parameters()]
        if self.config.latent_fingerprint and any(w.dtype not in (torch.float32, torch.float64) for w in weights):
            return self.config.latent_fingerprint  # of the weights before they were rounded to half precision
        names = (
            "num_channels",
            "num_levels",
            "latent_channels",
            "latent_bits",
            "wavelet",
            "boundary",
            "encoder_padding",
        )
        digest = hashlib.sha256(json.dumps([self.config.num_dims, *(getattr(self.config, n) for n in names)]).encode())
        for weight in weights:
            digest.update(weight.float().cpu().contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, save_directory, *args, **kwargs):
        self.config.latent_fingerprint = self.fingerprint()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _check_latents(self, codes: torch.Tensor):
        config = self.config
        if not isinstance(codes, torch.Tensor):
            raise TypeError(f"codes or latents must be a torch.Tensor, got {type(codes).__name__}")
        if codes.ndim != config.num_dims + 2 or codes.shape[1] != config.latent_channels or 0 in codes.shape:
            raise ValueError(
                f"codes or latents must be (batch, {config.latent_channels}, *grid) with {config.num_dims} axes of the "
                f"grid, got {tuple(codes.shape)}"
            )

    def _check_signal(self, x: torch.Tensor):
        name, config = self.main_input_name, self.config
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; use the processor")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point in [-0.5, 0.5], got {x.dtype}; use the processor")
        if x.ndim != config.num_dims + 2 or x.shape[1] != config.num_channels or 0 in x.shape:
            sizes = "height, width" if config.num_dims == 2 else "length"
            raise ValueError(f"{name} must be (batch, {config.num_channels}, {sizes}), got {tuple(x.shape)}")
        if any(size % config.patch_size for size in x.shape[2:]):
            raise ValueError(
                f"sizes of {name} must be multiples of {config.patch_size}, got {tuple(x.shape[2:])}: use the processor"
            )


class _CodecModel(_EncoderModel):
    """Encoder and decoder."""

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.decoder = make_decoder(config)
        if config.post_filter_size:
            self.post_filter = PostFilter(
                config.num_channels, config.num_channels, config.post_filter_size, padding="same"
            )
        self.post_init()

    def _decode(self, codes: torch.Tensor, step: float, tile_size: int | None) -> torch.Tensor:
        self._check_latents(codes)
        _check_step(step)
        if codes.is_floating_point():
            _check_finite(codes, "latents")
            latents = codes
        else:
            self._check_codes(codes)
            latents = codes.float() * step
        return self._to_signal(latents, tile_size)

    def _check_codes(self, codes: torch.Tensor):
        if codes.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
            raise TypeError(f"codes must be signed integers and latents real floats, got {codes.dtype}")
        if codes.device.type == "cpu" and not torch.compiler.is_compiling():
            limit = int(latent_limit(self.config.latent_bits))
            low, high = (value.item() for value in codes.aminmax())
            if low < -limit or high > limit:
                raise ValueError(f"codes lie in {low}..{high}; valid: {-limit}..{limit}")

    def _to_signal(self, latents: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """Latents -> signal (batch, num_channels, *sizes), by tiles where the grid is large."""
        x = self._synthesise(self._subbands(latents, tile_size))
        network = getattr(self.decoder, "network", None)
        if network is None:
            return x
        block = self.config.patch_size

        def restore(tile: tuple[slice, ...]) -> torch.Tensor:
            pixels = tuple(slice(block * s.start, block * s.stop) for s in tile)
            return network(x[(..., *pixels)], decompand(latents[(..., *tile)].float(), self.config.latent_bits))

        return self._by_tiles(restore, latents.shape[2:], network.receptive_field, tile_size, block)

    def _subbands(self, latents: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """Decoder output (batch, subband_channels, *grid), by tiles where the grid is large."""
        dtype = next(self.decoder.parameters()).dtype

        def decode(tile: tuple[slice, ...]) -> torch.Tensor:
            return self.decoder(decompand(latents[(..., *tile)].float(), self.config.latent_bits).to(dtype))

        return self._by_tiles(
            decode, latents.shape[2:], getattr(self.decoder, "receptive_field", None), tile_size, magnification=1
        )

    def _by_tiles(
        self,
        function: Callable[[tuple[slice, ...]], torch.Tensor],
        grid: torch.Size,
        halo: int | None,
        tile_size: int | None,
        magnification: int,
    ) -> torch.Tensor:
        """What `function` gives for the whole grid of latents, made of what it gives for parts of it.

        Args:
            function: of the ranges of a part along the axes, gives `magnification` values per axis for a latent.
            halo: latents around a part that have to be known for it; None where that is all of them.
        """
        if tile_size is None:
            # Tiles keep the activations small, which training needs again for the gradient.
            whole = math.prod(grid) <= MAX_TILE_POSITIONS or self.training
            tile_size = max(grid) if whole else round(MAX_TILE_POSITIONS ** (1 / len(grid)))
        if tile_size < 1:
            raise ValueError(f"tile_size is {tile_size}; it must be at least 1 latent")
        if halo is None or max(grid) <= tile_size:
            return function(tuple(slice(0, size) for size in grid))
        result: torch.Tensor | None = None
        starts = [range(0, size, tile_size) for size in grid]
        for corner in map(list, itertools.product(*starts)):
            ends = [min(a + tile_size, size) for a, size in zip(corner, grid, strict=True)]
            froms = [max(a - halo, 0) for a in corner]
            untils = [min(b + halo, size) for b, size in zip(ends, grid, strict=True)]
            tile = function(tuple(slice(*edges) for edges in zip(froms, untils, strict=True)))
            if result is None:
                result = tile.new_empty((*tile.shape[:2], *(size * magnification for size in grid)))
            offsets = ([a - f for a, f in zip(edges, froms, strict=True)] for edges in (corner, ends))
            inner = _window(*offsets, magnification)
            result[_window(corner, ends, magnification)] = tile[inner]
        if result is None:
            raise ValueError(f"the grid {tuple(grid)} is empty")
        return result

    def _synthesise(self, subbands: torch.Tensor) -> torch.Tensor:
        config = self.config
        with torch.autocast(subbands.device.type, enabled=False):
            x = wavelet_packet_synthesis(
                subbands,
                config.num_levels,
                config.wavelet,
                config.boundary,
                config.num_dims,
            )
        if config.post_filter_size:
            x = self.post_filter(x.to(self.post_filter.weight.dtype))
        return x

    def _forward(
        self, x: torch.Tensor, return_loss: bool, mask: torch.Tensor | None, loss_domain: str
    ) -> WallocModelOutput:
        # Noise lets gradients through to the encoder. Where it is frozen the decoder learns from what it will meet.
        learning = self.training and any(parameter.requires_grad for parameter in self.encoder.parameters())
        mode: QuantizationMode = "noise" if learning else "round"
        if loss_domain == "subbands":
            self._check_signal(x)
            if hasattr(self.decoder, "network"):
                raise ValueError("loss_domain 'subbands' leaves the restoration network out: use 'signal'")
            with torch.no_grad():
                config = self.config
                target = wavelet_packet_analysis(
                    x,
                    config.num_levels,
                    config.wavelet,
                    config.boundary,
                    config.num_dims,
                )
            latents = self.encoder.from_subbands(target)
            loss = F.mse_loss(self._subbands(quantize(latents, mode)).float(), target) if return_loss else None
            return WallocModelOutput(loss=loss, latents=latents.to(x.dtype))
        if loss_domain != "signal":
            raise ValueError(f"unknown loss_domain {loss_domain!r}; valid: signal, subbands")
        latents = self._encode(x)
        if mask is not None and mask.shape != (len(x), *x.shape[2:]):
            raise ValueError(f"padding_mask must be {(len(x), *x.shape[2:])}, got {tuple(mask.shape)}")
        reconstruction = self._to_signal(quantize(latents.float(), mode)).to(x.device)
        loss = None
        if return_loss:
            error = (reconstruction.float() - x.float()) ** 2
            if mask is None:
                loss = error.mean()
            else:
                mask = mask[:, None].expand_as(error)
                loss = (error * mask).sum() / mask.sum().clamp_min(1)
        return WallocModelOutput(loss=loss, reconstruction=reconstruction.clamp(-0.5, 0.5).to(x.dtype), latents=latents)


class WallocImageEncoder(ImageCompression, _EncoderModel):
    r"""
    The encoder of a WaLLoC image codec alone: a linear map with fewer than 100,000 parameters. It loads the same
    checkpoints as [`WallocImageModel`] and leaves the decoder's weights unread.
    """

    config: WallocImageConfig
    config_class = WallocImageConfig
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^post_filter\."]  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocImageConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, original_sizes: torch.Tensor | None = None) -> WallocEncoderOutput:
        """The same as `encode`; `original_sizes` is accepted so that a processor's output can be passed as it is."""
        return WallocEncoderOutput(latents=self._encode(pixel_values))

    encode = forward


class WallocAudioEncoder(AudioCompression, _EncoderModel):
    r"""
    The encoder of a WaLLoC audio codec alone. It loads the same checkpoints as [`WallocAudioModel`] and leaves the
    decoder's weights unread.
    """

    config: WallocAudioConfig
    config_class = WallocAudioConfig
    main_input_name = "input_values"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^post_filter\."]  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocAudioConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
    ) -> WallocEncoderOutput:
        """The same as `encode`; the extractor's other outputs are accepted so that they can be passed as they are."""
        return WallocEncoderOutput(latents=self._encode(input_values))

    encode = forward


class WallocImageModel(ImageDecompression, _CodecModel):
    r"""
    WaLLoC image codec: encoder, bottleneck and decoder.

    ```python
    >>> from transformers import AutoImageProcessor, AutoModel
    >>> import transformers_walloc

    >>> processor = AutoImageProcessor.from_pretrained("walloc/rgb-16x")
    >>> model = AutoModel.from_pretrained("walloc/rgb-16x")
    >>> inputs = processor(image, return_tensors="pt")
    >>> latents = model.encode(inputs["pixel_values"]).latents  # (1, 12, H/8, W/8)
    ```"""

    config: WallocImageConfig
    config_class = WallocImageConfig
    main_input_name = "pixel_values"

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> WallocEncoderOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width) in [-0.5, 0.5], sizes multiples of `config.patch_size`.
        """
        return WallocEncoderOutput(latents=self._encode(pixel_values))

    @can_return_tuple
    def decode(self, codes: torch.Tensor, step: float = 1.0, tile_size: int | None = None) -> WallocImageDecoderOutput:
        """
        Args:
            codes: integer codes or floating-point latents (batch, latent_channels, height/patch, width/patch).
            step: the one that `quantize` was given; only integer codes are multiplied by it.
            tile_size: latents per side of the tiles that the decoder runs on; chosen by itself if None. Tiles give the
                same pixels as the whole image, in bounded memory.
        """
        return WallocImageDecoderOutput(pixel_values=self._decode(codes, step, tile_size).clamp(-0.5, 0.5))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor | None = None,
        return_loss: bool = True,
        loss_domain: Literal["signal", "subbands"] = "signal",
    ) -> WallocModelOutput:
        """Encode, quantise (uniform noise in training, rounding in evaluation) and decode.

        Args:
            pixel_values: (batch, num_channels, height, width) in [-0.5, 0.5], sizes multiples of `config.patch_size`.
            original_sizes: (batch, 2), height and width before padding; the loss leaves the padding out.
            return_loss: whether to compute the loss.
            loss_domain: `signal` compares samples; `subbands` compares wavelet packet coefficients and leaves out the
                reconstruction, which is cheaper and nearly the same (CDF 9/7 is nearly orthonormal).
        """
        mask = None
        if original_sizes is not None:
            self._check_signal(pixel_values)
            height, width = (torch.arange(size, device=pixel_values.device) for size in pixel_values.shape[2:])
            sizes = torch.as_tensor(original_sizes, device=pixel_values.device)
            if sizes.shape != (len(pixel_values), 2):
                raise ValueError(f"original_sizes must be {(len(pixel_values), 2)}, got {tuple(sizes.shape)}")
            mask = (height < sizes[:, :1])[:, :, None] & (width < sizes[:, 1:])[:, None, :]
        return self._forward(pixel_values, return_loss, mask, loss_domain)


class WallocAudioModel(AudioDecompression, _CodecModel):
    r"""
    WaLLoC audio codec: encoder, bottleneck and decoder.

    ```python
    >>> from transformers import AutoFeatureExtractor, AutoModel
    >>> import transformers_walloc

    >>> extractor = AutoFeatureExtractor.from_pretrained("walloc/stereo-20x")
    >>> model = AutoModel.from_pretrained("walloc/stereo-20x")
    >>> inputs = extractor(waveform, sampling_rate=44100, return_tensors="pt")
    >>> latents = model.encode(inputs["input_values"]).latents  # (1, 27, length/256)
    ```"""

    config: WallocAudioConfig
    config_class = WallocAudioConfig
    main_input_name = "input_values"

    @can_return_tuple
    def encode(self, input_values: torch.Tensor) -> WallocEncoderOutput:
        """
        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5], length a multiple of `config.patch_size`.
        """
        return WallocEncoderOutput(latents=self._encode(input_values))

    @can_return_tuple
    def decode(self, codes: torch.Tensor, step: float = 1.0, tile_size: int | None = None) -> WallocAudioDecoderOutput:
        """
        Args:
            codes: integer codes or floating-point latents (batch, latent_channels, length/patch).
            step: the one that `quantize` was given; only integer codes are multiplied by it.
            tile_size: latents that the decoder runs on at a time; chosen by itself if None.
        """
        return WallocAudioDecoderOutput(audio_values=self._decode(codes, step, tile_size).clamp(-0.5, 0.5))

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        return_loss: bool = True,
        loss_domain: Literal["signal", "subbands"] = "signal",
    ) -> WallocModelOutput:
        """Encode, quantise (uniform noise in training, rounding in evaluation) and decode.

        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5], length a multiple of `config.patch_size`.
            padding_mask: (batch, length), 0 where the clip was padded; the loss leaves the padding out.
            gain, offset: accepted so that the extractor's output can be passed as it is; used by `compress`.
            return_loss: whether to compute the loss.
            loss_domain: `signal` compares samples; `subbands` compares wavelet packet coefficients and leaves out the
                reconstruction, which is cheaper and nearly the same (CDF 9/7 is nearly orthonormal).
        """
        return self._forward(input_values, return_loss, padding_mask, loss_domain)


def _window(starts: list[int], ends: list[int], magnification: int) -> tuple[Any, ...]:
    """Index of a box in the last axes, which is given on a grid coarser by `magnification`."""
    return (..., *(slice(magnification * a, magnification * b) for a, b in zip(starts, ends, strict=True)))


def _check_finite(x: torch.Tensor, name: str):
    """Only on the CPU: elsewhere the answer would have to wait for the device."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values")


def _check_step(step: float):
    if not (math.isfinite(step) and step >= 1):
        raise ValueError(f"step is {step}; it must be finite and at least 1")
