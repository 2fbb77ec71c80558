"""The command line: `walloc compress | decompress | info | compare | inspect`.

```
walloc compress photo.png                       # photo.walloc beside it, by the codec for images
walloc compress photos/ -o small/ --bpp 0.5     # a folder, at most half a bit for each pixel
walloc decompress small/photo.walloc -o photo.png
walloc info small/photo.walloc
walloc compare photo.png --output side.png      # beside JPEG, WebP and AVIF of the same size
walloc inspect photo.png -o pictures/           # what the latents look like, and what each channel stands for
```
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import PIL.Image

from ..codec.bitstream import MAX_PIXELS, MAX_SAMPLES, peek_kind, unpack
from ..media import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    STANDARD_STREAM,
    WALLOC_SUFFIX,
    MediaError,
    encode_image,
    find_files,
    kind_of,
    naming,
    read_bytes,
    write_bytes,
)
from .file_codec import Codecs, codec_of

KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, WALLOC_SUFFIX)
DEFAULT_CODECS = {"image": "rgb-16x", "audio": "stereo-20x"}

_MODEL_HELP = (
    "Hub id, local folder, or bundled name (rgb-4x, rgb-16x, rgb-16x-klt, stereo-5x, stereo-20x); by default rgb-16x "
    "for images and stereo-20x for audio"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 for errors (argparse exits with 2 for wrong usage)."""
    options = _parser().parse_args(arguments)
    is_main_thread = threading.current_thread() is threading.main_thread()
    # SIGTERM unwinds like Ctrl-C, so that temporary files go.
    pillow_limit = PIL.Image.MAX_IMAGE_PIXELS
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if is_main_thread else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries: what matters to the user is an error
            return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        _complain(error)
        return 1
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = pillow_limit
        if is_main_thread:
            signal.signal(signal.SIGTERM, previous)


