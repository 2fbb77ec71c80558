"""Commands and library calls leave the process as they found it: its log levels, bars, threads, limits, environment."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import datasets  # noqa: F401 - sets its log level
import huggingface_hub.utils
import numpy as np
import PIL.Image
import pytest
import torch
import transformers.utils.logging
from codec_fixtures import image_model

from transformers_walloc import FileCodec
from transformers_walloc.cli.main import main

LOGGERS = (None, "transformers", "huggingface_hub", "tifffile", "datasets", "torch", "PIL", "matplotlib")


def state() -> dict:
    return {
        "levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "bars of the Hub": huggingface_hub.utils.are_progress_bars_disabled(),
        "bars of transformers": transformers.utils.logging.is_progress_bar_enabled(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "seeds": [torch.initial_seed(), hash(np.random.get_state()[1].tobytes()), random.getstate()],
        "warnings": [*warnings.filters],
        "shown by": warnings.showwarning,
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "arguments": [*sys.argv],
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": os.getcwd(),
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A codec, a picture and a file of it; nothing is as a command would leave it."""
    monkeypatch.chdir(tmp_path)
    image_model().save_pretrained("codec")
    os.mkdir("photos")
    for i, size in enumerate([(40, 24), (32, 32)]):
        PIL.Image.effect_noise(size, 60).convert("RGB").save(f"photos/{i}.png")
    codec = FileCodec.from_pretrained("codec")
    (tmp_path / "a.walloc").write_bytes(codec.compress("photos/0.png"))
    for name in ("transformers", "huggingface_hub", "tifffile"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield tmp_path
    torch.set_num_threads(before)


COMMANDS = {
    "compress": "compress photos -o small --model codec -j 2",
    "decompress": "decompress a.walloc -o a.png --model codec -j 2",
    "info": "info a.walloc",
    "compare": "compare photos/0.png --model codec -o sheet.png",
    "inspect": "inspect a.walloc --model codec -o sheet.png",
    "evaluate": "evaluate tables --data photos --models codec --out out --threads 1 --no-speed",
    "fit": "fit photos --output fitted --num-levels 2 --table-steps 0",
    "dataset": "dataset photos latents --codec codec",
    "nothing": "compress missing.png",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, here):
    before = state()
    status = main(COMMANDS[name].split())
    after = state()
    assert status == (name == "nothing")
    for what, value in before.items():
        assert after[what] == value, what


def test_libraries_that_a_command_imports(here):
    """They speak afterwards as they do in a process that never ran a command."""
    code = """
import json, logging, os, sys
if len(sys.argv) > 1:
    from transformers_walloc.cli.main import main
    assert main(sys.argv[1:]) == 0
import huggingface_hub.utils
import transformers.utils.logging as of_transformers
levels = [logging.getLogger(name).getEffectiveLevel() for name in ("transformers", "huggingface_hub", "tifffile")]
bars = [huggingface_hub.utils.are_progress_bars_disabled(), of_transformers.is_progress_bar_enabled()]
print(json.dumps([levels, bars, sorted(os.environ)]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    found = []
    for command in ("", COMMANDS["decompress"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True, env=environment
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert found[0][1] == [False, True]
