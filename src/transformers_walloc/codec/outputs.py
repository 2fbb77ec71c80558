"""What the models return, one small `ModelOutput` for each stage."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from transformers.utils import generic
from transformers.utils.generic import ModelOutput

from .sheets import png_of, png_of_pixels

Function = TypeVar("Function", bound=Callable[..., Any])


def can_return_tuple(function: Function) -> Function:
    """transformers' decorator, which says nothing of types: `return_dict=False` gives a tuple of a method's output."""
    decorated: Function = generic.can_return_tuple(function)
    return decorated


@dataclass
class WallocEncoderOutput(ModelOutput):
    """
    Args:
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`):
            Companded, not rounded; within `+-(2**(latent_bits - 1) - 0.5)`. Of a list of signals of several sizes, a
            list of the latents of each.
    """

    latents: torch.Tensor = None  # type: ignore[assignment]

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the channels of the first signal as gray tiles."""
        return png_of(self.latents)


@dataclass
class WallocImageDecoderOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): in [-0.5, 0.5]; of volumes
            with a depth in front of the height.
    """

    pixel_values: torch.Tensor = None  # type: ignore[assignment]

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first picture; None of volumes and other numbers of bands."""
        return png_of_pixels(self.pixel_values)


@dataclass
class WallocAudioDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, num_channels, length)`): in [-0.5, 0.5].
    """

    audio_values: torch.Tensor = None  # type: ignore[assignment]


@dataclass
class WallocModelOutput(ModelOutput):
    """
    What the models of all signals return. The loss is the first value, `output[0]`.

    Its place in the dictionary is the last, and `items`, which pipelines and accelerate take apart by rows, gives the
    loss to every row where it is not being learned from: so the features that a pipeline finds are the latents, and
    batches can be split.

    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error, before clamping.
        latents (`torch.FloatTensor` of shape `(batch, latent_channels, *grid)`): companded, not rounded.
    """

    loss: torch.Tensor | None = None
    latents: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if isinstance(self.loss, torch.Tensor) and self.loss.ndim:
            self.loss = self.loss.mean()  # rows that were taken apart are being put together again
        if "loss" in self:
            self.move_to_end("loss")

    @property
    def reconstruction(self) -> torch.Tensor | None:
        """The former name of `pixel_values` and `audio_values`."""
        return getattr(self, "pixel_values", getattr(self, "audio_values", None))

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if not isinstance(key, str) else dict(super().items())[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None in the order of the fields, the loss first."""
        return tuple(self[field.name] for field in fields(self) if field.name in self)

    def items(self) -> Any:
        """Names and values; the loss once for each row where it is not being learned from."""
        loss, latents = self.loss, self.latents
        if latents is None or not isinstance(loss, torch.Tensor) or loss.ndim or loss.requires_grad:
            return super().items()
        return {**dict(super().items()), "loss": loss.expand(len(latents))}.items()


@dataclass
class WallocImageModelOutput(WallocModelOutput):
    """
    `loss`, `latents`, and what is decoded of them.

    Args:
        pixel_values (`torch.FloatTensor`, shaped as the input): images or volumes, in [-0.5, 0.5].
    """

    pixel_values: torch.Tensor = None  # type: ignore[assignment]


@dataclass
class WallocAudioModelOutput(WallocModelOutput):
    """
    `loss`, `latents`, and what is decoded of them.

    Args:
        audio_values (`torch.FloatTensor`, shaped as the input): in [-0.5, 0.5].
    """

    audio_values: torch.Tensor = None  # type: ignore[assignment]
