#!/usr/bin/env python
"""Separation of sources on stereo latents, with the options of the music-separation training repositories.

    pip install ".[examples]"  # in a checkout
    python examples/source_separation.py --model_type walloc --config_path examples/source_separation.yaml \\
        --data_path musdb18hq/train --valid_path musdb18hq/test --results_path separator
    python examples/source_separation.py --model_type walloc --config_path examples/source_separation.yaml \\
        --start_check_point separator --input_folder mixes --store_dir separated

A song is a folder with one file for each instrument of the configuration (`vocals.wav`, ...); the mix is their sum.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from transformers import AutoModel, Trainer, TrainingArguments, set_seed

from transformers_walloc import WallocForAudioSourceSeparation

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Returns SDR in dB of each instrument over the songs of `--valid_path`, and their mean."""
    options = parser().parse_args(arguments)
    config = yaml.safe_load(Path(options.config_path).read_text())
    names, training = config["training"]["instruments"], config["training"]
    set_seed(options.seed)
    if options.start_check_point:
        model = WallocForAudioSourceSeparation.from_pretrained(options.start_check_point)
        if model.config.source_names != names:
            raise SystemExit(f"{options.start_check_point} separates {model.config.source_names}, not {names}")
    else:
        shape = dict(config["model"])
        codec = AutoModel.from_pretrained(shape.pop("codec"))
        model = WallocForAudioSourceSeparation.from_codec(codec, names, **shape)
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    if options.data_path:
        chunk = config["audio"]["chunk_size"] // model.codec.config.patch_size * model.codec.config.patch_size
        songs = Songs(options.data_path, names, model.config.sampling_rate, chunk)
        if not options.start_check_point:
            model.set_scale(model.encode(songs[0]["input_values"][None].to(model.device)))
        arguments_ = TrainingArguments(
            options.results_path,
            max_steps=training["num_steps"],
            per_device_train_batch_size=training["batch_size"],
            learning_rate=training["lr"],
            dataloader_num_workers=options.num_workers,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
        )
        Trainer(model, arguments_, train_dataset=songs).train()
        model.eval().save_pretrained(options.results_path)
    found: dict[str, float] = {}
    if options.valid_path:
        found = validate(model, options.valid_path)
        print(json.dumps(found, indent=2))
    if options.input_folder:
        for path in files_in(Path(options.input_folder)):
            samples, rate = read(path, model.config.sampling_rate)
            for name, source in zip(names, model.separate(samples.to(model.device)), strict=True):
                target = Path(options.store_dir) / path.stem / f"{name}.wav"
                target.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(target, source.cpu().numpy().T, rate, subtype="FLOAT")
    return found


class Songs(torch.utils.data.Dataset):
    """Random pieces of songs, as the model's codec takes them: the mix fills [-0.5, 0.5]."""

    def __init__(self, folder: str, names: Sequence[str], rate: int, length: int):
        self.folders = sorted(path for path in Path(folder).iterdir() if path.is_dir())
        self.names, self.rate, self.length = names, rate, length
        if not self.folders:
            raise SystemExit(f"{folder} has no folders of songs")

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        paths = [stem(self.folders[index], name) for name in self.names]
        frames = min(soundfile.info(path).frames for path in paths)
        start = int(torch.randint(max(frames - self.length, 0) + 1, ()))
        stems = torch.stack([read(path, self.rate, start, self.length)[0] for path in paths])
        stems = torch.nn.functional.pad(stems, (0, self.length - stems.shape[-1]))
        mix = stems.sum(0)
        gain = 2 * mix.abs().max().clamp_min(1e-4)
        return {"input_values": mix / gain, "labels": stems / gain}


def validate(model: Any, folder: str) -> dict[str, float]:
    """Median over songs of the median over their seconds, as museval's tables have it."""
    names, rate, scores = model.config.source_names, model.config.sampling_rate, []
    for song in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        stems = torch.stack([read(stem(song, name), rate)[0] for name in names])
        sources = model.separate(stems.sum(0).to(model.device)).cpu()
        scores.append([sdr(*pair, rate) for pair in zip(stems.numpy(), sources.numpy(), strict=True)])
    medians = np.nanmedian(np.array(scores), axis=0)
    found = {f"sdr_{name}": float(value) for name, value in zip(names, medians, strict=True)}
    return {**found, "sdr": float(np.nanmean(medians))}


def sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Signal-to-distortion ratio in dB, BSS Eval v4 for images: median over seconds, those of silence left out.

    The distortion of that definition is all that differs, estimate - reference; its filters split it into kinds alone.

    Args:
        reference, estimate: (channels, length).
        rate: samples per second.
    """
    values = []
    for start in range(0, reference.shape[1] - rate + 1, rate):
        true, found = (x[:, start : start + rate].astype(np.float64) for x in (reference, estimate))
        if true.any() and found.any():
            error = np.square(found - true).sum()
            values.append(10 * math.log10(np.square(true).sum() / error) if error else math.inf)
    return float(np.median(values)) if values else math.nan


def stem(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if not found:
        raise SystemExit(f"{folder} has no {name}{' or '.join(SUFFIXES)}")
    return found[0]


def files_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} has no audio files; valid: {', '.join(SUFFIXES)}")
    return found


def read(path: Path, rate: int, start: int = 0, frames: int = -1) -> tuple[torch.Tensor, int]:
    """(2, length) at the codec's rate."""
    samples, found = soundfile.read(path, frames=frames, start=start, dtype="float32", always_2d=True)
    if found != rate:
        raise SystemExit(f"{path} has {found} samples a second, the codec {rate}: resample it first")
    stereo = samples[:, :2] if samples.shape[1] > 1 else np.repeat(samples, 2, axis=1)
    return torch.from_numpy(stereo.T.copy()), rate


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_type", default="walloc", choices=("walloc",))
    parser.add_argument("--config_path", default=str(Path(__file__).with_suffix(".yaml")))
    parser.add_argument("--start_check_point", help="folder of a trained model")
    parser.add_argument("--data_path", help="folder of songs to train on")
    parser.add_argument("--valid_path", help="folder of songs to measure on")
    parser.add_argument("--results_path", default="separator", help="where the trained model goes")
    parser.add_argument("--input_folder", help="mixes to separate")
    parser.add_argument("--store_dir", default="separated")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
