"""The page for browsers: its entropy coder in node, and the whole of it in headless Chromium, beside Python's results.

The second needs Chromium, the package playwright and a built page, `python scripts/build_page.py build/page`.
"""

import base64
import dataclasses
import functools
import http.server
import json
import shutil
import subprocess
import threading
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import skimage.data

from transformers_walloc.codec.bitstream import Header, pack, tables_id, unpack
from transformers_walloc.codec.entropy_coding import EntropyTables, encode_codes
from transformers_walloc.codec.side_data import SideData

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "page"
STORED = ROOT / "tests" / "data"


def tables_of(codec: str) -> bytes:
    return safetensors.numpy.load_file(ROOT / "model_cards" / codec / "model.safetensors")["entropy_tables"].tobytes()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("codec", ["rgb-16x", "rgb-4x"])
def test_coder_writes_the_same_bytes(codec, tmp_path):
    tables = EntropyTables.from_arrays(safetensors.numpy.load(tables_of(codec)))
    (tmp_path / "tables").write_bytes(tables_of(codec))
    rng, channels = np.random.default_rng(0), tables.num_channels
    items = {
        "pixel": rng.integers(-127, 128, (channels, 1, 1)),
        "row": rng.integers(-3, 4, (channels, 1, 9)),  # whose neighbours above are its own codes
        "column": rng.normal(0, 2, (channels, 11, 1)).round(),
        "zero": np.zeros((channels, 10, 12)),
        "wild": rng.integers(-127, 128, (channels, 9, 7)),  # escapes and plain bits
        "wide": rng.normal(0, 4, (3, 3, 2100)).round(),  # rows of more than a block; fewer channels than the codec's
        "smooth": np.cumsum(rng.integers(-1, 2, (channels, 17, 21)), -1),
    }
    for name, codes in items.items():
        codes = codes.astype(np.int8)
        header = Header(
            kind="image",
            sizes=(codes.shape[1] * 8, codes.shape[2] * 8 - 3),
            num_channels=3,
            num_levels=3,
            latent_channels=len(codes),
            fingerprint="0123456789abcdef",
            tables=tables_id(tables.to_arrays()),
            step=1.5 if name == "wild" else 1.0,
            codec=codec,
        )
        (tmp_path / f"{name}.walloc").write_bytes(pack(header, encode_codes(codes, tables)))
    for path in STORED.glob("*.walloc"):
        if unpack(path.read_bytes())[0].tables == tables_id(tables.to_arrays()):
            shutil.copy(path, tmp_path)
            items[path.stem] = np.load(path.with_suffix(".npy"))
    script = Path(__file__).with_name("coder.mjs")
    subprocess.run(["node", script, tmp_path / "tables", tmp_path], check=True)
    for name, codes in items.items():
        decoded = np.fromfile(tmp_path / f"{name}.walloc.codes", np.int8).reshape(codes.shape)
        assert np.array_equal(decoded, codes), name
        assert (tmp_path / f"{name}.walloc.again").read_bytes() == (tmp_path / f"{name}.walloc").read_bytes(), name


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_side_data_is_passed_over(tmp_path):
    header, payload = unpack((STORED / "rgb-4x.walloc").read_bytes())
    side_data = SideData(alpha=np.zeros(header.sizes, np.uint8), profile=b"a profile").pack()
    (tmp_path / "a.walloc").write_bytes(pack(dataclasses.replace(header, side_data=side_data), payload))
    (tmp_path / "tables").write_bytes(tables_of("rgb-4x-klt"))
    script = Path(__file__).with_name("coder.mjs")
    subprocess.run(["node", str(script), str(tmp_path / "tables"), str(tmp_path)], check=True, timeout=600)
    assert (tmp_path / "a.walloc.codes").read_bytes() == np.load(STORED / "rgb-4x.npy").tobytes()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("damage", ["cut", "flip", "audio"])
