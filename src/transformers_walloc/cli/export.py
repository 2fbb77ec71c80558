"""`walloc export`: a codec as graphs for other runtimes."""

import argparse
from collections.abc import Sequence

EXAMPLES = """\
  walloc export walloc/rgb-16x -o rgb-16x-onnx
  walloc export ./my-codec -o graphs --parts encoder latent_decoder"""
PARTS = ("encoder", "quantizer", "decoder", "latent_decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="Hub id, local folder, or bundled name of a codec")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--format", default="onnx", choices=["onnx"])
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS[:3]), choices=PARTS, metavar="PART", help=", ".join(PARTS)
    )


def run(model: str, output: str, *, format: str = "onnx", parts: Sequence[str] = PARTS[:3]) -> int:
    """Write the graphs and print where they are."""
    from ..export import export_codec
    from ..loading import load_codec

    codec, _ = load_codec(model)
    for part, path in export_codec(codec, output, format, parts).items():
        print(f"{part}: {path}, {path.stat().st_size / 1e6:.2f} MB")
    return 0
