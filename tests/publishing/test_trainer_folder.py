"""`walloc publish` of what a training leaves, and where the Hub cannot be asked: one line each, nothing half done."""

import re
from pathlib import Path

import huggingface_hub.constants
import pytest
from codec_fixtures import image_model

from transformers_walloc import WallocImageProcessor
from transformers_walloc.cli.main import main

LEFT = ("training_args.bin", "trainer_state.json", "optimizer.pt", "runs/events", "checkpoint-3/model.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    """As `Trainer.save_model` writes it, without the processor, among what a run leaves."""
    folder = tmp_path / "trained"
    image_model().save_pretrained(folder)
    for name in LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"private")
    return folder


def said(capsys) -> str:
    """The line on the standard error, the usage of the command left out."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_is_missing_is_named_with_the_call_that_writes_it(folder, tmp_path, capsys):
    assert _status(["publish", str(folder), "me/codec", "--dry-run", str(tmp_path / "staged")]) != 0
    assert f"has no preprocessor_config.json: processor.save_pretrained({str(folder)!r}) writes" in said(capsys)
    (folder / "model.safetensors").unlink()
    assert _status(["publish", str(folder), "me/codec", "--dry-run", str(tmp_path / "staged")]) != 0
    assert "has no model.safetensors and no preprocessor_config.json" in said(capsys)
    assert not (tmp_path / "staged").exists()


def test_what_a_training_leaves_is_left_out(folder, tmp_path, capsys):
    WallocImageProcessor().save_pretrained(folder)
    staged = tmp_path / "staged"
    assert main(["publish", str(folder), "me/codec", "--dry-run", str(staged)]) == 0
    assert said(capsys) == f"walloc: note: {folder} has no README.md, which is the card of its repository"
    (folder / "README.md").write_text("# A codec")
    assert main(["publish", str(folder), "me/codec", "--dry-run", str(staged)]) == 0
    assert capsys.readouterr().err == ""
    names = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_walloc.py"} <= names
    assert not names & set(LEFT)
    assert not any(b"private" in (staged / name).read_bytes() for name in names)


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network(offline, folder, monkeypatch, capsys):
    WallocImageProcessor().save_pretrained(folder)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_TOKEN", "hf_dummy")
    assert main(["publish", str(folder), "me/codec"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match("walloc: error: (the Hub c|C)annot (be )?reach", err), err


def test_without_a_token(folder, hub, monkeypatch, capsys):
    WallocImageProcessor().save_pretrained(folder)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    hub.status = 401
    assert main(["publish", str(folder), "me/codec"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "hf auth login" in err, err


def _status(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:  # of argparse
        return int(error.code or 0)
