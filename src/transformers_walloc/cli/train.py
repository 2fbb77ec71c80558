"""Train a WaLLoC codec on folders of images or audio: closed-form start, then the decoder.

The projection and the linear synthesis come from one pass over the data (Karhunen-Loeve transform) and are the whole
codec already; the network of the decoder starts at zero on top of them and is trained with uniform noise in place of
rounding. The run can be stopped at any time and continues where it was when the same command is given again.

    walloc train --kind image --latent-channels 12 --step 0.1 \\
        --train /data/photos:0.93 /data/documents:0.07 --validation /data/kodak --output runs/rgb-16x --minutes 60

A better decoder for a published codec, which keeps reading and writing the same files; one that is wider or deeper
starts as the one that the codec has (`--encoder-from` starts a network from nothing in its place):

    walloc train --kind image --continue-from walloc/rgb-16x \\
        --train /data/photos --validation /data/kodak --output runs/rgb-16x-2 --minutes 600

On a GPU the crops of the CPU are waited for; there they are cut on it, in large batches:

    walloc train --kind image --continue-from walloc/rgb-16x --train-encoder \\
        --train /data/photos --validation /data/kodak --output runs/rgb-16x-2 --minutes 10 \\
        --on-device --compile --muon --batch-size 64 --learning-rate 1.5e-3 --log-floor 7e-4 --rate-weight 0.0145

`scripts/train_codec.py` of the repository is the same. On several GPUs:
`torchrun --nproc-per-node 8 scripts/train_codec.py ...`, where `--batch-size` is that of each.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from ..training.recipe import Recipe, train_codec
from .options import in_kebab_case


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc train`."""
    train_codec(parse_recipe(argv))
    return 0


def parse_recipe(argv: Sequence[str] | None = None) -> Recipe:
    """The recipe that a command line stands for; exits with a message where it is none."""
    recipe_class: Any = Recipe
    parser = HfArgumentParser(
        recipe_class, prog="walloc train", description=__doc__, formatter_class=_Formatter, allow_abbrev=False
    )
    for action in parser._actions:  # transformers shows every option in both spellings
        action.option_strings = [name for name in action.option_strings if "_" not in name]
    try:
        (recipe,) = parser.parse_args_into_dataclasses(in_kebab_case(argv))
    except ValueError as error:
        parser.error(str(error))
    return recipe


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The text as it is, and the default of every option."""
