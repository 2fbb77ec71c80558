"""Codecs between the bytes of media files and those of .walloc files, as the command line needs them."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image

from ..codec.bitstream import Header, unpack
from ..codec.image_colours import to_gray
from ..codec.image_decoding import open_image
from ..codec.limits import MAX_MEMORY
from ..codec.raster_format import RasterFormat
from ..codec.side_data import SideData
from ..codec.size_limits import MAX_ENCODED_PIXELS, MAX_ENCODED_SAMPLES
from .audio import encode_audio, read_recording
from .kinds import kind_of
from .messages import noting, warn
from .paths import RASTER_SUFFIXES, STANDARD_STREAM, VIDEO_SUFFIXES, read_bytes
from .pictures import encode_picture, read_opaque, read_picture
from .rasters import compress_raster, decompress_raster, describe, encode_raster, read_raster
from .volumes import encode_volume, read_volume


class Codecs:
    """Codecs by name, each loaded once and shared between the workers.

    Args:
        device: "cpu", "cuda", ...; a GPU if there is one by default.
        dtype: of the weights, "float32", "bfloat16" or "float16".
        encoder_only: load no decoders.
        linear: decode with linear decoders, see `load_codec`.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str = "float32",
        encoder_only: bool = False,
        linear: bool = False,
    ):
        import torch

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype, self.encoder_only, self.linear = getattr(torch, dtype), encoder_only, linear
        self.loaded: dict[str, FileCodec] = {}
        self.lock = threading.Lock()

    def load(self, name: str) -> "FileCodec":
        """The codec of a Hub id, a folder or a bundled name; ValueError if there is none."""
        with self.lock:
            if name not in self.loaded:
                self.loaded[name] = FileCodec(name, *self._load(name))
            return self.loaded[name]

    def of(self, header: Header) -> "FileCodec":
        """The bundled codec that reads a file; ValueError if none does."""
        return self.load(codec_of(header))

    def _load(self, name: str) -> tuple[Any, Any]:
        from ..loading import load_codec

        try:
            return load_codec(name, self.encoder_only, self.dtype, self.device, self.linear)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model {error if str(error).startswith(name) else f'{name}: {error}'}") from error
        except RuntimeError as error:
            raise ValueError(f"--model {name}: cannot be loaded on {self.device!r}: {error}") from error


