"""The compiled kernels that stand in for functions of this folder where they are built: docs/concepts/kernels.md."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np

INTERFACE = 6  # of the library's functions and structures, see native/support.cpp
_NO_MEMORY = 3

_switched_off = 0


def library() -> ctypes.CDLL | None:
    """The library of the installed package, or None: numpy and torch do the same."""
    if _switched_off:
        return None
    try:  # The Hub has copies of this folder alone, which use the library of an installed package.
        from transformers_walloc.native import load
    except ImportError:
        return None
    loaded = load().library
    return loaded if loaded is not None and loaded.walloc_interface() == INTERFACE else None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Run a block, on all threads, with numpy and torch alone."""
    global _switched_off
    _switched_off += 1
    try:
        yield
    finally:
        _switched_off -= 1


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    """Where the first element of an array lies; the caller keeps the array alive."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def check(status: int) -> int:
    """Raises MemoryError if the kernel had not enough; other states are the caller's."""
    if status == _NO_MEMORY:
        raise MemoryError("not enough memory for the compiled kernel")
    return status
