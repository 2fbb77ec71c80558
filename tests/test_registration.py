"""`import transformers_walloc` is quick, and registers whatever was imported before it and comes after."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_walloc

REGISTERED = """
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel
import sys
for name, part in (("rgb-16x", "Image"), ("stereo-20x", "Audio")):
    config = AutoConfig.from_pretrained(f"walloc/{name}")
    assert type(config).__name__ == f"Walloc{part}Config" and type(config).__module__.startswith("transformers_walloc.")
    with __import__("torch").device("meta"):
        assert type(AutoModel.from_config(config)).__name__ == f"Walloc{part}Model"
assert type(AutoImageProcessor.from_pretrained("walloc/rgb-16x")).__name__ == "WallocImageProcessor"
assert type(AutoFeatureExtractor.from_pretrained("walloc/stereo-20x")).__name__ == "WallocAudioFeatureExtractor"
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers_walloc import WallocLatentConfig, WallocLatentModel
assert MODEL_MAPPING[WallocLatentConfig] is WallocLatentModel
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "_Watcher"]
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error:::transformers_walloc", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "before",
    [
        "import transformers_walloc",
        "import transformers; import transformers_walloc",
        # Modules that load the Auto classes half way through their own import.
        "import transformers_walloc; import transformers.modeling_layers",
        "from transformers_walloc import WallocImageModel",
        "import transformers_walloc.latents.modeling",
        "import transformers_walloc; from transformers import AutoTokenizer, pipeline",
    ],
)
def test_registered(before):
    run(before + REGISTERED)


def test_import_alone_is_quick():
    heavy = {"torch", "transformers", "numpy", "PIL"}
    assert run(f"import sys, transformers_walloc; print({heavy} & set(sys.modules))") == "set()\n"


def test_threads_that_load_at_once():
    """What they need is imported before they start: first imports at once fail in transformers alone, too."""
    run(
        "import threading, transformers_walloc\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel\n"
        "jobs = [(AutoModel, 'rgb-16x'), (AutoModel, 'stereo-20x'), (AutoImageProcessor, 'rgb-16x')]\n"
        "jobs = 2 * [*jobs, (AutoFeatureExtractor, 'stereo-20x')]\n"
        "gate = threading.Barrier(len(jobs))\n"
        "def load(job):\n"
        "    gate.wait()\n"
        "    return job[0].from_pretrained(f'walloc/{job[1]}')\n"
        "with ThreadPoolExecutor(len(jobs)) as pool:\n"
        "    loaded = list(pool.map(load, jobs))\n"
        "names = ['WallocImageModel', 'WallocAudioModel', 'WallocImageProcessor', 'WallocAudioFeatureExtractor']\n"
        "assert [type(each).__name__ for each in loaded] == 2 * names\n"
        "weights = [loaded[i].state_dict() for i in (0, 4)]\n"
        "assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])\n"
    )


def test_what_is_required_is_imported_and_nothing_else():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    root = Path(__file__).parents[1]
    required = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=\[;]", each)[0].strip().lower() for each in required}
    imported = set()
    for path in (root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    assert {{"pillow": "PIL"}.get(name, name) for name in names} <= imported


def test_workers_that_start_anew_and_pickles(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(
        "import multiprocessing, pickle\n"
        "def work(processor_and_config):\n"
        "    processor, config = pickle.loads(processor_and_config)\n"
        "    from transformers import AutoModel\n"
        "    model = AutoModel.from_config(config)\n"
        "    return type(processor).__name__, type(model).__name__\n"
        "if __name__ == '__main__':\n"
        "    from transformers_walloc import WallocImageConfig, WallocImageProcessor\n"
        "    pair = pickle.dumps((WallocImageProcessor(), WallocImageConfig(decoder_type='linear')))\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.apply(work, (pair,)) == ('WallocImageProcessor', 'WallocImageModel')\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)


def test_modules_keep_their_loaders():
    run(
        "import transformers_walloc, inspect\n"
        "import transformers.models.auto.configuration_auto as module\n"
        "assert type(module.__loader__).__module__ in ('_frozen_importlib_external', 'importlib._bootstrap_external')\n"
        "assert 'exec_module' not in vars(module.__loader__) and 'CONFIG_MAPPING' in inspect.getsource(module)\n"
    )


def test_names():
    for name in transformers_walloc.__all__:
        assert getattr(transformers_walloc, name).__name__ == name
    assert set(transformers_walloc.__all__) <= set(dir(transformers_walloc))
    with pytest.raises(AttributeError, match="no attribute 'WallocVideoModel'"):
        _ = transformers_walloc.WallocVideoModel
    source = ast.parse(Path(transformers_walloc.__file__).read_text(encoding="utf-8"))
    (typed,) = [node.body for node in source.body if isinstance(node, ast.If)]
    imports = {node.module: tuple(alias.name for alias in node.names) for node in typed}
    assert imports == transformers_walloc._MODULES
    lazy = {name for names in imports.values() for name in names}
    assert lazy | {"bundled_path"} == set(transformers_walloc.__all__)


def test_plugin_of_vllm():
    """The entry point that vLLM's processes call: it exists, takes nothing, and may be called again."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["walloc"].partition(":")
    plugin = getattr(importlib.import_module(module), name)
    plugin()
    plugin()
    found = importlib.import_module("transformers.models.auto.processing_auto")
    found = found.processor_class_from_name("WallocLatentProcessor")
    assert found.__module__ == "transformers_walloc.latents.processing"
