"""The command line `walloc`, also `python -m transformers_walloc`.

```
walloc compress photo.png                       # photo.walloc beside it, by the codec for images
walloc compress photos/ -o small/ --bpp 0.5     # a folder, at most half a bit for each pixel
walloc decompress small/photo.walloc -o photo.png
walloc info small/photo.walloc
walloc compare photo.png --output side.png      # beside JPEG, WebP and AVIF of the same size
walloc --help                                   # the other commands
```

Each command is a thin layer over functions that can be imported, in a module that is loaded when the command runs: the
help text and `walloc info` need no torch.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..extras import naming_extras
from .console import complain, quiet_libraries, say
from .interrupts import run_program, unwinding

# Name -> (module, summary). A module under `cli` has `add_arguments(parser)`, `EXAMPLES`, and `run(**options)`; one
# that is given with a function, `module:function`, takes the arguments after the command and parses them itself.
COMMANDS = {
    "compress": ("cli.compress", "images and audio to .walloc files"),
    "decompress": ("cli.decompress", ".walloc files to images and audio"),
    "info": ("cli.info", "what .walloc files contain, without decoding them"),
    "compare": ("cli.compare", "quality beside JPEG, WebP and AVIF (audio: MP3, Vorbis and Opus) of the same size"),
    "inspect": ("cli.inspect", "pictures of a file's latents, and of what each channel stands for"),
    "evaluate": ("cli.evaluate:main", "quality, rate and speed of codecs on your own data"),
    "fit": ("cli.fit:main", "a codec for your own signals, any bands, bits and channels, in one pass"),
    "train": ("cli.train:main", "a codec for your own images or audio, from a closed-form start"),
    "fit-tables": ("cli.fit_tables:main", "entropy tables of a codec, for smaller files"),
    "dataset": ("cli.dataset", "a data set as latents, for learning"),
    "convert": ("cli.convert:main", "a checkpoint of the original package to a model folder"),
    "export": ("cli.export", "a codec as ONNX graphs, for other runtimes"),
    "publish": ("cli.publish:main", "a model folder to the Hub"),
    "unlink": ("cli.unlink", "take the bundled codecs out of the Hub cache, before this package is removed"),
}


def program() -> int:
    """The console script: `main`, ended within two seconds by Ctrl-C or SIGTERM."""
    return run_program(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 for errors (argparse exits with 2 for wrong usage)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        _parser().print_help()
        return 0
    if arguments[0] not in COMMANDS:
        _parser().parse_args(arguments)  # prints help or version, or what is wrong, and exits
        return 2
    with unwinding(), quiet_libraries():
        try:
            with naming_extras():
                return _run(*arguments)
        except KeyboardInterrupt as error:
            say("interrupted")
            return getattr(error, "status", 130)
        except BrokenPipeError:
            # Whoever read our output has seen enough; the interpreter must not complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
            complain(_refusal(error) or error)
            return 1
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "huggingface_hub"):
                raise
            complain(f"the Hub cannot be reached: {error}")
            return 1


def _refusal(error: BaseException) -> str | None:
    """What to do where the Hub knows nobody, or lets this user not do it."""
    if getattr(getattr(error, "response", None), "status_code", None) not in (401, 403):
        return None
    return f"the Hub refused: log in with `hf auth login` or HF_TOKEN, as a user who may do this ({error})"


def _run(name: str, *arguments: str) -> int:
    target, summary = COMMANDS[name]
    module_name, _, function = target.partition(":")
    package = __package__.partition(".")[0]
    module = importlib.import_module(f"{package}.{module_name}")
    if function:
        with _as_program(f"walloc {name}"):
            status = getattr(module, function)(list(arguments))
        return status if isinstance(status, int) else 0
    parser = argparse.ArgumentParser(
        prog=f"walloc {name}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(**vars(parser.parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="walloc",
        usage="walloc [-h] [--version] COMMAND ...",
        description="WaLLoC, wavelet learned lossy compression: image and audio files, data sets, codecs.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
        + "\n\n`walloc COMMAND --help` explains a command with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"walloc {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


@contextmanager
def _as_program(name: str) -> Iterator[None]:
    """What parsers call the program."""
    before, sys.argv = sys.argv, [name, *sys.argv[1:]]
    try:
        yield
    finally:
        sys.argv = before
