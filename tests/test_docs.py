"""The Python snippets of README.md and docs/ run as they stand, each file's in order; links lead somewhere."""

import json
import re
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from codec_fixtures import sound

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SKILL.md", *sorted((ROOT / "docs").rglob("*.md"))]
# One card of each template; the others differ in names and numbers.
CARDS = [
    ROOT / "model_cards" / name / "README.md"
    for name in ("rgb-16x", "stereo-20x", "gray-16x", "mono-20x", "sentinel2-16x")
]
# A comment <!-- no-test --> in front of a block leaves it out.
BLOCK = re.compile(r"^(?P<skip><!-- no-test -->\n+)?```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[tuple[int, str]]:
    """(line, code) of each block that is to run."""
    text = page.read_text(encoding="utf-8")
    found = [match for match in BLOCK.finditer(text) if not match["skip"]]
    return [(text[: match.start("code")].count("\n") + 1, match["code"]) for match in found]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the snippets may use: photo.png, photos/ with two classes, music.flac and music.wav."""
    monkeypatch.chdir(tmp_path)
    picture = skimage.data.astronaut()
    PIL.Image.fromarray(picture[:250, 100:401]).save("photo.png")
    for i in range(10):
        path = Path("photos", "ab"[i % 2], f"{i}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture[40 * (i // 2) : 40 * (i // 2) + 120, 100:300]).save(path)
    clip = sound(1.0)
    with wave.open("music.wav", "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes((clip.T * 32767).round().astype("<i2").tobytes())
    import soundfile

    soundfile.write("music.flac", clip.T, 44100)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in (*PAGES, *CARDS) if snippets(page)], ids=_name)
def test_snippets(page, folder):
    blocks = snippets(page)
    if page.name == "original.md":
        save_as_the_original_does("RGB_16x")
    torch.manual_seed(0)
    np.random.seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    namespace = {"__name__": "__main__"}
    try:
        for line, code in blocks:
            # Line numbers of the page, so that a traceback points into it.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    finally:
        torch.set_num_threads(threads)


def save_as_the_original_does(name: str) -> None:
    """A random codec in the two files that the original publishes."""
    pytest.importorskip("diffusers")
    pywt = pytest.importorskip("pywt")
    from transformers_walloc import WallocImageConfig, WallocImageModel

    config = WallocImageConfig(decoder_type="kl", decoder_hidden_size=32, boundary="periodization")
    weights = {
        key.replace("encoder.projection.", "encoder.0.").replace("decoder.", "decoder.1."): value
        for key, value in WallocImageModel(config).state_dict().items()
    }
    wavelet = pywt.Wavelet("bior4.4")
    for axis in ("col", "row"):
        weights |= {
            f"wt.h0_{axis}": torch.tensor(wavelet.dec_lo[::-1]),
            f"wt.h1_{axis}": torch.tensor(wavelet.dec_hi[::-1]),
        }
        weights |= {f"iwt.g0_{axis}": torch.tensor(wavelet.rec_lo), f"iwt.g1_{axis}": torch.tensor(wavelet.rec_hi)}
    torch.save({"model_state_dict": weights}, f"{name}.pth")
    settings = {"channels": 3, "J": 3, "Ne": None, "Nd": 32, "latent_dim": 12, "latent_bits": 8}
    Path(f"{name}.json").write_text(json.dumps({**settings, "lightweight_encode": True, "learning_rate": 1e-3}))


@pytest.mark.parametrize("page", [*PAGES, *CARDS, *sorted(ROOT.glob("[A-Z]*.md"))], ids=_name)
def test_links(page):
    """Pages, pictures and sections that are named exist; the site's own build does not look at pictures."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, section = target.partition("#")
        if "://" in target:
            continue
        named = page.parent / file if file else page
        assert named.exists(), f"{page.name} names {target}"
        if section:
            headings = re.findall(r"^#+ (.+)$", named.read_text(encoding="utf-8"), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}, target


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r'= "([\w/]+\.md)" }', (ROOT / "zensical.toml").read_text())
    pages = [str(page.relative_to(ROOT / "docs")) for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert sorted(navigation) == sorted(pages)


def test_finds_blocks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n```python\nx = 1\n```\n<!-- no-test -->\n```python\n1 / 0\n```\n```bash\nls\n```\n")
    assert snippets(page) == [(3, "x = 1\n")]
