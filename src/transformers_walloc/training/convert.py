"""Turn a checkpoint of the original WaLLoC (github.com/danjacobellis/walloc) into a model folder.

    pip install 'transformers-walloc[original]'
    walloc convert RGB_16x.pth RGB_16x.json rgb-16x-original

The folder then loads with `AutoModel.from_pretrained("rgb-16x-original")`. Nothing that the pickle holds is run, and
weights that are missing or left over are an error.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from .conversion import convert_files


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
    options = parser.parse_args(argv)
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
        print(f"error: {error}; replace it with --force", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if ignored:
        print(f"not part of a model, left out: {', '.join(ignored)}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.folder}: {type(model).__name__}, {parameters:,} parameters, fingerprint {model.fingerprint()}")
    return 0
