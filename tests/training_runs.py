"""Short runs on photographs of scikit-image, for the tests of training."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.media.paths import list_files
from transformers_walloc.training.data import ImageCrops, MediaCache
from transformers_walloc.training.klt import SubbandStatistics, fit_klt
from transformers_walloc.training.trainer import CodecTrainer

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_codec.py"


def open_folder(root: Path, name: str) -> MediaCache:
    return MediaCache(list_files(root / name, [".png"]), "image", root / "cache")


def crops(root: Path, name: str = "train", seed: str = "0", size: int = 32) -> ImageCrops:
    return ImageCrops([open_folder(root, name)], [1.0], size, seed)


def first_batches(pieces, batch_size: int, count: int) -> list[torch.Tensor]:
    stream = iter(DataLoader(pieces, batch_size=batch_size))
    return [next(stream)["pixel_values"] for _ in range(count)]


def small_codec(root: Path, hidden_size: int = 16, **changes) -> WallocImageModel:
    """The closed form of the training photographs, with a small network that starts at zero."""
    torch.manual_seed(0)
    config = WallocImageConfig(decoder_hidden_size=hidden_size, decoder_num_layers=1, **changes)
    model, statistics = WallocImageModel(config), SubbandStatistics(config)
    for batch in first_batches(crops(root, size=64), 16, 2):
        statistics.update(batch)
    fit_klt(model, statistics, 0.1)
    model.encoder.requires_grad_(False)
    return model


def make_trainer(
    root: Path, output: Path, model=None, callbacks=(), options=None, piece_size: int = 32, **settings
) -> CodecTrainer:
    defaults = dict(max_steps=8, save_steps=4, warmup_steps=1, learning_rate=2e-3, report_to=[], eval_strategy="no")
    defaults["per_device_train_batch_size"] = 4
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        ignore_data_skip=True,
        **{**defaults, **settings},
    )
    model = small_codec(root) if model is None else model
    return CodecTrainer(
        model=model,
        args=arguments,
        train_dataset=crops(root, size=piece_size),
        eval_dataset=[],
        callbacks=list(callbacks),
        **options or {},
    )


def script_arguments(photos: Path, output: Path, *more: str) -> list[str]:
    fixed = "--kind image --piece_size 32 --batch_size 2 --workers 0 --cpu --no_bf16 --klt_draws 40"
    small = "--decoder_hidden_size 8 --decoder_num_layers 1 --save_steps 2 --eval_steps 100"
    folders = ["--train", f"{photos / 'train'}:1", "--validation", str(photos / "held"), "--output", str(output)]
    return [*fixed.split(), *small.split(), *folders, *more]
