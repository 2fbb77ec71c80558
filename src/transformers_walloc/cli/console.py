"""What the command line says: one line each, on the standard error."""

import sys
from typing import Any


def complain(error: BaseException | str) -> None:
    """`walloc: error: photo.png: ...`"""
    _say("error", " ".join(str(error).split()) or type(error).__name__)


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """`walloc: note: photo.gif: ...`; takes the place of `warnings.showwarning`."""
    _say("note", " ".join(str(message).split()))


def _say(kind: str, text: str) -> None:
    print(f"walloc: {kind}: {text}", file=sys.stderr)
