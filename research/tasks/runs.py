#!/usr/bin/env python
"""What the experiments on latents share: conditions x seeds, resumable, and the table and picture of the results.

    python -m research.tasks.classification --data FOLDER      # and folding, picture, reading, ...
    python -m research.tasks.runs summarise  # docs/results/tasks/*.json -> docs/tasks.md

Every run (a condition with a seed) leaves one JSON file. An interrupted command goes on with the runs that are missing.
`summarise` measures nothing: each number of its table is a mean over files, each error a standard deviation over seeds.
Differences to resizing are paired: over the seeds that both conditions have, which see the same order of examples, with
the 95% interval of Student's t.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser, TrainingArguments, set_seed

from research.pages import ROOT, between
from transformers_walloc.atomic import atomic_file, write_atomically
from transformers_walloc.evaluation.machine import machine, versions
from transformers_walloc.evaluation.tables import table

PAGE = ROOT / "docs" / "tasks.md"
PICTURE = ROOT / "docs" / "pictures" / "tasks.png"
TASKS = {
    "classification": "Classification",
    "folding": "Folding a pretrained classifier",
    "picture": "A pretrained ResNet",
    "reading": "Reading receipts",
    "documents": "Document understanding",
    "colourisation": "Colourisation",
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
    "real_character_errors": ("character errors, real %", "{:.1f}", False),
    "anls": ("ANLS %", "{:.1f}", True),
    "exact_match": ("exact %", "{:.1f}", True),
    "chroma_psnr": ("chroma PSNR dB", "{:.2f}", True),
    "grey_chroma_psnr": ("of no colour", "{:.2f}", True),
    "oracle_chroma_psnr": ("bound", "{:.2f}", True),
    "psnr": ("PSNR dB", "{:.2f}", True),
    "output_psnr": ("PSNR of the output dB", "{:.2f}", True),
    "si_sdr": ("SI-SDR dB", "{:.2f}", True),
    "psnr_bound": ("bound: PSNR", "{:.2f}", True),
    "si_sdr_bound": ("bound: SI-SDR", "{:.2f}", True),
    "lpips_db": ("LPIPS dB", "{:.2f}", True),
    "colourfulness": ("colourfulness", "{:.1f}", True),
    "colourfulness_error": ("colourfulness error", "{:.2f}", False),
    "train_loss": ("training loss", "{:.3f}", False),
}
# Compared with resizing where a task has them, beside its first metric.
COMPARED = ("real_character_errors", "anls", "si_sdr")


@dataclass
class RunArguments:
    """Which runs, and where."""

    output: str = field(default="docs/results/tasks", metadata={"help": "folder of the results, a JSON file for a run"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one run of each condition for each"})
    conditions: list[str] = field(default_factory=list, metadata={"help": "all when none is named"})
    threads: int = field(default=1, metadata={"help": "of torch, on the CPU"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    workers: int = field(default=0, metadata={"help": "processes that load data"})
    config: str = field(default="", metadata={"help": "JSON file of settings, which replace the defaults below"})
    force: bool = field(default=False, metadata={"help": "run again what has a result"})


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def run_task(
    task: str,
    description: str,
    settings_class: type,
    conditions: dict[str, str],
    run: Callable[[str, int, Any, RunArguments], dict],
    argv: Sequence[str] | None = None,
) -> list[Path]:
    """The command line of one experiment: every condition with every seed that has no result yet.

    Args:
        task: a name of `TASKS`.
        description: shown by `--help`.
        settings_class: dataclass of the experiment's own settings; each field becomes an option (with `help` of its
            metadata) and may stand in the JSON file of `--config`, over which options go.
        conditions: name -> title in the table.
        run: `(condition, seed, settings, arguments)` -> {"metrics": {name: value}, "model_inputs": numbers that the
            model takes per example, and what else is worth keeping, such as "parameters" and "examples"}.
            Random generators are seeded before the call.

    Returns:
        The JSON files of all runs that were asked for.

    Raises:
        SystemExit: a setting or condition that does not exist, or results of other settings in the output folder.
    """
    arguments, settings = parse_arguments(description, settings_class, conditions, argv)
    # Where prepared data lie changes no result.
    recorded = {name: _shown(value) for name, value in dataclasses.asdict(settings).items() if name != "cache"}
    paths = {
        (condition, seed): Path(arguments.output) / f"{task}_{condition}_{seed}.json"
        for seed in arguments.seeds
        for condition in arguments.conditions
    }
    if not arguments.force:
        for path in paths.values():
            _check_settings(path, recorded)
    torch.set_num_threads(arguments.threads)
    for (condition, seed), path in paths.items():
        if path.exists() and not arguments.force:
            print(f"{path.name}: done", flush=True)
            continue
        set_seed(seed)
        start = time.perf_counter()
        result = run(condition, seed, settings, arguments)
        record = {
            "task": task,
            "condition": condition,
            "title": conditions[condition],
            "order": list(conditions).index(condition),
            "seed": seed,
            **result,
            "settings": recorded,
            "seconds": round(time.perf_counter() - start, 1),
            "command": _command(arguments),
            "machine": {**machine(arguments.threads), "device": arguments.device},
            "versions": versions(),
        }
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        measured = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
        print(f"{path.name}: {measured}; {record['seconds']:.0f} s", flush=True)
    return list(paths.values())


def parse_arguments(
    description: str, settings_class: type, conditions: dict[str, str], argv: Sequence[str] | None = None
) -> tuple[RunArguments, Any]:
    """Options over the file of `--config` over the defaults of the dataclasses; see `run_task`."""
    classes: list[Any] = [RunArguments, settings_class]
    parser = HfArgumentParser(
        classes,
        description=description + "\nConditions:\n" + "\n".join(f"  {n:16} {t}" for n, t in conditions.items()),
        formatter_class=_HelpFormatter,
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    config = parser.parse_known_args(argv)[0].config
    if config:
        try:
            values = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            parser.error(f"{config}: {error}")
        valid = [f.name for part in (RunArguments, settings_class) for f in dataclasses.fields(part)]
        for name in values:
            if name not in valid:
                parser.error(f"{config}: unknown setting {name!r}; valid: {', '.join(valid)}")
        parser.set_defaults(**values)
    arguments, settings = parser.parse_args_into_dataclasses(argv)[:2]
    for name in arguments.conditions:
        if name not in conditions:
            parser.error(f"unknown condition {name!r}; valid: {', '.join(conditions)}")
    arguments.conditions = arguments.conditions or list(conditions)
    return arguments, settings


def kept_array(folder: str, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, from a file of `folder` (when that is not empty) where an earlier command left it.

    Args:
        key: all that the array depends on; its `repr` names the file.
    """
    if not folder:
        return make()
    path = Path(folder, hashlib.sha256(repr(key).encode()).hexdigest()[:24] + ".npy")
    if not path.exists():
        array = make()
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return np.load(path, mmap_mode="c")  # copy-on-write: more than fits into memory, and torch takes it


