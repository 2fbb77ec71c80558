"""The interface of all codecs that are measured, and ours behind it."""

import abc
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..codec.bitstream import tables_id
from ..codec.entropy_coding import decode_codes, encode_codes
from ..loading import load_codec, use_linear_decoder


class CodecUnavailableError(RuntimeError):
    """A codec needs a package or weights that this machine does not have; the message says which."""


class Clock:
    """Seconds of named stages, in the order of their first use.

    Args:
        cpu_time: count the processor's seconds, summed over threads, instead of those on the wall; on a busy machine
            they are what can be compared.
    """

    def __init__(self, cpu_time: bool = False):
        self.now = time.process_time if cpu_time else time.perf_counter
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start


class Codec(abc.ABC):
    """A signal is a uint8 image (height, width, channels) or a float32 waveform (channels, length) in [-1, 1].

    Attributes:
        name: what the results call it.
        dimensionality_reduction: numbers of the signal for each number that a model would read.
        identity: what results depend on beside the name: the weights.
        file_identity: the same for the files: encoder and entropy coder.
        latent_channels: 0 where there are no latents.
        speed_only: it has no trained weights, so that files of it mean nothing.
    """

    name: str
    dimensionality_reduction: float = 1.0
    identity: str = ""
    file_identity: str = ""
    note: str = ""
    parameters: int | None = None
    latent_channels: int = 0
    speed_only: bool = False

    @abc.abstractmethod
    def write(self, signal: np.ndarray) -> bytes:
        """A finished file."""

    @abc.abstractmethod
    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        """A file as a signal of the shape of `like`."""

    def run(self, signals: list[np.ndarray], clock: Clock, decode: bool = True) -> None:
        """Pass a batch through the stages and book their times; here there are two, through files."""
        with clock.stage("encode"):
            blobs = [self.write(signal) for signal in signals]
        if decode:
            with clock.stage("decode"):
                for blob, signal in zip(blobs, signals, strict=True):
                    self.read(blob, signal)


class WallocCodec(Codec):
    """A WaLLoC model.

    Args:
        model: a `WallocImageModel` or `WallocAudioModel`, or the name of one (`load_codec`).
        kind: "image" or "audio", which the model must be for.
        linear: its closed-form linear decoder in place of the trained one.
        step: of the quantiser; coarser codes from 1 upwards.
        num_channels: only so many of the latent channels, the first ones.
        refine: steps of the search for better codes.

    Raises:
        CodecUnavailableError: the model cannot be had.
        ValueError: it is for the other kind of signal.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        kind: str,
        sampling_rate: int = 44100,
        linear: bool = False,
        step: float = 1.0,
        num_channels: int | None = None,
        refine: int = 0,
    ):
        try:
            self.model, self.processor = load_codec(model)
        except OSError as error:
            raise CodecUnavailableError(str(error).splitlines()[0]) from error
        config = self.model.config
        if config.kind != kind:
            raise ValueError(f"{model} is a codec for {config.kind}, not for {kind}")
        if linear:
            use_linear_decoder(self.model)
        self.name, self.kind, self.sampling_rate = os.fspath(model), kind, sampling_rate
        self.options = {"step": step, "num_channels": num_channels, "refine": refine}
        self.latent_channels = config.latent_channels
        self.dimensionality_reduction = config.dimensionality_reduction
        if num_channels is not None:
            self.dimensionality_reduction *= config.latent_channels / num_channels
        self.parameters = sum(p.numel() for p in self.model.parameters())
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        self.identity = digest.hexdigest()[:16]
        tables = self.model.get_entropy_tables()
        self.file_identity = f"{self.model.fingerprint()}-{tables_id(tables.to_arrays())}"

    def prepare(self, signals: list[np.ndarray]) -> Any:
        if self.kind == "image":
            return self.processor(signals, input_data_format="channels_last", return_tensors="pt")
        return self.processor(signals, sampling_rate=self.sampling_rate, return_tensors="pt")

    @torch.inference_mode()
    def write(self, signal: np.ndarray) -> bytes:
        return self.model.compress(**self.prepare([signal]), **self.options)[0]

    @torch.inference_mode()
    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        (signal,) = self.model.decompress([blob], max_memory=None)
        return np.asarray(self.processor.post_process([signal])[0]) if self.kind == "image" else signal.numpy()

    @torch.inference_mode()
    def run(self, signals: list[np.ndarray], clock: Clock, decode: bool = True) -> None:
        if self.options["refine"]:  # a search for codes ends in a file
            super().run(signals, clock, decode)
            return
        model, name = self.model, self.model.main_input_name
        with clock.stage("prepare"):
            inputs = self.prepare(signals)
        with clock.stage("encode"):
            codes = model.quantize(model.encode(inputs[name]).latents, self.options["step"])
        if not decode:
            return
        tables = model.get_entropy_tables()
        with clock.stage("entropy_encode"):
            payloads = [encode_codes(item, tables) for item in codes.numpy()]
        with clock.stage("entropy_decode"):
            codes = torch.from_numpy(np.stack([decode_codes(data, codes.shape[1:], tables) for data in payloads]))
        with clock.stage("decode"):
            decoded = model.decode(codes, step=self.options["step"])[0]
        with clock.stage("finish"):
            self.processor.post_process(decoded, *(inputs[other] for other in inputs if other != name))
