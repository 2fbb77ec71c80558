#!/usr/bin/env python
"""Image classification on equally many numbers: images resized to 64 or 128 pixels against latents of 256 pixels.

    python -m research.tasks.classification --data FOLDER --config research/tasks/configs/classification_small.json
    python -m research.tasks.classification --config research/tasks/configs/classification_paper.json  # GPU

FOLDER has a folder of images for each class, as Caltech-101 has. The small config is what docs/tasks.md
reports; without a config the model has 3 M parameters and sees 128,000 images.

A vision transformer (or ConvNeXt, or ResNet) of transformers learns from random weights with `Trainer`. Every condition
has the same images, split, crops, flips, tokens, width and steps; only the first layer's kernel has another shape:

    resize-32    32 x 32 x 3   =  3,072 numbers      walloc-16x-klt-128    128 pixels -> 16 x 16 x 12 = 3,072
    resize-64    64 x 64 x 3   = 12,288 numbers      walloc-16x   256 pixels -> 32 x 32 x 12 = 12,288
    resize-128   128 x 128 x 3 = 49,152 numbers      walloc-4x    256 pixels -> 32 x 32 x 48 = 49,152

Of each training image a few random views (crop and flip) are prepared once, in 8 bits: pixels, or codes as a stored
data set has them. A view is 288 pixels a side; training sees 256 of them, at a random place on the grid of latents.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from research.tasks.preparation import Preparation, scales
from research.tasks.runs import RunArguments, run_task, training_arguments
from transformers_walloc.codec.reflection import extend
from transformers_walloc.media.paths import IMAGE_SUFFIXES

CONDITIONS = {
    "resize-32": "resized to 32 px",
    "walloc-16x-klt-128": "latents of 128 px, rgb-16x-klt",
    "resize-64": "resized to 64 px",
    "walloc-16x": "latents of 256 px, rgb-16x",
    "walloc-16x-klt": "latents of 256 px, rgb-16x-klt",
    **scales("walloc-16x-klt", "latents of 256 px, rgb-16x-klt"),
    "resize-128": "resized to 128 px",
    "walloc-4x": "latents of 256 px, rgb-4x",
    "walloc-4x-klt": "latents of 256 px, rgb-4x-klt",
    **scales("walloc-4x-klt", "latents of 256 px, rgb-4x-klt"),
}
PIXELS = {"resize-32": 32, "resize-64": 64, "resize-128": 128}
CODED = {"walloc-16x-klt-128": 128}  # pixels of the image that is coded, where it is made smaller first
SMALL = ("resize-32", *CODED)  # crops are 16 pixels of 256 apart, the square behind such a latent
MODELS = ("vit", "convnext", "resnet")
SIZE, LATENT = 256, 8  # of the image that the model is to see, and of the square behind a latent


@dataclass(frozen=True)
class Settings:
    data: str = field(default="data", metadata={"help": "folder with a folder for each class, or a repository"})
    image_column: str = field(default="image", metadata={"help": "of a repository"})
    label_column: str = field(default="label", metadata={"help": "of a repository"})
    train_split: str = field(default="train", metadata={"help": "of a repository"})
    test_split: str = field(default="", metadata={"help": "of a repository; none: files are split as in a folder"})
    test_fraction: float = field(default=0.25, metadata={"help": "of each class, drawn by --split_seed"})
    split_seed: int = field(default=0, metadata={"help": "the split and the views are the same for all runs"})
    max_per_class: int = field(default=0, metadata={"help": "images of a class; 0 for all"})
    views: int = field(default=4, metadata={"help": "random crops and flips prepared of each training image"})
    min_scale: float = field(default=0.5, metadata={"help": "smallest area of a crop"})
    model: str = field(default="vit", metadata={"help": "vit, convnext or resnet"})
    tokens: int = field(default=8, metadata={"help": "a side; 8 is 64 tokens (resnet: not used)"})
    width: int = field(default=192, metadata={"help": "of the model (convnext, resnet: of its first stage)"})
    layers: int = field(default=6, metadata={"help": "of the model (convnext, resnet: of each of three stages)"})
    steps: int = field(default=4000, metadata={"help": "of the optimiser"})
    batch_size: int = field(default=32, metadata={"help": "images a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "the largest, of AdamW"})
    label_smoothing: float = field(default=0.1, metadata={"help": "of the loss"})
    bf16: bool = field(default=False, metadata={"help": "autocast, for a GPU"})
    cache: str = field(default="", metadata={"help": "folder that keeps the prepared views for the next command"})

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; valid: {', '.join(MODELS)}")
        if self.tokens < 1 or SIZE // LATENT % self.tokens:
            raise ValueError(f"{self.tokens} tokens a side; valid: a number that divides {SIZE // LATENT}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}; valid: between 0 and 1")


class Views(torch.utils.data.Dataset):
    """Prepared inputs of one condition.

    Args:
        data: (images, views, channels, n, n) uint8 pixels or int8 codes of whole views.
        unit: step of the grid of crops: what 8 (or 16) pixels of 256 are in it.
        crop: size of what the model sees.
        random: a random view and place; otherwise the first view and its middle.
    """

    def __init__(self, data: torch.Tensor, labels: list[int], unit: int, crop: int, random: bool, transform: Callable):
        self.data, self.labels, self.unit, self.crop, self.random = data, labels, unit, crop, random
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict:
        places = (self.data.shape[-1] - self.crop) // self.unit + 1
        if self.random:
            view, top, left = (int(torch.randint(n, ())) for n in (self.data.shape[1], places, places))
        else:
            view, top, left = 0, (places - 1) // 2, (places - 1) // 2
        top, left = top * self.unit, left * self.unit
        x = self.data[i, view, :, top : top + self.crop, left : left + self.crop]
        return {"pixel_values": self.transform(x), "labels": self.labels[i]}


@functools.cache
def read_images(settings: Settings) -> tuple[list, list[int], list, list[int], list[str]]:
    """(training images, labels, test images, labels, names of classes); an image is a path or what `datasets` gives."""
    seed, limit = settings.split_seed, settings.max_per_class
    if not Path(settings.data).is_dir():
        return _read_repository(settings)
    names = sorted(p.name for p in Path(settings.data).iterdir() if p.is_dir())
    folders = [Path(settings.data, name) for name in names]
    groups = [sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) for folder in folders]
    names, groups = [n for n, g in zip(names, groups, strict=True) if g], [group for group in groups if group]
    if len(names) < 2:
        raise ValueError(
            f"{settings.data} has {len(names)} folders with images; valid: one for each class, at least two"
        )
    return (*_split(groups, settings.test_fraction, seed, limit), names)


def _read_repository(settings: Settings):
    from datasets import load_dataset

    seed, limit = settings.split_seed, settings.max_per_class
    train = load_dataset(settings.data, split=settings.train_split)
    feature = train.features[settings.label_column]
    names = list(getattr(feature, "names", None) or sorted(set(map(str, train[settings.label_column]))))

    def groups(rows):
        found: list[list] = [[] for _ in names]
        for i, label in enumerate(rows[settings.label_column]):
            found[label if hasattr(feature, "names") else names.index(str(label))].append((rows, i))
        return found

    if not settings.test_split:
        return (*_split(groups(train), settings.test_fraction, seed, limit), names)
    test = load_dataset(settings.data, split=settings.test_split)
    return (*_split(groups(train), 0.0, seed, limit)[:2], *_split(groups(test), 0.0, seed, 0)[:2], names)


def _split(groups: list[list], fraction: float, seed: int, limit: int) -> tuple[list, list[int], list, list[int]]:
    """Of each class the same share to each side, drawn by the seed and the class's place alone."""
    train, train_labels, test, test_labels = [], [], [], []
    for label, group in enumerate(groups):
        order = np.random.default_rng((seed, label)).permutation(len(group))[: limit or None]
        held_out = math.ceil(len(order) * fraction) if fraction else 0
        test += [group[i] for i in order[:held_out]]
        train += [group[i] for i in order[held_out:]]
        test_labels += [label] * held_out
        train_labels += [label] * (len(order) - held_out)
    return train, train_labels, test, test_labels