def training_arguments(
    seed: int, arguments: RunArguments, steps: int, batch_size: int, learning_rate: float, **more: Any
) -> TrainingArguments:
    """For `Trainer`: a cosine schedule with a short warm-up and no checkpoints, the same for every condition."""
    options: dict[str, Any] = {
        "output_dir": tempfile.gettempdir(),  # nothing is saved
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 2 * batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 20),
        "weight_decay": 0.05,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": max(1, steps // 10),
        "seed": seed,
        "use_cpu": arguments.device == "cpu",
        "dataloader_pin_memory": arguments.device != "cpu",
        "dataloader_num_workers": arguments.workers,
        "remove_unused_columns": False,
    }
    return TrainingArguments(**{**options, **more})


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
    real = group[0]["condition"].partition("+")[2]
    plain = [r for r in runs if r["condition"].startswith("res") and r["condition"].partition("+")[2] == real]
    if not group[0]["condition"].startswith("walloc") or not plain:
        return ""
    nearest = min(plain, key=lambda r: abs(math.log(r["model_inputs"] / group[0]["model_inputs"])))["condition"]
    others = {r["seed"]: r["metrics"] for r in plain if r["condition"] == nearest}
    pairs = [
        r["metrics"][metric] - others[r["seed"]][metric]
        for r in group
        if metric in r["metrics"] and metric in others.get(r["seed"], ())
    ]
    if not pairs:
        return ""
    from scipy import stats

    form = METRICS[metric][1].replace("{:", "{:+")
    mean = statistics.fmean(pairs)
    if len(pairs) == 1:
        return form.format(mean)
    reach = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{form.format(mean)} ({form.format(mean - reach)} to {form.format(mean + reach)})"


