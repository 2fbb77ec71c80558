#!/usr/bin/env python
"""A pretrained classifier of images on latents: four times the resolution, as many tokens.

    pip install ".[examples]"  # in a checkout
    python examples/image_classification.py --model google/vit-base-patch16-224 --dataset ethz/food101 \\
        --codec walloc/rgb-f16c48 --output_dir food-on-latents --max_steps 2000

SigLIP 2 works alike (`--model google/siglip2-base-patch16-naflex`). The data set is a Hub id, or a folder with
a folder of images for each class.
"""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, set_seed

from transformers_walloc import load_on_latents, load_processor_on_latents


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Returns loss and accuracy on the test part."""
    options = parser().parse_args(arguments)
    set_seed(options.seed)
    folder = os.path.isdir(options.dataset)
    source = {"path": "imagefolder", "data_dir": options.dataset} if folder else {"path": options.dataset}
    data = load_dataset(**source, split=options.split)
    parts = data.train_test_split(options.test_size, seed=options.seed, stratify_by_column=options.label_column)
    names = data.features[options.label_column].names
    model = load_on_latents(
        options.model,
        options.codec,
        AutoModelForImageClassification,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    processor = load_processor_on_latents(options.model, model, options.codec)

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = processor([row[options.image_column] for row in rows], return_tensors="pt")
        return {**inputs, "labels": torch.tensor([row[options.label_column] for row in rows])}

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}

    training = TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=options.workers,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(model, training, collate, parts["train"], parts["test"], compute_metrics=accuracy)
    trainer.train()
    found = {name: value for name, value in trainer.evaluate().items() if name in ("eval_loss", "eval_accuracy")}
    trainer.save_model(options.output_dir)
    processor.save_pretrained(options.output_dir)
    if options.push_to_hub:
        model.push_to_hub(options.push_to_hub)
        processor.push_to_hub(options.push_to_hub)
    print(json.dumps(found, indent=2))
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google/vit-base-patch16-224", help="of pixels")
    parser.add_argument("--codec", default="walloc/rgb-f16c48")
    parser.add_argument("--dataset", default="ethz/food101", help="Hub id, or folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--test_size", type=float, default=0.1)
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="classifier-on-latents")
    parser.add_argument("--push_to_hub", help="repository, owner/name")
    return parser


if __name__ == "__main__":
    main()
