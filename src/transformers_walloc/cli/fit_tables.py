"""Fit the entropy coder's tables to a trained codec and store them in its checkpoint.

    walloc fit-tables runs/rgb-16x --data photos/  # images or audio that it was trained on
    walloc fit-tables runs/rgb-16x --data photos/ --steps 2000 --out runs/rgb-16x-coded

Codes at the steps of --code-steps are mixed, so that the tables also suit files that rate control made coarser. Files
that were written with other tables can no longer be read with the checkpoint: fit before publishing it.
"""

import argparse
from collections.abc import Sequence

from ..training.fit_tables import fit_tables
from .options import in_kebab_case


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc fit-tables`."""
    parser = argparse.ArgumentParser(
        prog="walloc fit-tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codec", metavar="DIR", help="checkpoint folder")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of training images or audio")
    parser.add_argument("--files", type=int, help="how many files, evenly spread; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every clip, from its middle; default: 30")
    parser.add_argument("--code-steps", type=float, nargs="+", default=[1.0, 2.0], help="default: 1 2")
    parser.add_argument("--steps", type=int, default=5000, help="optimisation steps per network; default: 5000")
    parser.add_argument("--hidden", type=int, default=16, help="size of the networks; default: 16")
    parser.add_argument("--device", default="cpu", help="where they are optimised; default: cpu")
    parser.add_argument("--out", metavar="DIR", help="default: the checkpoint folder itself")
    arguments = parser.parse_args(in_kebab_case(argv))
    fit_tables(**vars(arguments), progress=print)
    print(f"tables stored in {arguments.out or arguments.codec}")
    return 0
