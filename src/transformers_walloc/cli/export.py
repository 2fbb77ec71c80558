"""`walloc export`: a codec as graphs for other runtimes."""

import argparse
import itertools
from collections.abc import Sequence

EXAMPLES = """\
  walloc export walloc/rgb-16x -o rgb-16x-onnx
  walloc export ./my-codec -o graphs --parts encoder latent_decoder
  walloc export walloc/rgb-16x -o rgb-16x-onnx --parts decoder_int8 --calibration photos/"""
PARTS = ("encoder", "quantizer", "decoder", "latent_decoder", "decoder_int8")
CALIBRATION_FILES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="Hub id, local folder, or bundled name of a codec")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--format", default="onnx", choices=["onnx"])
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS[:3]), choices=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--calibration", metavar="PATH", help="for decoder_int8: pictures or audio files, of which a few are looked at"
    )


def run(
    model: str, output: str, *, format: str = "onnx", parts: Sequence[str] = PARTS[:3], calibration: str | None = None
) -> int:
    """Write the graphs and print where they are."""
    from ..export import export_codec
    from ..loading import load_codec

    codec, _ = load_codec(model)
    signals: list = []
    if "decoder_int8" in parts:
        if calibration is None:
            raise ValueError("decoder_int8 needs --calibration: a folder of pictures or audio, or a file")
        from ..training.scale import read_signals

        signals = list(itertools.islice(read_signals(codec.config, [calibration]), CALIBRATION_FILES))
    for part, path in export_codec(codec, output, format, parts, signals).items():
        print(f"{part}: {path}, {path.stat().st_size / 1e6:.2f} MB")
    return 0
