"""Ctrl-C and SIGTERM in processes of their own: in the middle of work that would take hours, they end it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
HEAD = "import sys\nfrom transformers_walloc.cli import main, progress\nprogress.FIRST_LINE = 0.1\n"


def interrupted(script: str, folder: Path, number: int, word: str) -> tuple[int, str]:
    """Status and output of a script that gets a signal once it has said a word."""
    # Shells start what runs in the background with Ctrl-C ignored, and children inherit that.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-u", "-c", heard + script]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as process:
        said = ""
        for line in process.stdout:
            said += line
            if word in line:
                break
        process.send_signal(number)
        try:
            rest, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, said + rest


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(skimage.data.astronaut()[:64, :64]).save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize("number", SIGNALS)
def test_a_search_that_would_take_hours(photo, number):
    Image.open(photo / "photo.png").save(photo / "second.png")
    arguments = ["compress", "photo.png", "second.png", "-o", "out/", "--refine", "1000000"]
    script = f"{HEAD}sys.argv[1:] = {arguments}\nsys.exit(main.program())"
    status, said = interrupted(script, photo, number, "compress: 0 of 2 files")
    assert status == SIGNALS[number]
    assert said.endswith("walloc: 2 files: 2 not done\nwalloc: interrupted\n") and "Traceback" not in said
    assert not list(photo.glob("out/*")) and not list(photo.glob("out/.*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_native_call_that_listens_to_nobody(tmp_path, number):
    """While a file is being written: it goes, though nothing unwinds."""
    script = """
import hashlib, sys
from transformers_walloc.atomic import atomic_file
from transformers_walloc.cli.interrupts import run_program, unwinding

def main():
    try:
        with unwinding(), atomic_file("result") as partial:
            partial.write_text("half")
            print("working", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    except KeyboardInterrupt as error:  # it came before the call
        return error.status

sys.exit(run_program(main))
"""
    status, _ = interrupted(script, tmp_path, number, "working")
    assert status == SIGNALS[number] and os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_training_says_how_it_goes_on(photo, number):
    arguments = "train --kind image --continue_from rgb-16x-klt --train . --validation . --output run --workers 0"
    small = "--piece_size 32 --batch_size 1 --save_steps 1 --eval_steps 1000 --minutes 600"
    patch = "from transformers_walloc.training import trainer\nsave = trainer.CodecTrainer._save_checkpoint\n"
    patch += "def _save_checkpoint(self, *a):\n    save(self, *a); print('saved', flush=True)\n"
    patch += "trainer.CodecTrainer._save_checkpoint = _save_checkpoint\n"
    script = f"{HEAD}{patch}sys.argv[1:] = {[*arguments.split(), *small.split()]}\nsys.exit(main.program())"
    status, said = interrupted(script, photo, number, "saved")
    assert status == SIGNALS[number] and "Traceback" not in said
    assert "the same command goes on from step " in said