def compress(options: argparse.Namespace) -> int:
    codecs = Codecs(options, encoder_only=options.psnr is None)
    # Pillow warns above its limit and refuses above twice that.
    PIL.Image.MAX_IMAGE_PIXELS = max(1, options.max_pixels // 2) if options.max_pixels else None
    inputs = find_files(options.inputs, IMAGE_SUFFIXES + AUDIO_SUFFIXES)
    jobs = _plan(inputs, options, WALLOC_SUFFIX)

    def run(source: str, target: str) -> None:
        data = read_bytes(source)
        kind = kind_of(source, data)
        if kind == "walloc":
            raise MediaError(f"{source}: already a .walloc file")
        codec = codecs.load(options.model or DEFAULT_CODECS[kind])
        with naming(source):
            write_bytes(target, codec.compress(source, data, kind, options))

    return _run_all(jobs, run, options.jobs)


def decompress(options: argparse.Namespace) -> int:
    codecs = Codecs(options)
    inputs = find_files(options.inputs, (WALLOC_SUFFIX,))
    suffix = options.format and f".{options.format.lower().lstrip('.')}"
    if suffix and suffix not in IMAGE_SUFFIXES + AUDIO_SUFFIXES:
        raise ValueError(f"unknown --format {options.format!r}; valid: {', '.join(IMAGE_SUFFIXES + AUDIO_SUFFIXES)}")
    limits = {"max_pixels": options.max_pixels or None, "max_samples": options.max_samples or None}

    def suffix_of(source: str) -> str:
        if suffix:
            return suffix
        if source == STANDARD_STREAM:
            return ".png"
        with open(source, "rb") as file:
            return ".wav" if peek_kind(file.read(8)) == "audio" else ".png"

    jobs = _plan(inputs, options, suffix_of)
    for _, target in jobs:
        if target != STANDARD_STREAM and Path(target).suffix.lower() not in IMAGE_SUFFIXES + AUDIO_SUFFIXES:
            raise ValueError(f"{target}: unknown suffix; valid: {', '.join(IMAGE_SUFFIXES + AUDIO_SUFFIXES)}")

    def run(source: str, target: str) -> None:
        data = read_bytes(source)
        with naming(source):
            header, _ = unpack(data, **limits)
            codec = codecs.load(options.model or codec_of(header))
            name = f"-{suffix}" if target == STANDARD_STREAM and suffix else target
            encoded = codec.decompress(data, header, name, limits)
        write_bytes(target, encoded)

    return _run_all(jobs, run, options.jobs)


def info(options: argparse.Namespace) -> int:
    status = 0
    for source, _ in find_files(options.inputs, (WALLOC_SUFFIX,)):
        try:
            data = read_bytes(source)
            with naming(source):
                facts = describe(source, data)
        except ValueError as error:
            _complain(error)
            status = 1
            continue
        if options.json:
            print(json.dumps(facts))
        else:
            width = max(map(len, facts))
            print("\n".join(f"{name:{width}}  {_readable(value)}" for name, value in facts.items()), end="\n\n")
    return status


def compare(options: argparse.Namespace) -> int:
    from ..evaluation.compare import compare_audio, compare_image, format_table

    codecs = Codecs(options)
    if options.output and os.path.exists(options.output) and not options.force:
        raise MediaError(f"{options.output}: exists already; --force overwrites it")
    data = read_bytes(options.input)
    kind = kind_of(options.input, data)
    if kind == "walloc":
        raise MediaError(f"{options.input}: compare takes the original image or audio, not a .walloc file")
    if kind == "audio" and options.output:
        raise ValueError("--output draws images; it is not for audio")
    codec = codecs.load(options.model or DEFAULT_CODECS[kind])
    with naming(options.input):
        blob = codec.compress(options.input, data, kind, options)
        if kind == "image":
            rows, picture = compare_image(codec, options.input, data, blob)
            if options.output:
                write_bytes(options.output, encode_image(picture(), options.output))
        else:
            rows = compare_audio(codec, options.input, data, blob)
    print(json.dumps(rows) if options.json else format_table(rows))
    return 0


def inspect(options: argparse.Namespace) -> int:
    from ..evaluation.inspection import inspect as draw

    data = read_bytes(options.input)
    kind = kind_of(options.input, data)
    header = unpack(data)[0] if kind == "walloc" else None
    name = options.model or (codec_of(header) if header else DEFAULT_CODECS[kind])
    with naming(options.input):
        for path in draw(options.input, Codecs(options).load(name).model, options.output):
            print(path)
    return 0


def describe(source: str, data: bytes) -> dict[str, Any]:
    """What a .walloc file says about itself, as a flat dict; needs no model."""
    header, payload = unpack(data, None, None)
    count = 1
    for size in header.sizes:
        count *= size
    facts: dict[str, Any] = {"file": source, "bytes": len(data), "codec": header.codec, "kind": header.kind}
    if header.kind == "image":
        facts |= {"height": header.sizes[0], "width": header.sizes[1]}
        facts |= {"channels": header.num_channels, "bits_per_pixel": 8 * len(data) / count}
        uncompressed = count * header.num_channels
    else:
        rate = header.sampling_rate or 1
        facts |= {"samples": count, "channels": header.num_channels, "sampling_rate": rate, "seconds": count / rate}
        facts |= {"gain": header.gain, "offset": header.offset, "kilobits_per_second": len(data) * rate / count / 125}
        uncompressed = count * header.num_channels * 2
        if header.source:
            channels, rate, length = header.source
            facts |= {"source_channels": channels, "source_sampling_rate": rate, "source_samples": length}
            uncompressed = channels * length * 2
    patch = header.patch_size**header.num_dims
    return facts | {
        "compression_ratio": uncompressed / len(data),
        "dimensionality_reduction": header.num_channels * patch / header.latent_channels,
        "latent_shape": list(header.latent_shape),
        "coded_channels": header.coded_channels,
        "latent_bits": header.latent_bits,
        "step": header.step,
        "patch_size": header.patch_size,
        "header_bytes": len(data) - len(payload),
        "coder": header.coder,
        "fingerprint": header.fingerprint,
        "entropy_tables": header.tables,
    }


def _plan(
    inputs: list[tuple[str, str]], options: argparse.Namespace, suffix: str | Callable[[str], str]
) -> list[tuple[str, str]]:
    """(input, output) of every file; raises before any work starts if outputs collide or exist."""
    output = options.output
    is_folder = output is not None and output != STANDARD_STREAM and (output.endswith(os.sep) or os.path.isdir(output))
    if output is not None and not is_folder and len(inputs) > 1:
        if output == STANDARD_STREAM or os.path.exists(output) or Path(output).suffix:
            raise ValueError(f"{len(inputs)} input files need a folder for -o, not {output!r}")
        is_folder = True
    jobs: dict[str, str] = {}
    for source, relative in inputs:
        if output is not None and not is_folder:
            target = output
        elif source == STANDARD_STREAM:
            if is_folder:
                raise ValueError("the standard input has no name: -o must be a file or '-'")
            target = STANDARD_STREAM
        else:
            base = os.path.join(output, relative) if is_folder else source
            stem, old_suffix = os.path.splitext(base)
            base = stem if old_suffix.lower() in KNOWN_SUFFIXES else base
            target = base + (suffix if isinstance(suffix, str) else suffix(source))
        if target in jobs:
            raise ValueError(f"{jobs[target]} and {source} would both be written to {target}")
        if target != STANDARD_STREAM and os.path.exists(target) and not options.force:
            raise MediaError(f"{target}: exists already; --force overwrites it")
        if target == STANDARD_STREAM and sys.stdout.isatty():
            raise ValueError("binary data is not written to a terminal: redirect the output or use -o")
        jobs[target] = source
    return [(source, target) for target, source in jobs.items()]


def _run_all(jobs: list[tuple[str, str]], run: Callable[[str, str], None], workers: int) -> int:
    """Every job, `workers` at a time. A failure is one line, and does not keep the others from being done."""
    failed = 0
    with _progress(len(jobs)) as advance, ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
                    _complain(error)
                    failed += 1
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed and len(jobs) > 1:
        print(f"walloc: {failed} of {len(jobs)} files failed", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], Any]]:
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="file", file=sys.stderr) as bar:
        yield bar.update


