#!/usr/bin/env python
"""What the orthogonal picture gives: a convolutional network of pixels goes on on latents, without any change to it.

    python -m research.tasks.picture --data FOLDER

FOLDER as for `research.tasks.classification`. A ResNet, whose stem of 7 x 7 overlaps and cannot be folded into patches,
learns on images resized to 64 pixels first and is the pretrained one here, one for each seed. From there each condition
takes the same `fine_tuning_steps`: on the resized pixels, and on `rgb-16x` latents of 256 pixels spread over a picture
of 64 x 64 x 3, as the rotation of `picture_rotation` turns them or as they come. CONDITION+random learns from random
weights instead, in as many steps as the pretrained one. Channels of all have mean 0 and deviation 1 over the training
images.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from research.tasks.classification import LATENT, SIZE, Views, make_model
from research.tasks.folding import CODEC, MARGIN, PIXELS, FineTuning, fine_tune, images, pretrained
from research.tasks.runs import RunArguments, run_task
from transformers_walloc import LatentView, WallocImageModel, latents_to_pixels
from transformers_walloc.latents.picture import picture_rotation

CONDITIONS = {
    PIXELS: "resized to 64 px, as pretrained",
    "walloc-picture": "latents of 256 px, the orthogonal picture",
    "walloc-plain": "latents of 256 px, laid out as they come",
}
RANDOM = "+random"
CONDITIONS |= {name + RANDOM: f"{title.partition(', as pre')[0]}, random weights" for name, title in CONDITIONS.items()}


@dataclass(frozen=True)
class Settings(FineTuning):
    model: str = field(default="resnet", metadata={"help": "resnet or convnext"})
    tokens: int = field(default=16, metadata={"help": "a side, of convnext"})
    width: int = field(default=32, metadata={"help": "of the network's first stage"})
    layers: int = field(default=2, metadata={"help": "of each of its three stages"})
    steps: int = field(default=1200, metadata={"help": "of the optimiser, on pixels"})

    def __post_init__(self):
        super().__post_init__()
        if self.model == "vit":
            raise ValueError("model is 'vit'; valid: resnet, convnext (research.tasks.folding is for vit)")


def pictures(rotated: bool, given: dict) -> dict[str, Views]:
    """Training and test images as pictures of latents; `given` is that of `folding.images`."""
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    view, rotation = LatentView(codec.config), picture_rotation(codec) if rotated else None

    def picture(x: torch.Tensor) -> torch.Tensor:
        return latents_to_pixels(view.from_latents(x, halo=MARGIN), rotation=rotation)

    codes = given["codes"]["train"]
    shown = picture(codes[:: max(1, len(codes) // 500), 0])
    mean, std = shown.mean((0, 2, 3))[:, None, None], shown.std((0, 2, 3))[:, None, None]

    def transform(x: torch.Tensor) -> torch.Tensor:
        return (picture(x[None])[0] - mean) / std

    crop = SIZE // LATENT + 2 * MARGIN
    return {
        part: Views(data, given["pixels"][part].labels, 1, crop, part == "train", transform)
        for part, data in given["codes"].items()
    }


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    s = settings
    given = images(s, arguments.device)
    way, _, random = condition.partition("+")
    found = given["pixels"] if way == PIXELS else pictures(way == "walloc-picture", given)
    x = found["test"][0]["pixel_values"]
    if random:
        torch.manual_seed(seed)
        model = make_model(s, x.shape[0], x.shape[1], given["pixels"]["names"])
        steps = {"steps": s.steps, "learning_rate": s.learning_rate}
    else:
        folder = pretrained(seed, s, arguments.device, arguments.workers)
        torch.manual_seed(seed)
        model, steps = AutoModelForImageClassification.from_pretrained(folder), {}
    before, after, loss = fine_tune(model, found, seed, s, arguments, **steps)
    return {
        "metrics": {"accuracy": after, "start_accuracy": before, "train_loss": loss},
        "model_inputs": x.numel(),
        "parameters": model.num_parameters(),
        "examples": {"training": len(found["train"]), "test": len(found["test"])},
    }


def main(argv=None) -> list[Path]:
    return run_task("picture", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
