"""What the tasks on images share: what each condition gives a model to read, prepared once and kept in 8 bits."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from research.tasks.runs import kept_array
from transformers_walloc import LatentView, WallocImageEncoder, latent_values
from transformers_walloc.latents.values import Scale

CODECS = {f"walloc-{name}": f"walloc/rgb-{name}" for name in ("16x", "16x-klt", "4x", "4x-klt")}
CODECS["walloc-16x-klt-128"] = CODECS["walloc-16x-klt"]  # of smaller images, see classification.py
SCALES = {
    "none": "on one scale",
    "partial": "partly whitened",
    "task": "scaled by the task's own sample",
}


def scales(condition: str, title: str) -> dict[str, str]:
    """Conditions, and their titles, that differ from one of `CODECS` in the scale of the latents alone."""
    return {f"{condition}@{scale}": f"{title}, {how}" for scale, how in SCALES.items()}


class Preparation:
    """Images to the 8-bit numbers of a condition, and these to what a model sees.

    Args:
        condition: of `CODECS` for int8 codes of the image at its full size, any other for uint8 pixels of the resized
            one. Behind an @ may stand one of `SCALES`; otherwise latents are on that of the codec's corpus.
    """

    def __init__(self, condition: str, device: str = "cpu"):
        condition, _, self.scale = condition.partition("@")
        self.condition, self.encoder = condition, None
        if condition in CODECS:
            self.encoder = WallocImageEncoder.from_pretrained(CODECS[condition], dtype=torch.float32).to(device).eval()
        self.identity = (condition, self.encoder and self.encoder.config.latent_fingerprint)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 3, h, w) floats in 0..255 -> (B, channels, rows, columns); `size` is that of resized pixels."""
        if self.encoder is not None:
            return self.encoder(x / 255 - 0.5).latents.round().to(torch.int8).cpu()
        return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255).round().byte().cpu()

    def keep(self, folder: str, part: Any, items, make: Callable[[Any], torch.Tensor], unit: str) -> torch.Tensor:
        """What `make` gives for each item, stacked; from `folder` where an earlier command left it.

        Args:
            part: all that the numbers depend on beside the condition and its codec.
        """

        def made() -> np.ndarray:
            numbers = np.empty(0)
            for i, item in enumerate(tqdm(items, desc=self.condition, unit=unit, mininterval=5)):
                one = make(item).numpy()
                if i == 0:  # and not a list to stack: small arrays between large ones fragment the heap, by gigabytes
                    numbers = np.empty((len(items), *one.shape), one.dtype)
                numbers[i] = one
            return numbers

        return torch.from_numpy(kept_array(folder, (*self.identity, part), made))

    def transform(self, sample: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function from 8-bit numbers to what a model sees.

        Args:
            sample: of the task, 8-bit numbers. Channels of pixels, and of latents where the condition asks for it, get
                mean 0 and deviation 1 over it.
        """
        if self.encoder is not None and self.scale != "task":
            return LatentView.scaled(self.encoder.config, cast(Scale, self.scale or None)).values
        values = self.numbers(sample)
        mean, std = values.mean((0, 2, 3))[:, None, None], values.std((0, 2, 3))[:, None, None].clamp_min(1e-6)
        return lambda x: (self.numbers(x) - mean) / std

    def numbers(self, x: torch.Tensor) -> torch.Tensor:
        """8-bit numbers as floats: pixels as they are, codes on the linear scale of `latent_values`."""
        return x.float() if self.encoder is None else latent_values(x, self.encoder.config)
