#!/usr/bin/env python
"""Tables and a picture of what the experiments on latents found.

    python -m research.tasks.summary  # docs/results/tasks/*.json -> docs/tasks.md

Nothing is measured here: each number of the tables is a mean over runs, each error a standard deviation over seeds.
Differences to resizing are paired: over the seeds that both conditions have, which see the same order of examples, with
the 95% interval of Student's t.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from research.pages import ROOT, between
from research.tasks.runs import place, stored_runs
from transformers_walloc.atomic import atomic_file, write_atomically
from transformers_walloc.evaluation.tables import table

PAGE = ROOT / "docs" / "tasks.md"
PICTURE = ROOT / "docs" / "pictures" / "tasks.png"
TASKS = {
    "classification": "Classification",
    "folding": "Folding a pretrained classifier",
    "picture": "A pretrained ResNet",
    "imagenet": "A network of ImageNet",
    "reading": "Reading receipts",
    "separation": "Source separation",
}
# Title, format and whether more is better. The first metric of a task that is listed here is the one drawn.
METRICS = {
    "accuracy": ("top-1 accuracy %", "{:.1f}", True),
    "start_accuracy": ("before fine-tuning", "{:.1f}", True),
    "found": ("answers found %", "{:.1f}", True),
    "found_company": ("company", "{:.1f}", True),
    "found_date": ("date", "{:.1f}", True),
    "found_total": ("total", "{:.1f}", True),
    "character_errors": ("character errors, rendered %", "{:.1f}", False),
    "real_character_errors": ("errors against PP-OCR's reading %", "{:.1f}", False),
    "anls": ("ANLS %", "{:.1f}", True),
    "psnr": ("PSNR dB", "{:.2f}", True),
    "output_psnr": ("PSNR of the output dB", "{:.2f}", True),
    "si_sdr": ("SI-SDR dB", "{:.2f}", True),
    "psnr_bound": ("bound: PSNR", "{:.2f}", True),
    "si_sdr_bound": ("bound: SI-SDR", "{:.2f}", True),
    "train_loss": ("training loss", "{:.3f}", False),
}
AT_64, AT_448 = ("64 px", "256 px, rgb-16x"), ("448 rows", "896 rows, rgb-4x-klt")
# What the experiments ask, a row of the first table and of the picture each: task, condition, metric, question, what
# signals are resized to, and what latents are of.
QUESTIONS = (
    ("imagenet", "walloc-folded", "start_accuracy", "EfficientNet of ImageNet, stem folded, frozen", *AT_64),
    ("imagenet", "walloc-folded", "accuracy", "EfficientNet of ImageNet, stem folded, fine-tuned", *AT_64),
    ("imagenet", "walloc-picture", "start_accuracy", "EfficientNet of ImageNet, as a picture, frozen", *AT_64),
    ("imagenet", "walloc-picture", "accuracy", "EfficientNet of ImageNet, as a picture, fine-tuned", *AT_64),
    ("picture", "walloc-folded", "accuracy", "ResNet, its stem folded, fine-tuned", *AT_64),
    ("picture", "walloc-picture", "accuracy", "ResNet, latents as a picture, fine-tuned", *AT_64),
    ("picture", "walloc-folded+random", "accuracy", "ResNet from random weights", *AT_64),
    ("folding", "walloc-fold-0", "accuracy", "ViT, folded, fine-tuned", *AT_64),
    ("classification", "walloc-16x-klt-128", "accuracy", "ViT from random weights", "32 px", "128 px, rgb-16x-klt"),
    ("classification", "walloc-16x-klt", "accuracy", "ViT from random weights", "64 px", "256 px, rgb-16x-klt"),
    ("classification", "walloc-4x-klt", "accuracy", "ViT from random weights", "128 px", "256 px, rgb-4x-klt"),
    ("reading", "walloc-16x-klt+real", "found", "answers on receipts", "224 rows", "896 rows, rgb-16x-klt"),
    ("reading", "walloc-4x-klt+real", "found", "answers on receipts", *AT_448),
    ("reading", "walloc-4x-klt+real", "real_character_errors", "character errors on receipts", *AT_448),
    ("separation", "walloc_20x", "si_sdr", "separation of music", "2.8 kHz", "44.1 kHz, stereo-20x"),
    ("separation", "walloc_5x", "si_sdr", "separation of music", "11 kHz", "44.1 kHz, stereo-5x"),
)
# Compared with resizing where a task has them, beside its first metric.
COMPARED = ("real_character_errors", "anls", "si_sdr")


def summarise(folder: Path) -> str:
    """Markdown of all results of a folder: a table for each task, mean +- standard deviation over seeds."""
    parts = []
    for task, runs in load_runs(folder).items():
        names = [name for name in METRICS if any(name in run["metrics"] for run in runs)]
        compared = names[:1] + [name for name in COMPARED if name in names[1:]]
        lines = []
        for group in _by_condition(runs).values():
            cells = [mean_and_deviation([r["metrics"][n] for r in group if n in r["metrics"]], n) for n in names]
            differences = [paired_difference(group, runs, name) for name in compared]
            lines.append([group[0]["title"], f"{group[0]['model_inputs']:,}", *cells, *differences, str(len(group))])
        titles = [METRICS[name][0] for name in names]
        against = [f"against resizing: {METRICS[name][0]}" for name in compared]
        header = ["condition", "model inputs", *titles, *against, "seeds"]
        parts += [f"### {TASKS[task]}", table(header, lines), _described(runs)]
    return "\n\n".join(parts)


def mean_and_deviation(values: Sequence[float], metric: str) -> str:
    """`mean ± standard deviation` (of the sample, so at least two values have one) in the metric's format."""
    if not values:
        return ""
    form = METRICS[metric][1]
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def paired_difference(group: Sequence[dict], runs: Sequence[dict], metric: str) -> str:
    """`difference (low to high)` of a condition on latents to that of `runs` which has the nearest number of inputs.

    Empty for conditions that are not on latents; without an interval where there is but one pair.
    """
    pairs = _pairs(group, runs, metric)
    return _interval(_difference(pairs), METRICS[metric][1]) if pairs else ""


