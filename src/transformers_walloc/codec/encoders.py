"""The encoder, and the models that hold nothing else: signal -> latents -> codes -> files."""

import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .bottleneck import check_finite, check_step, code_dtype, compand, latent_limit
from .checkpoint_checks import check_fit, check_weights
from .compression import as_floats, audio_sizes, compress, decompress_codes, image_sizes
from .configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig
from .decoders import LinearDecoder, PostFilter, ResidualDecoder, RestorationNetwork
from .entropy_coding import EntropyTables
from .identity import IdentityMixin, tables_from_buffer, tables_to_bytes
from .kinds import KINDS
from .layers import is_pointwise, pointwise, pointwise_layer
from .limits import MAX_MEMORY, warn_of_range
from .outputs import WallocEncoderOutput, can_return_tuple
from .pixels import encode_pictures, encode_pixels, scale_pixels
from .symmetries import has_symmetry
from .wavelets import analyse_and_project, wavelet_packet_analysis

logger = logging.get_logger(__name__)


class WallocEncoder(nn.Module):
    """Wavelet packet transform, projection and companding: (batch, num_channels, *sizes) -> latents.

    Images may be uint8.
    """

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.config = config
        self.projection = pointwise_layer(
            config, config.subband_channels, config.latent_channels, config.encoder_padding
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, num_channels, *sizes) in [-0.5, 0.5], or uint8 images -> (batch, latent_channels, *grid) latents."""
        latents = encode_pictures(self, x)
        if latents is not None:
            return latents
        if x.dtype == torch.uint8:
            x = scale_pixels(x)
        config, projection = self.config, self.projection
        transform = config.num_levels, config.wavelet, config.boundary, config.num_dims
        with torch.autocast(x.device.type, enabled=False):
            if is_pointwise(projection):
                z = analyse_and_project(x, projection.weight.flatten(1), projection.bias, *transform)
                z = self._pad(z)
            else:
                z = pointwise(projection, wavelet_packet_analysis(x, *transform))
            # Before companding, which makes infinite values finite.
            check_finite(z, KINDS[config.kind].input_name)
            return compand(z, config.latent_bits)

    def from_subbands(self, subbands: torch.Tensor) -> torch.Tensor:
        """Latents of subbands that are already at hand, (batch, subband_channels, *grid)."""
        with torch.autocast(subbands.device.type, enabled=False):
            return compand(pointwise(self.projection, subbands), self.config.latent_bits)

    def _pad(self, z: torch.Tensor) -> torch.Tensor:
        padding = self.config.encoder_padding
        if not padding:
            return z
        # The original pads the subbands with zeros, which the projection turns into its bias.
        edge = self.projection.get_parameter("bias").to(z.dtype)[None, :, None].expand(len(z), -1, padding)
        return torch.cat([edge, z, edge], dim=2)


class WallocPreTrainedModel(PreTrainedModel):
    """Loading, saving and identity of all codecs; see `WallocImageModel` and its kind."""

    config: WallocConfig
    config_class = WallocConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    # Trainer must not rescale the loss under gradient accumulation: it is a mean, not a sum over tokens.
    accepts_loss_kwargs = False
    # Encoder and decoders read the weights of their parts directly, so each stays on one device.
    _no_split_modules = ["WallocEncoder", "LinearDecoder", "ResidualDecoder", "RestorationDecoder"]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; a ValueError for weights that are damaged, not finite, or of another configuration."""
        path = pretrained_model_name_or_path
        try:
            options: Any = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
            loaded: Any = super().from_pretrained(path, *args, **options)
        except (SafetensorError, pickle.UnpicklingError) as error:
            raise ValueError(f"the weights of {path} are corrupted: {error}") from error
        model, info = loaded
        if not ignore_mismatched_sizes:
            check_fit(str(path), info)
        check_weights(str(path), model)
        if isinstance(model, EncodingModel):
            model.recall_identity()
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.Linear):
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
        elif isinstance(module, EncodingModel) and module.entropy_tables is not None:
            init.zeros_(module.entropy_tables)
        elif isinstance(module, RestorationNetwork):
            init.zeros_(module.head.weight)
        elif isinstance(module, LinearDecoder | ResidualDecoder):
            init.orthogonal_(module.linear.weight)
            if isinstance(module, ResidualDecoder):
                init.ones_(module.latent_std)
                init.ones_(module.subband_scale)
                init.zeros_(module.head.weight)


