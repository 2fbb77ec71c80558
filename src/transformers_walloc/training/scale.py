"""The scale of a codec's latents over a corpus: `latents_mean` and `latents_std` of its configuration.

    python -m transformers_walloc.training.scale model_cards/rgb-16x --data PHOTOS MORE_PHOTOS [--write]

Models that learn from latents see them on this scale (`LatentView`), whatever their own data look like: a channel that
happens to be silent there must stay silent. Files do not depend on it.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from ..atomic import write_atomically
from ..codec.symmetries import channel_symmetry, symmetric_rows
from ..loading import make_processor
from ..media.audio import read_clip
from ..media.paths import SUFFIXES, find_files, read_bytes
from ..media.pictures import read_pixels

MAX_SIDE = 1024  # pixels of an image that are looked at, from its middle
MAX_SECONDS = 30


@torch.no_grad()
def measure_scale(model: Any, signals: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over all positions of all signals, not rounded.

    Args:
        model: a codec or its encoder.
        signals: batches as `encode` takes them.
    """
    count = 0
    total = torch.zeros(model.config.latent_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for batch in signals:
        latents = model.encode(batch.to(model.device)).latents.flatten(2).transpose(0, 1).flatten(1).double().cpu()
        count += latents.shape[1]
        total += latents.sum(1)
        squares += latents.square().sum(1)
    if count < 2:
        raise ValueError("there is no signal to measure")
    mean, second = total / count, squares / count
    if model.config.latent_symmetry is not None:  # as if every picture had been seen in all eight positions
        mean = symmetric_rows(model.config, mean[:, None])[:, 0]
        second = 0.5 * (second + second[torch.from_numpy(channel_symmetry(model.config, "transpose").index)])
    std = (second - mean.square()).clamp_min(1e-12).sqrt()
    return mean.tolist(), std.tolist()


def read_signals(config: Any, folders: Sequence[str]) -> Iterator[torch.Tensor]:
    """The images or the audio of folders, one by one, as the codec takes them."""
    processor = make_processor(config)
    for path, _ in find_files(folders, SUFFIXES[config.kind]):
        yield read_input(processor, config.kind, path, MAX_SECONDS, MAX_SIDE)


def read_input(
    processor: Any, kind: str, path: str, seconds: float | None = None, max_side: int | None = None
) -> torch.Tensor:
    """An image or an audio file as the codec of a processor takes it, a batch of one.

    Args:
        seconds: of a clip, from its middle; all by default.
        max_side: pixels of an image per axis, from its middle; all by default.
    """
    data = read_bytes(path)
    if kind == "audio":
        rate = processor.sampling_rate
        clip = read_clip(path, data, rate, processor.feature_size, seconds)
        return processor(clip, sampling_rate=rate, return_tensors="pt")["input_values"]
    pixels = read_pixels(path, data, processor.num_channels)
    if max_side is not None:
        top, left = (max(0, (side - max_side) // 2) for side in pixels.shape[:2])
        pixels = pixels[top : top + max_side, left : left + max_side]
    order = {"input_data_format": "channels_last"} if pixels.ndim == 3 else {}
    return processor(pixels, return_tensors="pt", **order)["pixel_values"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a codec")
    parser.add_argument("--data", nargs="+", required=True, help="folders or files of its training corpus")
    parser.add_argument("--write", action="store_true", help="write both into the folder's config.json")
    args = parser.parse_args(argv)
    model = AutoModel.from_pretrained(args.model).eval()
    mean, std = measure_scale(model, read_signals(model.config, args.data))
    numbers = {"latents_mean": [round(x, 3) for x in mean], "latents_std": [round(x, 3) for x in std]}
    print(json.dumps(numbers))
    if args.write:
        path = Path(args.model, "config.json")
        config = {**json.loads(path.read_text(encoding="utf-8")), **numbers}
        write_atomically(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
