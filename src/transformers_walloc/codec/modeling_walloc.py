"""WaLLoC codecs for images and audio as transformers models (arXiv 2412.09405)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from .bottleneck import QuantizationMode, check_finite, check_step, decompand, latent_limit, quantize
from .compression import decompress
from .configuration_walloc import WallocConfig
from .decoders import PostFilter, make_decoder
from .encoders import (
    AudioEncodingModel,
    EncodingModel,
    ImageEncodingModel,
    PixelEncodingModel,
    WallocPreTrainedModel,
)
from .limits import MAX_MEMORY, MAX_TILE_POSITIONS
from .outputs import (
    WallocAudioDecoderOutput,
    WallocAudioModelOutput,
    WallocEncoderOutput,
    WallocImageDecoderOutput,
    WallocImageModelOutput,
    can_return_tuple,
)
from .pixels import scale_pixels
from .runtime import is_traced
from .tiles import run_in_tiles
from .wavelets import wavelet_packet_synthesis

__all__ = [
    "WallocAudioEncoder",
    "WallocAudioModel",
    "WallocImageEncoder",
    "WallocImageModel",
    "WallocPreTrainedModel",
]


def encode_each(model: Any, signals: Sequence[Any] | None) -> WallocEncoderOutput:
    """Latents of signals of several sizes, in lists of any depth: pipelines with a `batch_size` hand them over so.

    Returns:
        Latents (batch, latent_channels, *grid), or where sizes differ a list of those of each signal.
    """

    def encode(entry: Any) -> list[torch.Tensor]:
        if isinstance(entry, list | tuple):
            return [latents for part in entry for latents in encode(part)]
        entry = entry[None] if entry.ndim == model.config.num_dims + 1 else entry
        return list(model.encode(entry.to(model.device)).latents)

    latents = encode(signals or ())
    if not latents:
        raise ValueError(f"there is no signal to encode: pass {model.main_input_name}")
    if all(one.shape == latents[0].shape for one in latents):
        return WallocEncoderOutput(latents=torch.stack(latents))
    return WallocEncoderOutput(latents=latents)  # type: ignore[arg-type]  # a list, for pipelines


class PixelEncoder(PixelEncodingModel):
    """The encoder of a codec for images or volumes alone."""

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^post_filter\."]  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, original_sizes: torch.Tensor | None = None) -> WallocEncoderOutput:
        """The same as `encode`; `original_sizes` is accepted so that a processor's output can be passed as it is."""
        if isinstance(pixel_values, list):
            return encode_each(self, pixel_values)
        return WallocEncoderOutput(latents=self._encode(pixel_values))


class WallocImageEncoder(ImageEncodingModel, PixelEncoder):
    r"""
    The encoder of a WaLLoC image codec alone: a linear map with fewer than 100,000 parameters. It loads the same
    checkpoints as [`WallocImageModel`] and leaves the decoder's weights unread.
    """