class EncodingModel(IdentityMixin, WallocPreTrainedModel):
    """What encoder-only and full models of all signals share."""

    encoder: WallocEncoder

    def __init__(self, config: WallocConfig):
        # By model type: transformers loads a folder's own code once for the configuration and once for the model, and
        # the two copies of a class are not the same class.
        if getattr(config, "model_type", None) != self.config_class.model_type:
            raise TypeError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        config.check()  # fields may have been assigned since
        super().__init__(config)
        self.encoder = WallocEncoder(config)
        # Serialised `EntropyTables`; zero where a checkpoint has none, which stands for the generic ones.
        self.entropy_tables: torch.Tensor | None
        size = config.entropy_tables_size
        self.register_buffer("entropy_tables", torch.zeros(size, dtype=torch.uint8) if size else None)

    def quantize(self, latents: torch.Tensor, step: float = 1.0) -> torch.Tensor:
        """Round latents to integer codes.

        Args:
            latents: (batch, latent_channels, *grid) as `encode` returns them.
            step: latents are divided by it first, at least 1; larger is coarser. `decode` must be given the same.

        Returns:
            Codes of the same shape, int8 for up to 8 `latent_bits`, else int16.
        """
        self.check_latents(latents)
        if not latents.is_floating_point():
            raise TypeError(f"latents must be floating point, got {latents.dtype}; are they codes already?")
        check_step(step)
        check_finite(latents, "latents")
        limit = int(latent_limit(self.config.latent_bits))
        return torch.round(latents.float() / step).clamp(-limit, limit).to(code_dtype(self.config.latent_bits))

    def decompress_codes(
        self,
        blobs: bytes | Sequence[bytes],
        max_memory: int | None = MAX_MEMORY,
        max_pixels: int | None = None,
        max_samples: int | None = None,
    ) -> list[torch.Tensor]:
        """Codes of .walloc files without decoding them: int8 (latent_channels, *grid) each, on the CPU.

        For models that learn from latents, which codes are when multiplied by the step of the file,
        `bitstream.unpack(blob)[0].step`.

        Args:
            blobs: one or more .walloc files.
            max_memory: refuse files that would take more bytes of memory before anything is decoded; None for no limit.
            max_pixels, max_samples: refuse larger images, or longer audio.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        return decompress_codes(self, blobs, max_memory=max_memory, max_pixels=max_pixels, max_samples=max_samples)

    def set_entropy_tables(self, tables: EntropyTables | None) -> None:
        """Probability tables fitted to this codec, saved with the weights; None for the generic ones.

        Files are tied to the tables that they were written with: fit them before the codec is published.
        """
        data = tables_to_bytes(tables, self.config.latent_channels)
        self.config.entropy_tables_size = len(data)
        self.entropy_tables = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device) if data else None

    def get_entropy_tables(self) -> EntropyTables:
        """The tables that `compress` and `decompress` use."""
        return tables_from_buffer(self.entropy_tables, self.config.latent_channels)[0]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write a folder for `from_pretrained`, with the fingerprint of the weights; arguments as in transformers."""
        if self.config.latent_symmetry is not None and not has_symmetry(self.encoder):
            logger.warning(
                "the projection has lost its symmetry, as training it freely does: the saved codec's latents cannot be "
                "flipped or rotated. training.symmetric.keep_symmetric, called before the training, keeps it."
            )
            self.config.latent_symmetry = None
        self.state_identity()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def check_signal(self, x: torch.Tensor) -> None:
        """Raises TypeError or ValueError unless `x` is a batch of signals that can be encoded here and now."""
        name, config = self.main_input_name, self.config
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; use the processor")
        if not (x.is_floating_point() or (x.dtype == torch.uint8 and config.kind == "image")):
            raise TypeError(f"{name} must be floating point in [-0.5, 0.5], got {x.dtype}; use the processor")
        if x.ndim != config.num_dims + 2 or x.shape[1] != config.num_channels or 0 in x.shape:
            sizes = ", ".join(KINDS[config.kind].axes)
            raise ValueError(f"{name} must be (batch, {config.num_channels}, {sizes}), got {tuple(x.shape)}")
        if any(size % config.patch_size for size in x.shape[2:]):
            raise ValueError(
                f"sizes of {name} must be multiples of {config.patch_size}, got {tuple(x.shape[2:])}: use the processor"
            )
        self._check_device(x)
        warn_of_range(self, name, x)

    def check_latents(self, latents: torch.Tensor) -> None:
        """Raises TypeError or ValueError unless `latents` has the shape of latents or codes."""
        config = self.config
        if not isinstance(latents, torch.Tensor):
            raise TypeError(f"codes or latents must be a torch.Tensor, got {type(latents).__name__}")
        if latents.ndim != config.num_dims + 2 or latents.shape[1] != config.latent_channels or 0 in latents.shape:
            raise ValueError(
                f"codes or latents must be (batch, {config.latent_channels}, *grid) with {config.num_dims} axes of the "
                f"grid, got {tuple(latents.shape)}"
            )
        self._check_device(latents)

    def _check_device(self, x: torch.Tensor) -> None:
        # accelerate's hooks fetch weights that are on the disk when a module is called.
        hooked = any(hasattr(module, "_hf_hook") for module in self.encoder.modules())
        if not (x.is_meta or hooked) and any(weight.is_meta for weight in self.encoder.parameters()):
            raise ValueError(
                f"the weights are on the device 'meta', which holds no values, the data on {str(x.device)!r}: load the "
                "model with from_pretrained"
            )

    def encode_to_codes(self, x: torch.Tensor, step: float = 1.0) -> torch.Tensor:
        """`encode` and `quantize` in one: the fastest way from 8-bit images on a CPU, see docs/concepts/kernels.md.

        Args:
            x: what `encode` takes.
            step: see `quantize`.
        """
        self.check_signal(x)
        check_step(step)
        codes = (encode_pixels if x.dtype == torch.uint8 else encode_pictures)(self.encoder, x, step)
        return self.quantize(self.encoder(x), step) if codes is None else codes

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        self.check_signal(x)
        latents: torch.Tensor = self.encoder(x).to(torch.float32 if x.dtype == torch.uint8 else x.dtype)
        return latents


