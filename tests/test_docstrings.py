"""The Python examples of the docstrings run, and print what they show."""

import ast
import contextlib
import doctest
import functools
import importlib
import re
import textwrap
from pathlib import Path

import datasets
import matplotlib.figure
import numpy as np
import PIL.Image
import pytest
import skimage.data
import tifffile
import torch
import transformers
from codec_fixtures import image_model, sound
from pixel_models import FAMILIES

import transformers_walloc
from transformers_walloc import WallocVolumeConfig, WallocVolumeImageProcessor, WallocVolumeModel
from transformers_walloc.latents.writing import compress_dataset
from transformers_walloc.media.file_codec import FileCodec
from transformers_walloc.training.entropy_fitting import fit_entropy_tables

SOURCE = Path(transformers_walloc.__file__).parent
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def examples() -> dict[str, tuple[str, str]]:
    """Module and code by what the docstring is of."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join((SOURCE.name, *path.relative_to(SOURCE).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            for i, block in enumerate(BLOCK.findall(ast.get_docstring(node) or "")):
                name = f"{module.partition('.')[2]}:{getattr(node, 'name', '')}:{i}".rstrip(":0").rstrip(":")
                found[name] = module, textwrap.dedent(block)
    return found


EXAMPLES = examples()


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict:
    """What examples may use without having made it, in a folder with what they read."""
    monkeypatch.chdir(tmp_path)
    picture = skimage.data.astronaut()[:128, 150:310]
    PIL.Image.fromarray(picture[:125, :158]).resize((198, 125)).save("photo.png")
    Path("photo.walloc").write_bytes(FileCodec.from_pretrained("rgb-16x").compress("photo.png"))
    tifffile.imwrite("scene.tif", picture)
    tifffile.imwrite("stack.tif", np.stack([picture[:32, :48, 0]] * 8), photometric="minisblack")
    model = image_model()
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None] / 255 - 0.5
    with torch.inference_mode():
        latents = model.encode(pixels).latents
    codes = model.quantize(latents)
    return {
        **{name: getattr(transformers, name) for name in ("AutoModel", "AutoImageProcessor")},
        "PIL": PIL,
        "load_dataset": datasets.load_dataset,
        "model": model,
        "codec": model,
        "encoder": model,
        "image": PIL.Image.fromarray(picture),
        "pixels": pixels,
        "latents": latents,
        "codes": codes,
        "training_codes": [codes[0].numpy()],
        "fit_entropy_tables": functools.partial(fit_entropy_tables, steps=2),  # 2,000 take a minute
        "waveform": sound(0.1),
        "mix": torch.from_numpy(sound(0.1)),
        "volume": np.stack([picture[:32, :48, 0]] * 8),
        "figure": matplotlib.figure.Figure(),
        "text": "{}",
    }


def _volumes(folder: Path) -> None:
    config = WallocVolumeConfig(num_levels=2, latent_channels=4, decoder_type="linear")
    WallocVolumeModel(config).save_pretrained(folder)
    WallocVolumeImageProcessor(patch_size=config.patch_size).save_pretrained(folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, names):
    module, code = EXAMPLES[name]
    if "v2." in code:
        names["v2"] = pytest.importorskip("torchvision.transforms.v2", exc_type=Exception)
    if "my-scanner" in code:
        _volumes(Path("my-scanner"))
    if module.endswith("volumes"):
        _volumes(Path("volumes"))
        names["model"] = WallocVolumeModel.from_pretrained("volumes")
    if "paligemma" in code:
        config = FAMILIES["paligemma"].config()
        config.vision_config.image_size, config.vision_config.patch_size = 224, 14
        transformers.AutoModelForImageTextToText.from_config(config).save_pretrained("paligemma")
        transformers.SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained("paligemma")
        code = code.replace("google/paligemma-3b-pt-224", "paligemma")
    if "rgb-f16c48" in code:
        names["codec"] = transformers.AutoModel.from_pretrained("walloc/rgb-f16c48")
    if "LatentAugmentation" in code:
        names["codec"] = transformers.AutoModel.from_pretrained("walloc/rgb-f16c48")
        names["latents"] = torch.zeros(2, 48, 16, 16)
    if "load_dataset" in code:
        Path("photos").mkdir()
        Path("photo.png").rename("photos/photo.png")
        with contextlib.suppress(FileExistsError):
            compress_dataset("photos", "latents", codec="walloc/rgb-16x")
        code = code.replace("user/latents", "latents")
    names = {**vars(importlib.import_module(module)), **names}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if ">>>" not in code:
            exec(compile(code, name, "exec"), names)
            return
        test = doctest.DocTestParser().get_doctest(code, names, name, None, 0)
        said: list[str] = []
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert not said, "".join(said)
    finally:
        torch.set_num_threads(threads)


def test_finds_examples():
    assert "codec.modeling_walloc:WallocAudioModel" in EXAMPLES and len(EXAMPLES) > 20
