"""`python -m transformers_walloc` is the console script `walloc`."""

import sys

from .cli.main import program

if __name__ == "__main__":
    sys.exit(program())
