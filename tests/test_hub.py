"""The models on the Hub: the real client against the in-process Hub of hub_server.py.

The client runs in processes of its own (hub_client.py); the fixtures run each once, the tests look at what it saw.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from codec_fixtures import image_model
from hub_client import BUNDLED
from hub_server import HubServer
from huggingface_hub import parse_eval_result_entries
from pixel_processors import save_pixel_repository


def run_client(step: str, folder: Path, environment: dict[str, str]) -> dict:
    """The facts that one step of hub_client.py prints, and its "log": everything that the libraries said."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WALLOC_"))}
    command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), step, str(folder)]
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


def run_and_listen(step: str, folder: Path, environment: dict[str, str], server: HubServer) -> dict:
    """The facts of `run_client`, and its "requests": those for all repositories but the ones of `remote_code`."""
    before = len(server.requests)
    facts = run_client(step, folder, environment)
    requests = [(method, path) for method, path in server.requests[before:] if re.search("/(someone|walloc)/", path)]
    return {**facts, "requests": requests}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def beside():
    """Runs clients beside those that need each other's results."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def unreachable(folder, beside):
    """A machine without a network that nobody told so."""
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "unreachable")}  # nothing listens there
    return beside.submit(run_client, "unreachable", folder, environment)


@pytest.fixture(scope="module")
def fresh(folder, unreachable):
    """A machine that never had a network, and tiny codecs with their code in `folder`/image and `folder`/audio."""
    return run_client("never_online", folder, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "fresh")})


@pytest.fixture(scope="module")
def saved(fresh):
    return fresh["saved"]


@pytest.fixture(scope="module")
def server(folder, fresh):
    with HubServer() as server:
        for repo_id, name in (("someone/codec", "image"), ("other/image", "image"), ("other/audio", "audio")):
            server.commit_folder(repo_id, folder / name)
        yield server


@pytest.fixture(scope="module")
def remote_code(server, folder, beside):
    """Somebody without the package, who trusts the code of a folder and of a repository."""
    return beside.submit(run_client, "remote_code", folder, server.environment(folder / "remote"))


@pytest.fixture(scope="module")
def page(folder):
    """A page as scripts/build_page.py makes it, but for its size."""
    files = {"README.md": b"---\nsdk: static\n---\n", "index.html": b"<!doctype html>", "vendor/ort.wasm": b"\0asm"}
    for name, content in files.items():
        path = folder / "page" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


@pytest.fixture(scope="module")
def online(page, server, folder, remote_code):
    return run_and_listen("online", folder, server.environment(folder / "home"), server)


@pytest.fixture(scope="module")
def offline(online, server, folder):
    """A new process with the cache that `online` filled, and no network."""
    environment = {**server.environment(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return run_and_listen("offline", folder, environment, server)


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


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_codec_on_a_machine_that_never_had_a_network(fresh, name):
    facts = fresh["bundled"][name]
    assert facts["model_type"] == ("walloc_image" if name.startswith("rgb") else "walloc_audio")
    assert facts["digest"] == fresh["folders"][name]
    image = name.startswith("rgb")
    channels = {"rgb-4x": 48, "rgb-f16c48": 48, "stereo-5x": 108, "stereo-20x": 27}.get(name.removesuffix("-klt"), 12)
    grid = [3, 3] if name == "rgb-f16c48" else [5, 6]
    assert facts["processor"] == ("WallocImageProcessor" if image else "WallocAudioFeatureExtractor")
    assert facts["features"] == ([1, channels, *grid] if image else [1, channels, 4])


def test_bundled_codecs_when_the_network_fails(fresh, unreachable):
    facts = unreachable.result()
    assert facts["bundled"] == fresh["bundled"]
    assert "Retrying" not in facts["log"]  # the client waits half a minute for a file it does not know to be missing


def test_bundled_codecs_when_the_cache_cannot_be_written(fresh, tmp_path):
    (tmp_path / "file").write_text("in the way")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(tmp_path)}
    facts = run_client("unwritable", tmp_path, environment)
    assert facts["loaded"] == fresh["bundled"]["rgb-16x"] and "cannot be written" in facts["log"]
    assert facts["cache"].startswith(str(tmp_path)) and not os.path.exists(facts["cache"])  # it ended with its process


def test_bundled_codecs_when_the_hub_has_no_such_repository(online, fresh):
    assert online["bundled"] == fresh["bundled"]


def test_newer_commit_on_the_hub_wins_and_stays(online, offline):
    assert online["newer"]["digest"] == online["newer_pushed"] != online["bundled"]["rgb-16x"]["digest"]
    assert offline["newer"] == online["newer"]
    assert offline["bundled"] == {name: online["bundled"][name] for name in BUNDLED if name != "rgb-16x"}


def test_publish(online, server, folder, page):
    files = server.files("walloc/published")
    assert {"auto_map", "latent_fingerprint"} <= set(json.loads(files["config.json"]))
    assert {"README.md", "model.safetensors", "preprocessor_config.json", "modeling_walloc.py"} <= set(files)
    assert online["published"][0] == online["published"][1]
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/kodak.yaml"]))
    assert {"walloc/kodak"} == {entry.dataset_id for entry in entries}
    assert {"psnr", "bpp"} < {entry.task_id for entry in entries} and all(entry.value > 0 for entry in entries)
    # A dry run writes what would be uploaded, and uploads nothing.
    dry = {str(path.relative_to(folder / "dry")) for path in (folder / "dry").rglob("*") if path.is_file()}
    assert dry == set(files) - {".gitattributes", ".eval_results/kodak.yaml"}
    assert len(server.repositories["models", "walloc/published"]) == 2  # created, then one commit


def test_publish_a_page(server, online, page):
    assert {name: server.files("walloc/page", kind="spaces")[name] for name in page} == page
    assert server.repositories["spaces", "walloc/page"][-1][0] == online["commits"][1]


def test_code_from_folder_and_repository_without_the_package(remote_code, saved, fresh):
    facts = remote_code.result()
    assert facts["staged"] == fresh["folders"]["rgb-16x"]  # as `walloc publish` prepares it
    assert "trust_remote_code" in facts["refused"]
    for place in ("folder", "hub"):
        assert facts[place]["image"] == saved["image"] and facts[place]["audio"] == saved["audio"]
        assert facts[place]["modules"] == ["transformers_modules"] * 4
        assert facts[place]["round_trip"] == [50, 37]


def test_folded_model_with_its_processor(tmp_path):
    """`push_to_hub` of model and processor uploads all that another machine needs, with the package and without."""
    save_pixel_repository("smolvlm", str(tmp_path / "pixels"))
    image_model(12).save_pretrained(tmp_path / "tiny")
    with HubServer() as server:
        facts = run_client("folded", tmp_path, server.environment(tmp_path / "home"))
        files = set(server.files("walloc/answers"))
        assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files
        assert {"chat_template.jinja", "processing.py", "image_processing.py"} <= files
        assert facts["pushed"] == facts["loaded"] and len(facts["loaded"]) > 4 * 7 and facts["template"]
        assert facts["codec"]["name"] == "tiny"
        environment = {**server.environment(tmp_path / "other"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
        elsewhere = run_client("folded_remote_code", tmp_path, environment)
        assert elsewhere["answer"] == facts["pushed"]
