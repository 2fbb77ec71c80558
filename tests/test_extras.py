"""Optional packages that are missing: every door names them and the command that installs them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_walloc.extras import EXTRAS, naming_extras

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"pywt": "PyWavelets", "pytorch_msssim": "pytorch-msssim", "pyarrow": "datasets", "ray": "ray[data]"}
# Of codecs and measures of others; each names its own command.
OTHERS = {
    "compressai",
    "piq",
    "torchvision",
    "torchaudio",
    "lpips",
    "cdpam",
    "pillow_jxl",
    "DISTS_pytorch",
    "nvtx",
    "walloc",
}


def test_the_table_says_what_pyproject_says():
    for name, extra in EXTRAS.items():
        distributions = {re.split(r"[<>=;]", each)[0].strip() for each in PROJECT["optional-dependencies"][extra]}
        assert PACKAGES.get(name, name) in distributions, name


def test_every_optional_import_is_in_the_table():
    required = {re.split(r"[<>=\[;]", each)[0].strip().lower() for each in PROJECT["dependencies"]} | {"pil", "tqdm"}
    imported = set()
    for path in (ROOT / "src" / "transformers_walloc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    ours = {"transformers_walloc", "jinja2", "yaml", "IPython"}  # jinja2 comes with torch, yaml with the Hub client
    rest = {name for name in imported if name.lower() not in required | set(sys.stdlib_module_names) | ours}
    assert rest - OTHERS <= set(EXTRAS), rest - OTHERS - set(EXTRAS)


def test_the_message():
    command = re.escape("ray is not installed: pip install 'transformers-walloc[ray]'")
    with pytest.raises(ModuleNotFoundError, match=command), naming_extras():
        raise ModuleNotFoundError("No module named 'ray'", name="ray.data")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nothing'"), naming_extras():
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("accelerate", "main(['train', '--help'])"),
        ("matplotlib", "main(['inspect', 'photo.png', '-o', 'pictures'])"),
        ("datasets", "main(['dataset', 'photos', 'latents'])"),
        ("pyarrow", "main(['dataset', 'photos', 'latents', '--engine', 'ray'])"),
        (
            "datasets",
            "from transformers_walloc.latents.writing import compress_dataset as compress; compress('a', 'b')",
        ),
        ("matplotlib", "import transformers_walloc.evaluation.plots"),
        ("accelerate", "import transformers_walloc.training.trainer"),
        ("accelerate", "import transformers_walloc.training.recipe"),
    ],
)
def test_doors(missing, code, tmp_path):
    """In a process that lacks the package, with a picture at hand."""
    script = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == {missing!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from PIL import Image
Image.new("RGB", (32, 32)).save("photo.png")
import transformers_walloc
from transformers_walloc.cli.main import main
try:
    {code}
except ModuleNotFoundError as error:
    print(error, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    command = f"{missing} is not installed: pip install 'transformers-walloc[{EXTRAS[missing]}]'"
    assert command in done.stderr and "Traceback" not in done.stderr, done.stderr
