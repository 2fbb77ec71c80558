"""Files by name: the suffixes of each kind, what a command line's arguments stand for, and their bytes."""

import contextlib
import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..atomic import write_atomically
from .messages import MediaError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".bmp", ".ppm", ".gif")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}  # of the kinds that there are bundled codecs for
RASTER_SUFFIXES = (".tif", ".tiff", ".npy")  # any number of bands and bits
VIDEO_SUFFIXES = (".mkv", ".mp4", ".mov", ".avi", ".webm")
MEDIA_SUFFIXES = tuple(dict.fromkeys(IMAGE_SUFFIXES + RASTER_SUFFIXES + AUDIO_SUFFIXES + VIDEO_SUFFIXES))
WALLOC_SUFFIX = ".walloc"
STANDARD_STREAM = "-"
LATENT_DATASET = "walloc_latents.json"  # in the folder of a data set of latents


def find_files(names: Iterable[str], suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Expand files, folders (recursively) and glob patterns.

    Args:
        names: as on the command line; "-" stands for the standard input.
        suffixes: files of a folder or a pattern's folders with other suffixes are left out, and hidden ones. Named
            files never are.

    Returns:
        (path, relative path for a folder of results) of each file, in order, without repetition. It is relative to the
        folder that was named, to the part of a pattern in front of its first wildcard, or for files that were named
        themselves to the folder that all of them share.

    Raises:
        MediaError: nothing there, or nothing with these suffixes.
    """
    found: dict[str, str] = {}
    names = list(names)
    named = [os.path.abspath(name) for name in names if name != STANDARD_STREAM and os.path.isfile(name)]
    shared = ""
    with contextlib.suppress(ValueError):  # none, or on different drives
        shared = os.path.commonpath([os.path.dirname(path) for path in named])
    for name in names:
        if name == STANDARD_STREAM:
            found.setdefault(name, name)
        elif os.path.isdir(name):
            inside = _inside(name, suffixes)
            if not inside:
                latents = os.path.exists(os.path.join(name, LATENT_DATASET))
                hint = "; it is a data set of latents: transformers_walloc.decode_rows gives its pictures" * latents
                raise MediaError(f"{name}: the folder has no file of type {', '.join(suffixes)}{hint}")
            found.update((path, os.path.relpath(path, name)) for path in inside if path not in found)
        elif os.path.exists(name):
            found.setdefault(name, os.path.relpath(os.path.abspath(name), shared) if shared else os.path.basename(name))
        elif glob.has_magic(name):
            root = _root(name)
            entries = sorted(glob.glob(name, recursive=True))
            paths = [path for e in entries for path in (_inside(e, suffixes) if os.path.isdir(e) else [e])]
            if not paths:
                raise MediaError(f"{name}: no file matches this pattern")
            found.update((path, os.path.relpath(path, root)) for path in paths if path not in found)
        else:
            raise MediaError(f"{name}: no such file or folder")
    return list(found.items())


def list_files(folder: str | os.PathLike, suffixes: Sequence[str]) -> list[Path]:
    """The files below a folder by suffix, sorted; MediaError if there are none."""
    return [Path(path) for path, _ in find_files([os.fspath(folder)], tuple(suffixes))]


def _inside(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    paths = (p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return [str(p) for p in sorted(paths) if not p.name.startswith(".")]


def _root(pattern: str) -> str:
    """The folder in front of the first wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def read_bytes(path: str) -> bytes:
    """Content of a file, or of the standard input; MediaError where there is none."""
    if path == STANDARD_STREAM:
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror}") from error


def write_bytes(path: str, data: bytes) -> None:
    """`write_atomically` for the command line: also "-", pipes and devices; errors name the file."""
    try:
        if path == STANDARD_STREAM:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            Path(path).write_bytes(data)  # /dev/null must stay what it is
        else:
            write_atomically(path, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror}") from error
