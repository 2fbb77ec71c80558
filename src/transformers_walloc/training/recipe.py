"""Training runs: the settings that `walloc train` takes, and what it does with them."""

import functools
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..codec.clips import normalise_clip
from ..codec.pixels import to_8_bits
from ..codec.rate_control import decibels
from ..extras import naming_extras
from ..loading import codec_path
from ..media.paths import SUFFIXES, list_files
from .conversion import save_model_folder
from .data import PIECES, DeviceCrops, ImageCrops, MediaCache
from .start import make_model
from .symmetric import keep_symmetric, make_symmetric
from .trainer import CodecTrainer, last_checkpoint, of_first_process, remove_incomplete_checkpoints

with naming_extras():
    from transformers import TrainingArguments, set_seed

# Settings of a machine, which say nothing about the codec.
_LOCAL = ("output", "cache", "cpu", "workers", "statistics", "compile")


_MUON = "muon is for restoration networks: residual ones have such updates as it is"


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class Recipe:
    """Settings of a training run; `walloc train --help` explains each.

    Raises:
        ValueError: settings that are missing or contradict each other.
    """

    kind: Literal["image", "audio"] = field(metadata={"help": "of the codec"})
    train: list[str] = field(metadata={"help": "folders, with shares of the draws: DIR[:SHARE]"})
    validation: str = field(metadata={"help": "folder that is never trained on"})
    output: str = field(metadata={"help": "folder for the run; the codec is OUTPUT/model"})
    validation_files: int = _option(24, "how many files of it to evaluate on")
    cache: str | None = _option(None, "where decoded media go; OUTPUT/cache if not given")
    latent_channels: int | None = _option(None, "of the codec; fewer make smaller files and coarser latents")
    step: float | None = _option(None, "quantisation step of the transform's coefficients")
    num_levels: int | None = _option(None, "of the wavelet packet transform: a latent covers 2**num_levels samples")
    wavelet: str | None = _option(None, "of the transform, by its PyWavelets name; haar for blocks that do not overlap")
    boundary: str | None = _option(None, "symmetric or, as haar needs, periodization")
    symmetric: bool = _option(
        False, "latents that can be flipped, rotated and transposed; for images and blocks that do not overlap"
    )
    decoder_type: Literal["residual", "restoration", "linear"] | None = _option(
        None,
        "network on the grid of the latents, network on the picture, or closed form alone; residual if not given, and "
        "that of the codec with continue_from",
    )
    decoder_hidden_size: int | None = _option(None, "width of the network")
    decoder_num_layers: int | None = _option(None, "residual blocks of the network")
    decoder_kernel_size: int | None = _option(None, "of its convolutions, odd")
    decoder_downsampling: int | None = _option(None, "of a restoration network")
    encoder_from: str | None = _option(
        None,
        "codec whose encoder, linear synthesis and entropy tables are the start, with a new network for them; "
        "latent_channels and step are not needed. With train_encoder a new codec that starts at this one",
    )
    continue_from: str | None = _option(
        None,
        "codec that is trained on: as encoder_from, but its network is the start; a wider or deeper one starts as it",
    )
    network_from: str | None = _option(
        None, "codec, of any latents, whose restoration network a new network starts as, with latent inputs at zero"
    )
    train_encoder: bool = _option(False, "tune the projection too; it is frozen otherwise")
    refit_linear: bool = _option(
        False, "start from the least-squares synthesis for the projection of encoder_from or continue_from"
    )
    klt_draws: int = _option(6000, "random pieces for the closed-form fit")
    statistics: str | None = _option(
        None, "file of statistics of the closed-form fit, written if missing; codecs fitted to the same ones are nested"
    )
    minutes: float | None = _option(None, "time budget; the schedule follows it")
    max_steps: int = _option(1_000_000, "0 stops at the closed form")
    piece_size: int | None = _option(None, "pixels per side or samples; 192 or 65536 if not given")
    batch_size: int | None = _option(None, "pieces a step and process; 14 images or 16 segments if not given")
    learning_rate: float = _option(6e-4, "peak, of the network; 2e-3 shuts its units")
    linear_learning_rate: float = _option(1e-4, "peak, of projection and linear synthesis")
    encoder_learning_rate: float | None = _option(None, "peak, of the projection; linear_learning_rate if not given")
    log_floor: float | None = _option(
        None, "train for the mean of log(squared error + this) over pieces, as PSNR counts; try 7e-4 for images"
    )
    signal_fraction: float = _option(0.15, "share at the end with loss on samples")
    rate_weight: float = _option(
        0.0, "mean squared error that a bit per pixel and channel (per audio sample) is worth; needs train_encoder"
    )
    eval_steps: int = _option(1000, "steps between evaluations")
    save_steps: int = _option(500, "steps between checkpoints")
    workers: int = _option(1, "processes that draw pieces")
    seed: int = _option(0, "of pieces, weights and noise")
    no_bf16: bool = _option(False, "train in float32 where the machine computes in bfloat16 too")
    cpu: bool = _option(False, "train on the CPU where there is a GPU")
    on_device: bool = _option(False, "keep the pictures on the GPU and cut the crops there, instead of on the CPU")
    muon: bool = _option(False, "orthogonalised updates for a restoration network too: for large batches")
    compile: bool = _option(False, "torch.compile the model for training")

    def __post_init__(self):
        if self.encoder_from and self.continue_from:
            raise ValueError("choose encoder_from (a new network) or continue_from (its own network), not both")
        if self.decoder_type is None and not self.continue_from:
            self.decoder_type = "residual"
        for name in ("latent_channels", "step"):
            if getattr(self, name) is None and not self.source:
                raise ValueError(f"{name} is needed without encoder_from or continue_from")
        if self.network_from and self.continue_from:
            raise ValueError("choose network_from or continue_from (its own network), not both")
        if self.symmetric and (self.source or not self.is_image):
            raise ValueError(
                "symmetric is for images that start anew: encoder_from and continue_from keep what they have"
            )
        if self.refit_linear and not self.source:
            raise ValueError("refit_linear needs encoder_from or continue_from")
        if self.rate_weight and not self.train_encoder:
            raise ValueError("rate_weight needs train_encoder: a frozen encoder has the rate that it has")
        if self.on_device and not self.is_image:
            raise ValueError("on_device is for images: audio is cut on the CPU")
        if self.muon and self.decoder_type not in ("restoration", None):
            raise ValueError(_MUON)
        if self.rate_weight < 0:
            raise ValueError(f"rate_weight is {self.rate_weight}; it must not be negative")

    @property
    def source(self) -> str | None:
        """The codec that this one is made from, if any."""
        return self.encoder_from or self.continue_from

    @property
    def is_image(self) -> bool:
        return self.kind == "image"

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache) if self.cache else Path(self.output) / "cache"


