"""What a long job shows while it works: a bar on a terminal, a line now and then in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .console import say

FIRST_LINE = 10.0  # seconds; each further line comes after as much time again as has passed


@contextlib.contextmanager
def signs_of_life(total: int, what: str) -> Iterator[Callable[[], object]]:
    """Show on the standard error how far a job is; what is given is called after each of `total` files.

    Args:
        what: is done to them, "compress".
    """
    ended, done, started = threading.Event(), [0], time.monotonic()
    bar = _bar(total)

    def advance() -> None:
        done[0] += 1
        if bar is not None:
            bar.update()

    def show() -> None:
        wait = 1.0 if bar is not None else FIRST_LINE
        while not ended.wait(wait):
            if bar is not None:
                bar.refresh()  # for its clock
                continue
            wait = time.monotonic() - started
            of = f"{done[0]} of {total} files, " if total > 1 else ""
            say(f"{what}: {of}{duration(wait)}")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
        if bar is not None:
            bar.close()


def _bar(total: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:  # it comes with the Hub client; without it there are lines
        return None
    return tqdm(total=total, unit="file", file=sys.stderr, leave=total > 1, delay=1.0)


def size(count: float) -> str:
    """Bytes as people read them: 24.3 kB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """0.4 s, 63 s, 12 min."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
