"""What is refused, in one line and before work starts; and what the help says."""

import os
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
import soundfile
from codec_fixtures import sound
from command_line import fails, files

from transformers_walloc.cli.main import COMMANDS, main


def test_the_sampling_rate_of_a_header_is_no_bomb(here, codecs, capsys):
    """4 kB that state 1 Hz would become 44 million samples; 8 kHz is a telephone."""
    soundfile.write("bomb.wav", np.zeros((1000, 2)), 1)
    fails(capsys, ["compress", "bomb.wav", "--model", codecs["audio"]], "bomb.wav: sampling_rate is 1; for 44100")
    soundfile.write("telephone.wav", sound(0.1, 1, 8000).T, 8000)
    assert main(["compress", "telephone.wav", "--model", codecs["audio"]]) == 0


def test_long_and_large_files_are_refused_before_they_are_decoded(here, codecs, capsys, monkeypatch):
    with soundfile.SoundFile("silence.flac", "w", 44100, 2) as file:
        for _ in range(70):
            file.write(np.zeros((2**20, 2), np.int16))
    assert os.path.getsize("silence.flac") < 2**20
    PIL.Image.new("1", (13000, 13000)).save("white.png")
    assert os.path.getsize("white.png") < 2**16
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    for name, kind, message in (
        ("silence.flac", "audio", f"silence.flac: {70 * 2**20} samples per channel, more than the limit of {2**26}"),
        ("white.png", "image", f"white.png: 13000 x 13000 pixels, more than the limit of {2**26}"),
    ):
        fails(capsys, ["compress", name, "--model", codecs[kind]], message)
    option = ["--max-samples", "1000"]
    fails(capsys, ["compress", "song.wav", *option, "--model", codecs["audio"]], "more than the limit of 1000")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "nothing.png"], "nothing.png: no such file"),
        (["compress", "*.tiff"], "no file matches"),
        (["compress", "empty"], "the folder has no file"),
        (["compress", "text.txt"], "text.txt: neither an image nor audio"),
        (["compress", "text.png"], "text.png: not an image"),
        (["compress", "photo.png", "-o", "text.txt/x.walloc"], "text.txt: is not a folder, so text.txt/x.walloc"),
        (["compress", "photo.png", "-o", "text.txt/"], "text.txt: is not a folder"),
        (["compress", "photo.png", "--model", "empty"], "empty: the folder has no config.json"),
        (["compress", "photo.png", "--kbps", "9"], "--kbps is not for image; use --bpp"),
        (["compress", "song.wav"], "is for image and the file is audio"),
        (["compress", "photo.png", "--bpp", "0.0001"], "photo.png: bpp 0.0001 is out of reach"),
        (["compress", "photo.png", "--step", "0.1"], "photo.png: step is 0.1"),
        (["compress", "photo.png", "--channels", "99"], "photo.png: num_channels is 99; valid: 1 to 12"),
        (["compress", "photo.png", "--max-pixels", "100"], "photo.png: "),
        (["decompress", "photo.png", "-o", "x.png"], "photo.png: not a .walloc file"),
        (["info", "photo.png"], "photo.png: not a .walloc file"),
        (["compare", "nothing.png"], "nothing.png: No such file"),
    ],
)
def test_errors_are_one_line(here, codecs, capsys, arguments, message):
    (here / "text.txt").write_text("words")
    (here / "text.png").write_text("words")
    (here / "empty").mkdir()
    before = files(here)
    if arguments[0] != "info" and "--model" not in arguments:
        arguments = [*arguments, "--model", codecs["image"]]
    fails(capsys, arguments, message)
    assert files(here) == before


def test_errors_of_audio(here, codecs, capsys):
    (here / "text.wav").write_text("words")
    soundfile.write("empty.wav", np.zeros((0, 2)), 44100)
    soundfile.write("surround.wav", np.zeros((100, 6)), 44100)
    for name, message in (("text", "not audio"), ("empty", "is empty"), ("surround", "6 channels")):
        fails(capsys, ["compress", f"{name}.wav", "--model", codecs["audio"]], message)
    fails(capsys, ["compress", "song.wav", "--bpp", "1", "--model", codecs["audio"]], "use --kbps")
    fails(capsys, ["compare", "song.wav", "--output", "x.png", "--model", codecs["audio"]], "not for audio")
    assert files(here) == ["empty.wav", "photo.png", "song.wav", "surround.wav", "text.wav"]


def test_errors_of_decompress(here, codecs, capsys):
    assert main(["compress", "photo.png", "--model", codecs["image"]]) == 0
    model = ["--model", codecs["image"]]
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png"], "codec 'image', which is not bundled")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.xyz", *model], "x.xyz: unknown suffix")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.mp3", *model], "x.mp3: cannot write images")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png", "--max-pixels", "100", *model], "limit of 100")
    fails(capsys, ["decompress", "photo.walloc", "-o", "x.png", "--model", codecs["audio"]], "is for audio")
    data = (here / "photo.walloc").read_bytes()
    (here / "cut.walloc").write_bytes(data[:-10])
    fails(capsys, ["decompress", "cut.walloc", *model], "cut.walloc: the file is damaged or truncated")
    assert files(here) == ["cut.walloc", "photo.png", "photo.walloc", "song.wav"]


@pytest.mark.parametrize("arguments", [["shrink"], ["compress"], ["compress", "a.png", "--bpp", "1", "--psnr", "30"]])
def test_wrong_usage_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and "usage" in capsys.readouterr().err


def test_a_text_is_refused_by_name_without_soundfile(here, codecs, capsys, monkeypatch):
    (here / "text.txt").write_text("words")
    (here / "song").write_bytes((here / "song.wav").read_bytes())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    fails(capsys, ["compress", "text.txt", "--model", codecs["image"]], "text.txt: neither an image nor audio")
    fails(capsys, ["compress", "song", "--model", codecs["audio"]], "audio files need soundfile: pip install")


def test_what_fails_fails_before_the_heavy_imports(here):
    (here / "photo.walloc").write_text("precious")
    code = (
        "import sys\n"
        "from transformers_walloc.cli.main import main\n"
        "for arguments in (['compress', 'photo.png'], ['compress', 'nothing.png'], ['info', 'photo.walloc'],\n"
        "                  ['compress', 'photo.png', '-o', 'photo.png/x'],\n"
        "                  ['decompress', 'photo.walloc', '-o', 'x.y']):\n"
        "    assert main(arguments) == 1\n"
        "for arguments in (['--help'], ['--version'], ['compress', '--help'], ['decompress', '--help']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 0\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n") and "walloc 0." in done.stdout


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    out = capsys.readouterr().out
    assert error.value.code == 0 and all(f"  {name}" in out for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as error:
            main([name, "--help"])
        out = capsys.readouterr().out
        assert error.value.code == 0 and f"usage: walloc {name}" in out


@pytest.mark.parametrize("command", ["compress", "decompress", "info", "compare", "inspect"])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert error.value.code == 0 and f"  walloc {command} " in out.split("examples:")[1]
