#!/usr/bin/env python
"""Fit the entropy coder's tables to a trained codec and store them in its checkpoint.

    python -m transformers_walloc.training.fit_tables runs/rgb-16x --data DIR  # images or audio that it was trained on
    python -m transformers_walloc.training.fit_tables runs/rgb-16x --data DIR --steps 2000 --out runs/rgb-16x-coded

Codes at the steps of --code_steps are mixed, so that the tables also suit files that rate control made coarser. Files
that were written with other tables can no longer be read with the checkpoint: fit before publishing it.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from transformers_walloc.evaluation.codecs import load_walloc
from transformers_walloc.training.data import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_media
from transformers_walloc.training.entropy_fitting import fit_entropy_tables


def load_codec(name: str):
    """Model, processor and kind of signal of a bundled name, a Hub id or a folder."""
    from transformers import AutoConfig

    from transformers_walloc import bundled

    path = str(bundled.bundled_path(name)) if name in bundled.BUNDLED_NAMES else name
    kind = "image" if AutoConfig.from_pretrained(path).model_type == "walloc_image" else "audio"
    return *load_walloc(name, kind), kind


def codes_of_folder(model, processor, kind: str, folder: str, count: int | None, seconds: float, code_step: float):
    """Yields the int8 codes, (C, h, w) or (C, t), of every file, or of `count` files evenly spread.

    Of audio the middle `seconds` of each file are coded.
    """
    files = list_media(folder, IMAGE_SUFFIXES if kind == "image" else AUDIO_SUFFIXES)
    if count and count < len(files):
        files = [files[i * len(files) // count] for i in range(count)]
    for file in tqdm(files, desc="codes", unit="file", disable=None):
        with torch.inference_mode():
            latents = model.encode(_signal(processor, kind, file, seconds)).latents
            yield model.quantize(latents, code_step)[0].cpu().numpy()


def _signal(processor, kind: str, file: Path, seconds: float) -> torch.Tensor:
    if kind == "image":
        with Image.open(file) as image:
            return processor([ImageOps.exif_transpose(image).convert("RGB")], return_tensors="pt")["pixel_values"]
    import soundfile

    with soundfile.SoundFile(file) as stream:
        frames = min(len(stream), round(seconds * stream.samplerate))
        stream.seek((len(stream) - frames) // 2)
        audio, rate = stream.read(frames, dtype="float32", always_2d=True).T, stream.samplerate
    channels = processor.feature_size
    audio = np.repeat(audio[:1], channels, 0) if len(audio) < channels else audio[:channels]
    if rate != processor.sampling_rate:
        import soxr

        audio = soxr.resample(audio.T, rate, processor.sampling_rate).T
    return processor([audio], sampling_rate=processor.sampling_rate, return_tensors="pt")["input_values"]


def store_tables(model, source: str, out: str, settings: dict) -> None:
    """Write the model's tables into the checkpoint's files, and how they were fitted into its recipe.json.

    All other tensors stay as they are, bit by bit.
    """
    source, folder = Path(source), Path(out)
    weights = safetensors.torch.load_file(source / "model.safetensors")
    weights["entropy_tables"] = model.entropy_tables.cpu()
    config = json.loads((source / "config.json").read_text())
    config["entropy_tables_size"] = model.config.entropy_tables_size
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and folder != source and file.name not in ("model.safetensors", "config.json", "recipe.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    safetensors.torch.save_file(weights, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "config.json.part").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    recipe = source / "recipe.json"
    recipe = json.loads(recipe.read_text()) if recipe.exists() else {}
    (folder / "recipe.json.part").write_text(json.dumps(recipe | {"entropy_tables": settings}, indent=2) + "\n")
    for name in ("model.safetensors", "config.json", "recipe.json"):
        shutil.copymode(source / (name if (source / name).exists() else "config.json"), folder / f"{name}.part")
        os.replace(folder / f"{name}.part", folder / name)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", metavar="DIR", help="checkpoint folder")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of training images or audio")
    parser.add_argument("--files", type=int, help="how many files, evenly spread; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of every clip, from its middle; default: 30")
    parser.add_argument("--code_steps", type=float, nargs="+", default=[1.0, 2.0], help="default: 1 2")
    parser.add_argument("--steps", type=int, default=5000, help="optimisation steps per network; default: 5000")
    parser.add_argument("--hidden", type=int, default=16, help="size of the networks; default: 16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", metavar="DIR", help="default: the checkpoint folder itself")
    arguments = parser.parse_args(argv)
    model, processor, kind = load_codec(arguments.codec)
    codes = [
        item
        for step in arguments.code_steps
        for item in codes_of_folder(model, processor, kind, arguments.data, arguments.files, arguments.seconds, step)
    ]
    tables = fit_entropy_tables(
        codes, hidden=arguments.hidden, steps=arguments.steps, device=arguments.device, progress=print
    )
    model.set_entropy_tables(tables)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("codec", "out", "device")}
    settings["data"] = Path(arguments.data).name
    store_tables(model, arguments.codec, arguments.out or arguments.codec, settings)
    print(f"{model.config.entropy_tables_size} bytes of tables in {arguments.out or arguments.codec}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