def _complain(error: BaseException) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"walloc: error: {text}", file=sys.stderr)


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="walloc",
        description="WaLLoC, wavelet learned lossy compression, for image and audio files.",
        epilog="`walloc COMMAND --help` explains a command with examples.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, summary: str, examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "compress",
        compress,
        "images and audio to .walloc files",
        "  walloc compress photo.png                         photo.walloc, beside the photo\n"
        "  walloc compress photo.png -o out.walloc --bpp 0.4 at most 0.4 bits per pixel\n"
        "  walloc compress photos/ -o small/ -j 4            a folder with its subfolders, four files at a time\n"
        "  walloc compress '*.wav' --kbps 24 --force         overwrites what is there\n"
        "  walloc compress - < photo.png > photo.walloc      between other programs",
    )
    _add_files(
        sub, "images (png jpg webp tiff avif), audio (wav flac ogg mp3), folders, patterns, - for standard input"
    )
    _add_model(sub)
    _add_rate(sub)
    sub.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images; 0: any (%(default)s)")

    sub = command(
        "decompress",
        decompress,
        ".walloc files to images and audio",
        "  walloc decompress photo.walloc                    photo.png beside it (audio: .wav)\n"
        "  walloc decompress photo.walloc -o photo.jpg       the suffix names the format\n"
        "  walloc decompress small/ -o full/ --format webp\n"
        "  walloc decompress song.walloc -o - --format flac | ffplay -",
    )
    _add_files(sub, ".walloc files, folders, patterns, - for standard input")
    _add_model(sub, "Hub id, local folder or bundled name; by default the bundled codec that the file names")
    sub.add_argument("--format", help="png, jpg, webp, wav, flac, mp3, ... where the output's name does not say")
    sub.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger images; 0: any (%(default)s)")
    sub.add_argument(
        "--max-samples", type=int, default=MAX_SAMPLES, help="refuse longer audio, per channel; 0: any (%(default)s)"
    )

    sub = command(
        "info",
        info,
        "what .walloc files contain, without decoding them",
        "  walloc info photo.walloc\n  walloc info --json small/ | jq .bits_per_pixel",
    )
    sub.add_argument("inputs", nargs="+", metavar="FILE", help=".walloc files, folders, patterns, - for standard input")
    sub.add_argument("--json", action="store_true", help="one JSON object in each line")

    sub = command(
        "compare",
        compare,
        "quality beside JPEG, WebP and AVIF (audio: MP3, Vorbis and Opus) of the same size",
        "  walloc compare photo.png\n"
        "  walloc compare photo.png --model rgb-4x --bpp 1 --output side.png\n"
        "  walloc compare song.wav --kbps 32",
    )
    sub.add_argument("input", metavar="FILE", help="an image or audio file, - for standard input")
    sub.add_argument("--output", metavar="PICTURE", help="write the results side by side as an image")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite the picture")
    _add_model(sub)
    _add_rate(sub)

    sub = command(
        "inspect",
        inspect,
        "pictures of a file's latents: reconstruction, channels, histograms, what each channel stands for",
        "  walloc inspect photo.png -o pictures/\n  walloc inspect song.flac -o pictures/ --model stereo-5x",
    )
    sub.add_argument("input", metavar="FILE", help="an image, an audio or a .walloc file")
    sub.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the pictures; made if absent")
    _add_model(sub)
    return parser


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=what)
    parser.add_argument("-o", "--output", help="a file, a folder (ends with / or exists), or - for standard output")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files")
    parser.add_argument("-j", "--jobs", type=_count, default=1, metavar="N", help="files at a time (%(default)s)")


def _add_model(parser: argparse.ArgumentParser, what: str = _MODEL_HELP) -> None:
    parser.add_argument("--model", help=what)
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (%(default)s)"
    )


def _add_rate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--step", type=float, default=1.0, help="quantisation step, from 1 (finest, default) to coarser")
    group.add_argument("--bpp", type=_positive, help="images: at most so many bits per pixel, header included")
    group.add_argument("--kbps", type=_positive, help="audio: at most so many kilobits per second, header included")
    group.add_argument("--psnr", type=_positive, help="the smallest file that reaches this PSNR, in dB")
    parser.add_argument("--channels", type=_count, metavar="K", help="keep the first K latent channels only")
