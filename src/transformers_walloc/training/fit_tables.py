"""Fit the entropy coder's tables to a trained codec and store them in its checkpoint: `walloc fit-tables`."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tqdm.auto import tqdm

from ..atomic import atomic_file, atomic_folder, write_atomically
from ..codec.entropy_tables import EntropyTables
from ..loading import codec_path, load_codec
from ..media.paths import SUFFIXES, list_files
from .entropy_fitting import fit_entropy_tables
from .scale import read_input


def fit_tables(
    codec: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    files: int | None = None,
    seconds: float = 30.0,
    code_steps: Sequence[float] = (1.0, 2.0),
    steps: int = 5000,
    hidden: int = 16,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> EntropyTables:
    """Fit entropy tables to the codes of a folder of media and write them into a checkpoint folder.

    Args:
        codec: checkpoint folder, or the name of a bundled one.
        data: folder of images or audio, of the kind that the codec was trained on.
        out: where the checkpoint with its tables goes; into `codec` itself if None.
        files: how many files, evenly spread; all if None.
        seconds: of every clip, from its middle.
        code_steps: quantisation steps, at least 1, whose codes are mixed.
        steps: optimisation steps of each network.
        hidden: size of the networks, see `fit_entropy_tables`.
        device: where the networks are optimised.
        progress: called with a line of text after each of them.

    Raises:
        ValueError: a folder without media, or a codec that is none.
    """
    model, processor = load_codec(codec)
    kind = model.config.kind
    if kind not in SUFFIXES:
        raise ValueError(f"{codec} is a codec for {kind}, whose tables walloc fit makes; valid: {', '.join(SUFFIXES)}")
    codes = [
        item for step in code_steps for item in codes_of_folder(model, processor, kind, data, files, seconds, step)
    ]
    tables = fit_entropy_tables(codes, hidden=hidden, steps=steps, device=device, progress=progress)
    model.set_entropy_tables(tables)
    settings = {
        "data": Path(data).name,
        "files": files,
        "seconds": seconds,
        "code_steps": list(code_steps),
        "steps": steps,
        "hidden": hidden,
    }
    source = codec_path(codec)
    store_tables(model, source, out or source, settings)
    return tables


def codes_of_folder(
    model, processor, kind: str, folder: str | Path, count: int | None, seconds: float, code_step: float
) -> Iterator[np.ndarray]:
    """Yields the int8 codes, (C, h, w) or (C, t), of every file, or of `count` files evenly spread.

    Of audio the middle `seconds` of each file are coded.
    """
    files = list_files(folder, SUFFIXES[kind])
    if count and count < len(files):
        files = [files[i * len(files) // count] for i in range(count)]
    for file in tqdm(files, desc="codes", unit="file", disable=None):
        with torch.inference_mode():
            latents = model.encode(read_input(processor, kind, str(file), seconds)).latents
            yield model.quantize(latents, code_step)[0].cpu().numpy()


def store_tables(model, source: str | Path, out: str | Path, settings: dict) -> None:
    """Write the model's tables into the checkpoint's files, and how they were fitted into its recipe.json.

    All other tensors stay as they are, bit by bit.
    """
    source, folder = Path(source), Path(out)
    weights = safetensors.torch.load_file(source / "model.safetensors")
    weights["entropy_tables"] = model.entropy_tables.cpu()
    config = json.loads((source / "config.json").read_text())
    config["entropy_tables_size"] = model.config.entropy_tables_size
    earlier = source / "recipe.json"
    recipe = json.loads(earlier.read_text()) if earlier.exists() else {}
    with atomic_folder(folder, overwrite=True) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        with atomic_file(new / "model.safetensors") as partial:
            safetensors.torch.save_file(weights, partial, metadata={"format": "pt"})
        write_atomically(new / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_atomically(new / "recipe.json", json.dumps(recipe | {"entropy_tables": settings}, indent=2) + "\n")
