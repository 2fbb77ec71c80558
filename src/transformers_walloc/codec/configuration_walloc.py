"""Configurations of WaLLoC codecs for images, audio and volumes."""

import difflib
import math
import re
import reprlib
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .kinds import kind_of_dims
from .raster_format import RasterFormat
from .symmetries import check_symmetry
from .wavelets import check_wavelet

DECODER_TYPES = ("residual", "restoration", "linear", "kl", "oobleck")
DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
# What a checkpoint may ask for, before its weights are looked at.
RANGES = {
    "num_channels": (1, 2**16),
    "num_levels": (1, 12),
    "latent_channels": (1, 2**16),
    "latent_bits": (2, 16),
    "decoder_hidden_size": (1, 2**13),
    "decoder_num_layers": (0, 2**8),
    "decoder_kernel_size": (1, 31),
    "decoder_downsampling": (1, 2**12),
    "encoder_padding": (0, 1),
    "post_filter_size": (0, 2**12),
    "entropy_tables_size": (0, 2**24),
    "sampling_rate": (1, 2**24),
}
MAX_WEIGHTS = 2**29  # 2 GB of float32
MAX_VOLUME_LEVELS = 5  # 32,768 subbands of each channel


class WallocConfig(PreTrainedConfig):
    r"""
    What codecs for all kinds of signals have in common; use [`WallocImageConfig`], [`WallocAudioConfig`] or
    [`WallocVolumeConfig`].

    Args:
        num_channels (`int`): channels of the signal: 3 for RGB, 2 for stereo, any number for multispectral images.
        num_levels (`int`): levels of the wavelet packet transform; a latent covers `2**num_levels` samples per axis.
        latent_channels (`int`): channels of the latents.
        latent_bits (`int`): codes lie in `-(2**(latent_bits - 1) - 1) .. 2**(latent_bits - 1) - 1`; 2 to 16.
        wavelet (`str`): PyWavelets name of the wavelet, `"bior4.4"` is CDF 9/7.
        boundary (`str`): `"symmetric"` (whole-sample reflection at the borders) or `"periodization"` (the original's).
        decoder_type (`str`): `"residual"` (a network on the grid of the latents), `"restoration"` (images only: one
            that works on the linearly decoded picture), `"linear"` (no network), or one of the original's, `"kl"`
            (images) and `"oobleck"` (audio), which need the package diffusers.
        decoder_hidden_size (`int`): width of the decoder.
        decoder_num_layers (`int`): residual blocks of the decoder (the original's have a fixed depth).
        decoder_kernel_size (`int`): odd kernel size of the residual and restoration decoders.
        decoder_downsampling (`int`): pixels per axis that a position of the restoration decoder's network stands for;
            a power of two of at most `2**num_levels`.
        encoder_padding (`int`): zero padding of the projection in latents. The original's audio encoder pads by 1, and
            its decoder takes it off again; everything else has 0.
        post_filter_size (`int`): odd length of the filter behind the synthesis, in samples; 0 for none. The original's
            audio codecs have 129.
        entropy_tables_size (`int`): bytes of the fitted probability tables that the checkpoint carries; 0 for none.
        latent_fingerprint (`str`, *optional*): identifies the meaning of the codes, written by `save_pretrained`.
        rounded_fingerprints (`list[str]`, *optional*): those that the weights would have if they were rounded to
            half precision, written by `save_pretrained`.
        latents_mean (`list[float]`, *optional*): mean of each latent channel over the corpus that the codec was trained
            on, on the scale of the companded latents that `encode` returns.
        latents_std (`list[float]`, *optional*): standard deviation of each latent channel there, on the same scale.
            Models that learn from latents see `(latents - latents_mean) / latents_std`; files do not depend on either.
        latent_symmetry (`dict`, *optional*): of codecs whose latents can be flipped and rotated, what the channels do
            then: the signs of a `vflip` and of an `hflip`, and for a `transpose` the channel that each becomes, from 1,
            negative where the sign changes. Written by a symmetric fit; see `transform_latents`.
    """

    model_type = "walloc"
    num_dims = 2

    num_channels: int = 3
    num_levels: int = 3
    latent_channels: int = 12
    latent_bits: int = 8
    wavelet: str = "bior4.4"
    boundary: str = "symmetric"
    decoder_type: str = "residual"
    decoder_hidden_size: int = 192
    decoder_num_layers: int = 8
    decoder_kernel_size: int = 3
    decoder_downsampling: int = 2
    encoder_padding: int = 0
    post_filter_size: int = 0
    entropy_tables_size: int = 0
    latent_fingerprint: str | None = None
    rounded_fingerprints: list[str] | None = None
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    latent_symmetry: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """What the codec is for: "image", "audio" or "volume", see `kinds.KINDS`."""
        return kind_of_dims(self.num_dims).name

    @property
    def patch_size(self) -> int:
        """Samples per axis that one latent stands for."""
        return 1 << self.num_levels

    @property
    def subband_channels(self) -> int:
        """Channels of the signal in the wavelet packet domain."""
        return self.num_channels << self.num_levels * self.num_dims

    @property
    def dimensionality_reduction(self) -> float:
        """How many numbers of the signal one number of the latents stands for."""
        return self.subband_channels / self.latent_channels

    def __post_init__(self, **kwargs: Any) -> None:
        self.check()
        for value in (self.dtype, kwargs.get("torch_dtype")):
            if value is not None and str(value).removeprefix("torch.") not in DTYPES:
                raise ValueError(f"dtype is {reprlib.repr(value)}; valid: {', '.join(DTYPES)}")
        own_fields = [name for name in self.__dataclass_fields__ if name not in PreTrainedConfig.__dataclass_fields__]
        for name in kwargs:
            # PreTrainedConfig takes any keyword; a misspelt field must not vanish among them.
            if similar := difflib.get_close_matches(name, own_fields, n=1, cutoff=0.8):
                raise ValueError(f"unknown field {name!r} of {type(self).__name__}; did you mean {similar[0]!r}?")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the contents of `config.json`.

        Raises:
            ValueError: another kind of model's, or values that are out of range or of a wrong type.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            kind = {"walloc_image": "Image", "walloc_audio": "Audio", "walloc_volume": "Volume"}.get(str(found))
            load = f"Walloc{kind}Model, Walloc{kind}Encoder or AutoModel" if kind else "AutoModel"
            raise ValueError(
                f"the checkpoint is a {reprlib.repr(found)}, which {cls.__name__} ({cls.model_type!r}) cannot read: "
                f"load it with {load}"
            )
        stored = str(config_dict.get("dtype") or config_dict.get("torch_dtype")).removeprefix("torch.")
        if stored in ("float16", "bfloat16") and config_dict.get("rounded_fingerprints") is None:
            # Earlier versions did not look at weights of half precision: nobody vouches for `latent_fingerprint`.
            config_dict = {**config_dict, "rounded_fingerprints": []}
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, AttributeError, TypeError) as error:  # of fields that all models have
            raise ValueError(f"the configuration cannot be read: {error}") from error

    def check(self) -> None:
        """Raises ValueError for fields of a wrong type, out of range, or that contradict each other."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name, low)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} is {reprlib.repr(value)}; valid: whole numbers from {low} to {high}")
        if self.latent_channels > self.subband_channels:
            raise ValueError(
                f"latent_channels is {self.latent_channels}, more than the {self.subband_channels} subbands of "
                f"{self.num_channels} channels and {self.num_levels} levels"
            )
        if self.decoder_kernel_size % 2 == 0:
            raise ValueError(f"decoder_kernel_size is {self.decoder_kernel_size}; it must be odd")
        if self.post_filter_size and self.post_filter_size % 2 == 0:
            raise ValueError(f"post_filter_size is {self.post_filter_size}; it must be odd, or 0 for none")
        if self.post_filter_size and self.kind != "audio":
            raise ValueError(f"post_filter_size is {self.post_filter_size}; only audio codecs have one: valid: 0")
        self._check_decoder()
        if self._num_weights() > MAX_WEIGHTS:
            raise ValueError(
                f"the configuration describes about {self._num_weights():,} weights; valid: up to {MAX_WEIGHTS:,}"
            )
        for name in ("wavelet", "boundary"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {reprlib.repr(getattr(self, name))}; valid: its name")
        check_wavelet(self.wavelet, self.boundary)
        fingerprint, rounded = self.latent_fingerprint, self.rounded_fingerprints
        if fingerprint is not None and not re.fullmatch("[0-9a-f]{16}", str(fingerprint)):
            raise ValueError(
                f"latent_fingerprint is {reprlib.repr(fingerprint)}; valid: 16 hexadecimal digits, or None"
            )
        if rounded is not None and not (
            isinstance(rounded, list | tuple) and all(re.fullmatch("[0-9a-f]{16}", str(each)) for each in rounded)
        ):
            raise ValueError(
                f"rounded_fingerprints is {reprlib.repr(rounded)}; valid: a list of 16 hexadecimal digits each, or None"
            )
        self._check_statistics()
        check_symmetry(self)

    def _check_decoder(self) -> None:
        if self.decoder_type not in DECODER_TYPES:
            raise ValueError(
                f"unknown decoder_type {reprlib.repr(self.decoder_type)}; valid: {', '.join(DECODER_TYPES)}"
            )
        foreign = {"audio": ("kl", "restoration"), "image": ("oobleck",), "volume": ("kl", "oobleck", "restoration")}
        if self.decoder_type in foreign[self.kind]:
            raise ValueError(f"decoder_type {self.decoder_type!r} is not for {self.kind} codecs")
        if self.patch_size % self.decoder_downsampling:
            raise ValueError(
                f"decoder_downsampling is {self.decoder_downsampling}; it must divide 2**num_levels, {self.patch_size}"
            )
        if self.decoder_type == "kl" and self.decoder_hidden_size % 32:
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}; decoder_type 'kl' needs a multiple of 32"
            )
        if self.decoder_type == "oobleck" and self.decoder_hidden_size < self.latent_channels:
            raise ValueError(
                f"decoder_hidden_size is {self.decoder_hidden_size}; decoder_type 'oobleck' needs at least "
                f"latent_channels, {self.latent_channels}"
            )
        padding = 1 if self.decoder_type == "oobleck" else 0
        if self.encoder_padding != padding:
            raise ValueError(
                f"encoder_padding is {self.encoder_padding}; decoder_type {self.decoder_type!r} takes off {padding}"
            )

    def _num_weights(self) -> int:
        """Of encoder, linear synthesis and network, roughly."""
        width = self.decoder_hidden_size
        kernel: int = self.decoder_kernel_size**self.num_dims
        network = width * kernel * (self.latent_channels + self.subband_channels + 2 * width * self.decoder_num_layers)
        if self.decoder_type == "restoration":
            cells = (self.patch_size // self.decoder_downsampling) ** 2
            network += width // 4 * kernel * self.latent_channels * cells
        linear = 2 * self.latent_channels * self.subband_channels
        return linear + network + self.num_channels**2 * self.post_filter_size

    def _check_statistics(self) -> None:
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std belong together: give both or neither")
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is None:
                continue
            if not isinstance(values, list | tuple) or any(type(value) not in (int, float) for value in values):
                raise ValueError(f"{name} is {reprlib.repr(values)}; valid: a list of numbers, or None")
            if len(values) != self.latent_channels:
                raise ValueError(
                    f"{name} has {len(values)} values; it must have one for each of the "
                    f"{self.latent_channels} latent channels"
                )
            for value in values:
                if not math.isfinite(value) or (name == "latents_std" and value <= 0):
                    raise ValueError(
                        f"{name} holds {value}; valid: finite numbers" + (" above 0" if name == "latents_std" else "")
                    )


class WallocImageConfig(WallocConfig):
    r"""
    Configuration of a WaLLoC image codec. The defaults are those of `walloc/rgb-16x`.

    Args:
        raster_format (`dict`, *optional*): type, range, missing values, bands and layout of the samples, as
            `RasterFormat.to_dict` gives them; without it they are 8-bit numbers over their full range.

    ```python
    >>> from transformers_walloc import WallocImageConfig, WallocImageModel

    >>> configuration = WallocImageConfig()
    >>> configuration.dimensionality_reduction
    16.0
    >>> model = WallocImageModel(configuration)
    ```"""

    model_type = "walloc_image"
    num_dims = 2

    raster_format: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises ValueError for what `WallocConfig.check` refuses, and a `raster_format` of other bands."""
        super().check()
        _check_raster_format(self.raster_format, self.num_channels)


