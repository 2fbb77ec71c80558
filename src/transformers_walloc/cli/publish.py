"""Publish a checkpoint folder, or the page for browsers, on the Hub.

    walloc publish my-codec USER/my-codec --dry-run staged     # look at what would be uploaded
    walloc publish my-codec USER/my-codec --private
    walloc publish my-codec USER/my-codec --eval-dataset USER/kodak
    walloc publish build/page USER/walloc                       # the page for browsers

Of a checkpoint, weights, card and measured results are uploaded as they are. Configuration and processor get an
`auto_map`, and the package's modules are put beside them, so that `AutoModel.from_pretrained(...,
trust_remote_code=True)` works with transformers alone; with the package imported, its own classes are used. The page
(`scripts/build_page.py`) becomes a static Space. Log in with `hf auth login` or `HF_TOKEN`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..publishing.upload import publish
from .console import say
from .options import in_kebab_case


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc publish`."""
    parser = argparse.ArgumentParser(
        prog="walloc publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a checkpoint folder, such as model_cards/rgb-16x, or a page")
    parser.add_argument("repository", help="Hub id, such as walloc/rgb-16x; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write the files into DIR and upload nothing")
    parser.add_argument("--eval-dataset", metavar="ID", help="Hub id of what the card's values were measured on")
    arguments = parser.parse_args(in_kebab_case(argv))
    try:
        result = publish(**vars(arguments))
    except ValueError as error:
        parser.error(str(error))
    if not any((arguments.folder / name).is_file() for name in ("README.md", "index.html")):
        say(f"note: {arguments.folder} has no README.md, which is the card of its repository")
    print(f"wrote {result}" if arguments.dry_run else f"published {arguments.repository}: {result}")
    return 0
