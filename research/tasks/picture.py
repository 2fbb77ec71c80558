#!/usr/bin/env python
"""What latents give a pretrained convolutional network: as a picture without any change to it, or with a folded stem.

    python -m research.tasks.picture --data FOLDER

FOLDER as for `research.tasks.classification`. A ResNet learns on images resized to 64 pixels first and is the
pretrained one here, one for each seed. From there each condition takes the same `fine_tuning_steps`: on the resized
pixels, and on `rgb-16x` latents of 256 pixels, which are as many numbers:

    walloc-picture, -plain   spread over a picture of 64 x 64 x 3, as the rotation of `picture_rotation` turns them or
                             as they come; channels have mean 0 and deviation 1 over the training images, as pixels have
    walloc-folded            32 x 32 x 12 as they are; the stem, 7 x 7 pixels with a stride of 2, is folded into 5 x 5
                             latents with a stride of 1, and all behind it is the same

CONDITION+random learns from random weights instead, in as many steps as the pretrained one.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import ResNetForImageClassification

from research.tasks.classification import Views, make_model
from research.tasks.folding import CODEC, MARGIN, PIXELS, FineTuning, fine_tune, images, latent_views, pretrained
from research.tasks.runs import RunArguments, run_task
from transformers_walloc import LatentView, WallocImageModel, latents_to_pixels
from transformers_walloc.latents.folding import fold_patch_embedding
from transformers_walloc.latents.picture import picture_rotation
from transformers_walloc.latents.pretrained import on_scale

CONDITIONS = {
    PIXELS: "resized to 64 px, as pretrained",
    "walloc-picture": "latents of 256 px, the orthogonal picture",
    "walloc-plain": "latents of 256 px, laid out as they come",
    "walloc-folded": "latents of 256 px, the stem folded",
}
RANDOM = {
    PIXELS: "resized to 64 px, random weights",
    "walloc-picture": "latents of 256 px, the orthogonal picture, random weights",
    "walloc-plain": "latents of 256 px, laid out as they come, random weights",
    "walloc-folded": "latents of 256 px, a stem for them, random weights",
}
CONDITIONS |= {f"{name}+random": title for name, title in RANDOM.items()}
FOLDED = "walloc-folded"
STEM = "resnet.embedder.embedder.convolution"
HALO = 2  # latents around the one of an output that the folded stem sees


@dataclass(frozen=True)
class Settings(FineTuning):
    model: str = field(default="resnet", metadata={"help": "resnet, which is what this is about"})
    width: int = field(default=32, metadata={"help": "of the network's first stage"})
    layers: int = field(default=2, metadata={"help": "of each of its three stages"})
    steps: int = field(default=1200, metadata={"help": "of the optimiser, on pixels"})

    def __post_init__(self):
        super().__post_init__()
        if self.model != "resnet":
            raise ValueError(f"model is {self.model!r}; valid: resnet (for vit: research.tasks.folding)")


def on_latents(way: str, given: dict) -> dict[str, Views]:
    """Training and test images of a condition on latents; `given` is that of `folding.images`."""
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    folded = way == FOLDED
    view = LatentView.scaled(codec.config) if folded else LatentView(codec.config)
    rotation = picture_rotation(codec) if way == "walloc-picture" else None

    def numbers(x: torch.Tensor) -> torch.Tensor:
        values = view.from_latents(x, halo=MARGIN)
        return values if folded else latents_to_pixels(values, rotation=rotation)

    codes = given["codes"]["train"]
    shown = numbers(codes[:: max(1, len(codes) // 500), 0])
    mean, std = shown.mean((0, 2, 3))[:, None, None], shown.std((0, 2, 3))[:, None, None]

    def transform(x: torch.Tensor) -> torch.Tensor:
        values = numbers(x[None])[0]
        return values if folded else (values - mean) / std

    return latent_views(given, transform)


@torch.no_grad()
def fold_stem(model: Any, given: dict) -> None:
    """Puts a stem for latents, on the scale of the codec's corpus, in the place of a ResNet's, which it is folded from.

    At the border it sees latents reflected, and not the zeros around the pixels.
    """
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    stem: Any = model.get_submodule(STEM)
    statistics = given["mean"], given["std"]
    weight, bias = fold_patch_embedding(
        stem.weight, stem.bias, codec, 1, HALO, *statistics, stride=stem.stride[0], padding=stem.padding[0]
    )
    weight, bias = on_scale(weight, bias, LatentView.scaled(codec.config))
    new = nn.Conv2d(weight.shape[1], len(weight), 1 + 2 * HALO, padding=HALO, padding_mode="reflect")
    new.weight, new.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    model.set_submodule(STEM, new)
    model.config.num_channels = model.resnet.embedder.num_channels = weight.shape[1]


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    s = settings
    given = images(s, arguments.device)
    way, _, random = condition.partition("+")
    found = given["pixels"] if way == PIXELS else on_latents(way, given)
    x = found["test"][0]["pixel_values"]
    if random:
        torch.manual_seed(seed)
        model: Any = make_model(s, 3, x.shape[1], given["pixels"]["names"])
        steps = {"steps": s.steps, "learning_rate": s.learning_rate}
    else:
        folder = pretrained(seed, s, arguments.device, arguments.workers)
        torch.manual_seed(seed)
        model, steps = ResNetForImageClassification.from_pretrained(folder), {}
    if way == FOLDED:
        fold_stem(model, given)
        if random:
            model.get_submodule(STEM).reset_parameters()
    before, after, loss = fine_tune(model, found, seed, s, arguments, **steps)
    return {
        "metrics": {"accuracy": after, "start_accuracy": before, "train_loss": loss},
        "model_inputs": x.numel(),
        "parameters": model.num_parameters(),
        "examples": {"training": len(found["train"]), "test": len(found["test"])},
    }


def main(argv=None) -> list[dict]:
    return run_task("picture", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
