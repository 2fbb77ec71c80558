"""Training of a fitted codec's decoder on the signals that the fit has kept."""

import random
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import IterableDataset

from ..extras import naming_extras
from .trainer import CodecTrainer

with naming_extras():
    from transformers import PrinterCallback, TrainingArguments

PIECE_SIZES = {2: 128, 1: 32768, 3: 32}


class _Pieces(IterableDataset):
    """An endless stream of random pieces of signals (channels, *sizes), all of one size."""

    def __init__(self, signals: Sequence[torch.Tensor], name: str, patch: int):
        self.signals, self.name, self.patch = list(signals), name, patch
        largest = PIECE_SIZES[signals[0].ndim - 1]
        self.sizes = [
            min(largest, *(x.shape[axis] for x in signals)) // patch * patch for axis in range(1, signals[0].ndim)
        ]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        generator = random.Random(0)
        while True:
            signal = generator.choice(self.signals)
            window = [
                slice(start, start + size)
                for size, full in zip(self.sizes, signal.shape[1:], strict=True)
                for start in [generator.randint(0, full - size)]
            ]
            yield {self.name: signal[(slice(None), *window)].contiguous()}


def train_decoder(model, signals: Sequence[torch.Tensor], minutes: float) -> None:
    """Train the network of a decoder in place, the encoder as it is.

    Args:
        model: with a `residual` decoder that starts at the closed form.
        signals: (channels, *sizes) in [-0.5, 0.5], sizes multiples of the patch.
        minutes: how long.
    """
    model.encoder.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,
            per_device_train_batch_size=8,
            learning_rate=6e-4,
            adam_beta2=0.98,
            weight_decay=0.0,
            max_grad_norm=0.5,
            warmup_steps=50,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            logging_steps=1_000_000,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=0,
        )
        trainer = CodecTrainer(
            model=model,
            args=arguments,
            train_dataset=_Pieces(signals, model.main_input_name, model.config.patch_size),
            eval_dataset=[],
            time_budget=60 * minutes,
        )
        trainer.remove_callback(PrinterCallback)  # of counts and speeds, which say nothing here
        trainer.train()
        model.load_state_dict(trainer.average.averaged.module.state_dict())
    vars(model.config).pop("use_cache", None)  # Trainer sets it, for text models
    model.encoder.requires_grad_(True)
    model.to("cpu")