def open_image(item, column: str) -> Image.Image:
    if isinstance(item, tuple):
        rows, i = item
        return rows[i][column].convert("RGB")
    return Image.open(item).convert("RGB")


def view_of(image: Image.Image, generator: np.random.Generator | None, min_scale: float) -> np.ndarray:
    """(288, 288, 3) uint8: a random crop of `min_scale` of the area or more and a flip; no generator, no crop."""
    box, side = None, SIZE + SIZE // LATENT
    if generator is not None:
        scale, ratio = generator.uniform(min_scale, 1), np.exp(generator.uniform(-0.2, 0.2))
        share = np.minimum(np.sqrt([scale * ratio, scale / ratio]), 1)
        size = share * image.size
        start = generator.uniform(0, 1, 2) * (np.array(image.size) - size)
        box = (*start, *(start + size))
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    flip = generator is not None and generator.random() < 0.5
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


def prepare(
    prepared: Preparation, items: list, settings: Settings, random: bool, device: str = "cpu", margin: int = 0
) -> torch.Tensor:
    """(images, views, channels, n, n): uint8 pixels of the resized views, or int8 codes.

    Random views depend on `split_seed` and the place of an image alone, so they are the same for all conditions;
    otherwise there is one of the whole image. Around each are codes for `margin * LATENT` reflected pixels.
    """

    def views(i: int) -> torch.Tensor:
        image = open_image(items[i], settings.image_column)
        generators: list = [None]
        if random:
            generators = [np.random.default_rng((settings.split_seed, i, view)) for view in range(settings.views)]
        pixels = np.stack([view_of(image, generator, settings.min_scale) for generator in generators])
        x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
        x = extend(x, [(margin * LATENT, margin * LATENT)] * 2)
        if prepared.condition in CODED:
            coded = x.shape[-1] * CODED[prepared.condition] // SIZE
            x = F.interpolate(x, (coded, coded), mode="bicubic", antialias=True).clamp(0, 255)
        side = x.shape[-1] * PIXELS.get(prepared.condition, SIZE) // SIZE
        return prepared.encode(x, (side, side))

    s = settings
    split = (s.data, s.image_column, s.label_column, s.train_split, s.test_split)
    facts = (*split, s.test_fraction, s.split_seed, s.max_per_class, len(items))
    how = ((s.views, s.min_scale) if random else ()) + ((margin,) if margin else ())
    return prepared.keep(s.cache, (facts, "train" if random else "test", how), range(len(items)), views, "image")


