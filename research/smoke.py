"""Try an installation as a newcomer would, and print one line about it: versions, and what worked.

    python -m research.smoke        in a checkout, with the Python of the installation that is to be tried

Its own Hub cache; no network but an in-process Hub that answers 404 to everything.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "huggingface_hub", "numpy", "pillow", "peft", "torchvision")


def commands(folder: str) -> None:
    """Picture and sound there and back."""
    import numpy as np
    import PIL.Image

    from transformers_walloc.cli.main import main

    os.chdir(folder)
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 4)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save("in.png")
    assert main(["compress", "in.png"]) == 0 and main(["decompress", "in.walloc", "-o", "out.png"]) == 0
    assert (np.asarray(PIL.Image.open("out.png"))[..., 3] == pixels[..., 3]).all()
    try:
        import soundfile
    except ImportError:
        return
    soundfile.write("in.wav", np.sin(np.arange(44100) / 20)[:, None] / 2, 44100, subtype="PCM_24")
    assert (
        main(["compress", "in.wav", "-o", "s.walloc"]) == 0 and main(["decompress", "s.walloc", "-o", "out.wav"]) == 0
    )
    assert soundfile.info("out.wav").subtype == "PCM_24" and soundfile.info("out.wav").frames == 44100


def loading(folder: str) -> None:
    """The Auto classes by Hub id."""
    import numpy as np
    import torch
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

    import transformers_walloc  # noqa: F401

    model, processor = (auto.from_pretrained("walloc/rgb-16x") for auto in (AutoModel, AutoImageProcessor))
    inputs = processor(np.zeros((40, 50, 3), np.uint8), return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).latents.shape == (1, 12, 5, 7)
    assert model.decompress(model.compress(**inputs))[0].shape == (3, 40, 50)
    model = AutoModel.from_pretrained("walloc/stereo-20x", dtype=torch.bfloat16)
    extractor = AutoFeatureExtractor.from_pretrained("walloc/stereo-20x")
    assert (
        extractor(np.zeros((2, 1000), np.float32), sampling_rate=44100, return_tensors="pt")["input_values"].ndim == 3
    )


class Pictures:
    """A data set whose workers start the processor anew."""

    def __init__(self):
        from transformers import AutoImageProcessor

        import transformers_walloc  # noqa: F401

        self.processor = AutoImageProcessor.from_pretrained("walloc/rgb-16x")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        import numpy as np

        return self.processor(np.full((16, 16, 3), index, np.uint8), return_tensors="pt")["pixel_values"][0]


def spawned_workers(folder: str) -> None:
    from torch.utils.data import DataLoader

    pictures: Any = Pictures()
    (batch,) = DataLoader(pictures, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    assert batch.shape == (4, 3, 16, 16)


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


CHECKS = {"commands": (commands, True), "loading offline": (loading, True), "Hub of 404": (loading, False)}
CHECKS["spawn workers"] = (spawned_workers, True)


def main() -> int:
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[sys.argv[1]][0](folder)
        return 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    results, errors = [], []
    with tempfile.TemporaryDirectory() as home:
        for name, (_, offline) in CHECKS.items():
            environment = {**os.environ, "HF_HOME": f"{home}/{name}", "HF_HUB_OFFLINE": str(int(offline))}
            environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "research.smoke", name]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1]
            )
            results.append(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}")
            errors += [f"{name}: {done.stderr[-1500:]}"] if done.returncode else []
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(" | ".join([", ".join(versions), *results]))
    print("\n".join(errors), end="")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
