"""The compiled kernels: where their library is, whether it runs here, how it is built.

What they compute is in `codec/`, beside the numpy and torch code that they stand in for; docs/concepts/kernels.md has
the whole story. `WALLOC_NO_NATIVE=1` switches them off.
"""

import ctypes
import functools
import os
import platform
from pathlib import Path
from typing import NamedTuple

from .build import FOLDER, BuildError, compile_library, library_name

__all__ = ["BuildError", "Kernels", "build", "cache_folder", "describe", "load"]


class Kernels(NamedTuple):
    """The library, or None and the reason."""

    library: ctypes.CDLL | None
    path: Path | None
    reason: str


def cache_folder() -> Path:
    """Where `build` puts the library: `$XDG_CACHE_HOME/transformers-walloc`, `~/.cache/transformers-walloc`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers-walloc"


def build() -> Path:
    """Compile the library into the user's cache, unless it is in the package or was compiled before.

    Raises:
        BuildError: no compiler, or one that fails.
    """
    path = FOLDER / library_name()
    path = path if path.is_file() else compile_library(cache_folder())
    load.cache_clear()
    return path


@functools.cache
def load() -> Kernels:
    """The library beside the sources, else the one in the user's cache."""
    if os.environ.get("WALLOC_NO_NATIVE", "0") not in ("", "0"):
        return Kernels(None, None, "switched off by WALLOC_NO_NATIVE")
    try:
        name = library_name()
    except OSError as error:
        return Kernels(None, None, f"the sources are missing: {error}")
    path = next((folder / name for folder in (FOLDER, cache_folder()) if (folder / name).is_file()), None)
    if path is None:
        return Kernels(None, None, "not built; python -m transformers_walloc.native builds them where a compiler is")
    try:
        library = ctypes.CDLL(str(path))
        supported = library.walloc_supported()
    except (OSError, AttributeError) as error:
        return Kernels(None, path, f"the library does not load: {error}")
    if not supported:
        return Kernels(None, path, f"this processor ({platform.machine()}) lacks AVX2, FMA or BMI2")
    return Kernels(library, path, "")


def describe() -> str:
    """One line: what runs, and why."""
    kernels = load()
    if kernels.library is None:
        return f"kernels: numpy and torch ({kernels.reason})"
    instructions = "AVX2 and FMA" if platform.machine().lower() in ("x86_64", "amd64") else platform.machine()
    return f"kernels: compiled, {instructions} ({kernels.path})"
