"""Rate control: the quantisation step that meets a target of size or quality."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Trial = TypeVar("Trial")

# Steps between the two ends: four are usual, twice as many where a file is little more than its header.
_MAX_TRIALS = 10
# Refining takes long, and the second often comes close.
_MAX_REFINED = 6
# How close is close enough: of a rate, a share of it; of a PSNR, decibels.
_CLOSE, _CLOSE_REFINED = (0.005, 0.01), (0.01, 0.05)


@dataclass(frozen=True)
class _Attempt(Generic[Trial]):
    result: Trial
    step: float
    value: float  # of what is measured


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

    def search(
        self,
        trial: Callable[[float], Trial],
        measure: Callable[[Trial], float],
        last: float,
        refine: Callable[[Trial], Trial] | None = None,
    ) -> Trial:
        """The trial that meets the target with the best step from 1 to `last`: the finest for a rate, the coarsest for
        a PSNR; within 0.5% of a rate and 0.01 dB of a PSNR if at most 12 trials come that close.

        Args:
            trial: what comes of a step.
            measure: its rate or PSNR.
            last: the largest step.
            refine: makes a trial better, and larger or smaller, in a long time. What it does to the measure at one step
                tells where to look next, until the target lies between two steps; then within 1% or 0.05 dB if at most
                6 refined trials come that close.

        Raises:
            ValueError: the target is out of reach; names the range that is not.
        """

        def attempt(step: float, better: Callable[[Trial], Trial] = lambda result: result) -> _Attempt[Trial]:
            result = better(trial(step))
            return _Attempt(result, step, measure(result))

        ends = fine, coarse = attempt(1.0), attempt(last)
        if not self._meets(coarse if self.name != "psnr" else fine) and (refine is None or self.name != "psnr"):
            raise self._out_of_reach(fine, coarse)
        plain = found = self._search(attempt, *ends, self.target)
        if refine is None:
            return found.result
        good: _Attempt[Trial] | None = None
        bad: _Attempt[Trial] | None = None
        for _ in range(_MAX_REFINED):
            tried = attempt(plain.step, refine)
            good, bad = (tried, bad) if self._meets(tried) else (good, tried)
            if tried is good and self._is_close(tried, self.target, _CLOSE_REFINED):
                break
            if good and bad:
                plain = attempt(self._between(good, bad, self.target))
                continue
            moved = self.target - tried.value if self.name == "psnr" else plain.value * (self.target / tried.value - 1)
            before, plain = plain, self._search(attempt, *ends, plain.value + moved)
            if plain.step == before.step:  # an end of the range
                break
        if good is None and not self._meets(found):
            raise self._out_of_reach(bad or fine, coarse)
        return (good or found).result

    def _meets(self, tried: _Attempt[Any], target: float | None = None) -> bool:
        target = self.target if target is None else target
        return tried.value >= target if self.name == "psnr" else tried.value <= target

    def _is_close(self, tried: _Attempt[Any], target: float, close: tuple[float, float]) -> bool:
        return abs(tried.value - target) <= (close[1] if self.name == "psnr" else close[0] * target)

    def _between(
        self, good: _Attempt[Any], bad: _Attempt[Any], target: float, weights: tuple[float, float] = (1.0, 1.0)
    ) -> float:
        """A step where a line in its logarithm through two attempts crosses the target, and not quite at one of them.

        Weights below 1 move it away from an attempt.
        """
        near, far = (w * abs(tried.value - target) for w, tried in zip(weights, (good, bad), strict=True))
        share = near / (near + far) if 0 < near + far < math.inf else 0.5
        step: float = good.step * (bad.step / good.step) ** min(max(share, 0.02), 0.98)
        return step

    def _search(
        self, attempt: Callable[[float], _Attempt[Trial]], fine: _Attempt[Trial], coarse: _Attempt[Trial], target: float
    ) -> _Attempt[Trial]:
        """The attempt that meets the target, or the end of the range that comes nearest to it.

        By the Illinois method: an end that stays where it is twice counts half, or one end would never move where the
        rate is far from linear in the logarithm of the step, as it is near zero.
        """
        bad, good = (coarse, fine) if self.name == "psnr" else (fine, coarse)
        if self._meets(bad, target):  # the best end already does
            return bad
        weights = (1.0, 1.0)
        moved: bool | None = None  # whether the good end did
        for _ in range(_MAX_TRIALS):
            if self._is_close(good, target, _CLOSE) or not self._meets(good, target):
                break
            middle = attempt(self._between(good, bad, target, weights))
            meets = self._meets(middle, target)
            again = 0.5 if moved == meets else 1.0
            weights = (1.0, again * weights[1]) if meets else (again * weights[0], 1.0)
            good, bad, moved = (middle, bad, meets) if meets else (good, middle, meets)
        return good

    def _out_of_reach(self, fine: _Attempt[Any], coarse: _Attempt[Any]) -> ValueError:
        low, high = sorted((fine.value, coarse.value))
        return ValueError(
            f"{self.name} {self.target:g} is out of reach: this signal and codec give {low:.4g} to {high:.4g}"
        )
