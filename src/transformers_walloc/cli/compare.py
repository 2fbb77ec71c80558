"""`walloc compare`."""

import argparse
import json as json_module
import os
from typing import Any

from ..media.messages import MediaError
from ..media.paths import read_bytes, write_bytes
from .options import DEFAULT_CODECS, add_model, add_rate

EXAMPLES = """\
  walloc compare photo.png
  walloc compare photo.png --model rgb-4x --bpp 1 --output side.png
  walloc compare song.wav --kbps 32"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE", help="an image or audio file, - for standard input")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="write the results side by side as an image")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite the picture")
    add_model(parser)
    add_rate(parser)


def run(
    input: str,
    *,
    output: str | None = None,
    json: bool = False,
    force: bool = False,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    step: float = 1.0,
    bpp: float | None = None,
    kbps: float | None = None,
    psnr: float | None = None,
    channels: int | None = None,
    refine: int = 0,
) -> int:
    """Print a codec's size and quality beside those of common formats at the same size.

    Raises:
        ValueError: a file that cannot be read, an option that does not fit it.
    """
    if output and os.path.exists(output) and not force:
        raise MediaError(f"{output}: exists already; --force overwrites it")
    data = read_bytes(input)
    from ..media.kinds import kind_of
    from ..media.messages import naming
    from ..media.pictures import encode_image

    kind = kind_of(input, data)
    if kind == "walloc":
        raise MediaError(f"{input}: compare takes the original image or audio, not a .walloc file")
    if kind == "audio" and output:
        raise ValueError("--output draws images; it is not for audio")
    from ..evaluation.compare import compare_audio, compare_image, format_table
    from ..media.file_codec import Codecs

    codec = Codecs(device, dtype).load(model or DEFAULT_CODECS[kind])
    with naming(input):
        if codec.kind == "volume" or (kind == codec.kind == "image" and codec.raster(input, data)):
            what = "a volume" if codec.kind == "volume" else "a raster in its own type"
            raise MediaError(f"{input}: {codec.name!r} keeps it as {what}; compare is for pictures and audio")
        rate: dict[str, Any] = {"step": step, "bpp": bpp, "kbps": kbps, "psnr": psnr, "channels": channels}
        blob = codec.compress(input, data, kind, refine=refine, **rate)
        if kind == "image":
            rows, picture = compare_image(codec, input, data, blob)
            if output:
                write_bytes(output, encode_image(picture(), output))
        else:
            rows = compare_audio(codec, input, data, blob)
    print(json_module.dumps(rows) if json else format_table(rows))
    return 0
