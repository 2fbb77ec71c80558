"""What is said about a file: errors that name it, and notes on what its result does not keep."""

import contextlib
import warnings
from collections.abc import Iterator


class MediaError(ValueError):
    """A file cannot be read or written; the message names it and says why."""


class MediaWarning(UserWarning):
    """Something of a file that the result does not keep."""


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Errors that do not name the file yet get its name in front."""
    try:
        yield
    except MediaError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        message = "not enough memory" if isinstance(error, MemoryError) else str(error)
        raise MediaError(f"{source}: {message}") from error


def warn(path: str, text: str) -> None:
    """Say what the result of a file does not keep."""
    warnings.warn(MediaWarning(f"{path}: {text}"), stacklevel=3)
