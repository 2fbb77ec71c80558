"""Files that decoders choke on: each is named in one line and counted, and the others of the batch are written."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import soundfile
import tifffile
from codec_fixtures import audio_model, image_model
from kinds_of_files import photo, pillow, tiff

from transformers_walloc.cli.main import main


def gif_cut() -> bytes:
    data = pillow(PIL.Image.fromarray(photo()).quantize(64), ".gif")
    return data[: len(data) // 2]


def broken_exif_png() -> bytes:
    data = pillow(photo(), ".png")
    content = b"\xff\xff\xff\xffno EXIF"
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return data[:33] + chunk + data[33:]


def broken_exif_webp() -> bytes:
    return pillow(photo(), ".webp", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\x7fxx")


def png_of_bad_zlib() -> bytes:
    data = bytearray(pillow(photo(), ".png"))
    at = data.index(b"IDAT") + 4
    data[at : at + 40] = bytes(40)
    return bytes(data)


def zero_tile_tiff() -> bytes:
    data = tiff(photo(), photometric="rgb", tile=(32, 32))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].tags[322].valueoffset
    return data[:offset] + bytes(2) + data[offset + 2 :]


KILLERS = {
    "cut.gif": gif_cut,
    "zlib.png": png_of_bad_zlib,
    "tile.tif": zero_tile_tiff,
    "header.npy": lambda: b"\x93NUMPY\x01\x00\x10\x00{'descr': '<u2'\n",
    "empty.png": lambda: b"",
    "text.webp": lambda: b"no picture",
    "cut.avif": lambda: pillow(photo(), ".avif")[:300],
    "cut.flac": lambda: b"fLaC" + bytes(100),
}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    image_model().save_pretrained(folder / "image")
    audio_model().save_pretrained(folder / "audio")
    return folder


def test_one_bad_file_does_not_end_the_others(codec, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i, name in enumerate(KILLERS):
        (tmp_path / "in" / f"{i}_{name}").write_bytes(KILLERS[name]())
    for name in ("a.png", "z.png"):
        (tmp_path / "in" / name).write_bytes(pillow(photo(), ".png"))
    status = main(["compress", str(tmp_path / "in"), "-o", f"{tmp_path}/out/", "--model", str(codec / "image")])
    said = capsys.readouterr().err
    assert status == 1 and sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["a", "z"]
    lines = [line for line in said.splitlines() if line.startswith("walloc: error: ")]
    for i, name in enumerate(KILLERS):
        assert sum(f"{i}_{name}: " in line for line in lines) == 1, said
    assert len(lines) == len(KILLERS) and f"{len(KILLERS) + 2} files: 2 written, {len(KILLERS)} failed" in said


def test_a_picture_whose_exif_is_broken_is_a_picture(codec, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(broken_exif_png())
    (tmp_path / "in" / "b.webp").write_bytes(broken_exif_webp())
    main(["compress", str(tmp_path / "in"), "-o", f"{tmp_path}/out/", "--model", str(codec / "image")])
    said = capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2 and "error" not in said
    assert "a.png: its EXIF block is damaged and not used" in said


@pytest.mark.parametrize("name", ["a.wav", "b.flac"])
def test_silence_stays_silence(codec, tmp_path, name):
    for level in (0.0, 1e-40):
        clip = np.full((22050, 2), level, np.float32) * np.sin(np.arange(22050) / 50)[:, None]
        soundfile.write(tmp_path / name, clip, 44100)
        arguments = ["--model", str(codec / "audio"), "--force"]
        assert main(["compress", str(tmp_path / name), "-o", f"{tmp_path}/x.walloc", *arguments]) == 0
        assert main(["decompress", f"{tmp_path}/x.walloc", "-o", f"{tmp_path}/back.wav", *arguments]) == 0
        assert not soundfile.read(tmp_path / "back.wav", dtype="int16")[0].any()
    # and a level that does not change stays that level
    soundfile.write(tmp_path / name, np.full((22050, 2), 0.25), 44100)
    assert main(["compress", str(tmp_path / name), "-o", f"{tmp_path}/x.walloc", *arguments]) == 0
    assert main(["decompress", f"{tmp_path}/x.walloc", "-o", f"{tmp_path}/back.wav", *arguments]) == 0
    assert np.ptp(soundfile.read(tmp_path / "back.wav", dtype="int16")[0]) == 0
