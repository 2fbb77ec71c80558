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

from .build import FOLDER, BuildError, compile_libraries, levels, library_name

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
    """Compile the libraries into the user's cache, unless they are in the package or were compiled before.

    Returns:
        The one that this processor takes.

    Raises:
        BuildError: no compiler, or one that fails.
    """
    if not all((FOLDER / library_name(level)).is_file() for level in levels()):
        compile_libraries(cache_folder())
    load.cache_clear()
    loaded = load()
    if loaded.path is None:
        raise BuildError(loaded.reason)
    return loaded.path


@functools.cache
def load() -> Kernels:
    """The library of the widest vectors that this processor has, beside the sources or in the user's cache."""
    if os.environ.get("WALLOC_NO_NATIVE", "0") not in ("", "0"):
        return Kernels(None, None, "switched off by WALLOC_NO_NATIVE")
    reason = "not built; python -m transformers_walloc.native builds them where a compiler is"
    try:
        names = [library_name(level) for level in levels()]
    except OSError as error:
        return Kernels(None, None, f"the sources are missing: {error}")
    for name in names:
        path = next((folder / name for folder in (FOLDER, cache_folder()) if (folder / name).is_file()), None)
        if path is None:
            continue
        try:
            library = ctypes.CDLL(str(path))
            if library.walloc_supported():
                return Kernels(library, path, "")
            reason = f"this processor ({platform.machine()}) lacks AVX2, FMA or BMI2"
        except (OSError, AttributeError) as error:
            reason = f"the library does not load: {error}"
    return Kernels(None, None, reason)


def describe() -> str:
    """One line: what runs, and why."""
    kernels = load()
    if kernels.library is None or kernels.path is None:
        return f"kernels: numpy and torch ({kernels.reason})"
    return f"kernels: compiled ({kernels.path})"
