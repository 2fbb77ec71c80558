"""What the command line says: one line each, on the standard error."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants

# Variables say the same to libraries that are imported later. tifffile raises what it logs, too.
_QUIET = {
    "transformers": (logging.ERROR, "TRANSFORMERS_VERBOSITY"),
    "huggingface_hub": (logging.ERROR, "HF_HUB_VERBOSITY"),
    "tifffile": (logging.CRITICAL, ""),
    "torch.onnx._internal.exporter._registration": (logging.ERROR, ""),  # names each operator of an absent torchvision
}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """One bar for a job, ours; no lines of the Hub about each retry; of warnings those of this package.

    Afterwards all is as it was. No library is imported for it, so that a command that needs none stays quick.
    """
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        for name, (level, variable) in _QUIET.items():
            if variable in os.environ:  # as the user has it
                continue
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
            if variable:
                stack.callback(os.environ.pop, variable, None)
                os.environ[variable] = "error"
        bars = sys.modules.get("transformers.utils.logging")
        stack.callback(_show_bars, constants.HF_HUB_DISABLE_PROGRESS_BARS, not bars or bars.is_progress_bar_enabled())
        _show_bars(True, False)
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=__package__.partition(".")[0])
        warnings.showwarning = show_warning
        yield


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


def _show_bars(disabled: bool | None, shown: bool) -> None:
    """Bars of transformers, where it is imported, and those of the Hub, as its variable of the environment says it."""
    if bars := sys.modules.get("transformers.utils.logging"):
        _set_hub_bars(None)  # which transformers switches, too
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    _set_hub_bars(disabled)


def _set_hub_bars(disabled: bool | None) -> None:
    for name in ("huggingface_hub.constants", "huggingface_hub.utils.tqdm"):
        if name in sys.modules:
            setattr(sys.modules[name], "HF_HUB_DISABLE_PROGRESS_BARS", disabled)  # noqa: B010 - typed as constants
