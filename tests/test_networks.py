"""Bundled codecs behind networks of every kind: nobody is asked for them, so that nothing can refuse, hang or fail.

Each client is a process of its own, since the Hub client reads its settings once; what it does is `DOORS`.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import HubServer

DOORS = """
import json, sys
import numpy as np, torch
from PIL import Image
import transformers_walloc
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor, pipeline
from transformers_walloc import WallocImageEncoder
from transformers_walloc.cli.main import main

picture = Image.new("RGB", (48, 40), "teal")
picture.save("photo.png")
done = [type(AutoModel.from_pretrained("walloc/rgb-16x")).__name__]
done += [type(auto.from_pretrained("walloc/rgb-16x")).__name__ for auto in (AutoConfig, AutoImageProcessor)]
done += [type(AutoProcessor.from_pretrained("walloc/rgb-16x")).__name__]
done += [type(AutoFeatureExtractor.from_pretrained("walloc/stereo-20x")).__name__]
done += [type(AutoModel.from_pretrained("walloc/rgb-16x", revision="main")).__name__]
done += [WallocImageEncoder.from_pretrained("walloc/rgb-4x").config.latent_channels]
done += [list(np.shape(pipeline("image-feature-extraction", model="walloc/rgb-16x")(picture)))]
sound = {"array": np.zeros((2, 1024)), "sampling_rate": 44100}
done += [list(np.shape(pipeline("feature-extraction", model="walloc/stereo-20x")(sound)))]
done += [main(["compress", "photo.png", "--model", "walloc/rgb-16x"])]
done += [main(["decompress", "photo.walloc", "-o", "back.png"]), Image.open("back.png").size]
print(json.dumps(done))
"""
DONE = ["WallocImageModel", "WallocImageConfig", "WallocImageProcessor", "WallocImageProcessor"]
DONE += ["WallocAudioFeatureExtractor", "WallocImageModel", 48, [1, 12, 5, 6], [1, 27, 4], 0, 0, [48, 40]]


def run(script: str, folder: Path, **environment: str) -> tuple[list, str]:
    """What a script prints in its last line, and all that the libraries said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WALLOC_"))}
    kept = {name: value for name, value in kept.items() if "proxy" not in name.lower()}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@contextmanager
def refusing_proxy():
    """As of companies: everything is forbidden."""
    seen: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def refuse(self):
            seen.append(self.path)
            self.send_error(403)

        do_CONNECT = do_GET = do_HEAD = do_POST = refuse

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hanging_proxy():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list = []  # kept open
        server.settimeout(0.1)
        ended = threading.Event()

        def accept():
            while not ended.is_set():
                try:
                    seen.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        ended.set()
        thread.join()


@pytest.mark.parametrize("proxy", [refusing_proxy, hanging_proxy])
def test_behind_a_proxy(proxy, tmp_path):
    with proxy() as (port, seen):
        address = f"http://127.0.0.1:{port}"
        done, said = run(DOORS, tmp_path, HTTP_PROXY=address, HTTPS_PROXY=address, ALL_PROXY=address)
        assert done == DONE and not seen
        assert "Hub" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "https://hub.invalid"},  # no such name, RFC 2606
        {"HF_ENDPOINT": "http://240.0.0.1"},  # no route, RFC 1112
        {"HF_ENDPOINT": "http://127.0.0.1:9"},  # nothing listens
    ],
)
def test_without_a_network(environment, tmp_path):
    assert run(DOORS, tmp_path, **environment)[0] == DONE


def test_a_newer_revision_comes_when_it_is_asked_for(tmp_path):
    """`hf download`, which is snapshot_download, and not before; from then on the Hub is asked as for any other id."""
    newer = Path(__file__).parents[1] / "model_cards" / "rgb-16x-klt"
    script = """
import json, sys
import transformers_walloc
from huggingface_hub import snapshot_download
from transformers import AutoModel
from transformers_walloc.loading import load_codec
def load():
    found = [AutoModel.from_pretrained("walloc/rgb-16x"), load_codec("walloc/rgb-16x")[0]]
    return [model.config.decoder_type for model in found]
before = load()
snapshot_download("walloc/rgb-16x")
print(json.dumps([before, load()]))
"""
    with HubServer() as server:
        server.commit_folder("walloc/rgb-16x", newer)
        environment = server.environment(tmp_path / "home")
        done, _ = run(script, tmp_path, **environment)
        assert done == [2 * ["restoration"], 2 * ["residual"]]
        asked = [path for _, path in server.requests if "rgb-16x" in path]
        assert asked[0].startswith("/api/models/walloc/rgb-16x/revision")  # of the download
        done, _ = run(script, tmp_path, **environment, HF_HUB_OFFLINE="1")
        assert done == [2 * ["residual"]] * 2


def test_a_download_can_be_forced(tmp_path):
    """By every door, each of them beginning with the bundled codec."""
    newer = Path(__file__).parents[1] / "model_cards" / "rgb-16x-klt"
    script = """
import json, os
from pathlib import Path
import transformers_walloc
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline
from transformers_walloc import WallocImageEncoder
main = Path(os.environ["HF_HOME"]) / "hub/models--walloc--rgb-16x/refs/main"
linked = main.read_text()
done = [AutoModel.from_pretrained("walloc/rgb-16x").config.decoder_type]
for door in (AutoConfig, AutoModel, WallocImageEncoder, AutoImageProcessor, AutoProcessor, pipeline):
    main.write_text(linked)
    if door is pipeline:
        options = {"model_kwargs": {"force_download": True}}
        found = pipeline("image-feature-extraction", model="walloc/rgb-16x", **options).model
    else:
        found = door.from_pretrained("walloc/rgb-16x", force_download=True)
    config = getattr(found, "config", found)
    done.append([getattr(config, "decoder_type", type(found).__name__), main.read_text() != linked])
done.append(AutoModel.from_pretrained("walloc/rgb-16x").config.decoder_type)
print(json.dumps(done))
"""
    with HubServer() as server:
        server.commit_folder("walloc/rgb-16x", newer)
        done, _ = run(script, tmp_path, **server.environment(tmp_path / "home"))
    processors = [["WallocImageProcessor", True]] * 2
    assert done == ["restoration", *[["residual", True]] * 3, *processors, ["residual", True], "residual"]