def _pairs(group: Sequence[dict], runs: Sequence[dict], metric: str) -> list[tuple[float, float]]:
    """The values of a condition on latents beside those of resizing to the nearest number of inputs, seed by seed."""
    real = group[0]["condition"].partition("+")[2]
    plain = [r for r in runs if r["condition"].startswith("res") and r["condition"].partition("+")[2] == real]
    if not group[0]["condition"].startswith("walloc") or not plain:
        return []
    nearest = min(plain, key=lambda r: abs(math.log(r["model_inputs"] / group[0]["model_inputs"])))["condition"]
    others = {r["seed"]: r["metrics"] for r in plain if r["condition"] == nearest}
    return [
        (r["metrics"][metric], others[r["seed"]][metric])
        for r in group
        if metric in r["metrics"] and metric in others.get(r["seed"], ())
    ]


def _difference(pairs: Sequence[tuple[float, float]]) -> tuple[float, float | None, float | None]:
    """Mean difference and its 95% interval, of Student's t."""
    from scipy import stats

    differences = [first - second for first, second in pairs]
    mean = statistics.fmean(differences)
    if len(pairs) == 1:
        return mean, None, None
    reach = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(differences) / math.sqrt(len(pairs))
    return mean, mean - reach, mean + reach


def _interval(difference: tuple[float, float | None, float | None], form: str) -> str:
    form = form.replace("{:", "{:+")
    mean, low, high = difference
    return form.format(mean) if low is None else f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"


def load_runs(folder: Path) -> dict[str, list[dict]]:
    """Runs of each task in the order of `TASKS`, conditions as their scripts list them, then seeds."""
    found = {task: list(stored_runs(Path(folder, f"{task}.json")).values()) for task in TASKS}
    return {task: sorted(runs, key=place) for task, runs in found.items() if runs}


@dataclass(frozen=True)
class Answer:
    """Of a question: means of both sides, the mean difference of pairs and its 95% interval, None where one pair is."""

    question: str
    resized_to: str
    latents_of: str
    metric: str
    resize: float
    walloc: float
    difference: tuple[float, float | None, float | None]
    pairs: int

    @property
    def cells(self) -> list[str]:
        form = METRICS[self.metric][1]
        means = [form.format(value) for value in (self.resize, self.walloc)]
        asked = [self.question, self.resized_to, self.latents_of, METRICS[self.metric][0]]
        return [*asked, *means, _interval(self.difference, form), str(self.pairs)]


