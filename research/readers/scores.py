"""Scores of frozen readers: kept per signal, compared signal by signal, shown as tables and one picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from research.pages import ROOT, between
from transformers_walloc.atomic import write_atomically

PAGE, README = ROOT / "docs" / "frozen_readers.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "pictures" / "frozen_readers.png"
RESAMPLES = 10_000


@dataclasses.dataclass
class Study:
    """`scores[condition][signal]`: {"key": what it depends on, measure: score, ...}."""

    title: str
    scores: dict[str, dict[str, dict]] = dataclasses.field(default_factory=dict)

    def get(self, condition: str, signal: str, key: str) -> dict | None:
        found = self.scores.get(condition, {}).get(signal)
        return found if found and found["key"] == key else None

    def put(self, condition: str, signal: str, key: str, scores: dict[str, float]) -> None:
        self.scores.setdefault(condition, {})[signal] = {"key": key, **scores}

    def values(self, condition: str, measure: str, signals: list[str]) -> np.ndarray:
        """Percent of each signal, NaN where it has no such score."""
        found = self.scores.get(condition, {})
        return np.array([100 * found[signal].get(measure, np.nan) for signal in signals])

    def common(self) -> list[str]:
        """Signals that every condition has."""
        return sorted(set.intersection(*(set(found) for found in self.scores.values()))) if self.scores else []


def load_study(path: Path, title: str) -> Study:
    return Study(title, json.loads(path.read_text())["scores"] if path.is_file() else {})


def save_study(path: Path, study: Study) -> None:
    write_atomically(path, json.dumps(dataclasses.asdict(study), indent=0, sort_keys=True) + "\n")


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean and the 95% interval of the bootstrap over signals (percentiles), NaN left out."""
    values = values[~np.isnan(values)]
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def summarise(name: str, path: Path, measures: dict[str, str], ratios: Sequence[float], ways: dict[str, str]) -> None:
    """Write the tables of a study into its part of docs/frozen_readers.md and of the README, and its picture.

    Args:
        name: of the part, `<!-- NAME:begin -->` to `<!-- NAME:end -->`.
        measures: measures and their titles, the main one first.
        ratios: dimensionality reductions; conditions are called `way-ratio`, and `original`.
        ways: ways of reducing and their titles; the first is what the others are compared with.
    """
    study = load_study(path, "")
    title = json.loads(path.read_text())["title"]
    signals = study.common()
    main, against = next(iter(measures)), next(iter(ways))
    parts = [f"{title}; {len(signals)} of them, means with 95% intervals of the bootstrap over these."]
    head = ["DR", *ways.values(), *(f"{ways[way]} - {ways[against]}" for way in ways if way != against)]
    rows = [["1", *[_shown(interval(study.values("original", main, signals)))] * len(ways), *[""] * (len(ways) - 1)]]
    for ratio in ratios:
        values = {way: study.values(f"{way}-{ratio:g}", main, signals) for way in ways}
        differences = [interval(values[way] - values[against]) for way in ways if way != against]
        rows.append(
            [f"{ratio:g}", *map(_shown, map(interval, values.values())), *(_shown(d, "+") for d in differences)]
        )
    parts += [f"{measures[main]}:", _table(head, rows)]
    rest = [measure for measure in measures if measure != main]
    if rest:
        head = ["DR", "", *(measures[measure] for measure in rest)]
        conditions = [("1", "original", "original")]
        conditions += [(f"{ratio:g}", title, f"{way}-{ratio:g}") for ratio in ratios for way, title in ways.items()]
        rows = [
            [ratio, title, *(f"{np.nanmean(study.values(condition, m, signals)):.1f}" for m in rest)]
            for ratio, title, condition in conditions
        ]
        parts += ["Means by measure:", _table(head, rows)]
    shown = {PAGE: parts, README: parts[:3]}  # where both are marked: everything, and the main table
    for page, text in shown.items():
        if f"<!-- {name}:begin -->" in (old := page.read_text()):
            write_atomically(page, between(old, name, "\n\n".join(text)))
    _draw(study, signals, main, ratios, ways, measures[main], PICTURE.with_stem(f"{PICTURE.stem}_{name}"))


def _draw(study: Study, signals: list[str], main: str, ratios, ways: dict[str, str], label: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    original = np.nanmean(study.values("original", main, signals))
    axes.axhline(original, color="0.6", linestyle=":", label="original")
    for index, (way, title) in enumerate(ways.items()):
        means, lows, highs = np.array([interval(study.values(f"{way}-{r:g}", main, signals)) for r in ratios]).T
        positions = np.arange(len(ratios)) + 0.06 * (index - 1)
        axes.errorbar(positions, means, [means - lows, highs - means], marker="o", capsize=3, label=title)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set(xlabel="times fewer numbers", ylabel=label, ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _shown(values: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = values
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