class FileCodec:
    """A model with its processor, between the bytes of media files and those of .walloc files.

    ```python
    >>> codec = FileCodec.from_pretrained("rgb-16x")
    >>> blob = codec.compress("photo.png", bpp=0.4)
    >>> picture = codec.decompress(blob, "photo.png")  # the bytes of a PNG
    ```
    """

    def __init__(self, name: str, model: Any, processor: Any):
        self.name, self.model, self.processor = name, model, processor
        self.kind = model.config.kind

    @classmethod
    def from_pretrained(cls, name: str, device: str | None = None, encoder_only: bool = False) -> "FileCodec":
        """The codec of a bundled name, a Hub id or a folder; arguments and errors are those of `load_codec`."""
        from ..loading import load_codec

        return cls(name, *load_codec(name, encoder_only, device=device))

    def inputs(
        self,
        source: str,
        data: bytes,
        *,
        downmix: bool = False,
        do_rescale: bool = True,
        max_pixels: int | None = MAX_ENCODED_PIXELS,
        max_samples: int | None = MAX_ENCODED_SAMPLES,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the model takes, on its device, and fields of the header that say what the file was.

        Args:
            source: name of the file, for messages.
            data: its bytes.
            downmix: audio of more channels than the codec to those of the codec.
            do_rescale: False leaves images of 8 bits as they are, which the model takes as well.
            max_pixels, max_samples: refuse what is larger, before it is decoded; None for no limit.
        """
        if self.kind == "image":
            return self._image_inputs(source, data, do_rescale, max_pixels)
        import torch

        from ..codec.clips import mix

        samples, rate, sample_format = read_recording(source, data, max_samples=max_samples)
        config = self.model.config
        if len(samples) > config.num_channels:
            if not downmix:
                raise ValueError(
                    f"the audio has {len(samples)} channels and the codec {self.name!r} {config.num_channels}; "
                    "walloc compress --downmix mixes them"
                )
            samples = mix(torch.from_numpy(samples), config.num_channels, downmix).numpy()
        origin = (len(samples), rate, samples.shape[1])
        batch = self.processor(samples, sampling_rate=rate, max_samples=max_samples, return_tensors="pt")
        converted = (len(samples), rate) != (config.num_channels, config.sampling_rate)
        fields = {"source": origin if converted else None, "sample_format": sample_format}
        return self._to_device(batch), fields

    def compress(
        self,
        source: str,
        data: bytes | None = None,
        kind: str | None = None,
        *,
        step: float = 1.0,
        bpp: float | None = None,
        kbps: float | None = None,
        psnr: float | None = None,
        channels: int | None = None,
        refine: int = 0,
        downmix: bool = False,
        max_pixels: int | None = MAX_ENCODED_PIXELS,
        max_samples: int | None = MAX_ENCODED_SAMPLES,
    ) -> bytes:
        """A .walloc file of a media file.

        Args:
            source: its path, or its name for messages where `data` are its bytes.
            kind: what it is, where that is known; by default `kind_of` tells.
            step, bpp, kbps, psnr, channels, refine: see the model's `compress`.
            downmix, max_pixels, max_samples: see `inputs`.

        Raises:
            ValueError: the file cannot be read, or does not fit the codec.
        """
        data = read_bytes(source) if data is None else data
        kind = kind_of(source, data) if kind is None else kind
        if self.kind == "volume" and Path(source).suffix.lower() in RASTER_SUFFIXES:
            kind = "volume"
        if kind != self.kind:
            raise ValueError(
                f"the codec {self.name!r} is for {self.kind} and the file is {kind}: choose another --model"
            )
        targets = {"bpp": bpp, "kbps": kbps}
        rate: dict[str, Any]
        unit, other = ("kbps", "bpp") if kind == "audio" else ("bpp", "kbps")
        if targets[other] is not None:
            raise ValueError(f"--{other} is not for {kind}; use --{unit}")
        if kind == "image" and (found := self.raster(source, data, max_pixels)) is not None:
            if psnr is not None:
                raise ValueError("--psnr counts pixels of 8 bits: choose --step or --bpp for rasters")
            rate = {"step": step, "bpp": bpp, "num_channels": channels, "refine": refine}
            return compress_raster(self.model, *found, **rate)
        if kind == "volume":
            rate = {"step": step, "bpp": bpp, "psnr": psnr, "num_channels": channels, "refine": refine}
            return compress_raster(self.model, *read_volume(source, data, max_pixels), **rate)
        limits = {"max_pixels": max_pixels, "max_samples": max_samples}
        inputs, fields = self.inputs(source, data, downmix=downmix, do_rescale=False, **limits)
        rate = {"step": step, "psnr": psnr, unit: targets[unit], "num_channels": channels, "refine": refine}
        (blob,) = self.model.compress(**inputs, header_fields=[fields], **rate)
        return blob

    def decompress(
        self,
        data: bytes,
        target: str,
        header: Header | None = None,
        max_memory: int | None = MAX_MEMORY,
        window: tuple[int, ...] | None = None,
    ) -> bytes:
        """The bytes of a media file; the suffix of `target` names the format.

        Args:
            data: a .walloc file.
            header: its header, where it was read already.
            max_memory: refuse a file that would take more bytes of memory before it is decoded; None for no limit.
            window: (top, left, height, width) in pixels or (start, length) in samples, for a part alone.
        """
        header = unpack(data)[0] if header is None else header
        name = target if Path(target).suffix else STANDARD_STREAM
        if window and (header.kind == "volume" or header.raster):
            raise ValueError("--window is for pictures of 8 bits and audio")
        if header.kind == "volume":
            return encode_volume(*decompress_raster(self.model, data, max_memory), name, header.frame_rate)
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(f"the file holds {header.kind}, which is no video")
        if header.raster:
            return encode_raster(*decompress_raster(self.model, data, max_memory), name)
        if self.kind == "image":
            if header.num_channels not in (1, 3):
                raise ValueError(f"images of {header.num_channels} channels cannot be written to a file")
            side_data = header.read_side_data()
            if window and side_data.tags:
                warn(target, "the georeferencing is that of the whole image and is not kept")
                side_data = dataclasses.replace(side_data, tags=b"")
            if window and side_data.alpha is not None:
                side_data = dataclasses.replace(side_data, alpha=side_data.alpha[_inside(window)])
            return encode_picture(self._picture(data, header, max_memory, window), side_data, name)
        samples, rate = self.waveform(data, header, max_memory, window)
        return encode_audio(samples, rate, name, header.sample_format)

    def raster(
        self, source: str, data: bytes, max_pixels: int | None = MAX_ENCODED_PIXELS
    ) -> tuple[Any, RasterFormat] | None:
        """An image file that `compress` codes in its own type and layout, read; None if it codes pixels of 8 bits.

        That is so of what Pillow does not read, and of what this codec is made for.
        """
        suffix, config = Path(source).suffix.lower(), self.model.config
        made_for = config.raster_format is not None or config.num_channels not in (1, 3)
        if suffix == ".npy" or (suffix in RASTER_SUFFIXES and made_for):
            return read_raster(source, data, max_pixels)
        if config.raster_format is None or config.num_channels not in (1, 3):
            return None
        pixels = read_opaque(source, data, max_pixels).pixels
        return None if pixels.dtype.itemsize == 1 else (pixels, describe(pixels))

    def _image_inputs(
        self, source: str, data: bytes, do_rescale: bool, max_pixels: int | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.model.config
        channels = config.num_channels
        if config.raster_format is not None or channels not in (1, 3):
            image = open_image(data, max_pixels, noting(source))
            return self._to_device(self.processor(image, do_rescale=do_rescale, return_tensors="pt")), {}
        picture = read_picture(source, data, max_pixels)
        pixels, profile = picture.pixels, picture.profile
        if channels == 1 and pixels.ndim == 3:
            lost = ", and their profile is not kept" if profile else ""
            warn(source, f"colours become gray: the codec {self.name!r} has one channel{lost}")
            pixels, profile = to_gray(pixels), b""
        options = {"input_data_format": "channels_last"} if pixels.ndim == 3 else {}
        batch = self.processor(pixels, do_rescale=do_rescale, return_tensors="pt", **options)
        side_data = SideData(alpha=picture.alpha, profile=profile, tags=picture.tags)
        fields = {"sample_format": picture.sample_format, "side_data": side_data.pack()}
        return self._to_device(batch), fields

    def _picture(self, data: bytes, header: Header, max_memory: int | None, window: Any = None) -> Any:
        """(height, width) or (height, width, 3) uint8 or uint16, as the file says of its source."""
        import numpy as np

        from .bands import decompress_rows

        if "16-bit" in header.sample_format:
            (pixels,) = self.model.decompress([data], max_memory=max_memory)
            planes = pixels.add_(0.5).clamp_(0, 1).mul_(65535).round_().cpu().numpy().astype(np.uint16)
            picture = np.ascontiguousarray(planes.transpose(1, 2, 0))
            picture = picture[_inside(window)] if window else picture
        else:  # band by band: floats are four times as large
            picture, top = np.empty((*(window[2:] if window else header.sizes), header.num_channels), np.uint8), 0
            for rows in decompress_rows(self.model, data, window=window, max_memory=max_memory):
                picture[top : top + len(rows)] = rows
                top += len(rows)
        if header.num_channels == 1:
            return picture[..., 0]
        if "gray" not in header.sample_format:
            return picture
        if picture.dtype == np.uint8:
            return np.asarray(PIL.Image.fromarray(picture).convert("L"))
        return to_gray(picture)

    def waveform(self, data: bytes, header: Header, max_memory: int | None, window: Any = None) -> tuple[Any, int]:
        """(channels, length) and sampling rate of the decoded audio, converted back to those of the source."""
        import numpy as np
        import torch.nn.functional as F

        from ..codec.clips import resample
        from .segments import decompress_segments

        if window:
            if header.source is not None:
                raise ValueError("--window is for audio that was not converted")
            parts = list(decompress_segments(self.model, data, window=window, max_memory=max_memory))
            return np.concatenate(parts, axis=1), self.model.config.sampling_rate
        (waveform,) = self.model.decompress([data], max_memory=max_memory)
        if header.source is None:
            return waveform.cpu().numpy(), self.model.config.sampling_rate
        channels, rate, length = header.source
        if channels == 1:
            waveform = waveform.mean(0, keepdim=True)
        if rate != header.sampling_rate:
            waveform = resample(waveform, header.sampling_rate or rate, rate)[:, :length]
            waveform = F.pad(waveform, (0, length - waveform.shape[1]))
        return waveform.cpu().numpy(), rate

    def _to_device(self, batch) -> dict[str, Any]:
        return {name: value.to(self.model.device) for name, value in batch.items()}


def _inside(window: tuple[int, ...]) -> tuple[slice, slice]:
    top, left, height, width = window
    return slice(top, top + height), slice(left, left + width)


@contextlib.contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Pillow refuses images of more than 179 megapixels; `read_picture` has a limit of its own, which may be higher."""
    before, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = before


def codec_of(header: Header) -> str:
    """Name of the bundled codec that reads a file; ValueError if none does."""
    from ..bundled import bundled_reader

    name = bundled_reader(header.codec, header.fingerprint)
    if name:
        return name
    # A file must not make us fetch whatever its writer liked.
    written_by = f"codec {header.codec!r}" if header.codec else f"a codec without a name ({header.fingerprint})"
    raise ValueError(f"written by {written_by}, which is not bundled: give its Hub id or folder with --model")
