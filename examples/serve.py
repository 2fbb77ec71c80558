#!/usr/bin/env python
"""A vision-language model on latents behind `transformers serve`, which speaks OpenAI's protocol.

    pip install ".[serving]"  # in a checkout
    python examples/serve.py docvqa-on-latents --port 8000
    curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d '{"model": "docvqa-on-latents",
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://.../page.png"}},
                                                  {"type": "text", "text": "What is the total?"}]}]}'

Further options are those of `transformers serve`. It imports the package; without it, `transformers serve MODEL
--trust-remote-code` takes the code from the model's folder.
"""

import sys

from transformers.cli.transformers import main as transformers_command

import transformers_walloc  # noqa: F401 - registers


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    transformers_command()


if __name__ == "__main__":
    main()
