#!/usr/bin/env python
"""Convert a checkpoint of the original: the same as `walloc convert`.

python scripts/convert_original_checkpoint.py CKPT.pth CONFIG.json OUT_DIR
"""

import sys

from transformers_walloc.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
