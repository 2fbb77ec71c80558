#!/usr/bin/env python
"""Train decoders of several shapes for the same time and compare them: PSNR, parameters, decode speed.

    python scripts/sweep_decoders.py 64x8 96x8 128x8 128x4 --minutes 10 --output runs/sweep \\
        --encoder_from walloc/rgb-16x --train /data/photos --validation /data/kodak [options of train_codec.py]

A shape is WIDTHxBLOCKS. All start at the closed form. A shape whose result lies in the output folder is not trained
again. With --store the table goes to docs/results for report.py.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch
import train_codec
from evaluate_codec import STORE, machine, shown_command, versions, write_atomically
from report import sweep_table
from transformers import AutoModel

from transformers_walloc import WallocPreTrainedModel


def parse_shape(text: str) -> tuple[int, int]:
    width, _, blocks = text.partition("x")
    if not (width.isdecimal() and blocks.isdecimal() and int(width) and int(blocks)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; valid: WIDTHxBLOCKS, as 64x8")
    return int(width), int(blocks)


@torch.inference_mode()
def decode_speed(model: WallocPreTrainedModel) -> float:
    """Mega-positions per second of decoding 768 x 512 pixels or 5 seconds, median of ten runs."""
    config = model.config
    image = config.num_dims == 2
    grid = (512 // config.patch_size, 768 // config.patch_size) if image else (5 * 44100 // config.patch_size,)
    codes = torch.randint(-8, 9, (1, config.latent_channels, *grid), generator=torch.Generator().manual_seed(0))
    codes, seconds = codes.to(torch.int8).to(model.device), []
    for _ in range(12):
        start = time.perf_counter()
        model.decode(codes)[0].sum().item()  # waits for a GPU too
        seconds.append(time.perf_counter() - start)
    return codes[0, 0].numel() * config.patch_size**config.num_dims / statistics.median(seconds[2:]) / 1e6


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=parse_shape, metavar="WIDTHxBLOCKS")
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder for each shape goes there")
    parser.add_argument("--store", action="store_true", help="keep the table in docs/results for report.py")
    args, training = parser.parse_known_args(argv)
    rows = []
    for width, blocks in args.shapes:
        output = Path(args.output) / f"{width}x{blocks}"
        found = output / "metrics.json"
        if not found.exists():
            shape = ["--decoder_hidden_size", str(width), "--decoder_num_layers", str(blocks)]
            metrics = train_codec.main([*training, *shape, "--output", str(output)])
            write_atomically(found, json.dumps(metrics))
        model = AutoModel.from_pretrained(output / "model").eval()
        state = json.loads((Path(train_codec.last_checkpoint(output)) / "trainer_state.json").read_text())
        rows.append(
            {
                "shape": f"{width}x{blocks}",
                "parameters": sum(p.numel() for p in model.decoder.parameters()),
                "steps": state["global_step"],
                "decode": decode_speed(model),
                **json.loads(found.read_text()),
            }
        )
    result = {
        "command": shown_command(argv, Path(__file__).name),
        "rows": rows,
        "machine": machine(torch.get_num_threads()) | {"clock": "wall time"},
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    print(sweep_table(result))
    if args.store:
        write_atomically(STORE / "sweep_decoders.json", json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
