#!/usr/bin/env python
"""Measure codecs: the same as `walloc evaluate`; `python scripts/evaluate_codec.py --help`."""

from transformers_walloc.cli.evaluate import main

if __name__ == "__main__":
    main(program="python scripts/evaluate_codec.py")
