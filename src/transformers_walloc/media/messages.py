"""What is said about a file: errors that name it, and notes on what its result does not keep."""

import contextlib
import warnings
from collections.abc import Callable, Iterator


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
    except Exception as error:  # decoders raise anything: SyntaxError, IndexError, zlib.error, struct.error, ...
        message = "not enough memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        raise MediaError(f"{source}: {message}") from error


def noting(path: str) -> Callable[[str], None]:
    """`warn` of a file, for functions that do not know its name."""
    return lambda text: warn(path, text)


def warn(path: str, text: str) -> None:
    """Say what the result of a file does not keep."""
    warnings.warn(MediaWarning(f"{path}: {text}"), stacklevel=3)
