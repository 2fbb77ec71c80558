"""Audio clips in, padded and normalised batches for a WaLLoC codec out, and decoded batches back to clips.

```
(C, T), any rate and level -> channels, rate -> (x - offset) / gain -> (B, C, L) float32 in [-0.5, 0.5], zero-padded
list of (C, l) arrays      <- crop to padding_mask <- x * gain + offset <- (B, C, L)
```
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging
from transformers.utils.generic import PaddingStrategy

from .clips import MAX_RATE, MAX_SAMPLES, check_length, mix, normalise_clip, open_clip, resample, split_batch, to_floats

logger = logging.get_logger(__name__)

RANGES = {"feature_size": (1, 2**16), "sampling_rate": (1, MAX_RATE), "hop_length": (1, 2**12)}
OPTIONS = ("feature_size", "sampling_rate", "padding_value", "hop_length", "do_normalize", "downmix")
# What transformers writes beside the options into preprocessor_config.json.
BOOKKEEPING_KEYS = ("feature_extractor_type", "image_processor_type", "processor_class", "auto_map")


class WallocAudioFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Prepares audio for a WaLLoC codec and turns decoded audio back into clips of the original length and level.

    A clip is a numpy array, torch tensor or list of floats: (T,) for mono or (C, T), channels first; the path or the
    bytes of a file; or what `datasets` gives for a column of audio, which states its own sampling rate. Batches are
    lists of clips or arrays (B, C, T); a list of lists of floats is a batch of mono clips. Integer PCM (`uint8`,
    `int8`, `int16`, `int32`) is scaled by its full range to [-1, 1). Mono is copied to both channels of a stereo codec,
    stereo is averaged for a mono codec; every other mismatch of channels is an error unless `downmix` is set.

    Clips of another sampling rate are resampled with torchaudio if that can be imported (on the clip's device), else
    with soxr. Every clip is normalised as a whole: `offset` is its mean over time and channels, `gain` brings its peak
    to 0.5, so `x = input_values * gain + offset`. Silence has gain 0.

    Args:
        feature_size (`int`, defaults to 2): channels of the codec.
        sampling_rate (`int`, defaults to 44100): of the codec, in Hz.
        padding_value (`float`, defaults to 0.0): behind the end of a clip, in [-0.5, 0.5].
        hop_length (`int`, defaults to 256): lengths are padded to multiples of it, in samples; `2**num_levels`.
        do_normalize (`bool`, defaults to `True`): whether to normalise; without it, clips must lie in [-0.5, 0.5].
        downmix (`bool`, defaults to `False`): whether clips of more than two channels, in the order of WAV files, are
            mixed to stereo (see `stereo_weights`) or averaged to mono.

    ```python
    >>> import numpy as np
    >>> from transformers_walloc import WallocAudioFeatureExtractor

    >>> extractor = WallocAudioFeatureExtractor()
    >>> clip = np.sin(np.arange(1000) / 20)
    >>> inputs = extractor(clip, sampling_rate=44100, return_tensors="pt")
    >>> inputs["input_values"].shape, inputs["padding_mask"].sum().item()
    (torch.Size([1, 2, 1024]), 1000)
    >>> levels = {name: inputs[name] for name in ("padding_mask", "gain", "offset")}
    >>> extractor.post_process(inputs["input_values"], **levels)[0].shape
    (2, 1000)
    ```"""

    model_input_names = ["input_values", "padding_mask", "gain", "offset"]  # noqa: RUF012 - transformers' convention
    pad_token_id = 0  # the pipeline "feature-extraction" takes what makes inputs for a tokenizer, and asks for it
    _in_pipeline = False

    def __init__(
        self,
        feature_size: int = 2,
        sampling_rate: int = 44100,
        padding_value: float = 0.0,
        hop_length: int = 256,
        do_normalize: bool = True,
        downmix: bool = False,
        **kwargs: Any,
    ) -> None:
        counts = {"feature_size": feature_size, "sampling_rate": sampling_rate, "hop_length": hop_length}
        for name, value in counts.items():
            low, high = RANGES[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} is {reprlib.repr(value)}; valid: whole numbers from {low} to {high}")
        is_number = isinstance(padding_value, int | float) and not isinstance(padding_value, bool)
        if not is_number or not -0.5 <= padding_value <= 0.5:
            raise ValueError(f"padding_value is {reprlib.repr(padding_value)}; valid: -0.5 to 0.5")
        for name, flag in (("do_normalize", do_normalize), ("downmix", downmix)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} is {reprlib.repr(flag)}; valid: True, False")
        for name in kwargs:
            if name not in (*BOOKKEEPING_KEYS, "padding_side", "return_attention_mask"):
                raise TypeError(f"unknown option {name!r} of WallocAudioFeatureExtractor; valid: {', '.join(OPTIONS)}")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError(f"padding_side is {kwargs['padding_side']!r}; clips start at the first latent: 'right'")
        for name in BOOKKEEPING_KEYS[:2]:
            kwargs.pop(name, None)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = hop_length
        self.do_normalize = do_normalize
        self.downmix = downmix

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The extractor of a pipeline does not join clips, since their lengths differ."""
        loaded = super().from_pretrained(*args, **kwargs)
        if isinstance(loaded, WallocAudioFeatureExtractor):
            loaded._in_pipeline = kwargs.get("_from_pipeline") is not None
        return loaded

    def __repr__(self) -> str:
        grid = f"{self.feature_size} channels, {self.sampling_rate} Hz, padded to a grid of {self.hop_length} samples"
        return f"{type(self).__name__}({grid})"

    def to_dict(self) -> dict[str, Any]:
        """What `preprocessor_config.json` holds."""
        options = super().to_dict()
        options.pop("_in_pipeline", None)
        return options

    def __call__(
        self,
        raw_audio: np.ndarray | torch.Tensor | Sequence[Any],
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy | None = True,
        max_length: int | None = None,
        truncation: bool = False,
        do_normalize: bool | None = None,
        downmix: bool | None = None,
        max_samples: int | None = MAX_SAMPLES,
        device: str | torch.device | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_audio: one clip or a batch; see the class for what a clip may be.
            sampling_rate: of the clips, in Hz. Without it clips that do not state their own are taken to have the
                codec's, with a warning.
            padding: `True` or `"longest"` pads to the longest clip, `"max_length"` to `max_length`, each rounded up to
                a multiple of `hop_length`; `False` pads every clip just to its own multiple (the codec takes no
                others).
            max_length: in samples at the codec's rate.
            truncation: cuts clips to `max_length`; longer clips are an error otherwise, where `max_length` is given.
            do_normalize, downmix: override the options of the extractor.
            max_samples: refuse longer clips, counted per channel at the codec's rate, before they are resampled; None
                for no limit. The default is 1.7 hours at 44.1 kHz.
            device: where to process and return the clips. By default tensors stay on their device.
            return_tensors: `"pt"`, `"np"`, or `None` for lists of arrays and numbers, one entry for each clip.

        Returns:
            `input_values` (B, C, L) float32 in [-0.5, 0.5], `padding_mask` (B, L) bool, true for samples of the clip,
            `gain` (B,) and `offset` (B,) float32.

        Raises:
            TypeError: something that is no audio, or a dtype without a known full scale.
            ValueError: an empty batch or clip, an unreadable file, clips that are too long, a wrong number of channels,
                NaN or infinite samples, clips outside [-0.5, 0.5] without normalisation, contradicting options.
            ImportError: resampling without torchaudio and soxr.
        """
        strategy = self._check_call(sampling_rate, padding, max_length, truncation, return_tensors)
        do_normalize = self.do_normalize if do_normalize is None else do_normalize
        downmix = self.downmix if downmix is None else downmix
        clips: list[torch.Tensor] = []
        gains, offsets = [], []
        for clip in split_batch(raw_audio):
            opened, rate = open_clip(clip, sampling_rate)
            if rate is None:
                if not clips:
                    logger.warning(
                        f"{type(self).__name__} takes the audio to have {self.sampling_rate} Hz: sampling_rate was not "
                        "given. Pass it, to prevent silent errors that are hard to debug."
                    )
                rate = self.sampling_rate
            samples = to_floats(opened, device)
            if clips and samples.device != clips[0].device:
                raise ValueError("the clips of one batch are on several devices; choose one with device=")
            samples = mix(samples, self.feature_size, downmix)
            check_length(samples.shape[1], rate, self.sampling_rate, max_samples)
            if rate != self.sampling_rate:
                samples = resample(samples, int(rate), self.sampling_rate)
            if max_length is not None and samples.shape[1] > max_length:
                if not truncation:
                    raise ValueError(
                        f"a clip has {samples.shape[1]} samples, more than max_length={max_length}; pass truncation"
                    )
                samples = samples[:, :max_length]
            samples, gain, offset = normalise_clip(samples) if do_normalize else (_check_level(samples), 1.0, 0.0)
            clips.append(samples)
            gains.append(gain)
            offsets.append(offset)

        lengths = [clip.shape[1] for clip in clips]
        targets = lengths
        if strategy != PaddingStrategy.DO_NOT_PAD:
            longest = max_length if max_length and strategy == PaddingStrategy.MAX_LENGTH else max(lengths)
            targets = [longest] * len(clips)
        targets = [-(-target // self.hop_length) * self.hop_length for target in targets]
        return self._collate(clips, targets, gains, offsets, return_tensors)

    def post_process(
        self,
        audio_values: torch.Tensor | np.ndarray | Sequence[Any],
        padding_mask: torch.Tensor | np.ndarray | Sequence[Any] | None = None,
        gain: torch.Tensor | np.ndarray | Sequence[float] | float | None = None,
        offset: torch.Tensor | np.ndarray | Sequence[float] | float | None = None,
    ) -> list[np.ndarray]:
        """
        Decoded audio -> clips at their original length and level, `x * gain + offset`.

        Args:
            audio_values: (B, C, L) or (C, L) as `model.decode` gives, or a list of (C, l) as `model.decompress` gives
                (which has undone padding, gain and offset itself).
            padding_mask: (B, L), true for the samples to keep, which must come first; nothing is cropped by default.
            gain: (B,), 1 by default.
            offset: (B,), 0 by default.

        Returns:
            A list of (C, l) float32 arrays at the sampling rate of the codec.

        Raises:
            TypeError: audio that is not of floats (codes have to be decoded first).
            ValueError: a wrong shape or number of channels, arguments for another number of clips.
        """
        is_list = isinstance(audio_values, list | tuple)
        clips = [torch.as_tensor(clip) for clip in (audio_values if is_list else [audio_values])]
        if not is_list and clips[0].ndim == 3:
            clips = list(clips[0])
        if not clips:
            raise ValueError("empty batch: there is no audio to process")
        for clip in clips:
            if clip.ndim != 2 or clip.shape[0] != self.feature_size:
                channels = self.feature_size
                raise ValueError(
                    f"audio of shape {tuple(clip.shape)}; valid: (B, {channels}, L), ({channels}, L), or a list of "
                    f"({channels}, l)"
                )
            if not clip.is_floating_point():
                raise TypeError(f"audio of {clip.dtype}; valid: floats in [-0.5, 0.5] (decode codes first)")
        gains = _per_clip("gain", gain, 1.0, len(clips))
        offsets = _per_clip("offset", offset, 0.0, len(clips))
        lengths = [clip.shape[1] for clip in clips] if padding_mask is None else _mask_lengths(padding_mask, clips)
        return [
            clip[:, :length].detach().float().mul(gain).add_(offset).cpu().numpy()
            for clip, length, gain, offset in zip(clips, lengths, gains, offsets, strict=True)
        ]

    def _check_call(
        self, sampling_rate: Any, padding: Any, max_length: Any, truncation: Any, return_tensors: Any
    ) -> PaddingStrategy:
        if sampling_rate is not None and (not sampling_rate > 0 or int(sampling_rate) != sampling_rate):
            raise ValueError(f"sampling_rate is {sampling_rate!r}; it must be a positive whole number, in Hz")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1")
        if return_tensors is not None and getattr(return_tensors, "value", return_tensors) not in ("pt", "np"):
            raise ValueError(f"unknown return_tensors {return_tensors!r}; valid: 'pt', 'np', None")
        if truncation and max_length is None:
            raise ValueError("truncation=True needs max_length")
        strategies: Any = self._get_padding_strategies  # whose types transformers does not state
        strategy: PaddingStrategy = strategies(padding=padding is None or padding, max_length=max_length)
        return strategy

    def _collate(
        self, clips: list[Any], targets: list[int], gains: list[float], offsets: list[float], return_tensors: Any
    ) -> BatchFeature:
        values, masks = [], []
        for clip, target in zip(clips, targets, strict=True):
            padding = (0, target - clip.shape[1])
            values.append(torch.nn.functional.pad(clip, padding, value=self.padding_value))
            masks.append(torch.nn.functional.pad(torch.ones_like(clip[0], dtype=torch.bool), padding))
        names = self.model_input_names
        if return_tensors is None:
            arrays = [value.cpu().numpy() for value in values], [mask.cpu().numpy() for mask in masks]
            return BatchFeature(dict(zip(names, (*arrays, gains, offsets), strict=True)))
        if len(set(targets)) > 1:
            raise ValueError(f"clips of lengths {targets} do not stack; pass padding=True or return_tensors=None")
        if self._in_pipeline:
            return BatchFeature({"clips": values})  # transformers cannot batch `input_values` of a tokenizer
        levels = [torch.tensor(level, dtype=torch.float32, device=clips[0].device) for level in (gains, offsets)]
        tensors = [torch.stack(values), torch.stack(masks), *levels]
        if getattr(return_tensors, "value", return_tensors) == "np":
            return BatchFeature(dict(zip(names, [tensor.cpu().numpy() for tensor in tensors], strict=True)))
        return BatchFeature(dict(zip(names, tensors, strict=True)))


def _check_level(samples: torch.Tensor) -> torch.Tensor:
    peak = samples.abs().max().item()
    if peak > 0.5:
        raise ValueError(f"without do_normalize, clips must lie in [-0.5, 0.5]; this one has a peak of {peak:g}")
    return samples


def _per_clip(name: str, values: Any, default: float, count: int) -> list[float]:
    if values is None:
        return [default] * count
    result = torch.as_tensor(values, dtype=torch.float64, device="cpu").reshape(-1).tolist()
    if len(result) != count:
        raise ValueError(f"{name} has {len(result)} values for {count} clips")
    return result


def _mask_lengths(padding_mask: Any, clips: list[torch.Tensor]) -> list[int]:
    masks = [torch.as_tensor(mask).bool() for mask in padding_mask]
    if masks and masks[0].ndim == 0:
        masks = [torch.stack(masks)]
    if len(masks) != len(clips):
        raise ValueError(f"padding_mask is for {len(masks)} clips; there are {len(clips)}")
    lengths = []
    for mask, clip in zip(masks, clips, strict=True):
        length = int(mask.sum())
        if mask.ndim != 1 or not mask[:length].all():
            raise ValueError("padding_mask must be (B, L) and true for the first samples of every clip only")
        if not 1 <= length <= clip.shape[1]:
            raise ValueError(f"padding_mask keeps {length} samples of a clip of {clip.shape[1]}")
        lengths.append(length)
    return lengths
