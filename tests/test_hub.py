"""The models on the Hub: the real client against the in-process Hub of hub_server.py.

The client runs in processes of its own (hub_client.py); the fixtures run each once, the tests look at what it saw.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import HubServer

BUNDLED = ("rgb-4x", "rgb-16x", "stereo-5x", "stereo-20x")


def run_client(step: str, folder: Path, environment: dict[str, str]) -> dict:
    """The facts that one step of hub_client.py prints, and its "log": everything that the libraries said."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WALLOC_"))}
    command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), step, str(folder)]
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def saved(folder):
    """Tiny codecs with their code in `folder`/image and `folder`/audio."""
    return run_client("save_with_code", folder, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "saving")})


@pytest.fixture(scope="module")
def server(folder, saved):
    with HubServer() as server:
        server.commit_folder("someone/codec", folder / "image")
        server.commit_folder("someone/audio", folder / "audio")
        yield server


@pytest.fixture(scope="module")
def online(server, folder):
    server.requests.clear()
    return {**run_client("online", folder, server.environment(folder / "home")), "requests": list(server.requests)}


@pytest.fixture(scope="module")
def offline(online, server, folder):
    """A new process with the cache that `online` filled, and no network."""
    server.requests.clear()
    environment = {**server.environment(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return {**run_client("offline", folder, environment), "requests": list(server.requests)}


@pytest.fixture(scope="module")
def fresh(folder):
    """The bundled codecs on machines that never had a network: told so, and not told so."""
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the port that discards; nothing listens there
    situations = {"offline": {"HF_HUB_OFFLINE": "1"}, "unreachable": unreachable}
    with ThreadPoolExecutor() as pool:
        runs = {
            name: pool.submit(run_client, "bundled", folder, {**environment, "HF_HOME": str(folder / name)})
            for name, environment in situations.items()
        }
        return {name: run.result() for name, run in runs.items()}


def test_cold_download_then_warm_cache(online, saved):
    assert online["cold"] == online["warm"]
    assert online["cold"]["digest"] == saved["image"]
    assert online["cold"]["round_trip"] == [50, 37]
    downloads = [path for method, path in online["requests"] if method == "GET" and "/someone/codec/resolve/" in path]
    assert len(downloads) == len(set(downloads)) > 0  # nothing twice


def test_offline_reload_in_a_new_process(online, offline):
    assert offline["cold"] == online["cold"]
    assert offline["requests"] == []


def test_push_then_load(online, offline, server):
    assert online["pushed"]["digest"] == online["changed"]
    assert online["pushed"] == offline["pushed"]
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(
        server.files("walloc/pushed")
    )


def test_sharded_push_then_load(online, offline, server):
    files = server.files("walloc/sharded")
    assert "model.safetensors.index.json" in files and len([n for n in files if n.endswith(".safetensors")]) > 1
    assert online["sharded"] == offline["sharded"] == online["changed"]


def test_dtype(online):
    assert online["dtypes"] == ["torch.float32", "torch.bfloat16"]


def test_encoder_alone_loads_the_same_checkpoint(online):
    assert online["encoder_alone"]


def test_unknown_repository_is_an_error(online):
    assert "walloc/nothing is not a local folder and is not a valid model identifier" in online["no_such_repository"]


@pytest.mark.parametrize("situation", ["offline", "unreachable"])
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_codec_without_a_network(fresh, situation, name):
    facts = fresh[situation]
    assert facts[name]["model_type"] == ("walloc_image" if name.startswith("rgb") else "walloc_audio")
    assert facts[name] == fresh["offline"][name]
    assert "Retrying" not in facts["log"]  # the client waits half a minute for a file it does not know to be missing


def test_bundled_codec_when_the_hub_has_no_such_repository(online, fresh):
    assert online["bundled"] == {name: fresh["offline"][name] for name in BUNDLED}


def test_newer_commit_on_the_hub_wins_and_stays(online, offline):
    assert online["newer"]["digest"] == online["newer_pushed"] != online["bundled"]["rgb-16x"]["digest"]
    assert offline["newer"] == online["newer"]
    assert offline["bundled"] == {name: online["bundled"][name] for name in BUNDLED if name != "rgb-16x"}


def test_code_from_folder_and_repository_without_the_package(server, folder, saved):
    facts = run_client("remote_code", folder, server.environment(folder / "remote"))
    assert "trust_remote_code" in facts["refused"]
    for place in ("folder", "hub"):
        assert facts[place]["image"] == saved["image"] and facts[place]["audio"] == saved["audio"]
        assert facts[place]["modules"] == ["transformers_modules"] * 4
        assert facts[place]["round_trip"] == [50, 37]