def train_codec(recipe: Recipe) -> dict[str, float]:
    """Train a codec into `recipe.output`, from where an earlier run with this output stopped.

    The finished codec is the folder `model` in there.

    Returns:
        The validation metrics of the finished codec on the first process; nothing on the others.

    Raises:
        ValueError: folders without media, a codec to start from that does not fit.
    """
    output = Path(recipe.output)
    training = training_arguments(recipe)
    set_seed(recipe.seed)
    with training.main_process_first():
        caches, shares, validation = open_media(recipe)
    checkpoint = last_checkpoint(output)
    seed = f"{recipe.seed}-{checkpoint.rpartition('-')[2] if checkpoint else 0}"
    drawn = PIECES[recipe.kind]
    pieces = drawn(caches, shares, recipe.piece_size or drawn.usual_size, seed)

    # Otherwise a checkpoint, or the first process, brings the weights.
    fit = (checkpoint is None or recipe.max_steps == 0) and training.process_index == 0
    model = make_model(recipe, pieces, fit=fit)
    if checkpoint is not None:
        model.config.latent_symmetry = type(model.config).from_pretrained(checkpoint).latent_symmetry
    model.config.latent_symmetry = of_first_process(model.config.latent_symmetry)  # which alone has fitted
    output.mkdir(parents=True, exist_ok=True)
    if recipe.max_steps == 0:
        if training.process_index == 0:
            metrics = validate(model, validation)
            print(f"{_start_of(recipe)}:", metrics)
            export(model, recipe)
            return metrics
        return {}
    if recipe.muon and model.config.decoder_type != "restoration":
        raise ValueError(_MUON)
    model.encoder.requires_grad_(recipe.train_encoder)
    keep_symmetric(model)
    dataset: Any = pieces
    if isinstance(pieces, ImageCrops) and recipe.on_device:
        dataset = DeviceCrops(pieces, training.per_device_train_batch_size, training.device)
    trainer = CodecTrainer(
        model=model,
        args=training,
        train_dataset=dataset,
        eval_dataset=[],
        linear_learning_rate=recipe.linear_learning_rate,
        encoder_learning_rate=recipe.encoder_learning_rate,
        log_floor=recipe.log_floor,
        signal_fraction=recipe.signal_fraction,
        time_budget=recipe.minutes * 60 if recipe.minutes else None,
        evaluate_codec=functools.partial(validate, cache=validation),
        rate_weight=recipe.rate_weight,
        muon_network=recipe.muon,
    )
    if checkpoint is None and trainer.is_world_process_zero():
        print(f"{_start_of(recipe)}:", validate(model, validation), flush=True)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            kept = remove_incomplete_checkpoints(output)
            step = f"step {kept.rpartition('-')[2]}, its last checkpoint" if kept else "the start: no checkpoint yet"
            print(f"stopped at step {trainer.state.global_step}; the same command goes on from {step}", flush=True)
        raise
    metrics = {}
    if trainer.is_world_process_zero():
        with trainer.average.applied_to(model):
            metrics = validate(model, validation)
            export(model, recipe)
        print("trained:", metrics)
        print(f"wrote {output / 'model'}")
    trainer.accelerator.end_training()
    return metrics


