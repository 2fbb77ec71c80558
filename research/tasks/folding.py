#!/usr/bin/env python
"""What folding gives: a classifier of pixels goes on as a classifier of latents, at its first step and fine-tuned.

    python -m research.tasks.folding --data FOLDER --config research/tasks/configs/classification_small.json

FOLDER as for `research.tasks.classification`, whose network learns on images resized to 64 pixels first and is the
pretrained one here, one for each seed. From there each condition takes the same `fine_tuning_steps`: the network as it
is on the resized pixels, and what `load_on_latents` makes of it on `rgb-16x` latents of 256 pixels, as many numbers in
as many tokens, folded with a halo of 0, 1 and as many latents as the exact fold takes (which has more inputs), or with
one of the plain initialisations.
"""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel, Trainer, ViTForImageClassification

from research.tasks import classification
from research.tasks.classification import LATENT, SIZE, Views, make_model, read_images
from research.tasks.preparation import Preparation
from research.tasks.runs import RunArguments, run_task, training_arguments
from transformers_walloc import LatentView, WallocImageModel, load_on_latents

PIXELS = "resize-64"
CODEC = "walloc/rgb-16x"
# Condition -> (title, options of `load_on_latents`); the first goes on on pixels.
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    PIXELS: ("resized to 64 px, as pretrained", {}),
    "walloc-fold-0": ("latents, folded, no halo", {"halo": 0}),
    "walloc-fold-1": ("latents, folded, halo 1", {"halo": 1}),
    "walloc-fold-exact": ("latents, folded, exact", {"halo": None}),
    "walloc-average": ("latents, average of colours", {"initialization": "average"}),
    "walloc-random": ("latents, random", {"initialization": "random"}),
}
CONDITIONS = {condition: title for condition, (title, _) in STARTS.items()}
MARGIN = 4  # latents around a view, for halos


@dataclass(frozen=True)
class FineTuning(classification.Settings):
    fine_tuning_steps: int = field(default=300, metadata={"help": "of the optimiser, from the pretrained network"})
    fine_tuning_rate: float = field(default=3e-4, metadata={"help": "the largest, of AdamW"})


@dataclass(frozen=True)
class Settings(FineTuning):
    def __post_init__(self):
        super().__post_init__()
        if self.model != "vit":
            raise ValueError(f"model is {self.model!r}; valid: vit, which load_on_latents knows")


def fine_tune(
    model: PreTrainedModel, found: dict, seed: int, settings: FineTuning, arguments: RunArguments, **options: Any
) -> tuple[float, float, float]:
    """(accuracy before, accuracy after, training loss), percent of the test images."""
    options = {"steps": settings.fine_tuning_steps, "learning_rate": settings.fine_tuning_rate} | options
    trainer = Trainer(
        model,
        training_arguments(
            seed,
            arguments,
            batch_size=settings.batch_size,
            label_smoothing_factor=settings.label_smoothing,
            bf16=settings.bf16,
            **options,
        ),
        train_dataset=found["train"],
        eval_dataset=found["test"],
        compute_metrics=lambda p: {"accuracy": 100 * np.mean(np.argmax(p.predictions, -1) == p.label_ids)},
    )
    before = trainer.evaluate()["eval_accuracy"]
    loss = trainer.train().training_loss
    return before, trainer.evaluate()["eval_accuracy"], loss


@functools.cache
def pretrained(seed: int, settings: FineTuning, device: str, workers: int) -> str:
    """Folder of a network that has learnt on the resized pixels."""
    found = classification.inputs(PIXELS, settings, device)
    torch.manual_seed(seed)
    model = make_model(settings, found["channels"], found["crop"], found["names"])
    options = {"steps": settings.steps, "learning_rate": settings.learning_rate}
    fine_tune(model, found, seed, settings, RunArguments(device=device, workers=workers), **options)
    folder = tempfile.mkdtemp(prefix="pretrained-")
    model.save_pretrained(folder)
    return folder


@functools.cache
def images(settings: FineTuning, device: str) -> dict[str, Any]:
    """`pixels` of `classification`, int8 `codes` of the same views with a margin, and the pixels' `mean` and `std`."""
    train, _, test, _, _ = read_images(settings)
    prepared, resized = Preparation("walloc-16x", device), Preparation(PIXELS, device)
    shown = classification.prepare(resized, train, settings, True, device)[:: max(1, len(train) // 500), 0] / 255
    return {
        "pixels": classification.inputs(PIXELS, settings, device),
        "codes": {
            "train": classification.prepare(prepared, train, settings, True, device, MARGIN),
            "test": classification.prepare(prepared, test, settings, False, device, MARGIN),
        },
        "mean": shown.mean((0, 2, 3)).tolist(),
        "std": shown.std((0, 2, 3)).tolist(),
    }


def latent_views(given: dict[str, Any], transform: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Views]:
    """Training and test images of `images`; `transform` leads from the codes of one, with margin, to what is seen."""
    crop = SIZE // LATENT + 2 * MARGIN
    return {
        part: Views(data, given["pixels"][part].labels, 1, crop, part == "train", transform)
        for part, data in given["codes"].items()
    }


def on_latents(folder: str, condition: str, given: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Views]]:
    """The pretrained network as a condition starts it, and its training and test images."""
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    statistics = {"image_mean": given["mean"], "image_std": given["std"]}
    model = load_on_latents(folder, codec, AutoModelForImageClassification, **statistics, **STARTS[condition][1])
    view = LatentView(codec.config, **model.config.walloc_latents)

    def transform(x: torch.Tensor) -> torch.Tensor:
        return view.from_latents(x[None], halo=MARGIN)[0]

    return model, latent_views(given, transform)


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    given = images(settings, arguments.device)
    folder = pretrained(seed, settings, arguments.device, arguments.workers)
    torch.manual_seed(seed)
    model: PreTrainedModel
    if condition == PIXELS:
        model, found = ViTForImageClassification.from_pretrained(folder), given["pixels"]
    else:
        model, found = on_latents(folder, condition, given)
    before, after, loss = fine_tune(model, found, seed, settings, arguments)
    x = found["test"][0]["pixel_values"]
    return {
        "metrics": {"accuracy": after, "start_accuracy": before, "train_loss": loss},
        "model_inputs": x.numel(),
        "tokens": settings.tokens**2,
        "parameters": model.num_parameters(),
        "examples": {"training": len(found["train"]), "test": len(found["test"])},
    }


def main(argv=None) -> list[dict]:
    return run_task("folding", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
