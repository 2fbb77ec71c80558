#!/usr/bin/env python
"""Source separation on WaLLoC latents against samples: one network, one number of steps, several inputs.

    python -m research.corpora.multitracks --out multitracks         # or the folder of MUSDB18-HQ, as it is
    python -m research.tasks.separation --data multitracks
    python -m research.tasks.summary

The network (`LatentSeparator`: dilated residual convolutions, masks and details) sees 172 frames a second in every
condition. A frame holds the latents of 256 samples, or those samples themselves, of the full rate or resampled, so that
resampling to 11 kHz (128 numbers) stands against stereo-5x (108) and to 2.8 kHz (32) against stereo-20x (27).

Measured at 44.1 kHz on songs that were not trained on, mean over songs and sources: PSNR of the normalised mix's scale
(x + 0.5), SI-SDR, and as the bound what is left of the true sources when they pass through the same representation.
"""

import functools
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModel, Trainer

from research.tasks.runs import RunArguments, run_task, training_arguments
from transformers_walloc import WallocForAudioSourceSeparation
from transformers_walloc.codec.clips import normalise_clip
from transformers_walloc.evaluation.metrics import psnr, si_sdr
from transformers_walloc.latents.separation import LatentSeparator, separation_loss
from transformers_walloc.media.paths import write_bytes

RATE = 44100
FRAME = 256  # samples
CONDITIONS = {
    "mix": "no model: an equal share of the mix",
    "samples_44k": "samples, 44.1 kHz",
    "resample_11k": "resampled to 11 kHz",
    "walloc_5x": "WaLLoC stereo-5x",
    "resample_3k": "resampled to 2.8 kHz",
    "walloc_20x": "WaLLoC stereo-20x",
}
CODECS = {"walloc_5x": "walloc/stereo-5x", "walloc_20x": "walloc/stereo-20x"}
FACTORS = {"samples_44k": 1, "resample_11k": 4, "resample_3k": 16}


@dataclass
class Settings:
    """What is trained, and on what."""

    data: str = field(metadata={"help": "folder with train/SONG/SOURCE.flac (or .wav), test/ and so on"})
    sources: list[str] = field(
        default_factory=lambda: ["drums", "bass", "other"], metadata={"help": "stems of a song, by file name"}
    )
    split: str = field(default="test", metadata={"help": "folder to measure on; validation while tuning"})
    steps: int = field(default=1000, metadata={"help": "of training"})
    batch_size: int = field(default=8, metadata={"help": "excerpts in a step"})
    frames: int = field(default=256, metadata={"help": "length of an excerpt, 172 in a second"})
    learning_rate: float = field(default=3e-3, metadata={"help": "at its peak"})
    hidden_size: int = field(default=64, metadata={"help": "width of the network"})
    num_layers: int = field(default=6, metadata={"help": "its residual blocks"})
    dilation_cycle: int = field(default=6, metadata={"help": "dilations go 1, 2, 4 ... through as many blocks"})
    remix: float = field(default=0.5, metadata={"help": "share of the excerpts whose stems are of different songs"})
    gain_db: float = field(default=4.0, metadata={"help": "stems are made louder or softer by up to that much"})
    cache: str = field(default="", metadata={"help": "folder to keep encoded songs in; none by default"})
    save: str = field(default="", metadata={"help": "folder for the trained latent models; none by default"})


