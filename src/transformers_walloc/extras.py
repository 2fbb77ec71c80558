"""Optional packages: one that is missing is named together with the command that installs it."""

import contextlib
from collections.abc import Iterator

# Names of modules, and the extra that installs them.
EXTRAS = {
    "accelerate": "train",
    "av": "video",
    "datasets": "train",
    "diffusers": "original",
    "imagecodecs": "rasters",
    "matplotlib": "eval",
    "mido": "train",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pyarrow": "train",  # of datasets
    "pytorch_msssim": "eval",
    "pywt": "wavelets",
    "ray": "ray",
    "scipy": "eval",
    "soundfile": "audio",
    "soxr": "audio",
    "ssimulacra2": "eval",
    "tensorboard": "train",
    "tifffile": "rasters",
    "zimtohrli": "eval",
}


@contextlib.contextmanager
def naming_extras() -> Iterator[None]:
    """Inside, a missing optional package becomes an error that says how to install it. Decorates functions, too.

    Raises:
        ModuleNotFoundError: a package is missing; of an extra of ours, the message has the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = _missing(error)
        if name is None or "pip install" in str(error):
            raise
        message = f"{name} is not installed: pip install 'transformers-walloc[{EXTRAS[name]}]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def _missing(error: BaseException | None) -> str | None:
    """The package of ours that an error, or what it came from, lacks: transformers says `Could not import module`."""
    while error is not None:
        name = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and name in EXTRAS:
            return name
        error = error.__cause__ or error.__context__
    return None
