"""Scores of frozen readers: kept per signal, compared signal by signal, shown as tables and one picture."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from research.pages import ROOT, between
from transformers_walloc.atomic import write_atomically
from transformers_walloc.evaluation.tables import table

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

    def missing(self, signal: str, keys: Mapping[str, str]) -> list[str]:
        """Those of `keys`, condition -> key, that have no scores of a signal yet."""
        return [condition for condition, key in keys.items() if self.get(condition, signal, key) is None]

    def values(self, condition: str, measure: str, signals: list[str], scale: float = 100) -> np.ndarray:
        """Percent of each signal, NaN where it has no such score."""
        found = self.scores.get(condition, {})
        return np.array([scale * found[signal].get(measure, np.nan) for signal in signals])

    def common(self, conditions: Iterable[str] | None = None) -> list[str]:
        """Signals that all of these conditions have; of all conditions by default."""
        chosen = [set(self.scores[condition]) for condition in (self.scores if conditions is None else conditions)]
        return sorted(set.intersection(*chosen)) if chosen else []


def load_study(path: Path, title: str) -> Study:
    """What `save_study` left there, under another title; nothing yet where there is no such file."""
    study = Study(title)
    stored = json.loads(path.read_text()) if path.is_file() else {"signals": [], "scores": {}}
    for condition, by_key in stored["scores"].items():
        for key, columns in by_key.items():
            for i, signal in enumerate(stored["signals"]):
                scores = {measure: column[i] for measure, column in columns.items() if column[i] is not None}
                if scores:
                    study.put(condition, signal, key, scores)
    return study


def save_study(path: Path, study: Study) -> None:
    """As JSON, a line for each condition: by key and measure a list over the signals, `null` where one has no score."""
    signals = sorted({signal for found in study.scores.values() for signal in found})
    scores: dict[str, dict[str, dict[str, list]]] = {}
    for condition, found in study.scores.items():
        for i, signal in enumerate(signals):
            for measure, value in found.get(signal, {}).items():
                if measure != "key":
                    columns = scores.setdefault(condition, {}).setdefault(found[signal]["key"], {})
                    columns.setdefault(measure, [None] * len(signals))[i] = value
    rows = [f"{json.dumps(name)}: {json.dumps(scores[name], sort_keys=True)}" for name in sorted(scores)]
    head = f'"title": {json.dumps(study.title)},\n"signals": {json.dumps(signals)}'
    conditions = ",\n".join(rows)
    write_atomically(path, f'{{\n{head},\n"scores": {{\n{conditions}\n}}\n}}\n')


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% interval of the bootstrap over signals (percentiles), without NaN; all NaN if nothing is left."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
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
    rows = [["1", *[shown(interval(study.values("original", main, signals)))] * len(ways), *[""] * (len(ways) - 1)]]
    for ratio in ratios:
        values = {way: study.values(f"{way}-{ratio:g}", main, signals) for way in ways}
        differences = [interval(values[way] - values[against]) for way in ways if way != against]
        rows.append([f"{ratio:g}", *map(shown, map(interval, values.values())), *(shown(d, "+") for d in differences)])
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
    best = list(ways)[-1]
    gains = {
        r: interval(study.values(f"{best}-{r:g}", main, signals) - study.values(f"{against}-{r:g}", main, signals))
        for r in ratios
    }
    short = [
        [
            f"{ratio:g}",
            *(f"{np.nanmean(study.values(f'{way}-{ratio:g}', main, signals)):.0f}" for way in (against, best)),
            shown(gains[ratio], "+"),
        ]
        for ratio in ratios
    ]
    whole = f"{np.nanmean(study.values('original', main, signals)):.0f}"
    short.insert(0, ["1 (the original)", whole, whole, ""])
    # Where both are marked: everything, and the main table without intervals.
    texts = {PAGE: parts, README: [_table(["DR", ways[against], ways[best], "difference (95% interval)"], short)]}
    for page, text in texts.items():
        if f"<!-- {name}:begin -->" in (old := page.read_text()):
            write_atomically(page, between(old, name, "\n\n".join(text)))
    _draw(study, signals, main, ratios, ways, measures[main], PICTURE.with_stem(f"{PICTURE.stem}_{name}"))


def summarise_ways(
    name: str,
    path: Path,
    measures: dict[str, str],
    ratios: Sequence[float],
    ways: dict[str, str],
    best: str,
) -> None:
    """As `summarise`, for more ways than stand side by side with their intervals: a row for each of them.

    Ways that have no scores at a ratio are left out there. A ratio counts the signals that all others have.

    Args:
        measures: as for `summarise`; "bpp" is no share but bits per pixel of the files.
        best: of the ways, the one whose difference stands in the short table. The README has that, without what is
            "linear", in whole percent.
    """
    study = load_study(path, "")
    title = json.loads(path.read_text())["title"]
    main, against = next(iter(measures)), next(iter(ways))
    shares = [measure for measure in measures if measure != "bpp"]
    short, rows, counts = [], [], {}
    readme, chosen = [], [way for way in ways if "linear" not in way]
    for ratio in ratios:
        found = [way for way in ways if f"{way}-{ratio:g}" in study.scores]
        if not found:
            continue
        signals = study.common(["original", *(f"{way}-{ratio:g}" for way in found)])
        counts[ratio] = len(signals)
        values = {
            (way, measure): study.values(f"{way}-{ratio:g}", measure, signals) for way in found for measure in shares
        }
        means = {way: np.nanmean(values[way, main]) for way in found}
        gain = shown(interval(values[best, main] - values[against, main]), "+") if best in found else ""
        short.append([f"{ratio:g}", *(f"{means[way]:.1f}" if way in means else "" for way in ways), gain])
        readme.append([f"{ratio:g}", *(f"{means[way]:.0f}" if way in means else "" for way in chosen), gain])
        for way in found:
            rate = study.values(f"{way}-{ratio:g}", "bpp", signals, 1)
            row = [f"{ratio:g}", ways[way], "" if np.isnan(rate).all() else f"{np.nanmean(rate):.3f}"]
            for measure in shares:
                row.append(shown(interval(values[way, measure])))
                row.append(
                    "" if way == against else shown(interval(values[way, measure] - values[against, measure]), "+")
                )
            rows.append(row)
    signals = study.common(["original"])
    tested = {measure: int(np.sum(~np.isnan(study.values("original", measure, signals)))) for measure in shares}
    whole = ", ".join(
        f"{measures[measure].removesuffix(', %')} {np.nanmean(study.values('original', measure, signals)):.1f}% of "
        f"{tested[measure]:,} originals"
        for measure in shares[1:]
    )
    numbers = " to ".join(f"{n:,}" for n in sorted(set(counts.values())))
    head = f"{title}; {numbers} of them; {measures[main]}, as the original has:"
    gained = f"{ways[best]} - {ways[against]} (95% interval)"
    table = _table(["DR", *ways.values(), gained], short)
    few = _table(["DR", *(ways[way] for way in chosen), gained], readme)
    columns = ["DR", "", measures["bpp"]]
    for measure in shares:
        columns += [measures[measure], f"against {ways[against]}"]
    rest = f"With 95% intervals of the bootstrap over the pictures; {whole}."
    whole_table = ["<details markdown>", f"<summary>{rest}</summary>", _table(columns, rows), "</details>"]
    for page, text in {PAGE: [head, table, *whole_table], README: [few]}.items():
        if f"<!-- {name}:begin -->" in (old := page.read_text()):
            write_atomically(page, between(old, name, "\n\n".join(text)))
    _draw(study, None, main, ratios, ways, measures[main], PICTURE.with_stem(f"{PICTURE.stem}_{name}"))


def differences(
    study: Study,
    signals: list[str],
    titles: Mapping[str, str],
    measures: Mapping[str, tuple[str, float]],
    heads: tuple[str, str],
    against: str,
    plain: Collection[str] = (),
    digits: int = 1,
) -> str:
    """A table with a row for each condition: means, and their differences to one with 95% intervals of the bootstrap.

    Args:
        titles: of the conditions.
        measures: measures, their titles and what a score is multiplied by.
        heads: of the column of titles, and of those of differences.
        against: the condition that the others are compared with.
        plain: further conditions without differences.
    """
    rows = []
    for condition, title in titles.items():
        row = [title]
        for measure, (_, unit) in measures.items():
            values = study.values(condition, measure, signals, unit)
            gain = values - study.values(against, measure, signals, unit)
            alone = condition == against or condition in plain
            row += [f"{values.mean():.{digits}f}", "" if alone else shown(interval(gain), "+", digits)]
        rows.append(row)
    first, difference = heads
    return table([first, *(head for title, _ in measures.values() for head in (title, difference))], rows)


def _draw(
    study: Study, signals: list[str] | None, main: str, ratios, ways: dict[str, str], label: str, path: Path
) -> None:
    """`signals`: None for those that each point has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4) if len(ways) <= 3 else (6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    original = np.nanmean(study.values("original", main, signals or study.common(["original"])))
    axes.axhline(original, color="0.6", linestyle=":", label="original")
    for index, (way, title) in enumerate(ways.items()):
        at = [i for i, ratio in enumerate(ratios) if f"{way}-{ratio:g}" in study.scores]
        if not at:
            continue
        conditions = [f"{way}-{ratios[i]:g}" for i in at]
        points = [interval(study.values(c, main, signals or study.common([c]))) for c in conditions]
        means, lows, highs = np.array(points).T
        positions = np.array(at) + 0.06 * (index - (len(ways) - 1) / 2)
        axes.errorbar(positions, means, [means - lows, highs - means], marker="o", capsize=3, label=title)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set(xlabel="times fewer numbers", ylabel=label, ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def shown(values: tuple[float, float, float], sign: str = "", digits: int = 1) -> str:
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return "" if np.isnan(values[0]) else f"{mean} ({low} to {high})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
