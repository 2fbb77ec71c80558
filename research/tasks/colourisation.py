#!/usr/bin/env python
"""Colourisation on equally many numbers: a grey image resized by 4 or 2 against latents of the whole grey image.

    python -m research.tasks.colourisation --train DIR --test DIR --config CONFIG
    python -m research.tasks.colourisation --config research/tasks/configs/colourisation_paper.json  # GPU

The model sees the luma of a 256 x 256 crop and says what colour adds to it, in the form in which it saw it. That is
brought to full resolution, and its chroma laid under the true luma. All conditions have the same crops, the same model
on the same grid of 32 x 32 positions and the same steps:

    resize-64    64 x 64 x 3 pixels, 4 x 4 to a position   = 12,288 numbers, out as many; then bicubic to 256 x 256
    walloc-16x   32 x 32 x 12 latents                      = 12,288 numbers, out as many; then the codec's decoder
    resize-128   128 x 128 x 3 pixels, 8 x 8 to a position = 49,152 numbers       walloc-4x   32 x 32 x 48 latents

Reported are the PSNR of the chroma (Cb and Cr of JPEG), of all test crops together, beside that of no colour at all
and beside what the true colours keep on the same way (the bound); the colourfulness of Hasler and Suesstrunk (2003),
which a cautious model gets too low, and its error; the PSNR of the output itself, without the true luma, which is the
image of a model that knows nothing else; LPIPS of the coloured image where its weights are to be had.
"""

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Trainer, ViTConfig, ViTModel

from research.tasks.runs import RunArguments, kept_array, run_task, training_arguments
from transformers_walloc import WallocImageModel, latent_values
from transformers_walloc.codec.bottleneck import compand, companding_scale
from transformers_walloc.evaluation.metrics import MetricUnavailableError, decibels, to_images
from transformers_walloc.evaluation.perceptual import learned_metric
from transformers_walloc.media.paths import IMAGE_SUFFIXES, find_files

