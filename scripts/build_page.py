#!/usr/bin/env python
"""Build the page that runs codecs in a browser: page/ with exported models and the runtime beside it.

    python scripts/build_page.py build/page --screenshot docs/pictures/page.jpg
    python -m http.server --directory build/page
    walloc publish build/page USER/walloc

The folder needs no server that computes anything: any static host takes it, a static Space of the Hub too. The runtime
comes from npm, or from `--runtime`, an onnxruntime-web tarball or an unpacked one. Needs the extra `onnx`; the picture
of the page also the extra `page` and the system's Chromium.
"""

import argparse
import functools
import http.server
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from transformers import AutoModel

from transformers_walloc.codec.bitstream import tables_id
from transformers_walloc.export import export_codec

PAGE = Path(__file__).resolve().parents[1] / "page"
NOT_BUILT = ("package*.json", "eslint.config.js", "node_modules", ".*")
PACKAGES = json.loads((PAGE / "package.json").read_text(encoding="utf-8"))["optionalDependencies"]
RUNTIME = f"onnxruntime-web@{PACKAGES['onnxruntime-web']}"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
# What the Hub reads in a Space's README.
CARD = "---\ntitle: WaLLoC\nsdk: static\nlicense: apache-2.0\n---\n\nWaLLoC codecs in the browser.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write; its files of the same names are replaced")
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=["walloc/rgb-f16c48", "walloc/rgb-16x", "walloc/rgb-4x"],
        help="Hub ids or folders",
    )
    parser.add_argument("--runtime", type=Path, help=f"tarball or folder of {RUNTIME}; fetched with npm by default")
    parser.add_argument("--screenshot", type=Path, metavar="JPG", help="picture of the built page at work")
    options = parser.parse_args()
    build(options.output, options.codecs, options.runtime)
    if options.screenshot:
        take_screenshot(options.output, options.screenshot)
    files = [path for path in options.output.rglob("*") if path.is_file()]
    print(f"{options.output}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def build(output: Path, codecs: list[str], runtime: Path | None = None) -> None:
    shutil.copytree(PAGE, output, ignore=shutil.ignore_patterns(*NOT_BUILT), dirs_exist_ok=True)
    (output / "README.md").write_text(CARD, encoding="utf-8")
    copy_runtime(output / "vendor", runtime)
    catalogue = [add_codec(output / "models", codec) for codec in codecs]
    (output / "models" / "catalogue.json").write_text(json.dumps(catalogue, indent=1) + "\n", encoding="utf-8")


def add_codec(models: Path, name_or_path: str) -> dict[str, Any]:
    """Exports a codec to its folder; its entry in the catalogue."""
    model = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
    name, config = name_or_path.rstrip("/").rsplit("/", 1)[-1], model.config
    if model.entropy_tables is None or config.num_dims != 2 or config.num_channels != 3:
        raise SystemExit(f"{name_or_path}: the page takes codecs of RGB images with fitted entropy tables")
    export_codec(model, models / name)
    (models / name / "tables.safetensors").write_bytes(model.entropy_tables.numpy().tobytes())
    return {
        "name": name,
        "label": f"{config.dimensionality_reduction:g} times fewer numbers",
        "fingerprint": model.fingerprint(),
        "tables": tables_id(model.get_entropy_tables().to_arrays()),
        "numLevels": config.num_levels,
        "latentBits": config.latent_bits,
        "numChannels": config.num_channels,
        "latentChannels": config.latent_channels,
    }


def copy_runtime(vendor: Path, runtime: Path | None) -> None:
    vendor.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if runtime is None:
            subprocess.run(["npm", "pack", "--silent", RUNTIME, "--pack-destination", scratch], check=True)
            (runtime,) = Path(scratch).glob("*.tgz")
        if runtime.is_file():
            with tarfile.open(runtime) as archive:
                for name in RUNTIME_FILES:
                    archive.extract(f"package/dist/{name}", scratch, filter="data")
            runtime = Path(scratch, "package")
        for name in RUNTIME_FILES:
            shutil.copy(runtime / "dist" / name, vendor / name)


def take_screenshot(folder: Path, picture: Path) -> None:
    """The page with a photograph, on a large light screen and on a dark phone, side by side."""
    import playwright.sync_api
    import skimage.data

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    views = []
    with tempfile.TemporaryDirectory() as scratch, playwright.sync_api.sync_playwright() as api:
        photograph = Path(scratch, "cup.png")
        PIL.Image.fromarray(skimage.data.coffee()).save(photograph)
        browser = api.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        screens: list[tuple[int, Literal["light", "dark"]]] = [(1000, "light"), (390, "dark")]
        for width, scheme in screens:
            page = browser.new_page(viewport={"width": width, "height": 1500}, color_scheme=scheme)
            page.set_default_timeout(300_000)
            page.goto(f"http://127.0.0.1:{server.server_address[1]}")
            page.wait_for_selector("body[data-state=done]")
            page.locator("#file").set_input_files(photograph)
            page.wait_for_selector("#result:not([hidden])")
            page.wait_for_selector("body[data-state=done]")
            box = page.locator("#compare").bounding_box()
            if scheme == "light" and box:  # with the magnifier on the border of both pictures
                page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.45)
            views.append(PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    server.shutdown()
    gap = 20
    sheet = PIL.Image.new("RGB", (sum(view.width for view in views) + gap, views[0].height), "white")
    sheet.paste(views[0], (0, 0))
    sheet.paste(views[1], (views[0].width + gap, 0))
    sheet = sheet.resize((sheet.width * 4 // 5, sheet.height * 4 // 5), PIL.Image.Resampling.LANCZOS)
    sheet.save(picture, quality=72, optimize=True)


if __name__ == "__main__":
    main()
