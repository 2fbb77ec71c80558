"""`python -m transformers_walloc` is the console script `walloc`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
