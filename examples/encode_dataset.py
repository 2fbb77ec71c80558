#!/usr/bin/env python
"""A data set of images as a data set of latents, 10 to 40 times smaller, once for all epochs.

    pip install ".[examples]"  # in a checkout
    python examples/encode_dataset.py photos photo-latents --codec walloc/rgb-f16c48 --size 896 896
    python examples/encode_dataset.py lmms-lab/DocVQA docvqa-latents --dataset_config DocVQA --splits validation \\
        --for_model docvqa-on-latents

`--for_model` takes codec and halo from a model on latents, and its size if there is one; Qwen-VL and its kin need
`--size`. All other columns stay.
"""

import argparse
import json
from collections.abc import Sequence

from transformers import AutoConfig, AutoProcessor

from transformers_walloc.latents.writing import compress_dataset


def main(arguments: Sequence[str] | None = None) -> dict[str, int]:
    """Returns rows that each split has."""
    options = parser().parse_args(arguments)
    codec, size, halo = options.codec, options.size, options.halo
    if options.for_model:
        config = AutoConfig.from_pretrained(options.for_model)
        processor = AutoProcessor.from_pretrained(options.for_model)
        images = getattr(processor, "image_processor", processor)
        codec, halo = codec or config.walloc_codec["name"], config.walloc_latents["halo"]
        size = size or images.input_size()
        if size is None:
            raise SystemExit(f"{options.for_model} takes images of any size: choose one with --size")
    written = compress_dataset(
        options.source,
        options.folder,
        codec=codec or "walloc/rgb-16x",
        config=options.dataset_config,
        splits=options.splits,
        push_to_hub=options.push_to_hub,
        storage=options.storage,
        size=size,
        halo=halo,
        step=options.step,
        num_proc=options.num_proc,
        device=options.device,
    )
    rows = {name: split.num_rows for name, split in written.items()}
    print(json.dumps(rows, indent=2))
    return rows


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of images, or Hub id of a data set")
    parser.add_argument("folder", help="to write")
    parser.add_argument("--codec", help="walloc/rgb-16x by default")
    parser.add_argument("--for_model", help="folder or Hub id of a model on latents")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels; none by default")
    parser.add_argument("--halo", type=int, default=0)
    parser.add_argument("--step", type=float, default=1.0, help="width of a quantisation cell")
    parser.add_argument("--storage", choices=("webp", "walloc", "int8"), default="webp")
    parser.add_argument("--dataset_config", help="which configuration of a data set that has several")
    parser.add_argument("--splits", nargs="+", help="all by default")
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--push_to_hub", help="repository, owner/name")
    return parser


if __name__ == "__main__":
    main()
