"""The corpus script without apt and without a network: what it finds, what it accepts, what it writes."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import skimage.data
import soundfile
from PIL import Image

from research.corpora import documents as corpus_documents
from research.corpora import filters as corpus_filters
from research.corpora import prepare as corpus
from research.corpora import shrink
from research.corpora import sources as corpus_sources


def photograph(width=400, height=360, seed=0, scale=40):
    """Smooth random colours with some grain."""
    rng = np.random.default_rng(seed)
    base = Image.fromarray(rng.integers(0, 256, (height // scale, width // scale, 3), dtype=np.uint8))
    pixels = np.asarray(base.resize((width, height), Image.Resampling.BICUBIC), float) + rng.normal(
        0, 4, (height, width, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def music(seconds=11, rate=44100, cutoff=None, mono=False, subtype="PCM_16"):
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.05, (int(seconds * rate), 2))
    if cutoff:
        spectrum = np.fft.rfft(samples, axis=0)
        spectrum[np.fft.rfftfreq(len(samples), 1 / rate) > cutoff] = 0
        samples = np.fft.irfft(spectrum, len(samples), axis=0)
    if mono:
        samples[:, 1] = samples[:, 0]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def test_webp_streams_are_found_whole_between_other_bytes():
    first, second = (encoded(photograph(64, 48, seed, 8), "WEBP", quality=80) for seed in (1, 2))
    blob = b"qres" + first + b"RIFFxxxxWAVE..." + second + b"\0" * 7 + second[:-40]
    assert list(corpus_filters.webp_streams(blob)) == [first, second]
    assert list(corpus_filters.webp_streams(b"nothing here RIFF")) == []


def test_largest_jpeg_is_cut_out_exactly():
    thumbnail = encoded(photograph(32, 32, 3, 8), "JPEG")
    small = encoded(photograph(64, 48, 1, 8), "JPEG", quality=90)
    # an end marker inside a comment and restart markers in the data must not end the stream early
    large = encoded(photograph(160, 120, 2, 8), "JPEG", quality=95, comment=thumbnail, restart_marker_blocks=2)
    assert b"\xff\xd9" in large[:-2]
    blob = b"edje" + small + b"\xff\xd8\xff junk" + large + b"tail\xff\xd9" + small[:-30]
    assert corpus_filters.largest_jpeg(blob) == large
    progressive = encoded(photograph(160, 120, 2, 8), "JPEG", progressive=True)
    assert corpus_filters.largest_jpeg(b"\0" + progressive + b"\0") == progressive
    assert corpus_filters.largest_jpeg(b"\xff\xd8\xff no image") is None
    assert corpus_filters.largest_jpeg(progressive[: len(progressive) // 2]) is None
    assert corpus_filters.largest_jpeg(large[:-400]) == thumbnail  # the whole one inside a cut-off one


def test_images_pass_unchanged_or_halved_without_loss():
    data = encoded(photograph(), "JPEG", quality=90)
    facts, stored, suffix = corpus_filters.accept_image(data, halve=False)
    assert (stored, suffix) == (data, "") and (facts["width"], facts["height"]) == (400, 360)
    facts, stored, suffix = corpus_filters.accept_image(encoded(photograph(800, 720), "WEBP"), halve=True)
    image = Image.open(io.BytesIO(stored))
    assert suffix == ".png" and image.format == "PNG" and image.size == (400, 360) and facts["halved"]


def transparent():
    image = photograph().convert("RGBA")
    image.putpixel((5, 5), (0, 0, 0, 0))
    return encoded(image, "PNG")


@pytest.mark.parametrize(
    ("data", "halve", "reason"),
    [
        (encoded(photograph(400, 200), "PNG"), False, "too small: 400 x 200"),
        (encoded(photograph(), "PNG"), True, "too small: 200 x 180"),
        (encoded(photograph(1600, 360), "PNG"), False, "a strip"),
        (encoded(Image.new("RGB", (400, 400), "red"), "PNG"), False, "looks drawn: 100%"),
        (transparent(), False, "transparent"),
        (b"not an image", False, "not a readable image"),
        (encoded(photograph(), "JPEG")[:3000], False, "not a readable image"),
    ],
)
def test_unsuitable_images_are_refused_with_a_reason(data, halve, reason):
    with pytest.raises(ValueError, match=reason):
        corpus_filters.accept_image(data, halve)


def test_good_music_is_accepted_with_its_facts():
    facts = corpus_filters.accept_audio(music())
    assert facts["sampling_rate"] == 44100 and facts["seconds"] == 11 and facts["kbps"] == pytest.approx(1411.2, abs=1)
    # white noise: the share of the band above 18 kHz is (22.05 - 18) / 22.05; independent channels: side equals middle
    assert facts["high_db"] == pytest.approx(10 * np.log10(4.05 / 22.05), abs=0.1)
    assert facts["side_db"] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cutoff": 16000, "subtype": "FLOAT"}, "nothing above 18 kHz"),
        ({"mono": True}, "both channels are the same"),
        ({"rate": 48000}, "2 channels at 48000 Hz"),
        ({"seconds": 5}, "too short: 5.0 s"),
    ],
)
def test_unsuitable_music_is_refused_with_a_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        corpus_filters.accept_audio(music(**options))


def test_strongly_compressed_and_broken_music_is_refused():
    tones = np.sin(np.outer(np.arange(11 * 44100), (0.05, 0.06))) * 0.3
    buffer = io.BytesIO()
    soundfile.write(buffer, tones, 44100, format="OGG", subtype="VORBIS")
    with pytest.raises(ValueError, match="strongly compressed"):
        corpus_filters.accept_audio(buffer.getvalue())
    assert corpus_filters.accept_audio(buffer.getvalue(), strict=False)["kbps"] < 110
    with pytest.raises(ValueError, match="not a readable audio file"):
        corpus_filters.accept_audio(b"noise" * 100)


def test_fingerprints_see_through_scaling_and_compression():
    image, other = photograph(seed=1), photograph(seed=2)
    again = Image.open(io.BytesIO(encoded(image.resize((200, 180)), "JPEG", quality=40)))
    prints = [corpus_filters.fingerprint(i) for i in (image, again, other)]
    assert corpus_filters.looks_like(prints[0], [prints[2], prints[1]])
    assert not corpus_filters.looks_like(prints[0], [prints[2]])
    assert not corpus_filters.looks_like(prints[0], [])


def test_licence_of_a_file_in_a_debian_copyright_file():
    notice = corpus.Copyright(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
        "Files: *\nCopyright: A\nLicense: GPL-3+\n\nFiles: images/*\nCopyright: B\nLicense: CC-BY-SA-4.0\n\n"
        "Files: images/land/sky*\n images/land/sea?.jpg\nCopyright: C\nLicense: public-domain\n Found on a shelf.\n"
    )
    assert notice.licence("usr/share/game/images/land/sea1.jpg") == "public-domain"
    assert notice.licence("usr/share/game/images/land/sand.jpg") == "CC-BY-SA-4.0"
    assert notice.licence("usr/share/game/sounds/a.ogg") is None
    assert corpus.Copyright("This package was debianized by hand.").licence("a") is None


@pytest.mark.parametrize("kind", corpus_documents.KINDS)
def test_pages_are_the_same_for_a_seed_and_carry_text(kind):
    pages = [corpus_documents.render_page([], seed, (300, 400), kind) for seed in (1, 1, 2)]
    assert pages[0].tobytes() == pages[1].tobytes() != pages[2].tobytes()
    assert pages[0].size == (300, 400) and pages[0].mode == "RGB"
    contrast = np.asarray(pages[0].convert("L"), float)
    assert np.percentile(contrast, 99.9) - np.percentile(contrast, 0.1) > 60


def test_pages_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"kind must be one of article, .*'novel'"):
        corpus_documents.render_page([], 0, kind="novel")
    with pytest.raises(ValueError, match="at least 64 x 64"):
        corpus_documents.render_page([], 0, size=(20, 400))


def test_fonts_without_latin_letters_are_left_out(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    fonts = corpus.system_fonts()
    assert corpus_documents.usable_fonts([tmp_path / "broken.ttf"]) == []
    assert fonts and corpus_documents.usable_fonts(fonts)


def test_training_and_validation_packages_are_apart_and_free_of_held_out_ones():
    train, validation = ({s.package for s in corpus_sources.AUDIO if s.validation is v} for v in (False, True))
    assert train and validation and not train & validation
    assert not any(name.startswith(("hyperrogue", "widelands", "fretsonfire")) for name in train | validation)


@pytest.fixture
def fake_packages(monkeypatch):
    """Stands in for apt: an image package and a zip of music."""
    fetched = []

    def fetch(package, folder):
        if package == "gone":
            raise corpus.PackageError("gone: apt does not have it")
        fetched.append(package)
        return folder / f"{package}_1%3a2.0-1_all.deb"

    def unpack(deb, folder):
        files = folder / "usr/share/pictures"
        files.mkdir(parents=True)
        (files / "one.jpg").write_bytes(encoded(photograph(seed=1), "JPEG"))
        (files / "two.jpg").write_bytes(encoded(photograph(seed=2), "JPEG"))
        (files / "icon.jpg").write_bytes(encoded(photograph(64, 64, 0, 8), "JPEG"))
        with zipfile.ZipFile(files / "music.pk3", "w") as archive:
            archive.writestr("music/song.ogg", music())
            archive.writestr("sounds/click.ogg", b"click")

    monkeypatch.setattr(corpus, "fetch_package", fetch)
    monkeypatch.setattr(corpus, "unpack_package", unpack)
    return fetched


def test_images_are_stored_filtered_and_not_done_twice(tmp_path, fake_packages):
    excluded = tmp_path / "test"
    excluded.mkdir()
    photograph(seed=2).resize((200, 180)).save(excluded / "kept_apart.png")
    args = Namespace(out=tmp_path / "out", exclude=[excluded])
    sources = [corpus_sources.Source("pictures", ("*.jpg",), "CC0-1.0"), corpus_sources.Source("gone", ("*",), "MIT")]
    for _ in range(2):
        assert corpus.prepare_media("images", sources, args) == ["gone: apt does not have it"]
        entries = corpus.write_manifest(args.out)
    assert fake_packages == ["pictures"]
    (entry,) = entries
    content = (args.out / "images/pictures/one.jpg").read_bytes()
    assert (
        entry["file"] == "images/pictures/one.jpg" and entry["version"] == "1:2.0-1" and entry["licence"] == "CC0-1.0"
    )
    assert entry["sha256"] == hashlib.sha256(content).hexdigest() and entry["bytes"] == len(content)
    assert [json.loads(line) for line in (args.out / "manifest.jsonl").read_text().splitlines()] == entries
    reasons = [json.loads(line)["reason"] for line in (args.out / "rejected.jsonl").read_text().splitlines()]
    assert "too small" in reasons[0] and "excluded test images" in reasons[1]
    assert not [path for path in args.out.rglob(".*")]

    (args.out / "images/pictures/one.jpg").write_bytes(b"damaged")
    (args.out / "images/pictures/stale.jpg").write_bytes(b"from an older recipe")
    corpus.prepare_media("images", sources, args)
    assert [f.name for f in (args.out / "images/pictures").iterdir()] == ["one.jpg"]
    assert (args.out / "images/pictures/one.jpg").read_bytes() == content


def test_music_from_archives_goes_to_its_split(tmp_path, fake_packages):
    args = Namespace(out=tmp_path, exclude=[])
    source = corpus_sources.Source("game", ("*.pk3",), "GPL-2+", archive="zip", member="music/*.ogg", validation=True)
    assert corpus.prepare_media("audio", [source], args) == []
    (entry,) = corpus.write_manifest(tmp_path)
    assert entry["split"] == "validation" and entry["file"] == "audio/validation/game/song.ogg"
    assert entry["origin"] == "usr/share/pictures/music.pk3!music/song.ogg" and entry["seconds"] == 11


def test_a_package_with_other_contents_is_reported(tmp_path, fake_packages):
    source = corpus_sources.Source("pictures", ("*.tiff",), "CC0-1.0")
    (problem,) = corpus.prepare_media("images", [source], Namespace(out=tmp_path, exclude=[]))
    assert "pictures_1%3a2.0-1_all.deb has other contents" in problem and "*.tiff" in problem
    assert corpus.write_manifest(tmp_path) == []


def test_without_apt_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(corpus.PackageError, match=r"krank: this needs apt-get.*put krank_\*\.deb"):
        corpus.fetch_package("krank", tmp_path)
    (tmp_path / "krank_0.7_all.deb").write_bytes(b"")
    assert corpus.fetch_package("krank", tmp_path).name == "krank_0.7_all.deb"


def test_the_command_explains_itself_and_names_unknown_packages(tmp_path):
    command = [sys.executable, "-m", corpus.__name__]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "manifest.jsonl" in shown and "--exclude" in shown
    wrong = subprocess.run(
        [*command, "images", "--out", str(tmp_path), "--packages", "krunk"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "krunk" in wrong.stderr and "krank" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_pictures_are_made_small_enough_to_travel(tmp_path, capsys):
    picture = skimage.data.astronaut()[:200, :300]
    for folder in ("a", "b"):  # the same name in two folders
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "in" / folder / "x.png")
    argv = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--short-side", "100"]
    assert shrink.main(argv) == 0
    copies = sorted((tmp_path / "out").iterdir())
    assert [copy.name for copy in copies] == ["a-x.png.avif", "b-x.png.avif"]
    with Image.open(copies[0]) as image:
        assert image.size == (150, 100)
        expected = Image.fromarray(picture).resize((150, 100), Image.Resampling.LANCZOS)
        assert np.square(np.subtract(image, expected, dtype=float)).mean() < 255**2 * 10**-3.2
    before = copies[0].stat().st_mtime_ns
    assert shrink.main(argv) == 0
    assert copies[0].stat().st_mtime_ns == before
    assert "2 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        shrink.main([str(tmp_path), "--out", str(tmp_path), "--quality", "101"])
    assert "--quality 0 to 100" in capsys.readouterr().err
