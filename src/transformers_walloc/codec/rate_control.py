"""Rate control: the quantisation step that meets a target of size or quality."""

import math
from collections.abc import Callable
from typing import TypeVar

Trial = TypeVar("Trial")

# Two ends and six interpolated steps come within about 1% of a target.
_MAX_TRIALS = 8
# Refining takes long, and the second comes close.
_MAX_REFINED = 3


def decibels(distance: float) -> float:
    """A distance in which 0 is perfect as `-10 log10(d)`, so that higher is better; infinite for 0."""
    if distance < 0 or math.isnan(distance):
        raise ValueError(f"a distance must not be negative, got {distance}")
    return math.inf if distance == 0 else -10.0 * math.log10(distance)


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

    def meets(self, value: float, target: float) -> bool:
        return value >= target if self.name == "psnr" else value <= target

    def tolerance(self, target: float) -> float:
        return 0.01 if self.name == "psnr" else 0.005 * target

    def search_refined(
        self,
        trial: Callable[[float], Trial],
        refine: Callable[[Trial], Trial],
        measure: Callable[[Trial], float],
        last: float,
    ) -> Trial:
        """As `search` for trials that get better and larger, by about as much at all steps, when they are refined.

        What refining does to the measure at one step tells where to search the next.
        """
        best, aim = None, self.target
        for _ in range(_MAX_REFINED):
            refined = refine(self.search(trial, measure, last, aim))
            value = measure(refined)
            if self.meets(value, self.target):
                best = refined
                if abs(value - self.target) <= self.tolerance(self.target):
                    break
            elif best is not None:
                break
            aim = aim + self.target - value if self.name == "psnr" else aim * self.target / value
        return self.search(trial, measure, last) if best is None else best

    def search(
        self,
        trial: Callable[[float], Trial],
        measure: Callable[[Trial], float],
        last: float,
        target: float | None = None,
    ) -> Trial:
        """The trial that meets the target with the best step from 1 to `last`: the finest for a rate, the coarsest for
        a PSNR; within 0.5% of a rate and 0.01 dB of a PSNR if at most 8 trials come that close.

        Rate and PSNR are nearly linear in the logarithm of the step, so the next trial is where the line through the
        two ends crosses the target, but not so near to an end that the interval would shrink on one side only.

        Raises:
            ValueError: the target is out of reach; names the range that is not.
        """
        is_rate, target = self.name != "psnr", self.target if target is None else target

        def attempt(step: float) -> tuple[Trial, float, float]:
            result = trial(step)
            return result, step, measure(result)

        fine, coarse = attempt(1.0), attempt(last)
        bad, good = (fine, coarse) if is_rate else (coarse, fine)
        if self.meets(bad[2], target):  # the best end already does
            return bad[0]
        if not self.meets(good[2], target):
            low, high = sorted((fine[2], coarse[2]))
            raise ValueError(
                f"{self.name} {target:g} is out of reach: this signal and codec give {low:.4g} to {high:.4g}"
            )
        tolerance = self.tolerance(target)
        for _ in range(_MAX_TRIALS - 2):
            if abs(good[2] - target) <= tolerance:
                break
            span = bad[2] - good[2]
            share = (target - good[2]) / span if math.isfinite(span) and span else 0.5
            middle = attempt(good[1] * (bad[1] / good[1]) ** min(max(share, 0.1), 0.9))
            good, bad = (middle, bad) if self.meets(middle[2], target) else (good, middle)
        return good[0]