def load_runs(folder: Path) -> dict[str, list[dict]]:
    """Runs of each task in the order of `TASKS`, conditions as their scripts list them, then seeds."""
    runs = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    runs.sort(key=lambda run: (run.get("order", 0), run["condition"], run["seed"]))
    return {task: found for task in TASKS if (found := [run for run in runs if run["task"] == task])}


def plot(folder: Path, path: Path) -> None:
    """The main metric of each task with error bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = {task: (runs, list(_by_condition(runs).values())) for task, runs in load_runs(folder).items()}
    rows = [len(groups) for _, groups in tasks.values()]
    figure, axes = pyplot.subplots(
        len(tasks), 1, figsize=(9, 0.24 * sum(rows) + 0.75 * len(rows)), squeeze=False, height_ratios=rows
    )
    for axis, (task, (runs, groups)) in zip(axes[:, 0], tasks.items(), strict=True):
        metric = next(name for name in METRICS if name in runs[0]["metrics"])
        for i, group in enumerate(groups):
            values = [run["metrics"][metric] for run in group]
            error = statistics.stdev(values) if len(values) > 1 else None
            # One colour for each side of the comparison.
            colour = "#4878a8" if group[0]["condition"].startswith("walloc") else "#b0b0b0"
            if METRICS[metric][0].endswith("dB"):  # has no zero that a bar could start from
                axis.errorbar(statistics.fmean(values), i, xerr=error, fmt="o", capsize=3, color=colour)
            else:
                axis.barh(i, statistics.fmean(values), xerr=error, capsize=3, color=colour)
        axis.set_yticks(range(len(groups)), [g[0]["title"] for g in groups], fontsize=8)
        axis.set_ylim(len(groups) - 0.4, -0.6)  # the first on top
        axis.set_title(f"{TASKS[task]}: {METRICS[metric][0]}", fontsize=10, loc="left")
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    pyplot.close(figure)


def _command(arguments: RunArguments) -> str:
    """What to run again; the data are the reader's own."""
    config = f" --config research/tasks/configs/{Path(arguments.config).name}" if arguments.config else ""
    return f"python -m research.tasks.{Path(sys.argv[0]).stem}{config}"


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
    if "steps" in run["settings"]:
        parts.append(f"{run['settings']['steps']:,} steps")
    minutes = statistics.median(r["seconds"] for r in runs) / 60
    where = run["machine"]
    cores = f"{where['threads']} thread of {where['processor']}" if where["device"] == "cpu" else where["device"]
    if where.get("load") is not None and where["device"] == "cpu":
        cores += f", {where['cores']} cores at a load of {where['load']:.1f}"
    parts.append(f"{minutes:.1f} minutes a run on {cores}")
    return f"`{run['command']}`: {'; '.join(parts)}."


def _check_settings(path: Path, settings: dict) -> None:
    if path.exists():
        stored = json.loads(path.read_text())["settings"]
        # What an older file does not know is new; what is unlike was run under other conditions.
        unlike = [name for name in settings if name in stored and stored[name] != settings[name]]
        if unlike:
            found = ", ".join(f"{name} {stored[name]!r} and not {settings[name]!r}" for name in unlike)
            sys.exit(f"{path}: has the result of other settings ({found}); use --force or another --output")


def _shown(value: Any) -> Any:
    """Settings as they are recorded: of a file or folder its name, not where it lies on this machine."""
    if isinstance(value, tuple):
        return list(value)  # as JSON gives it back
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("summarise", help=f"write the tables into {PAGE.name}, and the picture")
    command.add_argument("--output", default="docs/results/tasks", help="folder of the results")
    command.add_argument("--print", action="store_true", help="print the tables and write nothing")
    args = parser.parse_args(argv)
    folder = Path(args.output)
    if not load_runs(folder):
        parser.error(f"{folder} has no results; run the research/tasks/*.py first")
    if args.print:
        print(summarise(folder))
        return
    text = summarise(folder) + f"\n\n![Resize against WaLLoC](pictures/{PICTURE.name})"
    plot(folder, PICTURE)
    write_atomically(PAGE, between(PAGE.read_text(), "tasks", text))


if __name__ == "__main__":
    main()
