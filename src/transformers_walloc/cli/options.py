"""Options that several commands share."""

import argparse
import sys
from collections.abc import Sequence

from ..bundled import BUNDLED_NAMES

DEFAULT_CODECS = {"image": "rgb-16x", "audio": "stereo-20x"}
MODEL_HELP = (
    f"Hub id, local folder, or bundled name ({', '.join(BUNDLED_NAMES)}); by default {DEFAULT_CODECS['image']} for "
    f"images and {DEFAULT_CODECS['audio']} for audio"
)


def add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=what)
    parser.add_argument("-o", "--output", help="a file, a folder (ends with / or exists), or - for standard output")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    existing.add_argument("-s", "--skip-existing", action="store_true", help="leave out what has been written before")
    parser.add_argument("-j", "--jobs", type=count, default=1, metavar="N", help="files at a time (%(default)s)")


def add_model(parser: argparse.ArgumentParser, what: str = MODEL_HELP) -> None:
    parser.add_argument("--model", help=what)
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (%(default)s)"
    )


def add_rate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--step", type=float, default=1.0, help="quantisation step, from 1 (finest, default) to coarser")
    group.add_argument("--bpp", type=positive, help="images: at most so many bits per pixel, header included")
    group.add_argument("--kbps", type=positive, help="audio: at most so many kilobits per second, header included")
    group.add_argument("--psnr", type=positive, help="the smallest file that reaches this PSNR, in dB")
    parser.add_argument("--channels", type=count, metavar="K", help="keep the first K latent channels only")
    search = "search N steps for codes that the decoder makes more of: sharper at the same size, slow (try 5 to 20)"
    parser.add_argument("--refine", type=count, default=0, metavar="N", help=search)


def add_limits(parser: argparse.ArgumentParser, max_pixels: int, max_samples: int) -> None:
    for name, default, what in (
        ("pixels", max_pixels, "larger images"),
        ("samples", max_samples, "longer audio, in samples per channel"),
    ):
        text = f"refuse {what}; 0: any (%(default)s)"
        parser.add_argument(f"--max-{name}", type=int, default=default, metavar="N", help=text)


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def in_kebab_case(arguments: Sequence[str] | None) -> list[str]:
    """A command line (default: this process's) with `--an-option` for `--an_option`, as it was once spelt."""

    def spelt(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value if word.startswith("--") else word

    return [spelt(word) for word in (sys.argv[1:] if arguments is None else arguments)]
