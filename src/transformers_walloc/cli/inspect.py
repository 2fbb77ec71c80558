"""`walloc inspect`."""

import argparse

from ..media.paths import read_bytes
from .options import DEFAULT_CODECS, add_model

EXAMPLES = """\
  walloc inspect photo.png -o pictures/
  walloc inspect song.flac -o pictures/ --model stereo-5x

Writes the reconstruction, the latent channels as pictures, their histograms, what each channel stands for, and
index.html, one page that holds them all. In Python: transformers_walloc.evaluation.inspection.inspect, and the single
pictures in transformers_walloc.evaluation.plots."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE", help="an image, an audio or a .walloc file")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the pictures; made if absent")
    add_model(parser)


def run(input: str, output: str, *, model: str | None = None, device: str | None = None, dtype: str = "float32") -> int:
    """Draw a file's latents into the folder `output` and print the names of the pictures.

    Raises:
        ValueError: a file that cannot be read, or is not for the codec.
    """
    data = read_bytes(input)
    from ..codec.bitstream import unpack
    from ..media.kinds import kind_of
    from ..media.messages import naming

    kind = kind_of(input, data)
    with naming(input):
        header = unpack(data)[0] if kind == "walloc" else None
        from ..evaluation.inspection import inspect as draw
        from ..media.file_codec import Codecs

        codecs = Codecs(device, dtype)
        codec = codecs.of(header) if header and not model else codecs.load(model or DEFAULT_CODECS[kind])
        for path in draw(input, codec.model, output):
            print(path)
    return 0