def _start_of(recipe: Recipe) -> str:
    """What the untrained codec is called."""
    if recipe.continue_from:
        return f"start, {recipe.continue_from}"
    return f"start, {recipe.source} without its network" if recipe.source else "closed form"


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Those of `Trainer` for a recipe, on what this machine has."""
    on_cpu = recipe.cpu or not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=recipe.output,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size or PIECES[recipe.kind].usual_batch,
        learning_rate=recipe.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=0.5,
        warmup_steps=200,
        bf16=not recipe.no_bf16 and _has_bf16(on_cpu),
        use_cpu=on_cpu,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_steps=recipe.save_steps,
        save_total_limit=2,
        logging_steps=50,
        disable_tqdm=False,  # whatever the verbosity: a run takes longer than a few seconds
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        seed=recipe.seed,
        ignore_data_skip=True,
        torch_compile=recipe.compile,
        logging_nan_inf_filter=not recipe.on_device,  # it waits for the device at every step
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=6 * 3600,  # the other processes wait while the first one prepares the data and evaluates
    )


def _has_bf16(on_cpu: bool) -> bool:
    """Whether the device computes in bfloat16, and does not imitate it slowly."""
    if on_cpu:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def open_media(recipe: Recipe) -> tuple[list[MediaCache], list[float], MediaCache]:
    """Decoded training media with their shares, and the validation files."""
    suffixes = SUFFIXES[recipe.kind]
    caches, shares = [], []
    for entry in recipe.train:
        folder, _, share = entry.rpartition(":") if ":" in entry else (entry, "", "1")
        caches.append(MediaCache(list_files(folder, suffixes), recipe.kind, recipe.cache_folder))
        shares.append(float(share))
    validation_files = list_files(recipe.validation, suffixes)[: recipe.validation_files]
    return caches, shares, MediaCache(validation_files, recipe.kind, recipe.cache_folder)


def export(model, recipe: Recipe) -> None:
    """The finished checkpoint, and beside it the recipe: all settings, folders by their names."""
    vars(model.config).pop("use_cache", None)  # Trainer sets it, for text models
    make_symmetric(model)
    settings = {name: value for name, value in asdict(recipe).items() if name not in _LOCAL}
    settings |= {"train": [Path(entry).name for entry in recipe.train], "validation": Path(recipe.validation).name}
    settings["decoder_type"] = model.config.decoder_type
    if recipe.network_from and Path(recipe.network_from).is_dir():
        settings["network_from"] = Path(recipe.network_from).name
    source = Path(codec_path(recipe.source)) if recipe.source else None
    if source and source.is_dir():
        settings["encoder_from" if recipe.encoder_from else "continue_from"] = source.name
        earlier = source / "recipe.json"
        if earlier.exists():
            settings["earlier"] = json.loads(earlier.read_text())
    save_model_folder(
        model,
        Path(recipe.output) / "model",
        decoder_dtype=torch.float16,
        overwrite=True,
        documents={"recipe.json": json.dumps(settings, indent=2) + "\n"},
    )


@torch.inference_mode()
def validate(model, cache: MediaCache) -> dict[str, float]:
    """Mean PSNR in dB over 8-bit pixels (or normalised samples) and order-0 compression ratio over all files."""
    patch, device = model.config.patch_size, model.device
    image = model.config.kind == "image"
    psnr, bits, numbers = [], 0.0, 0
    for i in range(len(cache)):
        array = cache[i]
        if image:
            array = array[: array.shape[0] // patch * patch, : array.shape[1] // patch * patch]
            x = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None].to(device).float() / 255 - 0.5
        else:
            array = array[: min(len(array), 30 * model.config.sampling_rate) // patch * patch]
            x = normalise_clip(torch.from_numpy(array.T.astype(np.float32)).to(device))[0][None]
        codes = model.quantize(model.encode(x)[0])
        y = model.decode(codes)[0]
        error = (to_8_bits(y).float() - to_8_bits(x).float()) / 255 if image else y - x
        psnr.append(decibels(error.square().mean().item()))
        for channel in codes[0].flatten(1).cpu().numpy():
            counts = np.unique(channel, return_counts=True)[1]
            bits += float(-(counts * np.log2(counts / counts.sum())).sum())
        numbers += x.numel()
    bits_per_number = 8 if image else 16
    return {"psnr": round(float(np.mean(psnr)), 3), "order0_cr": round(bits_per_number * numbers / bits, 2)}
