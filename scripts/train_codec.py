#!/usr/bin/env python
"""Train a codec: the same as `walloc train`; `python scripts/train_codec.py --help`."""

import sys

from transformers_walloc.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
