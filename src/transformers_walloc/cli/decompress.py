"""`walloc decompress`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..codec.size_limits import MAX_DECODED_PIXELS, MAX_DECODED_SAMPLES
from ..media.paths import MEDIA_SUFFIXES, STANDARD_STREAM, WALLOC_SUFFIX, find_files, read_bytes, write_bytes
from .jobs import plan_outputs, run_jobs
from .options import add_files, add_limits, add_model

_MAX_MEMORY = 2147  # MB

EXAMPLES = """\
  walloc decompress photo.walloc               # photo.png beside it (audio: .wav)
  walloc decompress photo.walloc -o photo.jpg  # the suffix names the format
  walloc decompress small/ -o full/ --format webp
  walloc decompress slide.walloc -o part.png --window 1024 2048 512 512 --max-pixels 0
  walloc decompress small/ -o previews/ --format jpg --linear
  walloc decompress song.walloc -o - --format flac | ffplay -

Images come back gray, with 16 bits, transparency and their colour profile if they had them, audio at its rate, channels
and bits per sample; what the chosen format cannot hold is said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, ".walloc files, folders, patterns, - for standard input")
    add_model(parser, "Hub id, local folder or bundled name; by default the bundled codec that the file names")
    parser.add_argument("--format", help="png, jpg, webp, wav, flac, mp3, ... where the output's name does not say")
    where = "only a part: of an image top left height width in pixels, of audio start and length in samples"
    parser.add_argument("--window", type=int, nargs="+", metavar="N", help=where)
    text = "a preview: many times as fast and less sharp, by the codec's linear decoder"
    parser.add_argument("--linear", action="store_true", help=text)
    add_limits(parser, MAX_DECODED_PIXELS, MAX_DECODED_SAMPLES)
    text = "megabytes that decoding may take; 0: any (%(default)s)"
    parser.add_argument("--max-memory", type=int, default=_MAX_MEMORY, metavar="MB", help=text)


def run(
    inputs: Sequence[str],
    output: str | None = None,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    format: str | None = None,
    window: Sequence[int] | None = None,
    linear: bool = False,
    max_pixels: int | None = MAX_DECODED_PIXELS,
    max_samples: int | None = MAX_DECODED_SAMPLES,
    max_memory: int | None = _MAX_MEMORY,
    force: bool = False,
    skip_existing: bool = False,
    jobs: int = 1,
) -> int:
    """Decompress files, as `walloc decompress --help` says; returns the exit status.

    Raises:
        ValueError: inputs that do not exist, an output or a format that cannot be.
    """
    suffix = f".{format.lower().lstrip('.')}" if format else None
    if suffix and suffix not in MEDIA_SUFFIXES:
        raise ValueError(f"unknown --format {format!r}; valid: {', '.join(MEDIA_SUFFIXES)}")

    def suffix_of(source: str) -> str:
        return suffix or _usual_suffix(source)

    plan = plan_outputs(find_files(inputs, (WALLOC_SUFFIX,)), output, suffix_of, force, skip_existing)
    for _, target in plan.jobs:
        if target != STANDARD_STREAM and Path(target).suffix.lower() not in MEDIA_SUFFIXES:
            raise ValueError(f"{target}: unknown suffix; valid: {', '.join(MEDIA_SUFFIXES)}")
    if not plan.jobs:
        return run_jobs(plan, lambda *_: None, jobs, "decompress")
    from ..codec.bitstream import unpack
    from ..media.file_codec import Codecs
    from ..media.messages import naming
    from ..media.streams import decompress_stream

    part = tuple(window) if window else None
    memory = max_memory * 10**6 if max_memory else None
    codecs = Codecs(device, dtype, linear=linear)
    limits = {"max_pixels": max_pixels or None, "max_samples": max_samples or None}

    def decompress(source: str, target: str) -> None:
        data = read_bytes(source)
        with naming(source):
            header, _ = unpack(data, **limits)
            codec = codecs.load(model) if model else codecs.of(header)
            name = f"-{suffix}" if target == STANDARD_STREAM and suffix else target
            if part is not None and len(part) != 2 * len(header.sizes):
                raise ValueError(f"--window of {header.kind} takes {2 * len(header.sizes)} numbers, got {len(part)}")
            if target != STANDARD_STREAM and decompress_stream(codec, data, header, target, part, memory):
                return
            encoded = codec.decompress(data, name, header, memory, part)
        write_bytes(target, encoded)

    return run_jobs(plan, decompress, jobs, "decompress")


def _usual_suffix(source: str) -> str:
    """Of what a file holds, by its first bytes."""
    from ..codec.bitstream import peek_kind

    if source == STANDARD_STREAM:
        return ".png"
    with open(source, "rb") as file:
        kind = peek_kind(file.read(8))
    return {"audio": ".wav", "raster": ".tif", "volume": ".tif"}.get(kind or "", ".png")
