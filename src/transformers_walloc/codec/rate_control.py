"""Rate control: the quantisation step that meets a target of size or quality."""

import math
from collections.abc import Callable
from typing import TypeVar

Trial = TypeVar("Trial")

# Two ends and six interpolated steps come within about 1% of a target.
_MAX_TRIALS = 8


class RateControl:
    """Either a step, or a target and the search for the step that meets it.

    Args:
        step: width of a quantisation cell, at least 1; the choice where there is no target.
        rate: (name, value) of a rate that must not be exceeded; None for no such target.
        psnr: PSNR in dB that must be reached; None for no such target.

    Raises:
        ValueError: more than one of them, or a target that is not positive.
    """

    def __init__(self, step: float, rate: tuple[str, float | None], psnr: float | None):
        targets = {name: value for name, value in (rate, ("psnr", psnr)) if value is not None}
        if len(targets) + (step != 1) > 1:
            raise ValueError(f"choose one of step, {rate[0]} and psnr; they contradict each other")
        for name, value in targets.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be positive and finite")
        self.step = step
        self.name: str | None
        self.name, self.target = next(iter(targets.items()), (None, 0.0))

    def search(self, trial: Callable[[float], Trial], measure: Callable[[Trial], float], last: float) -> Trial:
        """The trial that meets the target with the best step from 1 to `last`: the finest for a rate, the coarsest for
        a PSNR; within 0.5% of a rate and 0.01 dB of a PSNR if at most 8 trials come that close.

        Rate and PSNR are nearly linear in the logarithm of the step, so the next trial is where the line through the
        two ends crosses the target, but not so near to an end that the interval would shrink on one side only.

        Raises:
            ValueError: the target is out of reach; names the range that is not.
        """
        is_rate = self.name != "psnr"

        def attempt(step: float) -> tuple[Trial, float, float]:
            result = trial(step)
            return result, step, measure(result)

        def meets(value: float) -> bool:
            return value <= self.target if is_rate else value >= self.target

        fine, coarse = attempt(1.0), attempt(last)
        bad, good = (fine, coarse) if is_rate else (coarse, fine)
        if meets(bad[2]):  # the best end already does
            return bad[0]
        if not meets(good[2]):
            low, high = sorted((fine[2], coarse[2]))
            raise ValueError(
                f"{self.name} {self.target:g} is out of reach: this signal and codec give {low:.4g} to {high:.4g}"
            )
        tolerance = 0.005 * self.target if is_rate else 0.01
        for _ in range(_MAX_TRIALS - 2):
            if abs(good[2] - self.target) <= tolerance:
                break
            span = bad[2] - good[2]
            share = (self.target - good[2]) / span if math.isfinite(span) and span else 0.5
            middle = attempt(good[1] * (bad[1] / good[1]) ** min(max(share, 0.1), 0.9))
            good, bad = (middle, bad) if meets(middle[2]) else (good, middle)
        return good[0]
