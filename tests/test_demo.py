"""The demo's picture: original, resizing to as many numbers, and WaLLoC, under captions that say their PSNR."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.py"


@pytest.mark.parametrize("size", [(400, 392), (1000, 808)])  # the second is shown by its centre
def test_picture_of_the_demo(size, tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    captions, draw = [], demo.side_by_side
    monkeypatch.setattr(demo, "side_by_side", lambda panels, shown: captions.extend(panels) or draw(panels, shown))
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise.save(tmp_path / "photo.png")

    demo.main([str(tmp_path / "photo.png"), "--model", "walloc/rgb-16x-klt", "--output", str(tmp_path)])

    picture = np.asarray(Image.open(tmp_path / "side_by_side.png"))
    width, height = (min(side, 768) for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    caption = picture.shape[0] - height
    shown = [picture[:, i * (width + 4) :][:, :width] for i in range(3)]
    assert picture.shape[1] == 3 * width + 8 and all((panel[:caption] < 128).any() for panel in shown)
    original = np.asarray(noise)
    small = noise.resize((size[0] // 4, size[1] // 4), Image.Resampling.LANCZOS)
    resized = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    for panel, expected in zip(shown, (original, resized), strict=False):
        np.testing.assert_array_equal(panel[caption:], expected[top : top + height, left : left + width])

    assert [re.match("[a-zA-Z]+", title).group() for title, _ in captions] == ["original", "resized", "WaLLoC"]
    for title, pixels in captions[1:]:
        error = np.square(pixels.astype(float) - original).mean()
        assert "16x fewer numbers" in title and f"{10 * np.log10(255**2 / error):.2f} dB" in title
    np.testing.assert_array_equal(shown[2][caption:], captions[2][1][top : top + height, left : left + width])
    assert captions[2][0].rpartition(", ")[2] in capsys.readouterr().out  # the PSNR of WaLLoC