class Samples(nn.Module):
    """Samples folded into frames, of the full rate or resampled, with the network that separates them."""

    def __init__(self, factor: int, settings: Settings):
        super().__init__()
        self.factor = factor
        self.separator = LatentSeparator(2 * FRAME // factor, len(settings.sources), **_network(settings))

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """(..., 2, length) -> (..., 2 * 256 / factor, frames)."""
        x = waveform
        if self.factor > 1:
            x = _resample(x, RATE, RATE // self.factor, x.shape[-1] // self.factor)
        return x.unflatten(-1, (-1, FRAME // self.factor)).movedim(-2, -1).flatten(-3, -2)

    def decode(self, values: torch.Tensor) -> torch.Tensor:
        x = values.unflatten(-2, (2, -1)).transpose(-1, -2).flatten(-2)
        if self.factor > 1:
            x = _resample(x, RATE // self.factor, RATE, x.shape[-1] * self.factor)
        return x

    def forward(self, values: torch.Tensor, source_values: torch.Tensor) -> dict:
        sources = self.separator(values)
        return {"loss": separation_loss(sources, source_values, values), "source_values": sources}

    def separate(self, waveform: torch.Tensor) -> torch.Tensor:
        padded = F.pad(waveform, (0, -waveform.shape[-1] % FRAME))
        return self.decode(self.separator(self.encode(padded)[None])[0])[..., : waveform.shape[-1]]


class Remixes(Dataset):
    """Excerpts of encoded songs, stems mixed anew: the representation is linear, so mixing needs no waveforms."""

    def __init__(self, songs: list[np.ndarray], settings: Settings, seed: int):
        self.songs, self.settings, self.seed = songs, settings, seed

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        stems, song = [], rng.integers(len(self.songs))
        start, remix = rng.random(), rng.random() < self.settings.remix
        for source in range(len(self.settings.sources)):
            if remix:
                song, start = rng.integers(len(self.songs)), rng.random()
            stem = self.songs[song][source]
            first = int(start * (stem.shape[1] - self.settings.frames + 1))
            gain = 10 ** (rng.uniform(-1, 1) * self.settings.gain_db / 20)
            stems.append(gain * stem[:, first : first + self.settings.frames].astype(np.float32))
        labels = torch.from_numpy(np.stack(stems))
        return {"values": labels.sum(0), "source_values": labels}


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    """One condition with one seed; see `runs.run_task`."""
    songs = song_folders(settings, settings.split)
    if condition == "mix":
        shares = [song.sum(0, keepdim=True).expand_as(song) / len(song) for song in map(load, songs)]
        metrics, by_source = measure(map(load, songs), shares, settings)
        return {"metrics": metrics, "sources": by_source, "model_inputs": 0}
    model: Any = make_model(condition, settings)
    training = encoded_songs(condition, "train", settings)
    model.separator.scale.copy_(_deviation(training))
    batches = Remixes(training, settings, seed)
    # Excerpts are drawn by their index, in order: every condition hears the same ones.
    options = training_arguments(
        seed, arguments, settings.steps, settings.batch_size, settings.learning_rate, max_grad_norm=0.5
    )
    trainer = Trainer(model, options, train_dataset=batches)
    loss = trainer.train().training_loss
    if settings.save and condition in CODECS:
        model.save_pretrained(Path(settings.save) / f"{condition}_{seed}")
    model.eval()
    with torch.no_grad():
        estimates = (model.separate(load(song).sum(0).to(arguments.device)).cpu() for song in songs)
        metrics, by_source = measure(map(load, songs), estimates, settings)
        bounds = bound(condition, settings)
    return {
        "metrics": {**metrics, **bounds, "train_loss": loss},
        "sources": by_source,
        "model_inputs": round(len(model.separator.scale) * RATE / FRAME),
        "parameters": sum(p.numel() for p in model.separator.parameters()),
        "examples": {"training": len(training), settings.split: len(songs)},
    }


def make_model(condition: str, settings: Settings) -> nn.Module:
    """The network with what encodes and decodes its input."""
    if condition in FACTORS:
        return Samples(FACTORS[condition], settings)
    codec = AutoModel.from_pretrained(CODECS[condition])
    return WallocForAudioSourceSeparation.from_codec(codec, settings.sources, **_network(settings))


def song_folders(settings: Settings, split: str) -> list[tuple[Path, ...]]:
    """The files of every song's stems, songs in order of their names."""
    folder = Path(settings.data) / split
    songs = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not songs:
        raise ValueError(f"{folder} has no folders of songs; make them with research.corpora.multitracks")
    found = []
    for song in songs:
        stems: list[Any] = [next((p for s in (".flac", ".wav") if (p := song / f"{name}{s}").is_file()), None)
                 for name in settings.sources]  # fmt: skip
        if None in stems:
            missing = settings.sources[stems.index(None)]
            raise ValueError(f"{song} has no {missing}.flac or {missing}.wav; name the stems with --sources")
        found.append(tuple(stems))
    return found


@functools.lru_cache(maxsize=16)
def load(song: tuple[Path, ...]) -> torch.Tensor:
    """(sources, 2, length): stems in the scale in which their mix has a peak of 0.5."""
    stems = []
    for path in song:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != RATE or samples.shape[1] != 2:
            raise ValueError(f"{path} has {samples.shape[1]} channels at {rate} Hz; valid: 2 at {RATE}")
        stems.append(samples.T)
    length = min(stem.shape[1] for stem in stems)
    stacked = torch.from_numpy(np.stack([stem[:, :length] for stem in stems]))
    return stacked / normalise_clip(stacked.sum(0))[1]


def measure(references, estimates, settings: Settings) -> tuple[dict, dict]:
    """Mean over songs and sources, and the same for each source. Silent stems have no SI-SDR and are left out."""
    values: dict[str, dict[str, list[float]]] = {name: {"psnr": [], "si_sdr": []} for name in settings.sources}
    for stems, sources in zip(references, estimates, strict=True):
        for name, stem, source in zip(settings.sources, stems.numpy(), sources.numpy(), strict=True):
            values[name]["psnr"].append(psnr(stem, source, data_range=1.0))
            if np.abs(stem).max() > 1e-3:
                values[name]["si_sdr"].append(si_sdr(stem, source))
    by_source = {s: {m: float(np.mean(v)) for m, v in of.items() if v} for s, of in values.items()}
    pooled = {m: [x for of in values.values() for x in of[m]] for m in ("psnr", "si_sdr")}
    return {m: float(np.mean(v)) for m, v in pooled.items()}, by_source


@functools.cache
def _bound(condition: str, key: str, songs: tuple, sources: tuple) -> dict:
    settings = Settings(data="", sources=list(sources))
    model: Any = make_model(condition, settings).eval()
    with torch.no_grad():
        passed = (model.decode(model.encode(_padded(load(song))))[..., : load(song).shape[-1]] for song in songs)
        return measure(map(load, songs), passed, settings)[0]


def bound(condition: str, settings: Settings) -> dict:
    """PSNR and SI-SDR of the true sources, encoded and decoded; found once for all seeds."""
    if FACTORS.get(condition) == 1:
        return {}  # nothing is lost
    songs = tuple(song_folders(settings, settings.split))
    metrics = _bound(condition, settings.data, songs, tuple(settings.sources))
    return {f"{name}_bound": value for name, value in metrics.items()}


def encoded_songs(condition: str, split: str, settings: Settings) -> list[np.ndarray]:
    """(sources, numbers, frames) float16 of every song; encoded once for all seeds."""
    songs = tuple(song_folders(settings, split))
    short = [str(song[0].parent) for song in songs if soundfile.info(song[0]).frames < settings.frames * FRAME]
    if short:
        raise ValueError(f"--frames {settings.frames} is longer than {', '.join(short)}")
    return _encoded(condition, songs, tuple(settings.sources), settings.cache)


@functools.cache
def _encoded(condition: str, songs: tuple, sources: tuple, cache: str) -> list[np.ndarray]:
    model: Any = make_model(condition, Settings(data="", sources=list(sources))).eval()
    facts = [condition, *((str(p), p.stat().st_size, p.stat().st_mtime_ns) for song in songs for p in song)]
    if condition in CODECS:
        facts.append(model.codec.fingerprint())
    file = Path(cache) / f"{condition}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.npz"
    if cache and file.is_file():
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in arrays.files]
    encoded = [torch.cat([model.encode(stem[None]) for stem in _padded(load(song))]).half().numpy() for song in songs]
    if cache:
        buffer = io.BytesIO()
        np.savez(buffer, *encoded)
        write_bytes(str(file), buffer.getvalue())
    return encoded


def _deviation(songs: list[np.ndarray]) -> torch.Tensor:
    """Standard deviation of each number of a frame, over the mixes."""
    mixes = np.concatenate([song.astype(np.float32).sum(0) for song in songs], axis=1)
    return torch.from_numpy(mixes.std(axis=1)).clamp_min(1e-6)


def _network(settings: Settings) -> dict:
    return {name: getattr(settings, name) for name in ("hidden_size", "num_layers", "dilation_cycle")}


def _padded(stems: torch.Tensor) -> torch.Tensor:
    return F.pad(stems, (0, -stems.shape[-1] % FRAME))


def _resample(x: torch.Tensor, from_rate: int, to_rate: int, length: int) -> torch.Tensor:
    """(..., length') -> (..., length), by soxr in its best quality."""
    flat = x.detach().cpu().reshape(-1, x.shape[-1])
    rows = soxr.resample(flat.T.numpy(), from_rate, to_rate, "VHQ").T[:, :length]
    rows = np.pad(rows, ((0, 0), (0, length - rows.shape[1])))
    return torch.from_numpy(np.ascontiguousarray(rows)).to(x).unflatten(0, x.shape[:-1])


def main(argv=None):
    return run_task("separation", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
