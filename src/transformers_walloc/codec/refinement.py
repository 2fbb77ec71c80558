"""Better codes for the same decoder, found by descent: what a linear encoder cannot know, its trained decoder can tell.

The encoder projects; the codes that a nonlinear decoder turns into the nearest signal are others. As Campos et al.
("Content Adaptive Optimization for Neural Image Compression", CVPR workshops 2019), the latents of one signal are moved
down the gradient of its own error, through rounding as if it were the identity. The file is an ordinary one.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from .bottleneck import latent_limit
from .tiles import decoding_halo

TILE_SIZE = 64  # latents along each axis that are differentiated at a time: some 400 MB for a picture
# The first move, in latents (root mean square of a channel), where the quantiser's step is 1; moves fall linearly to
# zero. Coarser rounding gives coarser gradients and wants smaller moves: with 1 / step both held up from 1 to 6.
RATE, MOMENTUM = 0.5, 0.8


def refine_latents(
    model: Any, signal: torch.Tensor, latents: torch.Tensor, sizes: tuple[int, ...], step: float, num_steps: int
) -> torch.Tensor:
    """Latents whose codes decode to something nearer to the signal, at about as many bits.

    What is lowered is the squared error plus the bits of the codes, priced at what a finer step would pay for them, by
    Nesterov's momentum on gradients that have one size in all channels. Codes of the best step are returned, so the
    result is never worse than the start by that measure.

    Args:
        model: the codec with its decoder.
        signal: (num_channels, *sizes) float32 in [-0.5, 0.5], padded to whole patches.
        latents: (1, latent_channels, *grid), companded; channels that are zero throughout stay so.
        sizes: of the signal without its padding, which may decode to anything.
        step: of the quantiser.
        num_steps: gradients to follow; each costs about three decodings.

    Returns:
        Latents like those given.
    """
    with torch.inference_mode(False), _frozen(model):
        # Tensors that were made in inference mode take part in no gradient; their copies do.
        return _refine(model, signal[(slice(None), *map(slice, sizes))].clone(), latents.clone(), step, num_steps)


@contextlib.contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """No gradients of weights, which the compiled convolutions cannot know that nobody takes."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _refine(model: Any, target: torch.Tensor, latents: torch.Tensor, step: float, num_steps: int) -> torch.Tensor:
    limit = latent_limit(model.config.latent_bits)
    used = latents.abs().amax(dim=tuple(range(2, latents.ndim)), keepdim=True) > 0
    # Bits of codes are those of a Laplace distribution in each channel.
    spread = latents.abs().mean(dim=tuple(range(2, latents.ndim)), keepdim=True).clamp_min(0.1 * step)
    problem = _Problem(model, target, step)
    error, gradient = problem.evaluate(latents, gradient=True)
    noise = abs(error - problem.evaluate(latents, gradient=False, rounded=False)[0])
    # The distortion of rounding falls by 4 for each bit that every latent gets: its slope is what a bit is worth.
    price = 2 * math.log(2) * noise / max(int(used.sum()) * latents[0, 0].numel(), 1)
    best, least = latents, math.inf
    velocity = torch.zeros_like(latents)
    for index in range(num_steps + 1):
        if index:
            error, gradient = problem.evaluate(latents, gradient=index < num_steps)
        codes = (latents / step).round() * step
        bits = (codes.abs() / spread).sum().item() / math.log(2)
        if error + price * bits < least:
            best, least = codes, error + price * bits
        if index == num_steps:
            return best
        gradient += price / math.log(2) * latents.sign() / spread
        velocity = MOMENTUM * velocity + gradient
        move = gradient + MOMENTUM * velocity
        size = move.square().mean(dim=tuple(range(2, move.ndim)), keepdim=True).sqrt().clamp_min(1e-30)
        rate = RATE / step * (1 - index / num_steps)
        latents = torch.where(used, latents - rate * move / size, latents).clamp(-limit, limit)
    return best


class _Problem:
    """Squared error of what latents decode to, and its gradient, tile by tile: both are those of the whole."""

    def __init__(self, model: Any, target: torch.Tensor, step: float):
        self.model, self.target, self.step = model, target, step
        self.halo = decoding_halo(model)

    def evaluate(self, latents: torch.Tensor, gradient: bool, rounded: bool = True) -> tuple[float, torch.Tensor]:
        """Sum of squared errors, and its gradient (zeros where it is not asked for)."""
        grid, block = latents.shape[2:], self.model.config.patch_size
        total, slope = 0.0, torch.zeros_like(latents)
        halo, tile = (0, max(grid)) if self.halo is None else (self.halo, TILE_SIZE)
        for corner in itertools.product(*(range(0, size, tile) for size in grid)):
            around: list[Any] = [
                slice(max(a - halo, 0), min(a + tile + halo, n)) for a, n in zip(corner, grid, strict=True)
            ]
            own = [
                slice(block * a, min(block * (a + tile), n)) for a, n in zip(corner, self.target.shape[1:], strict=True)
            ]
            inner = [
                slice(s.start - block * w.start, s.stop - block * w.start) for s, w in zip(own, around, strict=True)
            ]
            part = latents[(..., *around)].detach().clone().requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                value = part
                if rounded:  # straight through: rounding counts as the identity
                    value = part + ((part / self.step).round() * self.step - part).detach()
                decoded = self.model.decode(value, tile_size=max(value.shape[2:]))[0][0]
                error = (decoded[(slice(None), *inner)].float() - self.target[(slice(None), *own)]).square().sum()
            total += error.item()
            if gradient:
                slope[(..., *around)] += torch.autograd.grad(error, part)[0]
        return total, slope
