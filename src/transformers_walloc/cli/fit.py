"""Fit a codec to your own signals in one pass: images and volumes of any bands and bits, audio of any channels.

    walloc fit scans/ --output my-codec                                  # what the data are is found and printed
    walloc fit scenes/*.tif --output bands-8x --dimensionality-reduction 8
    walloc fit scans/ --output scan-blocks --symmetric                   # latents that can be flipped and cropped
    walloc fit recordings/ --output array-mic --psnr 45 --minutes 10     # and train its decoder
    walloc fit stacks/ --output scanner --kind volume                    # pages of a TIFF, or NumPy, are slices

The pass accumulates the covariance of the wavelet packet coefficients; its leading eigenvectors are the codec
(Karhunen-Loeve transform). The same data give the same codec. The folder loads with
`AutoModel.from_pretrained("my-codec")`, and `walloc compress --model my-codec` uses it. Its fit.json keeps the options.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from .options import in_kebab_case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `walloc fit`."""
    parser.add_argument(
        "data", nargs="+", metavar="DATA", help="folders, files or patterns: images, TIFF, NPY, audio, video"
    )
    parser.add_argument("--output", "-o", required=True, metavar="DIR", help="model folder to write")
    parser.add_argument("--kind", choices=["image", "audio", "volume"], help="where data do not tell")
    parser.add_argument("--num-channels", type=int, metavar="N", help="1 makes gray or mono, 3 colour; default: as is")
    parser.add_argument("--sampling-rate", type=int, metavar="HZ", help="resample audio; default: that of the first")
    parser.add_argument(
        "--sample-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the samples; default: measured"
    )
    parser.add_argument("--nodata", type=float, metavar="VALUE", help="marks missing samples")
    parser.add_argument("--band-names", nargs="+", metavar="NAME", help="kept in the files")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--dimensionality-reduction", type=float, metavar="R", help="R times fewer numbers; default: 16")
    size.add_argument("--latent-channels", type=int, metavar="K", help="the same as a number of channels")
    size.add_argument("--psnr", type=float, metavar="DB", help="the fewest channels that reach it")
    parser.add_argument("--num-levels", type=int, metavar="J", help="wavelet levels; default: 3, audio 8, volumes 2")
    parser.add_argument("--wavelet", metavar="NAME", help="of PyWavelets; default: bior4.4 (CDF 9/7)")
    parser.add_argument("--boundary", choices=["symmetric", "periodization"], help="default: the one that fits")
    parser.add_argument(
        "--symmetric",
        action="store_true",
        help="16 x 16 blocks that do not overlap: latents can be flipped, rotated and cropped; for learners",
    )
    coarse = parser.add_mutually_exclusive_group()
    coarse.add_argument("--step", type=float, help="quantisation step over the range of samples; default: from data")
    coarse.add_argument("--rate", type=float, metavar="R", help="bits per pixel or kbit/s to choose the step for")
    parser.add_argument("--validation", nargs="+", metavar="DATA", help="measure on these; default: every 8th signal")
    parser.add_argument("--table-steps", type=int, default=200, help="of the entropy coder; default: 200; 0: none")
    parser.add_argument("--minutes", type=float, default=0.0, help="train a network for the decoder; default: 0")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the folder")


def run(options: argparse.Namespace) -> int:
    """`walloc fit` with parsed options."""
    from ..training.fit import fit_codec

    settings = {name: value for name, value in vars(options).items() if name not in ("force", "push_to_hub", "run")}
    sample_range = tuple(settings.pop("sample_range") or ()) or None
    fit_codec(**settings, sample_range=sample_range, overwrite=options.force)
    facts = Path(options.output) / "fit.json"
    write_atomically(facts, json.dumps(json.loads(facts.read_text()) | {"options": _given(options)}, indent=2) + "\n")
    print(f"wrote {options.output}")
    if options.push_to_hub:
        from ..publishing.upload import publish

        print(f"published {options.push_to_hub}: {publish(options.output, options.push_to_hub)}")
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What makes the same codec again: the options that were given, and of absolute paths the last part only."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    left_out = ("output", "force", "push_to_hub", "run")
    given = {name: value for name, value in vars(options).items() if name not in left_out}
    given = {name: value for name, value in given.items() if value != parser.get_default(name)}
    for name in ("data", "validation"):
        if name in given:
            given[name] = [Path(path).name if Path(path).is_absolute() else path for path in given[name]]
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc fit`."""
    parser = argparse.ArgumentParser(
        prog="walloc fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(in_kebab_case(argv)))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
