#!/usr/bin/env python
"""A codec's decoder, trained on to your kind of pictures; files of before open with it, and the other way round.

pip install ".[examples]"  # in a checkout
python examples/fine_tune_codec.py --codec walloc/rgb-16x --data photos --output_dir my-codec --max_steps 2000
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModel, Trainer, TrainingArguments, set_seed

from transformers_walloc.training.fine_tuning import prepare_for_training


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Returns PSNR in dB of rounded latents of the test pictures, before and after."""
    options = parser().parse_args(arguments)
    set_seed(options.seed)
    codec = AutoModel.from_pretrained(options.codec)
    processor = AutoImageProcessor.from_pretrained(options.codec)
    photos = load_dataset("imagefolder", data_dir=options.data, split="train")
    parts = photos.train_test_split(options.test_size, seed=options.seed)
    found = {"psnr_before": psnr(codec, processor, parts["test"]["image"])}

    def crops(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [processor(row["image"], return_tensors="pt")["pixel_values"][0] for row in rows]
        return {"pixel_values": torch.stack([crop(image, options.crop_size) for image in images])}

    codec = prepare_for_training(codec, options.train_encoder)
    training = TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.max_steps // 20,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=options.workers,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(codec, training, crops, parts["train"])
    trainer.train()
    trainer.save_model(options.output_dir)
    processor.save_pretrained(options.output_dir)
    found["psnr"] = psnr(codec.eval(), processor, parts["test"]["image"])
    print(json.dumps(found, indent=2))
    return found


def crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """A random square of an image (channels, height, width), which must be as large."""
    if min(image.shape[1:]) < size:
        raise SystemExit(f"an image of {image.shape[1]} x {image.shape[2]} pixels; --crop_size is {size}")
    top, left = (int(torch.randint(length - size + 1, ())) for length in image.shape[1:])
    return image[:, top : top + size, left : left + size]


@torch.no_grad()
def psnr(codec: Any, processor: Any, images: Sequence[Any]) -> float:
    """Mean over pictures, of 8-bit codes."""
    values = []
    for image in images:
        pixels = processor(image, return_tensors="pt")["pixel_values"].to(codec.device)
        decoded = codec.decode(codec.quantize(codec.encode(pixels).latents)).pixel_values
        values.append(-10 * torch.log10((decoded - pixels).square().mean()).item())
    return sum(values) / len(values)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="walloc/rgb-16x")
    parser.add_argument("--data", required=True, help="folder of images")
    parser.add_argument("--output_dir", default="my-codec")
    parser.add_argument("--train_encoder", action="store_true", help="the result is another codec then")
    parser.add_argument("--test_size", type=float, default=0.1)
    parser.add_argument("--crop_size", type=int, default=256, help="in pixels, a multiple of the codec's blocks")
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
