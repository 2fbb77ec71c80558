#!/usr/bin/env python
"""Train decoders of several shapes for the same time and compare them: PSNR, parameters, decode speed.

    python -m research.sweep_decoders 64x8 64x4x5 32x3@2 64x3@4 --minutes 10 --output runs/sweep --kind image \\
        --latent_channels 12 --step 0.1 --statistics rgb.safetensors --train /data/photos --validation /data/kodak \\
        [more options of walloc train]

A shape is WIDTHxBLOCKS or WIDTHxBLOCKSxKERNEL on the grid of the latents, or with @PIXELS a restoration network on the
decoded picture, whose positions stand for so many pixels per axis. All start at the closed form. After a colon may
follow options of its own, as '32x3@2:--train_encoder --random_rows'.

A shape whose result lies in the output folder is not trained again. With --store the table goes to docs/results for
report.py.
"""

import argparse
import datetime
import json
import re
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from research.pages import RESULTS
from research.report import sweep_table
from transformers_walloc.atomic import write_atomically
from transformers_walloc.codec.tiles import decoding_halo
from transformers_walloc.evaluation.machine import machine, shown_command, versions
from transformers_walloc.training.recipe import parse_recipe, train_codec
from transformers_walloc.training.trainer import last_checkpoint


def parse_shape(text: str) -> tuple[str, list[str]]:
    """A name, and options of `train_codec.py`."""
    shape, _, own = text.partition(":")
    body, at, pixels = shape.partition("@")
    numbers = [int(part) if part.isdecimal() else 0 for part in [*body.split("x"), *([pixels] if at else [])]]
    if len(numbers) - bool(at) not in (2, 3) or not all(numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape; valid: WIDTHxBLOCKS[xKERNEL][@PIXELS], as 64x8, 64x4x5 or 32x3@2"
        )
    options = [f"--decoder_type={'restoration' if at else 'residual'}"]
    if at:
        options.append(f"--decoder_downsampling={numbers.pop()}")
    kernel = numbers[2] if len(numbers) == 3 else 3
    options += [f"--decoder_hidden_size={numbers[0]}", f"--decoder_num_layers={numbers[1]}"]
    return text, [*options, f"--decoder_kernel_size={kernel}", *shlex.split(own)]


def some_codes(model: Any) -> torch.Tensor:
    """int8 codes of 768 x 512 pixels or 5 seconds."""
    config = model.config
    image = config.num_dims == 2
    grid = (512 // config.patch_size, 768 // config.patch_size) if image else (5 * 44100 // config.patch_size,)
    codes = torch.randint(-8, 9, (1, config.latent_channels, *grid), generator=torch.Generator().manual_seed(0))
    return codes.to(torch.int8).to(model.device)


def multiplications(model: Any) -> float:
    """Multiply-adds of the decoder per pixel, or per sample of a channel, by torch's counter."""
    codes = some_codes(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.decode(codes)
    return counter.get_total_flops() / 2 / (codes[0, 0].numel() * model.config.patch_size**model.config.num_dims)


@torch.inference_mode()
def decode_speed(model: Any) -> float:
    """Mega-positions per second of decoding `some_codes`, median of ten runs."""
    config, seconds = model.config, []
    codes = some_codes(model)
    for _ in range(12):
        start = time.perf_counter()
        model.decode(codes)[0].sum().item()  # waits for a GPU too
        seconds.append(time.perf_counter() - start)
    return codes[0, 0].numel() * config.patch_size**config.num_dims / statistics.median(seconds[2:]) / 1e6


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=parse_shape, metavar="WIDTHxBLOCKS[xKERNEL][@PIXELS][:OPTIONS]")
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder for each shape goes there")
    parser.add_argument("--store", action="store_true", help="keep the table in docs/results for research.report")
    args, training = parser.parse_known_args(argv)
    rows = []
    for name, shape in args.shapes:
        output = Path(args.output) / re.sub(r"[^\w.@-]+", "_", name)
        found = output / "metrics.json"
        if not found.exists():
            metrics = train_codec(parse_recipe([*training, *shape, f"--output={output}"]))
            write_atomically(found, json.dumps(metrics))
        model = AutoModel.from_pretrained(output / "model").eval()
        state = json.loads((Path(str(last_checkpoint(output))) / "trainer_state.json").read_text())
        rows.append(
            {
                "shape": name,
                "parameters": sum(p.numel() for p in model.decoder.parameters()),
                "steps": state["global_step"],
                "multiplications": multiplications(model),
                "receptive_field": decoding_halo(model),
                "decode": decode_speed(model),
                **json.loads(found.read_text()),
            }
        )
    result = {
        "command": shown_command("python -m research.sweep_decoders", argv),
        "rows": rows,
        "machine": machine(torch.get_num_threads()) | {"clock": "wall time"},
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    print(sweep_table(result))
    if args.store:
        write_atomically(RESULTS / "sweep_decoders.json", json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
