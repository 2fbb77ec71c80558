"""What the numbers of a signal stand for outside of a codec: 8-bit levels of pixels, clips of full scale."""

import torch


def to_8bit(pixel_values: torch.Tensor) -> torch.Tensor:
    """Floats in [-0.5, 0.5] of any shape as 8-bit levels, `round(255 * clip(x + 0.5, 0, 1))`, in uint8."""
    return pixel_values.detach().float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def normalise_clip(samples: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """A clip with mean 0 and peak 0.5, over all channels and samples together, and the way back.

    Args:
        samples: floats (C, T).

    Returns:
        (normalised, gain, offset), so that `samples = normalised * gain + offset`. Silence keeps gain 1.
    """
    offset = samples.mean().item()
    centred = samples - offset
    peak = centred.abs().max().item()
    # What the rounding of the mean leaves of a constant clip is silence, too, and must not be amplified.
    if peak <= max(1e-6 * abs(offset), torch.finfo(torch.float32).tiny):
        return centred, 1.0, offset
    gain = 2 * peak
    return centred / gain, gain, offset