class WallocAudioEncoder(AudioEncodingModel):
    r"""
    The encoder of a WaLLoC audio codec alone. It loads the same checkpoints as [`WallocAudioModel`] and leaves the
    decoder's weights unread.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^post_filter\."]  # noqa: RUF012 - the type transformers asks for

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        clips: Sequence[Any] | None = None,
    ) -> WallocEncoderOutput:
        """The same as `encode`; the extractor's other outputs are accepted so that they can be passed as they are. Of
        `clips`, signals of several lengths as pipelines give them, see `encode_each`."""
        if clips is not None or input_values is None:
            return encode_each(self, clips)
        return WallocEncoderOutput(latents=self._encode(input_values))


class CodecModel(EncodingModel):
    """What codecs of all signals share: encoder and decoder."""

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.decoder = make_decoder(config)
        if config.post_filter_size:
            self.post_filter = PostFilter(
                config.num_channels, config.num_channels, config.post_filter_size, padding="same"
            )
        self.post_init()

    def decode_subbands(self, latents: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """What the decoder makes of latents, before the synthesis: (batch, subband_channels, *grid).

        Args:
            latents: (batch, latent_channels, *grid), quantised or not, floating point.
            tile_size: latents per side of the tiles that the decoder runs on; chosen by itself if None.
        """
        dtype = next(self.decoder.parameters()).dtype

        def decode(tile: tuple[Any, ...]) -> torch.Tensor:
            z = decompand(latents[(..., *tile)].float(), self.config.latent_bits)
            signal: torch.Tensor = self.decoder(z.to(dtype))
            return signal

        return self._by_tiles(decode, latents.shape[2:], getattr(self.decoder, "receptive_field", None), tile_size, 1)

    def _to_signal(self, latents: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """Latents -> signal (batch, num_channels, *sizes), by tiles where the grid is large."""
        x = self._synthesise(self.decode_subbands(latents, tile_size))
        network = getattr(self.decoder, "network", None)
        if network is None:
            return x
        block = self.config.patch_size

        def restore(tile: tuple[Any, ...]) -> torch.Tensor:
            pixels: tuple[Any, ...] = tuple(slice(block * s.start, block * s.stop) for s in tile)
            z = decompand(latents[(..., *tile)].float(), self.config.latent_bits)
            restored: torch.Tensor = network(x[(..., *pixels)], z)
            return restored

        return self._by_tiles(restore, latents.shape[2:], network.receptive_field, tile_size, block)

    def _by_tiles(
        self,
        function: Callable[[tuple[Any, ...]], torch.Tensor],
        grid: torch.Size,
        halo: int | None,
        tile_size: int | None,
        magnification: int,
    ) -> torch.Tensor:
        if tile_size is None:
            # Tiles keep the activations small, which training needs again for the gradient.
            whole = math.prod(grid) <= MAX_TILE_POSITIONS or self.training
            tile_size = max(grid) if whole else round(MAX_TILE_POSITIONS ** (1 / len(grid)))
        if tile_size < 1:
            raise ValueError(f"tile_size is {tile_size}; it must be at least 1 latent")
        if halo is None or max(grid) <= tile_size:
            return function(tuple(slice(0, size) for size in grid))
        return run_in_tiles(function, grid, halo, tile_size, magnification)

    def _decode(self, codes: torch.Tensor, step: float, tile_size: int | None) -> torch.Tensor:
        self.check_latents(codes)
        check_step(step)
        if codes.is_floating_point():
            check_finite(codes, "latents")
            latents = codes
        else:
            self._check_codes(codes)
            latents = codes.float() * step
        return self._to_signal(latents, tile_size)

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
            raise TypeError(f"codes must be signed integers and latents real floats, got {codes.dtype}")
        if codes.device.type == "cpu" and not is_traced(codes):
            limit = int(latent_limit(self.config.latent_bits))
            low, high = (value.item() for value in codes.aminmax())
            if low < -limit or high > limit:
                raise ValueError(f"codes lie in {low}..{high}; valid: {-limit}..{limit}")

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

    def training_mode(self) -> QuantizationMode:
        """Noise lets gradients through to the encoder. Where it is frozen the decoder learns from what it will meet."""
        learning = self.training and any(parameter.requires_grad for parameter in self.encoder.parameters())
        return "noise" if learning else "round"

    def _inside(self, x: torch.Tensor, original_sizes: Any) -> torch.Tensor | None:
        """Where signals (batch, num_channels, *sizes) are not padding, (batch, *sizes); None where none is told."""
        if original_sizes is None:
            return None
        self.check_signal(x)
        dims = x.ndim - 2
        sizes = torch.as_tensor(original_sizes, device=x.device)
        if sizes.shape != (len(x), dims):
            raise ValueError(f"original_sizes must be {(len(x), dims)}, got {tuple(sizes.shape)}")
        mask = torch.ones((), dtype=torch.bool, device=x.device)
        for axis, size in enumerate(x.shape[2:]):
            inside = torch.arange(size, device=x.device) < sizes[:, axis, None]
            mask = mask & inside.reshape(len(x), *(size if other == axis else 1 for other in range(dims)))
        return mask

    def _forward(self, x: torch.Tensor, return_loss: bool, mask: torch.Tensor | None) -> Any:
        self.check_signal(x)
        x = scale_pixels(x) if x.dtype == torch.uint8 else x
        latents = self._encode(x)
        if mask is not None and mask.shape != (len(x), *x.shape[2:]):
            raise ValueError(f"padding_mask must be {(len(x), *x.shape[2:])}, got {tuple(mask.shape)}")
        reconstruction = self._to_signal(quantize(latents.float(), self.training_mode())).to(x.device)
        loss = None
        if return_loss:
            error = (reconstruction.float() - x.float()) ** 2
            if mask is None:
                loss = error.mean()
            else:
                mask = mask[:, None].expand_as(error)
                loss = (error * mask).sum() / mask.sum().clamp_min(1)
        decoded = reconstruction.clamp(-0.5, 0.5).to(x.dtype)
        if self.config.num_dims == 1:
            return WallocAudioModelOutput(loss=loss, latents=latents, audio_values=decoded)
        return WallocImageModelOutput(loss=loss, latents=latents, pixel_values=decoded)


class PixelCodecModel(PixelEncodingModel, CodecModel):
    """What codecs for images and volumes share: *sizes are height and width, or depth, height and width."""

    @can_return_tuple
    def decode(self, codes: torch.Tensor, step: float = 1.0, tile_size: int | None = None) -> WallocImageDecoderOutput:
        """
        Args:
            codes: integer codes or floating-point latents (batch, latent_channels, *(sizes / patch_size)).
            step: the one that `quantize` was given; only integer codes are multiplied by it.
            tile_size: latents per axis of the tiles that the decoder runs on; chosen by itself if None. Tiles give the
                same pixels as the whole image or volume, in bounded memory.
        """
        return WallocImageDecoderOutput(pixel_values=self._decode(codes, step, tile_size).clamp(-0.5, 0.5))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, original_sizes: torch.Tensor | None = None, return_loss: bool = True
    ) -> WallocImageModelOutput | WallocEncoderOutput:
        """Encode, quantise (uniform noise in training, rounding in evaluation) and decode.

        Args:
            pixel_values: (batch, num_channels, *sizes) in [-0.5, 0.5], sizes multiples of `config.patch_size`; of
                a list of images, as pipelines give them, latents are returned alone, see `encode_each`.
            original_sizes: (batch, 2 or 3), sizes before padding; the loss leaves the padding out.
            return_loss: whether to compute the loss.
        """
        if isinstance(pixel_values, list):
            return encode_each(self, pixel_values)
        inside = self._inside(pixel_values, original_sizes)
        output: WallocImageModelOutput = self._forward(pixel_values, return_loss, inside)
        return output

    def decompress(
        self, blobs: bytes | Sequence[bytes], max_memory: int | None = MAX_MEMORY, max_pixels: int | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            blobs: one or more .walloc files.
            max_memory: refuse files that would take more bytes of memory before anything is decoded; None for no
                limit. The default is 2 GiB, about 60 megapixels.
            max_pixels: refuse images of more pixels or volumes of more voxels (after padding to whole patches), too.

        Returns:
            A list of (num_channels, *sizes) tensors in [-0.5, 0.5] on the model's device, cropped to the original
            sizes.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        return decompress(self, blobs, max_memory=max_memory, max_pixels=max_pixels)


class WallocImageModel(ImageEncodingModel, PixelCodecModel):
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


class WallocAudioModel(AudioEncodingModel, CodecModel, PreTrainedAudioTokenizerBase):
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
        input_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
        return_loss: bool = True,
        clips: Sequence[Any] | None = None,
    ) -> WallocAudioModelOutput | WallocEncoderOutput:
        """Encode, quantise (uniform noise in training, rounding in evaluation) and decode.

        Args:
            input_values: (batch, num_channels, length) in [-0.5, 0.5], length a multiple of `config.patch_size`.
            padding_mask: (batch, length), 0 where the clip was padded; the loss leaves the padding out.
            gain, offset: accepted so that the extractor's output can be passed as it is; used by `compress`.
            return_loss: whether to compute the loss.
            clips: signals of several lengths in place of `input_values`, as pipelines give them: latents are returned
                alone, see `encode_each`.
        """
        if clips is not None or input_values is None:
            return encode_each(self, clips)
        output: WallocAudioModelOutput = self._forward(input_values, return_loss, padding_mask)
        return output

    def decompress(
        self, blobs: bytes | Sequence[bytes], max_memory: int | None = MAX_MEMORY, max_samples: int | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            blobs: one or more .walloc files.
            max_memory: refuse files that would take more bytes of memory before anything is decoded; None for no
                limit. The default is 2 GiB, about half an hour of stereo.
            max_samples: refuse clips of more samples per channel, too.

        Returns:
            A list of float32 waveforms (num_channels, length) on the model's device, with their original length, gain
            and offset.

        Raises:
            WallocFormatError: a `ValueError`: damaged, truncated, foreign or too large, or written by another codec.
        """
        return decompress(self, blobs, max_memory=max_memory, max_samples=max_samples)