class PixelEncodingModel(EncodingModel):
    """`encode` and `compress` of codecs for images and volumes.

    *sizes are height and width, or depth, height and width.
    """

    main_input_name = "pixel_values"

    @can_return_tuple
    def encode(self, pixel_values: torch.Tensor) -> WallocEncoderOutput:
        """
        Args:
            pixel_values: (batch, num_channels, *sizes) in [-0.5, 0.5], images uint8 as well, sizes multiples of
                `config.patch_size`.
        """
        return WallocEncoderOutput(latents=self._encode(pixel_values))

    def compress(
        self,
        pixel_values: torch.Tensor,
        original_sizes: torch.Tensor | None = None,
        step: float = 1.0,
        num_channels: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
        refine: int = 0,
        header_fields: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[bytes]:
        """
        Args:
            pixel_values: (batch, num_channels, *sizes) in [-0.5, 0.5], images uint8 as well (`do_rescale=False`), as
                the processor returns them.
            original_sizes: (batch, 2 or 3), sizes before padding, to which `decompress` crops; by default nothing is
                padding.
            step: width of a quantisation cell, at least 1; larger gives smaller files and coarser latents.
            num_channels: latent channels to keep, from the first; the others are decoded as zero. All by default.
            bpp: bits per pixel or voxel of the whole file that must not be exceeded; the finest step that keeps to it
                is chosen.
            psnr: peak signal-to-noise ratio in dB that must be reached, of the 8-bit image or over the range of a
                volume's samples; the coarsest step that does is chosen. Needs a model with a decoder.
            refine: steps of a search for codes that decode to something nearer to the signal; 5 to 20 are worth their
                time. Slow, about three decodings a step; needs a model with a decoder. What reads the file is as fast.
            header_fields: what each file says beside that, see `compression.compress`.

        Returns:
            A .walloc file for each image or volume.

        Raises:
            ValueError: NaN or infinite values, sizes that do not fit, more than 8 `latent_bits`, a target out of reach.
        """
        self.check_signal(pixel_values)
        sizes = image_sizes(original_sizes, len(pixel_values), self.config.num_dims)
        options: dict[str, Any] = {"step": step, "num_channels": num_channels, "bpp": bpp, "psnr": psnr}
        return compress(self, pixel_values, sizes=sizes, refine=refine, header_fields=header_fields, **options)


class ImageEncodingModel(PixelEncodingModel):
    """`encode` and `compress` of image codecs."""

    config: WallocImageConfig
    config_class = WallocImageConfig


class AudioEncodingModel(EncodingModel):
    """`encode` and `compress` of audio codecs."""

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

    def compress(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | Sequence[float] | None = None,
        offset: torch.Tensor | Sequence[float] | None = None,
        step: float = 1.0,
        num_channels: int | None = None,
        kbps: float | None = None,
        psnr: float | None = None,
        refine: int = 0,
        header_fields: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[bytes]:
        """
        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5] as the feature extractor returns them.
            padding_mask: (batch, length), 1 for samples and 0 for padding, which must come last.
            gain, offset: (batch,), stored so that `decompress` can return `gain * decoded + offset`; 1 and 0 by
                default.
            step: width of a quantisation cell, at least 1; larger gives smaller files and coarser latents.
            num_channels: latent channels to keep, from the first; the others are decoded as zero. All by default.
            kbps: kilobits per second of the whole file that must not be exceeded; the finest step that keeps to it is
                chosen.
            psnr: peak signal-to-noise ratio in dB of the normalised clip, mapped to [0, 1], that must be reached; the
                coarsest step that does is chosen. Needs a model with a decoder.
            refine: steps of a search for codes that decode to something nearer to the clip; needs a decoder.
            header_fields: what each file says beside that, see `compression.compress`.

        Returns:
            A .walloc file for each clip.

        Raises:
            ValueError: NaN or infinite values, padding that is not at the end, more than 8 `latent_bits`, a target out
                of reach.
        """
        self.check_signal(input_values)
        options: dict[str, Any] = {"step": step, "num_channels": num_channels, "kbps": kbps, "psnr": psnr}
        options |= {"refine": refine, "header_fields": header_fields}
        sizes = audio_sizes(padding_mask, input_values)
        return compress(self, input_values, sizes=sizes, gains=as_floats(gain), offsets=as_floats(offset), **options)
