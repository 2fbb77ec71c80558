"""`walloc unlink`."""

import argparse

EXAMPLES = """\
  walloc unlink && pip uninstall transformers-walloc

The next import links them again, unless WALLOC_NO_BUNDLED=1 is set. What the Hub client downloaded stays."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run() -> int:
    """Remove what `import transformers_walloc` put into the Hub cache; prints the folders."""
    from ..bundled import unlink_bundled_checkpoints

    for path in unlink_bundled_checkpoints():
        print(path)
    return 0
