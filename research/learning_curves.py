#!/usr/bin/env python
"""Learning curves of training runs: PSNR and rate of the averaged weights over the steps.

    walloc train ... --output runs/rgb-16x
    python -m research.learning_curves runs/rgb-16x runs/stereo-20x

stores what each run's last checkpoint logged in docs/results/learning_NAME.json, NAME the name of the folder, and draws
all stored ones in docs/results/learning_curves.png. `python -m research.report docs` puts picture and table into
docs/results.md.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from research.pages import RESULTS
from transformers_walloc.atomic import write_atomically
from transformers_walloc.evaluation.plots import COLOURS, save
from transformers_walloc.evaluation.tables import table
from transformers_walloc.training.trainer import last_checkpoint


def read_run(folder: Path) -> dict:
    """`points` (step, psnr in dB, order0_cr) and `minutes` of a run of `walloc train`.

    Raises:
        ValueError: the folder has no complete checkpoint.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        raise ValueError(f"{folder} is no run of walloc train: there is no complete checkpoint-* in it")
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
    points = {
        entry["step"]: {"psnr": entry["eval_psnr"], "order0_cr": entry["eval_order0_cr"]}
        for entry in state["log_history"]
        if "eval_psnr" in entry
    }
    return {
        "name": folder.name,
        "minutes": round(state["stateful_callbacks"]["_Clock"]["attributes"]["used"] / 60, 1),
        "points": [{"step": step, **point} for step, point in sorted(points.items())],
    }


def stored_runs() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("learning_*.json"))]


def curves_table(runs: list[dict]) -> str:
    """Start, quarters and end of each run."""
    lines = []
    for run in runs:
        points = run["points"]
        last = points[-1]["step"]
        nearest = [min(points, key=lambda point: abs(point["step"] - last * part / 4)) for part in (1, 2, 3, 4)]
        cells = [f"{point['psnr']:.2f} at {point['order0_cr']:.1f}" for point in nearest]
        lines.append([f"`{run['name']}`", str(last), f"{run['minutes']:.0f}", *cells])
    return table(["run", "steps", "minutes", "a quarter", "half", "three quarters", "end"], lines)


def draw(runs: list[dict]) -> Figure:
    """One panel for each run, whose PSNR differ too much for one axis: PSNR, and in grey the order-0 rate."""
    figure = Figure(figsize=(3.4 * len(runs), 3.0), layout="constrained")
    for axis, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        steps = [point["step"] / 1000 for point in run["points"]]
        axis.plot(steps, [point["psnr"] for point in run["points"]], color=COLOURS[0], marker=".")
        axis.set_title(run["name"], fontsize=9)
        axis.set_xlabel("thousand steps", fontsize=8)
        axis.set_ylabel("PSNR, dB", fontsize=8, color=COLOURS[0])
        axis.grid(alpha=0.25)
        rate = axis.twinx()
        rate.plot(steps, [point["order0_cr"] for point in run["points"]], color=COLOURS[6], lw=1)
        rate.set_ylabel("order-0 CR", fontsize=8, color=COLOURS[6])
        for side in (axis, rate):
            side.tick_params(labelsize=8)
    return figure


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="--output of walloc train")
    args = parser.parse_args(argv)
    for run in [read_run(folder) for folder in args.runs]:
        write_atomically(RESULTS / f"learning_{run['name']}.json", json.dumps(run, indent=1) + "\n")
    runs = stored_runs()
    if runs:
        save(draw(runs), RESULTS / "learning_curves", formats=("png",))
        print(curves_table(runs))


if __name__ == "__main__":
    main()