CONDITIONS = {
    "resize-64": "resized to 64 px",
    "walloc-16x": "latents of 256 px, rgb-16x",
    "resize-128": "resized to 128 px",
    "walloc-4x": "latents of 256 px, rgb-4x",
}
FACTORS = {"resize-64": 4, "resize-128": 2}
SIZE, GRID = 256, 32
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Settings:
    train: str = field(default="train", metadata={"help": "folder of photographs (with subfolders), or a repository"})
    test: str = field(default="test", metadata={"help": "folder of photographs, or a repository"})
    image_column: str = field(default="image", metadata={"help": "of a repository"})
    train_split: str = field(default="train", metadata={"help": "of a repository"})
    test_split: str = field(default="validation", metadata={"help": "of a repository"})
    codec_16x: str = field(default="walloc/rgb-16x", metadata={"help": "Hub id or folder"})
    codec_4x: str = field(default="walloc/rgb-4x", metadata={"help": "Hub id or folder"})
    crops: int = field(default=8, metadata={"help": "of each training photograph, at random places and scales"})
    min_scale: float = field(default=0.5, metadata={"help": "smallest side of a crop, relative to the short side"})
    max_images: int = field(default=0, metadata={"help": "training photographs; 0 for all"})
    max_test_images: int = field(default=0, metadata={"help": "test photographs; 0 for all"})
    crop_seed: int = field(default=0, metadata={"help": "the crops are the same for all runs"})
    width: int = field(default=192, metadata={"help": "of the transformer"})
    layers: int = field(default=6, metadata={"help": "of the transformer"})
    local_width: int = field(default=48, metadata={"help": "of the convolutions around it"})
    steps: int = field(default=4000, metadata={"help": "of the optimiser"})
    batch_size: int = field(default=32, metadata={"help": "crops a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "the largest, of AdamW"})
    bf16: bool = field(default=False, metadata={"help": "autocast, for a GPU"})
    cache: str = field(default="", metadata={"help": "folder that keeps the crops for the next command"})


class PixelView:
    """Crops as pixels resized by a factor, laid out on the grid: (B, 3, 256, 256) <-> (B, 3 n^2, 32, 32)."""

    def __init__(self, factor: int):
        self.factor, self.cell = factor, SIZE // GRID // factor

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        side = SIZE // self.factor
        return F.pixel_unshuffle(F.interpolate(x, (side, side), mode="bicubic", antialias=True), self.cell)

    def decode(self, view: torch.Tensor) -> torch.Tensor:
        small = F.pixel_shuffle(view, self.cell)
        return F.interpolate(small, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-0.5, 0.5)


class LatentView:
    """Crops as what models see of latents: (B, 3, 256, 256) <-> (B, 12 or 48, 32, 32)."""

    def __init__(self, codec: str, device: str):
        self.codec = WallocImageModel.from_pretrained(codec, dtype=torch.float32).to(device).eval()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return latent_values(self.codec.encode(x).latents, self.codec.config)

    def decode(self, view: torch.Tensor) -> torch.Tensor:
        bits = self.codec.config.latent_bits
        return self.codec.decode(compand(view * companding_scale(bits), bits)).pixel_values


class Colouriser(nn.Module):
    """A vision transformer on patches of 4 x 4 positions for what is in the image, convolutions for where it ends.

    Args:
        channels: of the view, in and out.
        scale: of the view and of what colour adds to it, each (channels,); the model works on numbers of about 1.
    """

    in_scale: torch.Tensor
    out_scale: torch.Tensor

    def __init__(self, channels: int, settings: Settings, scale: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        patch, local = 4, settings.local_width
        config = ViTConfig(
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=max(1, settings.width // 32),
            image_size=GRID,
            patch_size=patch,
            num_channels=channels,
        )
        self.context = ViTModel(config, add_pooling_layer=False)
        self.spread = nn.Linear(settings.width, local * patch**2)
        self.local = nn.Sequential(nn.Conv2d(channels, local, 3, padding=1), nn.GELU())
        last = nn.Conv2d(local, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # so that training starts at grey
        self.head = nn.Sequential(nn.Conv2d(2 * local, local, 3, padding=1), nn.GELU(), last)
        for name, value in zip(("in_scale", "out_scale"), scale, strict=True):
            self.register_buffer(name, value[:, None, None])

    def forward(self, grey: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """`grey` (B, channels, 32, 32) -> "colour", the view of the coloured image; with it as `labels`, "loss"."""
        x = grey / self.in_scale
        tokens = self.spread(self.context(x).last_hidden_state[:, 1:])  # without the class token
        side = math.isqrt(tokens.shape[1])
        context = F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), GRID // side)
        added = self.head(torch.cat([self.local(x), context], dim=1)) * self.out_scale.square().mean().sqrt()
        outputs = {"colour": grey + added}
        if labels is not None:
            # Mean squares of the image over what no colour at all leaves; the subbands are near to orthonormal.
            outputs["loss"] = F.mse_loss(outputs["colour"], labels) / self.out_scale.square().mean()
        return outputs


def grey_of(x: torch.Tensor) -> torch.Tensor:
    """Luma in all three channels of (B, 3, h, w) in [-0.5, 0.5]."""
    luma = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    return luma.expand(-1, 3, -1, -1)


def chroma(x: torch.Tensor) -> torch.Tensor:
    """Cb and Cr (ITU-T T.871, as in JPEG) of (B, 3, h, w), in 0..255 units around 0."""
    luma = grey_of(x)[:, 0]
    return 255 * torch.stack([(x[:, 2] - luma) / 1.772, (x[:, 0] - luma) / 1.402], dim=1)


def with_luma(cb_cr: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The image of these chroma and the luma of `x`, clamped."""
    luma, (cb, cr) = grey_of(x)[:, 0], cb_cr.unbind(1)
    red, blue = luma + 1.402 * cr / 255, luma + 1.772 * cb / 255
    green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.stack([red, green, blue], dim=1).clamp(-0.5, 0.5)


def colourfulness(image: np.ndarray) -> float:
    """Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), of (h, w, 3) in 0..255."""
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


@functools.cache
def read_crops(settings: Settings, test: bool) -> torch.Tensor:
    """(crops, 3, 256, 256) uint8; of test photographs two squares of the short side, resized, that cover its ends."""
    s = settings
    key = (s.train, s.image_column, s.train_split, s.crops, s.min_scale, s.max_images, s.crop_seed)
    if test:
        key = (s.test, s.image_column, s.test_split, 0, 1.0, s.max_test_images, 0)
    return torch.from_numpy(kept_array(s.cache, (key, test), lambda: _cut(*key, test)))


def _cut(source, column, split, count, min_scale, limit, seed, test: bool) -> np.ndarray:
    photographs = _photographs(source, column, split, limit)
    crops = []
    for i, image in enumerate(tqdm(photographs, desc="test crops" if test else "crops", unit="photo", mininterval=5)):
        short = min(image.size)
        room = np.array(image.size) - short
        if test:
            boxes = [(0, 0, short, short), (*room, *(room + short))]
        else:
            boxes = []
            for crop in range(count):
                generator = np.random.default_rng((seed, i, crop))
                side = max(min(SIZE, short), short * generator.uniform(min_scale, 1))
                start = generator.uniform(0, 1, 2) * (np.array(image.size) - side)
                boxes.append((*start, *(start + side)))
        for k, box in enumerate(boxes):
            crop = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if k % 2 and not test else crop
            crops.append(np.moveaxis(np.asarray(crop), -1, 0))
    return np.stack(crops)


def _photographs(source: str, column: str, split: str, limit: int) -> "_Opened":
    """Something with a length that opens one photograph after the other."""
    if Path(source).exists():
        files = [path for path, _ in find_files([source], IMAGE_SUFFIXES)]
        # Every n-th, so that a part of them is as mixed as all.
        files = files[:: max(1, len(files) // limit)][:limit] if limit else files
        return _Opened(files, _open)
    from datasets import load_dataset

    rows = load_dataset(source, split=split)
    return _Opened(range(min(limit or len(rows), len(rows))), lambda i: rows[i][column].convert("RGB"))


def _open(path: str) -> Image.Image:
    image = Image.open(path)
    image.draft("RGB", (4 * SIZE, 4 * SIZE))  # large JPEGs are decoded at a half or a quarter
    return image.convert("RGB")


class _Opened:
    def __init__(self, items, open_one):
        self.items, self.open_one = items, open_one

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return map(self.open_one, self.items)


def view_of(condition: str, settings: Settings, device: str) -> PixelView | LatentView:
    if condition in FACTORS:
        return PixelView(FACTORS[condition])
    return LatentView(settings.codec_16x if condition == "walloc-16x" else settings.codec_4x, device)


class Pairs(torch.utils.data.Dataset):
    """Views of grey and coloured crops, in half precision."""

    def __init__(self, view: PixelView | LatentView, crops: torch.Tensor, device: str):
        grey, colour = [], []
        with torch.no_grad():
            for batch in tqdm(crops.split(16), desc="views", unit="batch", mininterval=5):
                x = batch.to(device).float() / 255 - 0.5
                grey.append(view.encode(grey_of(x)).half().cpu())
                colour.append(view.encode(x).half().cpu())
        self.grey, self.colour = torch.cat(grey), torch.cat(colour)

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"grey": self.grey[i].float(), "labels": self.colour[i].float()}

    def scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Root mean squares of the channels: of the grey views, and of what colour adds to them."""
        part = slice(None, None, max(1, len(self) // 500))
        grey, colour = self.grey[part].float(), self.colour[part].float()
        squares = (x.square().mean((0, 2, 3)) for x in (grey, colour - grey))
        # A floor: luma leaves nothing in latents that hold colour, and what is nothing must not be blown up.
        of_grey, of_colour = ((s + 0.01 * s.mean()).sqrt() for s in squares)
        return of_grey, of_colour


@functools.cache
def _training_pairs(condition: str, settings: Settings, device: str) -> tuple[PixelView | LatentView, Pairs]:
    view = view_of(condition, settings, device)
    return view, Pairs(view, read_crops(settings, False), device)


@torch.no_grad()
def evaluate(model: Colouriser, view: PixelView | LatentView, crops: torch.Tensor, device: str) -> dict[str, float]:
    """Metrics over test crops; see the head of this file."""
    model.eval()
    squares = dict.fromkeys(("model", "grey", "bound", "output"), 0.0)
    colours, errors, distances = [], [], []
    try:
        lpips = learned_metric("lpips")
    except MetricUnavailableError:
        lpips = None
    for batch in crops.split(8):
        x = batch.to(device).float() / 255 - 0.5
        truth = chroma(x)
        output = view.decode(model(view.encode(grey_of(x)))["colour"])
        estimate, bound = chroma(output), chroma(view.decode(view.encode(x)))
        for name, value in (("model", estimate), ("grey", torch.zeros_like(truth)), ("bound", bound)):
            squares[name] += float((value - truth).double().square().mean((1, 2, 3)).sum())
        squares["output"] += float((255 * (output - x)).double().square().mean((1, 2, 3)).sum())
        for reference, coloured in zip(batch, to_images(with_luma(estimate, x)), strict=True):
            reference = reference.permute(1, 2, 0).numpy()
            colours.append(colourfulness(coloured))
            errors.append(abs(colours[-1] - colourfulness(reference)))
            if lpips is not None:
                distances.append(lpips(reference, coloured))
    psnr = {name: decibels(value / len(crops) / 255**2) for name, value in squares.items()}
    metrics = {
        "chroma_psnr": psnr["model"],
        "grey_chroma_psnr": psnr["grey"],
        "oracle_chroma_psnr": psnr["bound"],
        "output_psnr": psnr["output"],
        "colourfulness": float(np.mean(colours)),
        "colourfulness_error": float(np.mean(errors)),
    }
    return metrics | ({"lpips_db": float(np.mean(distances))} if distances else {})


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    s, device = settings, arguments.device
    test = read_crops(s, True)
    view, pairs = _training_pairs(condition, s, device)
    torch.manual_seed(seed)  # after the preparation, which only the first seed does
    model = Colouriser(pairs.grey.shape[1], s, pairs.scale())
    args = training_arguments(
        seed, arguments, s.steps, s.batch_size, s.learning_rate, bf16=s.bf16, prediction_loss_only=True
    )
    loss = Trainer(model, args, train_dataset=pairs).train().training_loss
    return {
        "metrics": {**evaluate(model.to(device), view, test, device), "train_loss": loss},
        "model_inputs": math.prod(pairs.grey.shape[1:]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": {"training": len(pairs), "test": len(test)},
        **({} if isinstance(view, PixelView) else {"decoder": view.codec.config.decoder_type}),
    }


def main(argv=None) -> list[Path]:
    return run_task("colourisation", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