class WallocVolumeConfig(WallocConfig):
    r"""
    Configuration of a WaLLoC codec for volumes and video: stacks of slices, clips of frames. A latent covers
    `2**num_levels` samples along each of the three axes, depth (or time), height and width.

    Args:
        raster_format (`dict`, *optional*): type, range, missing values, bands and layout of the samples, as
            `RasterFormat.to_dict` gives them; without it they are 8-bit numbers over their full range.

    ```python
    >>> from transformers_walloc import WallocVolumeConfig

    >>> WallocVolumeConfig().subband_channels, WallocVolumeConfig().dimensionality_reduction
    (64, 16.0)
    ```"""

    model_type = "walloc_volume"
    num_dims = 3

    num_channels: int = 1
    num_levels: int = 2
    latent_channels: int = 4
    decoder_type: str = "linear"
    decoder_hidden_size: int = 48
    decoder_num_layers: int = 4
    raster_format: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises ValueError for what `WallocConfig.check` refuses, too many levels, and a wrong `raster_format`."""
        super().check()
        if self.num_levels > MAX_VOLUME_LEVELS:
            raise ValueError(f"num_levels is {self.num_levels}; valid for volumes: 1 to {MAX_VOLUME_LEVELS}")
        _check_raster_format(self.raster_format, self.num_channels)


class WallocAudioConfig(WallocConfig):
    r"""
    Configuration of a WaLLoC audio codec. The defaults are those of `walloc/stereo-20x`.

    Args:
        sampling_rate (`int`): samples per second that the codec was made for, in Hz.

    ```python
    >>> from transformers_walloc import WallocAudioConfig

    >>> round(WallocAudioConfig().dimensionality_reduction, 2)
    18.96
    ```"""

    model_type = "walloc_audio"
    num_dims = 1

    num_channels: int = 2
    num_levels: int = 8
    latent_channels: int = 27
    decoder_hidden_size: int = 256
    decoder_num_layers: int = 5
    sampling_rate: int = 44100

    @property
    def frame_rate(self) -> float:
        """Latents per second."""
        return self.sampling_rate / self.patch_size


def _check_raster_format(options: dict[str, Any] | None, num_channels: int) -> None:
    names = RasterFormat.from_dict(options).names if options is not None else ()
    if names and len(names) != num_channels:
        raise ValueError(f"raster_format names {len(names)} bands; the codec has {num_channels} channels")
