"""What the experiments on latents share: conditions x seeds, resumable.

    python -m research.tasks.classification --data FOLDER      # and folding, picture, reading, separation

A task has one JSON file, a line for each run (a condition with a seed). An interrupted command goes on with the runs
that are missing. `research.tasks.summary` makes tables and a picture of them.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import HfArgumentParser, TrainingArguments, set_seed

from transformers_walloc.atomic import atomic_file, write_atomically
from transformers_walloc.evaluation.machine import machine, versions


@dataclass
class RunArguments:
    """Which runs, and where."""

    output: str = field(default="docs/results/tasks", metadata={"help": "folder of the results, a file for a task"})
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
) -> list[dict]:
    """The command line of one experiment: every condition with every seed that has no result yet.

    Args:
        task: a name of `research.tasks.summary.TASKS`.
        description: shown by `--help`.
        settings_class: dataclass of the experiment's own settings; each field becomes an option (with `help` of its
            metadata) and may stand in the JSON file of `--config`, over which options go.
        conditions: name -> title in the table.
        run: `(condition, seed, settings, arguments)` -> {"metrics": {name: value}, "model_inputs": numbers that the
            model takes per example, and what else is worth keeping, such as "parameters" and "examples"}.
            Random generators are seeded before the call.

    Returns:
        The records of all runs that were asked for, as the file of the task has them.

    Raises:
        SystemExit: a setting or condition that does not exist, or results of other settings in the output folder.
    """
    arguments, settings = parse_arguments(description, settings_class, conditions, argv)
    # Where prepared data lie changes no result.
    recorded = {name: _shown(value) for name, value in dataclasses.asdict(settings).items() if name != "cache"}
    file = Path(arguments.output, f"{task}.json")
    wanted = [(condition, seed) for seed in arguments.seeds for condition in arguments.conditions]
    stored = stored_runs(file)
    if not arguments.force:
        for key in wanted:
            _check_settings(file, stored.get(key), recorded)
    torch.set_num_threads(arguments.threads)
    for condition, seed in wanted:
        name = f"{task} {condition} {seed}"
        if (condition, seed) in stored and not arguments.force:
            print(f"{name}: done", flush=True)
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
        stored[condition, seed] = record
        store_run(file, record)
        measured = ", ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
        print(f"{name}: {measured}; {record['seconds']:.0f} s", flush=True)
    return [stored[key] for key in wanted]


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


def stored_runs(file: Path) -> dict[tuple[str, int], dict]:
    """Runs of a task's file by condition and seed."""
    runs = json.loads(file.read_text()) if file.is_file() else []
    return {(run["condition"], run["seed"]): run for run in runs}


def store_run(file: Path, record: dict) -> None:
    """Put a run into the file of its task, where other commands may do the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir(), f"walloc-task-{name}.lock")):
        runs = stored_runs(file) | {(record["condition"], record["seed"]): record}
        lines = ",\n".join(json.dumps(run) for run in sorted(runs.values(), key=place))
        write_atomically(file, f"[\n{lines}\n]\n")


def place(run: dict) -> tuple:
    """For sorting: as the script of a task lists its conditions, then by seed."""
    return run.get("order", 0), run["condition"], run["seed"]


def _command(arguments: RunArguments) -> str:
    """What to run again; the data are the reader's own."""
    config = f" --config research/tasks/configs/{Path(arguments.config).name}" if arguments.config else ""
    return f"python -m research.tasks.{Path(sys.argv[0]).stem}{config}"


def _check_settings(file: Path, run: dict | None, settings: dict) -> None:
    stored = run["settings"] if run else {}
    # What an older run does not know is new; what is unlike was run under other conditions.
    unlike = [name for name in settings if name in stored and stored[name] != settings[name]]
    if run and unlike:
        found = ", ".join(f"{name} {stored[name]!r} and not {settings[name]!r}" for name in unlike)
        name = f"{run['condition']} with seed {run['seed']}"
        sys.exit(f"{file}: {name} has the result of other settings ({found}); use --force or another --output")


def _shown(value: Any) -> Any:
    """Settings as they are recorded: of a file or folder its name, not where it lies on this machine."""
    if isinstance(value, tuple):
        return list(value)  # as JSON gives it back
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
