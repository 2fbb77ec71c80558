"""Many files, folders, streams and processes."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
import torch
from codec_fixtures import pictures
from command_line import fails, files, said

import transformers_walloc.cli.compress
import transformers_walloc.media.file_codec
import transformers_walloc.media.pictures
from transformers_walloc.cli.jobs import Plan, run_jobs
from transformers_walloc.cli.main import main
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.codec.runtime import torch_threads


def test_a_folder_with_subfolders_and_workers(here, codecs, capsys):
    (here / "in" / "deep").mkdir(parents=True)
    for index in range(5):
        PIL.Image.fromarray(pictures()[1][10 * index :]).save(f"in/deep/{index}.png")
    PIL.Image.fromarray(pictures()[1]).save("in/top.jpg")
    (here / "in" / "notes.txt").write_text("not an image")
    assert main(["compress", "in", "-o", "small", "-j", "3", "--model", codecs["image"]]) == 0
    assert files(here / "small") == [*(f"deep/{i}.walloc" for i in range(5)), "top.walloc"]
    assert main(["decompress", "small", "-o", "out/", "--model", codecs["image"], "--format", "webp"]) == 0
    assert files(here / "out") == [*(f"deep/{i}.webp" for i in range(5)), "top.webp"]
    assert PIL.Image.open("out/deep/3.webp").size == (200, 98)
    assert re.fullmatch(r"(walloc: 6 files: 6 written, .* \(.*:.*\), .* s\n){2}", capsys.readouterr().err)  # no bar


def test_patterns_that_the_shell_left_alone(here, codecs):
    for name in ("a.png", "b.png", "c.jpg"):
        PIL.Image.fromarray(pictures()[1]).save(name)
    assert main(["compress", "?.png", "-o", "out/", "--model", codecs["image"]]) == 0
    assert files(here / "out") == ["a.walloc", "b.walloc"]


def test_the_codec_that_fits_is_chosen(here, codecs, monkeypatch):
    monkeypatch.setattr(transformers_walloc.cli.compress, "DEFAULT_CODECS", codecs)
    assert main(["compress", "photo.png", "song.wav"]) == 0
    kinds = [unpack((here / name).read_bytes())[0].kind for name in ("photo.walloc", "song.walloc")]
    assert kinds == ["image", "audio"]


def test_one_bad_file_does_not_stop_the_others(here, codecs, capsys):
    (here / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    assert main(["compress", "bad.png", "photo.png", "-o", "out/", "--model", codecs["image"]]) == 1
    err = capsys.readouterr().err
    assert "bad.png" in err and "2 files: 1 written, 1 failed" in err and err.count("\n") == 2
    assert files(here / "out") == ["photo.walloc"]


def test_nothing_is_overwritten_unless_forced(here, codecs, capsys):
    (here / "photo.walloc").write_text("precious")
    fails(capsys, ["compress", "photo.png", "--model", codecs["image"]], "photo.walloc: exists already; --force")
    assert main(["compress", "photo.png", "--skip-existing", "--model", codecs["image"]]) == 0
    assert (here / "photo.walloc").read_text() == "precious" and said(capsys) == ""
    assert main(["compress", "photo.png", "--force", "--model", codecs["image"]]) == 0
    assert unpack((here / "photo.walloc").read_bytes())


def test_a_job_goes_on_past_outputs_that_exist(here, codecs, capsys):
    for name in ("a", "b", "c"):
        PIL.Image.fromarray(pictures()[1]).save(f"{name}.png")
    (here / "b.walloc").write_text("precious")
    arguments = ["compress", "a.png", "b.png", "c.png", "--model", codecs["image"]]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "b.walloc: exists already" in err and "walloc: 3 files: 2 written, 1 failed" in err
    os.remove("c.walloc")
    assert main([*arguments, "--skip-existing"]) == 0
    assert capsys.readouterr().err.startswith("walloc: 3 files: 1 written, 2 skipped, ")
    assert (here / "b.walloc").read_text() == "precious"


def test_names_that_differ_in_their_suffix_only(here, codecs, capsys):
    PIL.Image.fromarray(pictures()[1]).save("photo.jpg")
    PIL.Image.fromarray(pictures()[1]).save("other.jpg")
    assert main(["compress", "photo.png", "photo.jpg", "other.jpg", "-o", "out/", "--model", codecs["image"]]) == 0
    assert files(here / "out") == ["other.walloc", "photo.jpg.walloc", "photo.png.walloc"]
    assert main(["decompress", "out", "-o", "back", "--model", codecs["image"]]) == 0
    assert files(here / "back") == ["other.png", "photo.jpg.png", "photo.png"]
    capsys.readouterr()
    fails(capsys, ["compress", "photo.png", "song.wav", "-o", "one.walloc"], "2 input files need a folder")


def test_folders_are_kept(here, codecs, capsys):
    for name in ("in/a/1.png", "in/b/1.png", "in/b/deep/2.png", "in/.hidden.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pictures()[1][:40, :40]).save(name)
    model = ["--model", codecs["image"]]
    assert main(["compress", "in/*/1.png", "-o", "pattern/", *model]) == 0
    assert main(["compress", "in/*", "-o", "folders/", *model]) == 0
    assert main(["compress", "in/a/1.png", "in/b/1.png", "-o", "named/", *model]) == 0
    assert main(["compress", "in/**/2.png", "in/a/1.png", "-o", "mixed/", *model]) == 0
    assert files(here / "pattern") == files(here / "named") == ["a/1.walloc", "b/1.walloc"]
    assert files(here / "folders") == ["a/1.walloc", "b/1.walloc", "b/deep/2.walloc"]
    assert files(here / "mixed") == ["1.walloc", "b/deep/2.walloc"]


def test_standard_streams(here, codecs, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((here / "photo.png").read_bytes())))
    assert main(["compress", "-", "--model", codecs["image"]]) == 0
    blob, error = capsysbinary.readouterr()
    assert error == b"" and unpack(blob)[0].sizes == (128, 200)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(blob)))
    assert main(["decompress", "-", "--model", codecs["image"], "--format", "jpg"]) == 0
    jpeg, error = capsysbinary.readouterr()
    assert error == b"" and jpeg[:2] == b"\xff\xd8"
    assert files(here) == ["photo.png", "song.wav"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_compress_leaves_no_half_file(here, codecs):
    (here / "in").mkdir()
    for index in range(300):
        PIL.Image.fromarray(pictures()[1]).save(f"in/{index}.png")
    command = [sys.executable, "-m", "transformers_walloc", "compress", "in", "-o", "out/", "--model", codecs["image"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((here / "out").glob("*.walloc")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = list((here / "out").glob("*.walloc"))
    assert 0 < len(written) < 300
    for path in written:
        assert unpack(path.read_bytes())[0].sizes == (128, 200)


def test_threads_are_divided_between_the_workers():
    """However many commands a process runs."""
    found = []
    with torch_threads(8):
        for workers in (2, 2, 4, 1, 100):
            run_jobs(Plan([("a", "-")]), lambda *_: found.append(torch.get_num_threads()), workers, "test")
        assert torch.get_num_threads() == 8
    assert found == [4, 4, 2, 8, 1]
