"""Companding and quantisation of latents (the entropy bottleneck of arXiv 2412.09405, section 3).

    z --compand--> u in (-2**(b-1), 2**(b-1)) --quantise--> codes --decompand--> z_hat

The cumulative distribution of a Gaussian turns the projection's output z into latents u of a bounded, roughly uniform
range, so that rounding to integers of b bits costs little and never overflows.
"""

import math
from typing import Literal, get_args

import torch

from .runtime import is_traced

QuantizationMode = Literal["noise", "round", "none"]
QUANTIZATION_MODES: tuple[str, ...] = get_args(QuantizationMode)

# The inverse keeps probabilities this far from 0 and 1, which bounds |z_hat| at 3.72 scales.
MIN_PROBABILITY = 1e-4


def companding_scale(latent_bits: int) -> float:
    """Standard deviation s of the Gaussian, in units of z."""
    return ((1 << latent_bits - 1) - 1) / 1.85


def latent_limit(latent_bits: int) -> float:
    """Bound m of the latents: they lie in (-m, m) and round to at most 2**(latent_bits - 1) - 1."""
    return (1 << latent_bits - 1) - 0.5 - 1e-3


def code_dtype(latent_bits: int) -> torch.dtype:
    """Smallest signed integer type that holds the codes."""
    return torch.int8 if latent_bits <= 8 else torch.int16


def compand(z: torch.Tensor, latent_bits: int) -> torch.Tensor:
    """`u = 2 m (Phi(z / s) - 1/2)`, any shape; computed in at least float32, returned in the dtype of `z`."""
    wide = z if z.dtype == torch.float64 else z.float()
    # 2 (Phi(x) - 1/2) = erf(x / sqrt 2)
    return (torch.erf(wide * (math.sqrt(0.5) / companding_scale(latent_bits))) * latent_limit(latent_bits)).to(z.dtype)


def decompand(u: torch.Tensor, latent_bits: int) -> torch.Tensor:
    """Inverse of `compand` with the probability clamped to [1e-4, 1 - 1e-4]; integer codes give float32."""
    wide = u if u.dtype == torch.float64 else u.float()
    limit = 1.0 - 2.0 * MIN_PROBABILITY
    z = torch.erfinv((wide / latent_limit(latent_bits)).clamp(-limit, limit)) * (
        math.sqrt(2.0) * companding_scale(latent_bits)
    )
    return z.to(u.dtype) if u.is_floating_point() else z


def quantize(u: torch.Tensor, mode: QuantizationMode, step: float = 1.0) -> torch.Tensor:
    """Quantise latents to multiples of `step` and return them as floats.

    Args:
        u: latents of any shape.
        mode: `round` to the nearest multiple, `noise` adds uniform noise of the same width (a differentiable stand-in
            for training, Balle et al. 2017), `none` returns the latents.
        step: width of a quantisation cell in code units; 1 is what `latent_bits` promises, larger is coarser.
    """
    if mode == "noise":
        return u + (torch.rand_like(u) - 0.5) * step
    if mode == "round":
        return torch.round(u / step) * step
    if mode == "none":
        return u
    raise ValueError(f"unknown quantisation mode {mode!r}; valid: {', '.join(QUANTIZATION_MODES)}")


def check_finite(x: torch.Tensor, name: str) -> None:
    """Only on the CPU: elsewhere the answer would have to wait for the device."""
    if x.device.type == "cpu" and not is_traced(x) and not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values")


def check_step(step: float) -> None:
    """Raises ValueError unless a quantisation step is finite and at least 1, in units of codes."""
    if not (math.isfinite(step) and step >= 1):
        raise ValueError(f"step is {step}; it must be finite and at least 1")