def test_container_refuses(damage, tmp_path):
    data = bytearray((STORED / ("stereo-20x.walloc" if damage == "audio" else "rgb-16x.walloc")).read_bytes())
    if damage == "flip":
        data[40] ^= 1
    (tmp_path / "a.walloc").write_bytes(data[:-9] if damage == "cut" else data)
    (tmp_path / "tables").write_bytes(tables_of("rgb-16x"))
    script = Path(__file__).with_name("coder.mjs")
    result = subprocess.run(["node", script, tmp_path / "tables", tmp_path], capture_output=True, text=True)
    assert result.returncode and ("audio" if damage == "audio" else "damaged or truncated") in result.stderr


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Address and folder of the page: models and runtime as built, all else as it is in page/ now."""
    if not (BUILT / "models" / "catalogue.json").exists():
        pytest.skip("needs a built page: python scripts/build_page.py build/page")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "page", folder, dirs_exist_ok=True)
    for name in ("models", "vendor"):
        (folder / name).symlink_to(BUILT / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


DROP = """async ([url, name]) => {
    const blob = await (await fetch(url)).blob();
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([blob], name, { type: blob.type }));
    document.body.dataset.state = "";
    window.dispatchEvent(new DragEvent("drop", { dataTransfer }));
}"""
RESULT = """() => {
    const text = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    const { file, picture, rows } = window.walloc;
    return { file: text(file), picture: text(picture.data), size: [picture.height, picture.width],
             names: rows.map(({ name }) => name), psnr: rows.map(({ psnr }) => psnr ?? null) };
}"""


# Colours in the middle of both halves of the lens, and of both pictures at the pointer, (200, 200) of the figure.
LENS = """() => {
    const at = (id, x, y) => [...document.getElementById(id).getContext("2d").getImageData(x, y, 1, 1).data];
    const left = document.getElementById("left");
    const scale = left.width / left.getBoundingClientRect().width;
    const [x, y] = [200, 200].map((value) => Math.round(value * scale - 30) + 30);
    return [[at("lens", 62, 122), at("lens", 182, 122)], [at("left", x, y), at("right", x, y)]];
}"""


@pytest.mark.slow
def test_photograph_in_chromium(site, tmp_path):
    """Drop a photograph, compare with Python; drop Python's file, compare the picture."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs chromium")
    from transformers import AutoImageProcessor, AutoModel

    import transformers_walloc  # noqa: F401

    address, folder = site
    photograph = skimage.data.astronaut()[:499, :411]  # neither size is a multiple of 8
    PIL.Image.fromarray(photograph).save(folder / "photo.png")
    (codec, *_) = json.loads((folder / "models" / "catalogue.json").read_text())
    model = AutoModel.from_pretrained(f"walloc/{codec['name']}")
    if codec["fingerprint"] != model.fingerprint():
        pytest.skip("the page was built with other checkpoints: python scripts/build_page.py build/page")
    inputs = AutoImageProcessor.from_pretrained(f"walloc/{codec['name']}")(photograph, return_tensors="pt")
    expected = model.compress(**inputs)[0]
    (folder / "python.walloc").write_bytes(expected)
    decoded = np.rint((model.decompress([expected])[0].numpy() + 0.5) * 255)

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(address)

        def drop(name: str) -> dict:
            page.wait_for_selector("body[data-state=done]")
            page.evaluate(DROP, [name, name])
            page.wait_for_selector("body[data-state=done], body[data-state=error]")
            assert page.locator("#status.error").count() == 0, page.locator("#status").text_content()
            return page.evaluate(RESULT)

        def difference(result: dict) -> np.ndarray:
            pixels = np.frombuffer(base64.b64decode(result["picture"]), np.uint8).reshape(*result["size"], 4)
            return np.abs(pixels[..., :3].transpose(2, 0, 1) - decoded)

        dropped = drop("photo.png")
        assert base64.b64decode(dropped["file"]) == expected
        assert difference(dropped).max() <= 1 and difference(dropped).mean() < 0.01
        assert dropped["names"] == ["WaLLoC", "Resized", "JPEG", "WebP"]
        error = decoded - photograph.transpose(2, 0, 1)
        assert abs(dropped["psnr"][0] + 10 * np.log10((error**2).mean() / 255**2)) < 0.01
        opened = drop("python.walloc")
        assert difference(opened).max() <= 1 and difference(opened).mean() < 0.01

        # What the page offers for download is that file, and it opens as any other.
        with page.expect_download() as download:
            page.locator("#save-walloc").click()
        assert download.value.suggested_filename == "python.walloc"
        download.value.save_as(tmp_path / "again.walloc")
        assert (tmp_path / "again.walloc").read_bytes() == expected
        page.locator("#file").set_input_files(tmp_path / "again.walloc")
        page.wait_for_function("document.getElementById('status').textContent.startsWith('again: done')")
        assert difference(page.evaluate(RESULT)).max() <= 1

        # The sample: resizing at equal numbers is what WaLLoC stands beside, in the table and under the magnifier.
        page.locator("#sample").click()
        page.wait_for_function("document.getElementById('status').textContent.startsWith('sample: done')")
        table = page.evaluate("[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[1].textContent)")
        numbers = f"{3 * 512 * 512 // 16:,}"
        assert table[:2] == [numbers, numbers] and set(table[2:]) == {f"{3 * 512 * 512:,}"}
        assert page.evaluate("['lefts', 'rights'].map(id => document.getElementById(id).value)") == [
            "Resized",
            "WaLLoC",
        ]
        assert page.locator("#lens").is_hidden()
        page.locator("#compare").hover(position={"x": 200, "y": 200})
        assert page.locator("#lens").is_visible()
        in_lens, in_pictures = page.evaluate(LENS)
        assert in_lens == in_pictures and in_lens[0] != in_lens[1]
        page.locator("#magnify").uncheck()
        page.locator("#compare").hover(position={"x": 30, "y": 30})
        assert page.locator("#lens").is_hidden()

        # Nothing sticks out on a phone, and both schemes have their own ground.
        grounds = set()
        for width, scheme in ((1000, "light"), (390, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        browser.close()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_files_of_other_kinds_are_named():
    """Files that Python writes, of audio, of a volume, and of a kind that is not known yet."""
    shared = {"num_levels": 2, "latent_channels": 4, "fingerprint": "0" * 16, "tables": "0" * 8}
    audio = pack(Header(kind="audio", sizes=(64,), num_channels=2, sampling_rate=8000, **shared), b"")
    volume = pack(Header(kind="volume", sizes=(4, 8, 8), num_channels=1, **shared), b"")
    unknown = volume[:5] + bytes([volume[5] & 0xF0 | 9]) + volume[6:-4]
    unknown += zlib.crc32(unknown).to_bytes(4, "little")
    code = """
import { unpack } from "./page/container.js";
for (const text of process.argv.slice(1)) {
  try { unpack(new Uint8Array(Buffer.from(text, "base64"))); console.log("opened"); }
  catch (error) { console.log(error.message); }
}"""
    files = [base64.b64encode(file).decode() for file in (audio, volume, unknown)]
    command = ["node", "--input-type=module", "-e", code, "--", *files]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "The file holds audio; this page opens images.",
        "The file holds a volume or a video; this page opens images.",
        "The file holds a kind of signal that this page does not know.",
    ]
