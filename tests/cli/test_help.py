"""Every example in the help of every command runs, on a tiny folder of the files that the examples name."""

import glob
import io
import os
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import PIL.Image
import pytest
import skimage.data
import soundfile
import tifffile
import torch
from codec_fixtures import image_model, sound
from hub_server import TOKEN

from transformers_walloc import WallocImageProcessor, bundled_path
from transformers_walloc.cli.main import COMMANDS, main

EXAMPLE = re.compile(r"^ +walloc (?:.*\\\n)*.*$", re.MULTILINE)
# What makes an example short: the last of two options counts.
SHORT = {
    "train": "--max-steps 1 --klt-draws 50 --piece-size 64 --batch-size 2 --workers 0 --cpu",
    "fit": "--table-steps 0",
    "fit-tables": "--steps 2 --files 1",
    "evaluate": "--files 1",
    "dataset": "--num-proc 1",
}
SLOW = ("--full", "evaluate curves", "evaluate speed", "--compile", "--engine ray", "walloc export")
# What is there already for other commands, and is written by this one.
WRITTEN = {
    "compress": ("photo.walloc", "song.walloc", "small"),
    "decompress": ("photo.png",),
    "fit": ("my-codec",),
}
# Words after these characters are for other programs than ours.
OTHERS = ("|", "&&")


def examples(name: str) -> list[str]:
    """The command lines in the help of a command, each in one line, without remarks."""
    output, before = io.StringIO(), sys.stdout
    sys.stdout = output
    try:
        main([name, "--help"])
    except SystemExit:
        pass
    finally:
        sys.stdout = before
    found = [re.sub(r"\\\n *", "", match).strip() for match in EXAMPLE.findall(output.getvalue())]
    return [re.sub(r"\s+#.*", "", line) for line in found]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """All that the examples read, a few thousand pixels or samples each."""
    root = tmp_path_factory.mktemp("files")
    picture = skimage.data.astronaut()
    for folder in ("photos", "beans", "data/photos", "data/documents", "data/kodak", "bucket/photos"):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            PIL.Image.fromarray(picture[80 * i : 80 * i + 72, 150:230]).save(root / folder / f"{i}.png")
    PIL.Image.fromarray(picture[:96, 150:262]).save(root / "photo.png")
    for folder in ("scans", "scenes", "stacks", "recordings", "music"):
        (root / folder).mkdir()
    levels = picture.astype(np.uint16) * 200
    for i in range(3):
        PIL.Image.fromarray(levels[64 * i : 64 * i + 160, 150:310, 0]).save(root / "scans" / f"{i}.png")
        bands = np.concatenate([levels, levels[..., ::-1]], 2)[64 * i : 64 * i + 96, 100:228]
        tifffile.imwrite(root / "scenes" / f"{i}.tif", bands, photometric="minisblack", planarconfig="contig")
        stack = np.stack([levels[j : j + 32, 150:198, 0] for j in range(16 * i, 16 * i + 16)])
        tifffile.imwrite(root / "stacks" / f"{i}.tif", stack, photometric="minisblack")
        soundfile.write(root / "recordings" / f"{i}.wav", sound(2.2, 4, seed=i).T, 44100)
        soundfile.write(root / "music" / f"{i}.wav", sound(0.6, seed=i).T, 44100)
    soundfile.write(root / "song.wav", sound(0.3).T, 44100)
    soundfile.write(root / "song.flac", sound(0.3).T, 44100)
    soundfile.write(root / "concert.flac", sound(0.3, 6).T, 44100)
    (root / "small").mkdir()
    for arguments in (["photo.png"], ["song.wav"], ["photos/0.png", "-o", "small/0.walloc"]):
        _in(root, ["compress", *arguments])
    PIL.Image.new("RGB", (2560, 1536), "gray").save(root / "slide.png")
    _in(root, ["compress", "slide.png"])
    image_model().save_pretrained(root / "my-codec")
    WallocImageProcessor().save_pretrained(root / "my-codec")
    shutil.copy(bundled_path("rgb-16x") / "README.md", root / "my-codec")  # with measured values
    shutil.copytree(bundled_path("rgb-16x-klt"), root / "runs" / "rgb-16x")
    (root / "lmms-lab").mkdir()
    for name in ("DocVQA", "InfographicVQA"):  # a data set of two configurations
        shutil.copytree(root / "photos", root / "lmms-lab" / "DocVQA" / name)
    lines = [
        f"- {{config_name: {name}, data_files: [{{split: validation, path: {name}/*}}]}}"
        for name in ("DocVQA", "InfographicVQA")
    ]
    (root / "lmms-lab" / "DocVQA" / "README.md").write_text("\n".join(["---", "configs:", *lines, "---"]))
    (root / "build" / "page").mkdir(parents=True)
    (root / "build" / "page" / "index.html").write_text("<p>Our page.")
    return root


def _in(folder: Path, arguments: list[str]) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(arguments) == 0
    finally:
        os.chdir(before)


@pytest.fixture
def here(name, files, tmp_path, hub, monkeypatch):
    """A copy of the files, and a Hub that takes what is uploaded."""
    folder = tmp_path / "here"
    shutil.copytree(files, folder)
    for path in WRITTEN.get(name, ()):
        (shutil.rmtree if (folder / path).is_dir() else os.remove)(folder / path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield folder
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples(name, here, monkeypatch, capfdbinary):
    """From top to bottom, in one folder."""
    lines = examples(name)
    assert lines
    for line in lines:
        if not any(words in line for words in SLOW):
            _runs(line, here, monkeypatch, capfdbinary)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_slow_examples(name, here, monkeypatch, capfdbinary):
    for line in examples(name):
        if any(words in line for words in SLOW):
            _runs(line, here, monkeypatch, capfdbinary)


def _runs(line: str, here: Path, monkeypatch, output) -> None:
    words = shlex.split(line)
    for others in OTHERS:
        words = words[: words.index(others)] if others in words else words
    if "<" in words:
        stdin = types.SimpleNamespace(buffer=io.BytesIO(Path(words[words.index("<") + 1]).read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        words = words[: words.index("<")]
    words = [re.sub("^/data/", f"{here}/data/", re.sub("^s3:/", str(here), word)) for word in words]
    words = [word.replace("USER", "walloc").replace("user/", "walloc/") for word in words]
    words = [name for word in words for name in (glob.glob(word) if word.endswith("*.tif") else [word])]
    if words[1] == "convert":
        from test_docs import save_as_the_original_does

        save_as_the_original_does("RGB_16x")
    if "ray" in words:
        pytest.importorskip("ray")
    shorter = SHORT.get(words[1], "") + (" --minutes 0.02" if words[1] == "fit" and "--minutes" in words else "")
    output.readouterr()
    try:
        status = main([*words[1:], *shorter.split()])
    except SystemExit as error:  # of argparse
        status = error.code
    assert status == 0, (line, output.readouterr().err.decode())
