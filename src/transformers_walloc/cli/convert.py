"""Checkpoints of the original implementation (PyPI package `walloc`, version 1.2.1) as models of this package.

    pip install 'transformers-walloc[original]'
    walloc convert RGB_16x.pth RGB_16x.json rgb-16x-original

The folder then loads with `AutoModel.from_pretrained("rgb-16x-original")`. Both files are read as foreign input: no
pickled code runs, and a weight that is missing, left over, of another shape or not finite is an error.
"""

import argparse
from collections.abc import Sequence

import torch

from ..training.conversion import convert_files
from .console import complain
from .options import in_kebab_case


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc convert`."""
    parser = argparse.ArgumentParser(
        prog="walloc convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CKPT.pth")
    parser.add_argument("config", metavar="CONFIG.json")
    parser.add_argument("folder", metavar="OUT_DIR")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="what the decoder is stored in (default: float32); the encoder is always stored in float32",
    )
    parser.add_argument("--sampling-rate", type=int, default=44100, help="of audio codecs, in Hz (default: 44100)")
    parser.add_argument("--force", action="store_true", help="replace OUT_DIR if it exists")
    options = parser.parse_args(in_kebab_case(argv))
    try:
        model, ignored = convert_files(
            options.checkpoint,
            options.config,
            options.folder,
            dtype=getattr(torch, options.dtype),
            sampling_rate=options.sampling_rate,
            overwrite=options.force,
        )
    except FileExistsError as error:
        complain(f"{error}; replace it with --force")
        return 1
    except (ValueError, OSError, ImportError) as error:
        complain(error)
        return 1
    if ignored:
        print(f"not part of a model, left out: {', '.join(ignored)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.folder}: {type(model).__name__}, {parameters:,} parameters, fingerprint {model.fingerprint()}")
    return 0
