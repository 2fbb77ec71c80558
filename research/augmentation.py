#!/usr/bin/env python
"""Classification from stored latents, with and without augmenting them: what a data set of codes written once is worth.

    python -m research.augmentation --data FOLDER [--codec walloc/rgb-f16c48] [--seeds 0 1 2]

FOLDER has a folder of images for each class, as Caltech-101 has. Each training image is resized to 288 x 288 pixels
and encoded once; the model, a small vision transformer from random weights, sees 256 x 256 of them as 16 x 16 latents:

    none       always the middle of the picture
    crops      a random place on the grid of latents
    geometry   and half of the pictures mirrored, as latents
    colours    and brightness, contrast and saturation changed by up to 30%, as latents
    pixels     for comparison: random crops, mirrored and resized as pixels, encoded anew; four of each image, with
               random places on the grid

Every run is kept in docs/results/augmentation.json, so that an interrupted command goes on where it was; the table is
printed at the end, and put into docs/guides/augmentation.md.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import Trainer, set_seed

from research.pages import RESULTS, ROOT, between
from research.tasks.classification import Settings, make_model, open_image, read_images, view_of
from research.tasks.runs import RunArguments, training_arguments
from transformers_walloc import LatentAugmentation, LatentView, WallocImageModel
from transformers_walloc.atomic import write_atomically
from transformers_walloc.evaluation.machine import machine
from transformers_walloc.evaluation.tables import table

CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("stored once, as they are", {}),
    "crops": ("stored once, random crops", {"crop_size": 16}),
    "geometry": ("stored once, random crops and flips", {"crop_size": 16, "flips": True}),
    "colours": (
        "stored once, random crops, flips and colours",
        {"crop_size": 16, "flips": True, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    ),
    "pixels": ("four views made of pixels and encoded", {"crop_size": 16}),
}
STORE, PAGE = RESULTS / "augmentation.json", ROOT / "docs" / "guides" / "augmentation.md"
VIEWS, GRID = 4, 16


class StoredLatents(torch.utils.data.Dataset):
    """Codes (images, views, channels, 18, 18) as a model sees them, augmented anew at each visit."""

    def __init__(self, codes: torch.Tensor, labels: list[int], view: LatentView, augmentation: Any):
        self.codes, self.labels, self.view, self.augmentation = codes, labels, view, augmentation

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: int) -> dict:
        views = self.codes[i]
        codes = views[int(torch.randint(len(views), ()))][None]
        middle = (..., slice(1, 1 + GRID), slice(1, 1 + GRID))
        codes = codes[middle] if self.augmentation is None else self.augmentation(codes)
        return {"pixel_values": self.view.values(codes)[0], "labels": self.labels[i]}


@torch.no_grad()
def encoded(codec: WallocImageModel, items: list, settings: Settings, views: int) -> torch.Tensor:
    """(images, views, channels, 18, 18) codes: of the whole image for one view, else of random crops and flips."""
    out = []
    for i, item in enumerate(tqdm(items, desc="encoding", unit="image", mininterval=5)):
        image = open_image(item, settings.image_column)
        generators: list = [None]
        if views > 1:
            generators = [np.random.default_rng((settings.split_seed, i, view)) for view in range(views)]
        pixels = np.stack([view_of(image, generator, settings.min_scale) for generator in generators])
        out.append(codec.encode_to_codes(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()))
    return torch.stack(out)


def run(condition: str, seed: int, codec: WallocImageModel, settings: Settings, codes: dict) -> float:
    """Accuracy in percent on the test images, each as its middle."""
    train, train_labels, test, test_labels, names = read_images(settings)
    kind = VIEWS if condition == "pixels" else 1
    for key, items, views in ((("train", kind), train, kind), (("test", 1), test, 1)):
        if key not in codes:
            codes[key] = encoded(codec, items, settings, views)
    set_seed(seed)
    view = LatentView.scaled(codec.config)
    options = CONDITIONS[condition][1]
    augmentation = LatentAugmentation(codec, **options) if options else None
    model = make_model(settings, codec.config.latent_channels, GRID, names)
    arguments = training_arguments(
        seed, RunArguments(), settings.steps, settings.batch_size, settings.learning_rate, label_smoothing_factor=0.1
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=StoredLatents(codes["train", kind], train_labels, view, augmentation),
        eval_dataset=StoredLatents(codes["test", 1], test_labels, view, None),
        compute_metrics=lambda p: {"accuracy": 100 * np.mean(np.argmax(p.predictions, -1) == p.label_ids)},
    )
    trainer.train()
    return float(trainer.evaluate()["eval_accuracy"])


def summary(record: dict) -> str:
    """A row for each condition: mean and deviation over seeds, and the paired difference to none."""
    lines = []
    plain = record["accuracy"].get("none", {})
    for name, (title, _) in CONDITIONS.items():
        found = record["accuracy"].get(name, {})
        if not found:
            continue
        values = list(found.values())
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        pairs = [value - plain[seed] for seed, value in found.items() if seed in plain and name != "none"]
        lines.append([title, f"{statistics.fmean(values):.1f}{deviation}", _interval(pairs), str(len(values))])
    return table(["training images", "top-1 accuracy %", "gain (95%)", "seeds"], lines)


def _interval(pairs: list[float]) -> str:
    if len(pairs) < 2:
        return f"{pairs[0]:+.1f}" if pairs else ""
    from scipy import stats

    mean = statistics.fmean(pairs)
    reach = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="folders of images, one a class")
    parser.add_argument("--codec", default="walloc/rgb-f16c48", help="a symmetric block codec of 16 x 16 pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--steps", type=int, default=1200, help="of 32 images (default: %(default)s)")
    parser.add_argument("--max-per-class", type=int, default=0, help="images of a class; 0 for all")
    parser.add_argument("--output", type=Path, default=STORE, metavar="JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = Settings(data=args.data, max_per_class=args.max_per_class, width=128, layers=4, steps=args.steps)
    codec = WallocImageModel.from_pretrained(args.codec).eval()
    record = json.loads(args.output.read_text()) if args.output.exists() else {"accuracy": {}}
    facts = {"data": Path(args.data).name, "codec": Path(args.codec).name, "fingerprint": codec.fingerprint()}
    facts |= {"steps": args.steps, "max_per_class": args.max_per_class}
    if record.get("settings", facts) != facts:
        parser.error(f"{args.output} holds results of other settings: {record['settings']}")
    codes: dict = {}
    for seed in args.seeds:
        for condition in args.conditions:
            found = record["accuracy"].setdefault(condition, {})
            if str(seed) in found:
                continue
            started = time.perf_counter()
            found[str(seed)] = round(run(condition, seed, codec, settings, codes), 2)
            record |= {"settings": facts, "machine": machine(1)}
            write_atomically(args.output, json.dumps(record, indent=1) + "\n")
            print(
                f"{condition}, seed {seed}: {found[str(seed)]:.1f}%, {time.perf_counter() - started:.0f} s", flush=True
            )
    print(summary(record))
    if args.output == STORE:
        write_atomically(PAGE, between(PAGE.read_text(), "measured", summary(record)))


if __name__ == "__main__":
    main()
