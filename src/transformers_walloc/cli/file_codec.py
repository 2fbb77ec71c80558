"""Codecs between the bytes of media files and those of .walloc files, as the command line needs them."""

import argparse
import dataclasses
import threading
from pathlib import Path
from typing import Any

from ..codec.bitstream import Header, pack, unpack
from ..media import STANDARD_STREAM, encode_audio, encode_image, read_audio, read_image


class Codecs:
    """Codecs by name, each loaded once and shared between the workers."""

    def __init__(self, options: argparse.Namespace, encoder_only: bool = False):
        self.device, self.dtype, self.encoder_only = options.device, options.dtype, encoder_only
        self.threads = getattr(options, "jobs", 1)
        self.loaded: dict[str, Codec] = {}
        self.lock = threading.Lock()

    def load(self, name: str) -> "Codec":
        with self.lock:
            if name not in self.loaded:
                self.loaded[name] = Codec(name, self.device, self.dtype, self.encoder_only, self.threads)
            return self.loaded[name]


class Codec:
    """A model with its processor, between the bytes of media files and those of .walloc files."""

    def __init__(self, name: str, device: str | None, dtype: str, encoder_only: bool, workers: int):
        import torch
        from huggingface_hub.utils import disable_progress_bars
        from huggingface_hub.utils import logging as hub_logging
        from transformers.utils import logging

        from ..loading import load_codec

        disable_progress_bars()
        hub_logging.set_verbosity_error()  # its retries
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(max(1, torch.get_num_threads() // max(1, workers)))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.model, self.processor = load_codec(name, encoder_only, getattr(torch, dtype), device)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model {error if str(error).startswith(name) else f'{name}: {error}'}") from error
        except RuntimeError as error:
            raise ValueError(f"--model {name}: cannot be loaded on {device!r}: {error}") from error
        self.name = name
        self.kind = "image" if self.model.config.num_dims == 2 else "audio"

    def inputs(self, source: str, data: bytes) -> tuple[dict[str, Any], tuple[int, int, int] | None]:
        """What the model takes, on its device, and (channels, rate, length) of audio that had to be converted."""
        if self.kind == "image":
            return self._to_device(self.processor(read_image(source, data), return_tensors="pt")), None
        samples, rate = read_audio(source, data)
        origin = (len(samples), rate, samples.shape[1])
        batch = self._to_device(self.processor(samples, sampling_rate=rate, return_tensors="pt"))
        config = self.model.config
        converted = (len(samples), rate) != (config.num_channels, config.sampling_rate)
        return batch, origin if converted and len(samples) <= config.num_channels else None

    def compress(self, source: str, data: bytes, kind: str, options: argparse.Namespace) -> bytes:
        if kind != self.kind:
            raise ValueError(
                f"the codec {self.name!r} is for {self.kind} and the file is {kind}: choose another --model"
            )
        unit = {"image": "bpp", "audio": "kbps"}
        other = unit["audio" if kind == "image" else "image"]
        if getattr(options, other) is not None:
            raise ValueError(f"--{other} is not for {kind}; use --{unit[kind]}")
        target = {unit[kind]: getattr(options, unit[kind]), "psnr": options.psnr}
        inputs, origin = self.inputs(source, data)
        (blob,) = self.model.compress(**inputs, step=options.step, num_channels=options.channels, **target)
        if origin is None:
            return blob
        header, payload = unpack(blob, None, None)
        return pack(dataclasses.replace(header, source=origin), payload)

    def decompress(self, data: bytes, header: Header, target: str, limits: dict[str, int | None]) -> bytes:
        """The bytes of an image or audio file; the suffix of `target` names the format."""
        name = target if Path(target).suffix else STANDARD_STREAM
        if self.kind == "image":
            (pixels,) = self.model.decompress([data], max_pixels=limits["max_pixels"])
            (image,) = self.processor.post_process([pixels])
            if not hasattr(image, "save"):
                raise ValueError(f"images of {header.num_channels} channels cannot be written to a file")
            return encode_image(image, name)
        samples, rate = self.waveform(data, header, limits["max_samples"])
        return encode_audio(samples, rate, name)

    def waveform(self, data: bytes, header: Header, max_samples: int | None) -> tuple[Any, int]:
        """(channels, length) and sampling rate of the decoded audio, converted back to those of the source."""
        import torch.nn.functional as F

        from ..codec.feature_extraction_walloc import resample

        (waveform,) = self.model.decompress([data], max_samples=max_samples)
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


def codec_of(header: Header) -> str:
    from ..bundled import bundled_reader

    name = bundled_reader(header.codec, header.fingerprint)
    if name:
        return name
    # A file must not make us fetch whatever its writer liked.
    written_by = f"codec {header.codec!r}" if header.codec else f"a codec without a name ({header.fingerprint})"
    raise ValueError(f"written by {written_by}, which is not bundled: give its Hub id or folder with --model")