def answers(runs: dict[str, list[dict]]) -> list[Answer]:
    """Of `QUESTIONS`, those that there are runs for."""
    found = []
    for task, condition, metric, question, resized_to, latents_of in QUESTIONS:
        group = [run for run in runs.get(task, ()) if run["condition"] == condition]
        if group and (pairs := _pairs(group, runs[task], metric)):
            walloc, resize = (statistics.fmean(side) for side in zip(*pairs, strict=True))
            asked = question, resized_to, latents_of, metric
            found.append(Answer(*asked, resize, walloc, _difference(pairs), len(pairs)))
    return found


def answers_table(found: Sequence[Answer]) -> str:
    header = ["question", "resized to", "latents of", "measure", "resized", "latents", "difference, 95%", "pairs"]
    return table(header, [answer.cells for answer in found])


def plot(found: Sequence[Answer], path: Path) -> None:
    """A row for each question: the difference with its interval, and in words what it is between."""
    from matplotlib.figure import Figure

    units = {answer: "dB" if METRICS[answer.metric][0].endswith("dB") else "points" for answer in found}
    groups = [(unit, [answer for answer in found if units[answer] == unit]) for unit in ("points", "dB")]
    groups = [(unit, rows) for unit, rows in groups if rows]
    figure = Figure(figsize=(8, 0.32 * len(found) + 0.8 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(rows) + 1 for _, rows in groups])[:, 0]
    for axis, (unit, rows) in zip(axes, groups, strict=True):
        for i, answer in enumerate(rows):
            mean, low, high = answer.difference
            less = 1 if METRICS[answer.metric][2] else -1  # to the right is better
            ends = [mean if end is None else end for end in (low, high)]
            decided = ends[0] * ends[1] > 0
            axis.plot([less * end for end in ends], [i, i], color="#4878a8" if decided else "#b0b0b0", lw=2)
            axis.plot(less * mean, i, "o", color="#4878a8" if decided else "#b0b0b0")
        labels = [
            f"{answer.question}, {answer.resized_to}: {METRICS[answer.metric][1].format(answer.resize)} → "
            f"{METRICS[answer.metric][1].format(answer.walloc)}"
            for answer in rows
        ]
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axis.set_xlabel(f"better than resized, {unit}", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)


def _by_condition(runs: list[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(run["condition"], []).append(run)
    return groups


def _described(runs: list[dict]) -> str:
    """What was run, from the files: command, sizes, time, machine."""
    run = next((run for run in runs if "parameters" in run), runs[0])  # a floor without a model has none
    parts = []
    if "examples" in run:
        names = {name: name if " " in name else f"{name} examples" for name in run["examples"]}
        parts.append(", ".join(f"{count:,} {names[name]}" for name, count in run["examples"].items()))
    sizes = sorted({f"{r['parameters'] / 1e6:.2f}" for r in runs if "parameters" in r}, key=float)
    if sizes:
        parts.append(f"{' to '.join(dict.fromkeys((sizes[0], sizes[-1])))} M parameters")
    if steps := run["settings"].get("steps") or run["settings"].get("fine_tuning_steps"):
        parts.append(f"{steps:,} steps")
    minutes = statistics.median(r["seconds"] for r in runs) / 60
    where = run["machine"]
    cores = f"{where['threads']} thread of {where['processor']}" if where["device"] == "cpu" else where["device"]
    if where.get("load") is not None and where["device"] == "cpu":
        cores += f", {where['cores']} cores at a load of {where['load']:.1f}"
    parts.append(f"{minutes:.1f} minutes a run on {cores}")
    return f"`{run['command']}`: {'; '.join(parts)}."


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/results/tasks", help="folder of the results")
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    args = parser.parse_args(argv)
    folder = Path(args.output)
    if not load_runs(folder):
        parser.error(f"{folder} has no results; run the research/tasks/*.py first")
    if args.print:
        print(summarise(folder))
        return
    found = answers(load_runs(folder))
    plot(found, PICTURE)
    page = between(PAGE.read_text(), "answers", f"{answers_table(found)}\n\n![Differences](pictures/{PICTURE.name})")
    write_atomically(PAGE, between(page, "tasks", summarise(folder)))


if __name__ == "__main__":
    main()
