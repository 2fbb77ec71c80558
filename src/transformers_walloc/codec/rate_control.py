"""Rate control: the quantisation step that meets a target of size or quality."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Trial = TypeVar("Trial")

# Two ends and six interpolated steps come within about 1% of a target.
_MAX_TRIALS = 8
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
        a PSNR; within 0.5% of a rate and 0.01 dB of a PSNR if at most 8 trials come that close.

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

    def _meets(self, tried: _Attempt, target: float | None = None) -> bool:
        target = self.target if target is None else target
        return tried.value >= target if self.name == "psnr" else tried.value <= target

    def _is_close(self, tried: _Attempt, target: float, close: tuple[float, float]) -> bool:
        return abs(tried.value - target) <= (close[1] if self.name == "psnr" else close[0] * target)

    def _between(self, good: _Attempt, bad: _Attempt, target: float) -> float:
        """A step. Rate and PSNR are nearly linear in its logarithm: where the line through two attempts crosses the
        target, but not so near to one of them that the interval would shrink on one side only."""
        span = bad.value - good.value
        share = (target - good.value) / span if math.isfinite(span) and span else 0.5
        return good.step * (bad.step / good.step) ** min(max(share, 0.1), 0.9)

    def _search(
        self, attempt: Callable[[float], _Attempt[Trial]], fine: _Attempt[Trial], coarse: _Attempt[Trial], target: float
    ) -> _Attempt[Trial]:
        """The attempt that meets the target, or the end of the range that comes nearest to it."""
        bad, good = (coarse, fine) if self.name == "psnr" else (fine, coarse)
        if self._meets(bad, target):  # the best end already does
            return bad
        for _ in range(_MAX_TRIALS - 2):
            if self._is_close(good, target, _CLOSE) or not self._meets(good, target):
                break
            middle = attempt(self._between(good, bad, target))
            good, bad = (middle, bad) if self._meets(middle, target) else (good, middle)
        return good

    def _out_of_reach(self, fine: _Attempt, coarse: _Attempt) -> ValueError:
        low, high = sorted((fine.value, coarse.value))
        return ValueError(
            f"{self.name} {self.target:g} is out of reach: this signal and codec give {low:.4g} to {high:.4g}"
        )
