"""`walloc compress`."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..codec.size_limits import MAX_ENCODED_PIXELS, MAX_ENCODED_SAMPLES
from ..media.messages import MediaError
from ..media.paths import MEDIA_SUFFIXES, WALLOC_SUFFIX, find_files
from .jobs import plan_outputs, run_jobs
from .options import DEFAULT_CODECS, add_files, add_limits, add_model, add_rate

EXAMPLES = """\
  walloc compress photo.png                          # photo.walloc, beside the photo
  walloc compress photo.png -o out.walloc --bpp 0.4  # at most 0.4 bits per pixel
  walloc compress photo.png --refine 10 --force      # sharper in a few percent more bytes; some 20 s a megapixel
  walloc compress photos/ -o small/ -j 4             # a folder with its subfolders, four files at a time
  walloc compress photos/ -o small/ --skip-existing  # the same job again: only what is new
  walloc compress '*.wav' --kbps 24                  # a pattern
  walloc compress concert.flac --downmix             # six channels to stereo
  walloc compress - < photo.png > copy.walloc        # between other programs

Images are upright afterwards; metadata is not kept, but transparency and colour profiles are, without loss, and so is
whether there were 16 bits or gray. What a .walloc file does not keep (frames of an animation, CMYK) is said. a.png and
a.jpg in one job become a.png.walloc and a.jpg.walloc. Large 8-bit TIFF, and audio of the codec's rate, are read in
pieces, whatever their size (--max-pixels 0, --max-samples 0)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "images (png jpg webp tiff avif), audio (wav flac ogg mp3), folders, patterns, - for standard input"
    add_files(parser, what)
    add_model(parser)
    add_rate(parser)
    parser.add_argument("--downmix", action="store_true", help="audio of more channels than the codec to stereo")
    add_limits(parser, MAX_ENCODED_PIXELS, MAX_ENCODED_SAMPLES)


def run(
    inputs: Sequence[str],
    output: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    step: float = 1.0,
    bpp: float | None = None,
    kbps: float | None = None,
    psnr: float | None = None,
    channels: int | None = None,
    refine: int = 0,
    downmix: bool = False,
    max_pixels: int | None = MAX_ENCODED_PIXELS,
    max_samples: int | None = MAX_ENCODED_SAMPLES,
    force: bool = False,
    skip_existing: bool = False,
    jobs: int = 1,
) -> int:
    """Compress files, as `walloc compress --help` says; returns the exit status.

    What goes wrong with one file is said on the standard error and does not keep the others from being done.

    Raises:
        ValueError: inputs that do not exist, an output that cannot be.
    """
    plan = plan_outputs(find_files(inputs, MEDIA_SUFFIXES), output, lambda _: WALLOC_SUFFIX, force, skip_existing)
    if not plan.jobs:
        return run_jobs(plan, lambda *_: None, jobs, "compress")
    from ..media.file_codec import Codecs, FileCodec, no_pillow_limit
    from ..media.kinds import kind_of
    from ..media.messages import naming
    from ..media.paths import read_bytes, write_bytes
    from ..media.streams import compress_stream

    codecs = Codecs(device, dtype, encoder_only=psnr is None and not refine)
    limits: dict[str, Any] = {"max_pixels": max_pixels or None, "max_samples": max_samples or None}
    rate: dict[str, Any] = {"step": step, "bpp": bpp, "kbps": kbps, "psnr": psnr, "channels": channels}
    rate["refine"] = refine

    def codec_for(kind: str) -> FileCodec:
        return codecs.load(model or DEFAULT_CODECS[kind])

    def compress(source: str, target: str) -> None:
        if bpp is None and kbps is None and psnr is None and not downmix and not refine:
            with naming(source):
                blob = compress_stream(codec_for, source, limits, step=step, num_channels=channels)
            if blob is not None:
                write_bytes(target, blob)
                return
        data = read_bytes(source)
        kind = kind_of(source, data)
        if kind == "walloc":
            raise MediaError(f"{source}: already a .walloc file")
        if not model and kind not in DEFAULT_CODECS:
            raise MediaError(
                f"{source}: no bundled codec is for volumes and video: fit one (walloc fit), and give --model"
            )
        codec = codec_for(kind)
        with naming(source):
            blob = codec.compress(source, data, kind, downmix=downmix, **rate, **limits)
        write_bytes(target, blob)

    with no_pillow_limit():
        return run_jobs(plan, compress, jobs, "compress")