@functools.cache  # for all seeds: up to a gigabyte a condition for a few thousand images
def inputs(condition: str, settings: Settings, device: str) -> dict:
    train, train_labels, test, test_labels, names = read_images(settings)
    prepared = Preparation(condition, device)
    data = {
        "train": prepare(prepared, train, settings, True, device),
        "test": prepare(prepared, test, settings, False, device),
    }
    transform = prepared.transform(data["train"][:: max(1, len(train) // 500), 0])
    crop = PIXELS.get(condition, CODED.get(condition, SIZE) // LATENT)
    unit = crop * (2 * LATENT if condition in SMALL else LATENT) // SIZE
    return {
        "train": Views(data["train"], train_labels, unit, crop, True, transform),
        "test": Views(data["test"], test_labels, unit, crop, False, transform),
        "channels": data["train"].shape[2],
        "crop": crop,
        "names": names,
    }


def make_model(settings: Settings, channels: int, size: int, names: list[str]) -> PreTrainedModel:
    """The model of a condition: patches of size / tokens a side (of a ResNet: its stem), the same behind them."""
    labels = dict(enumerate(names))
    side = size // settings.tokens
    shape: dict[str, Any] = {"num_channels": channels, "image_size": size, "patch_size": side, "id2label": labels}
    if settings.model == "vit":
        config = ViTConfig(
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=max(1, settings.width // 32),
            **shape,
        )
        return ViTForImageClassification(config)
    widths, depths = [settings.width * 2**i for i in range(3)], [settings.layers] * 3
    if settings.model == "resnet":  # whose stem of 7 x 7 overlaps, with a stride of 2
        resnet = ResNetConfig(
            num_channels=channels,
            embedding_size=settings.width,
            hidden_sizes=widths,
            depths=depths,
            layer_type="basic",
            id2label=labels,
        )
        return ResNetForImageClassification(resnet)
    return ConvNextForImageClassification(ConvNextConfig(num_stages=3, hidden_sizes=widths, depths=depths, **shape))


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    s = settings
    found = inputs(condition, s, arguments.device)
    torch.manual_seed(seed)  # after the preparation, which only the first seed does
    model = make_model(s, found["channels"], found["crop"], found["names"])
    args = training_arguments(
        seed,
        arguments,
        s.steps,
        s.batch_size,
        s.learning_rate,
        label_smoothing_factor=s.label_smoothing,
        bf16=s.bf16,
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=found["train"],
        eval_dataset=found["test"],
        compute_metrics=lambda p: {"accuracy": 100 * np.mean(np.argmax(p.predictions, -1) == p.label_ids)},
    )
    loss = trainer.train().training_loss
    return {
        "metrics": {"accuracy": trainer.evaluate()["eval_accuracy"], "train_loss": loss},
        "model_inputs": found["channels"] * found["crop"] ** 2,
        "tokens": s.tokens**2,
        "parameters": model.num_parameters(),
        "examples": {"training": len(found["train"]), "test": len(found["test"])},
    }


def main(argv=None) -> list[dict]:
    return run_task("classification", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
