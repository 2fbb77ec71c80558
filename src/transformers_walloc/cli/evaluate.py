"""Measure codecs on any images or audio: rate, distortion and speed, ours and others in the same run.

    walloc evaluate tables --data photos --out runs/photos                  # our codecs, resizing, JPEG: a minute or so
    walloc evaluate tables --data photos --out runs/full --full             # Table 1 of the paper, with refined codes
    walloc evaluate tables --kind audio --data music --out runs/music --full  # Table 2 (stereo audio)
    walloc evaluate curves --data photos --out runs/curves                  # rate-distortion, BD-rate, 3 axes
    walloc evaluate speed --out runs/speed                                  # throughput alone, needs no data

Every file that a codec was measured on is a line of OUT/files.jsonl, so that a run that was stopped goes on where it
was. The result is OUT/results.json with OUT/results.md and OUT/results.csv (and figures for `curves`).
With --speed-only the neural codecs of others have random weights and are timed only.
"""

import argparse
import os
from collections.abc import Sequence

from ..codec.runtime import torch_threads
from ..evaluation import specs as _specs
from ..evaluation.machine import shown_command
from ..evaluation.measure import default_codecs, evaluate_codecs, quick_codecs, write_result
from ..evaluation.quality import METRICS, bd_rates
from ..evaluation.rivals import AUDIO_FORMATS, IMAGE_FORMATS
from ..evaluation.signals import Signals
from ..evaluation.specs import parse_spec
from ..evaluation.speed import Timing
from ..evaluation.tables import to_markdown
from .options import in_kebab_case

DESCRIPTION = f"{__doc__}\n{_specs.__doc__}"
COMMANDS = ("tables", "curves", "speed")
QUICK_METRICS = {"image": ("psnr", "ssim"), "audio": ("psnr", "si_sdr")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `walloc evaluate`."""
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kind", choices=["image", "audio"], default="image")
    parser.add_argument("--data", metavar="DIR|ID", help="folder of images or audio, or id of a datasets repository")
    parser.add_argument("--split", default="test", help="of a datasets repository; default: %(default)s")
    parser.add_argument("--files", type=int, default=None, help="how many files, evenly spread; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every clip, from its middle; default: 30")
    parser.add_argument(
        "--models", nargs="*", metavar="MODEL", help="our codecs; default: the bundled ones of the kind"
    )
    parser.add_argument("--codecs", nargs="*", metavar="SPEC", help="exactly these rows instead of the default ones")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these; default: all that can be had")
    parser.add_argument("--data-name", metavar="TEXT", help="what results call the data; default: the folder's name")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--store", metavar="NAME", help="keep the result as docs/results/NAME.json, too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch; default: %(default)s")
    parser.add_argument("--full", action="store_true", help="all codecs, metrics and speeds of the paper's tables")
    parser.add_argument("--no-speed", action="store_true", help="leave out the timing")
    parser.add_argument("--speed-only", action="store_true", help="time neural codecs of others with random weights")
    parser.add_argument("--speed-sizes", nargs="+", metavar="BxHxW|BxS", help="signals to time on")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs, of which the median counts")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds of one thread: for busy machines"
    )
    parser.add_argument("--budget", type=float, default=20.0, help="seconds per codec and size before repeats stop")


def run(args: argparse.Namespace, command: str) -> dict:
    """What `walloc evaluate` does with its options.

    Args:
        command: as it was given, for the result to state.
    """
    if args.command != "speed" and not args.data:
        raise ValueError("--data is needed: a folder or the id of a datasets repository")
    if unknown := [name for name in args.metrics or () if name not in METRICS[args.kind]]:
        raise ValueError(f"unknown metric {unknown[0]!r} of {args.kind}; valid: {', '.join(METRICS[args.kind])}")
    data = None
    if args.command != "speed":
        data = Signals(args.data, args.kind, args.split, args.files, args.seconds, args.data_name)
    timing = None
    if not args.no_speed and (args.command == "speed" or (args.command == "tables" and args.full)):
        timing = Timing(args.speed_sizes, args.repeats, args.budget, args.cpu_time)
    codecs, metrics = args.codecs, args.metrics
    quick = args.command == "tables" and not args.full
    if codecs is None:
        codecs = quick_codecs(args.kind, args.models) if quick else default_codecs(args.command, args.kind, args.models)
        metrics = metrics or (QUICK_METRICS[args.kind] if quick else None)
    result = evaluate_codecs(codecs, data, args.kind, metrics, timing, args.out, args.speed_only)
    result = {"command": command, **result}
    if args.command == "curves":
        formats = [*IMAGE_FORMATS, *AUDIO_FORMATS]
        result["bd_rate"] = bd_rates(result["rows"], _curve_of, formats)
    write_result(result, args.out, f"docs/results/{args.store}.json" if args.store else None)
    print(to_markdown(result))
    return result


def _curve_of(row: dict) -> str | None:
    name, options = parse_spec(row["codec"])
    return None if name == "resize" or "channels" in options else name


def main(argv: Sequence[str] | None = None, program: str = "walloc evaluate") -> dict:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(in_kebab_case(argv))
    try:
        with torch_threads(1 if args.cpu_time else args.threads):
            return run(args, shown_command(program, in_kebab_case(argv)))
    except ValueError as error:
        parser.error(str(error))
