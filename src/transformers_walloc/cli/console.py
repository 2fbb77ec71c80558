"""What the command line says: one line each, on the standard error."""

import sys
from typing import Any


def complain(error: BaseException | str) -> None:
    """`walloc: error: photo.png: ...`"""
    say("error: " + (" ".join(str(error).split()) or type(error).__name__))


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """`walloc: note: photo.gif: ...`; takes the place of `warnings.showwarning`."""
    say("note: " + " ".join(str(message).split()))


def say(text: str) -> None:
    """One line on the standard error, above a bar if there is one."""
    text = f"walloc: {text}"
    if "tqdm" in sys.modules and sys.stderr.isatty():
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)
