#!/usr/bin/env python
"""Train a WaLLoC codec on folders of images or audio: closed-form start, then the decoder.

The projection and the linear synthesis come from one pass over the data (Karhunen-Loeve transform) and are the whole
codec already; the network of the decoder starts at zero on top of them and is trained with uniform noise in place of
rounding. The run can be stopped at any time and continues where it was when the same command is given again.

    python scripts/train_codec.py --kind image --latent_channels 12 --step 0.1 \\
        --train /data/photos:0.93 /data/documents:0.07 --validation /data/kodak --output runs/rgb-16x --minutes 60

A better decoder for a published codec, which keeps reading and writing the same files; one that is wider or deeper
starts as the one that the codec has:

    python scripts/train_codec.py --kind image --encoder_from walloc/rgb-16x \\
        --train /data/photos --validation /data/kodak --output runs/rgb-16x-2 --minutes 600

On several GPUs: `torchrun --nproc_per_node 8 scripts/train_codec.py ...`, where `--batch_size` is that of each.
"""

import argparse
import functools
import json
import os
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import TrainingArguments, set_seed

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.training.conversion import save_model_folder
from transformers_walloc.training.data import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    AudioSegments,
    ImageCrops,
    MediaCache,
    list_media,
)
from transformers_walloc.training.klt import SubbandStatistics, fit_decoder_scales, fit_klt, fit_linear_synthesis
from transformers_walloc.training.trainer import CodecTrainer, last_checkpoint

_SHAPE = (
    "latent_channels",
    "decoder_type",
    "decoder_hidden_size",
    "decoder_num_layers",
    "decoder_kernel_size",
    "decoder_downsampling",
)


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--kind", choices=["image", "audio"], required=True)
    data.add_argument(
        "--train", nargs="+", required=True, metavar="DIR[:SHARE]", help="folders, with shares of the draws"
    )
    data.add_argument("--validation", required=True, metavar="DIR", help="folder that is never trained on")
    data.add_argument("--validation_files", type=int, default=24, help="how many of its files to evaluate on")
    data.add_argument("--cache", default=None, metavar="DIR", help="where decoded media go; default: OUTPUT/cache")
    codec = parser.add_argument_group("codec")
    codec.add_argument("--latent_channels", type=int, default=None)
    codec.add_argument("--step", type=float, default=None, help="quantisation step of the transform's coefficients")
    codec.add_argument("--decoder_type", choices=["residual", "restoration", "linear"], default="residual")
    codec.add_argument("--decoder_hidden_size", type=int, default=None)
    codec.add_argument("--decoder_num_layers", type=int, default=None)
    codec.add_argument("--decoder_kernel_size", type=int, default=None)
    codec.add_argument("--decoder_downsampling", type=int, default=None, help="of restoration decoders; default: 2")
    codec.add_argument(
        "--encoder_from",
        default=None,
        metavar="MODEL",
        help="train a new decoder for this model, whose encoder, linear synthesis and entropy tables are kept; "
        "--latent_channels and --step are not needed. With --train_encoder a new codec that starts at this one",
    )
    codec.add_argument("--train_encoder", action="store_true", help="tune the projection too; it is frozen otherwise")
    codec.add_argument(
        "--refit_linear",
        action="store_true",
        help="start from the least-squares synthesis for the projection of --encoder_from",
    )
    codec.add_argument("--klt_draws", type=int, default=6000, help="random pieces for the closed-form fit")
    codec.add_argument(
        "--statistics",
        default=None,
        metavar="FILE",
        help="statistics of the closed-form fit, written if missing; codecs fitted to the same ones are nested",
    )
    run = parser.add_argument_group("training")
    run.add_argument("--output", required=True, metavar="DIR")
    run.add_argument("--minutes", type=float, default=None, help="time budget; the schedule follows it")
    run.add_argument("--max_steps", type=int, default=1_000_000, help="0 stops at the closed form")
    run.add_argument("--piece_size", type=int, default=None, help="pixels per side or samples; default 192 or 65536")
    run.add_argument("--batch_size", type=int, default=None)
    run.add_argument("--learning_rate", type=float, default=6e-4, help="peak, of the network; 2e-3 shuts its units")
    run.add_argument("--linear_learning_rate", type=float, default=1e-4)
    run.add_argument(
        "--encoder_learning_rate", type=float, default=None, help="default: --linear_learning_rate; try 6e-3 (Adam)"
    )
    run.add_argument(
        "--log_floor",
        type=float,
        default=None,
        help="train for the mean of log(squared error + this) over pieces, as PSNR counts; try 7e-4 for images",
    )
    run.add_argument("--signal_fraction", type=float, default=0.15, help="share at the end with loss on samples")
    run.add_argument(
        "--rate_weight",
        type=float,
        default=0.0,
        help="mean squared error that a bit per pixel and channel (per audio sample) is worth; needs --train_encoder",
    )
    run.add_argument("--eval_steps", type=int, default=1000)
    run.add_argument("--save_steps", type=int, default=500)
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--no_bf16", action="store_true", help="train in float32 instead of bfloat16 autocast")
    run.add_argument("--cpu", action="store_true")
    args = parser.parse_args(argv)
    for name in ("latent_channels", "step"):
        if getattr(args, name) is None and not args.encoder_from:
            parser.error(f"--{name} is needed without --encoder_from")
    if args.rate_weight and not args.train_encoder:
        parser.error("--rate_weight needs --train_encoder: a frozen encoder has the rate that it has")
    if args.refit_linear and not args.encoder_from:
        parser.error("--refit_linear needs --encoder_from")
    if args.rate_weight < 0:
        parser.error(f"--rate_weight is {args.rate_weight}; it must not be negative")
    return args


def main(argv=None) -> dict[str, float]:
    """Train; the validation metrics of the finished codec on the first process."""
    args = parse_arguments(argv)
    image, output = args.kind == "image", Path(args.output)
    training = TrainingArguments(
        output_dir=str(output),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size or (14 if image else 16),
        learning_rate=args.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=0.5,
        warmup_steps=200,
        bf16=not args.no_bf16,
        use_cpu=args.cpu,
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        save_steps=args.save_steps,
        save_total_limit=2,
        logging_steps=50,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_num_workers=args.workers,
        seed=args.seed,
        ignore_data_skip=True,
        ddp_backend="gloo" if args.cpu and "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=6 * 3600,  # the other processes wait while the first one prepares the data and evaluates
    )
    set_seed(args.seed)
    with training.main_process_first():
        caches, shares, validation = open_media(args)
    checkpoint = last_checkpoint(output)
    seed = f"{args.seed}-{checkpoint.rpartition('-')[2] if checkpoint else 0}"
    pieces: ImageCrops | AudioSegments
    if image:
        pieces = ImageCrops(caches, shares, args.piece_size or 192, seed)
    else:
        pieces = AudioSegments(caches, shares, args.piece_size or 65536, seed)

    # Otherwise a checkpoint, or the first process, brings the weights.
    fit = (checkpoint is None or args.max_steps == 0) and training.process_index == 0
    model = make_model(args, pieces, fit=fit)
    output.mkdir(parents=True, exist_ok=True)
    if args.max_steps == 0:
        if training.process_index == 0:
            metrics = validate(model, validation)
            print("closed form:", metrics)
            export(model, args)
            return metrics
        return {}
    model.encoder.requires_grad_(args.train_encoder)
    trainer = CodecTrainer(
        model=model,
        args=training,
        train_dataset=pieces,
        eval_dataset=[],
        linear_learning_rate=args.linear_learning_rate,
        encoder_learning_rate=args.encoder_learning_rate,
        log_floor=args.log_floor,
        signal_fraction=args.signal_fraction,
        time_budget=args.minutes * 60 if args.minutes else None,
        evaluate_codec=functools.partial(validate, cache=validation),
        rate_weight=args.rate_weight,
    )
    if checkpoint is None and trainer.is_world_process_zero():
        print("closed form:", validate(model, validation), flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {}
    if trainer.is_world_process_zero():
        with trainer.average.applied_to(model):
            metrics = validate(model, validation)
            export(model, args)
        print("trained:", metrics)
    trainer.accelerator.end_training()
    return metrics


def open_media(args) -> tuple[list[MediaCache], list[float], MediaCache]:
    """Decoded training media with their shares, and the validation files."""
    suffixes = IMAGE_SUFFIXES if args.kind == "image" else AUDIO_SUFFIXES
    cache_dir = args.cache or Path(args.output) / "cache"
    caches, shares = [], []
    for entry in args.train:
        folder, _, share = entry.rpartition(":") if ":" in entry else (entry, "", "1")
        caches.append(MediaCache(list_media(folder, suffixes), args.kind, cache_dir))
        shares.append(float(share))
    validation_files = list_media(args.validation, suffixes)[: args.validation_files]
    return caches, shares, MediaCache(validation_files, args.kind, cache_dir)


def export(model, args):
    """The finished checkpoint, and beside it the recipe: all settings, folders by their names."""
    vars(model.config).pop("use_cache", None)  # Trainer sets it, for text models
    recipe = dict(vars(args), train=[Path(entry).name for entry in args.train], validation=Path(args.validation).name)
    if args.encoder_from and Path(args.encoder_from).is_dir():
        recipe["encoder_from"] = Path(args.encoder_from).name
        earlier = Path(args.encoder_from) / "recipe.json"
        if earlier.exists():
            recipe["earlier"] = json.loads(earlier.read_text())
    for name in ("output", "cache", "cpu", "workers", "statistics"):
        del recipe[name]
    save_model_folder(
        model,
        Path(args.output) / "model",
        decoder_dtype=torch.float16,
        overwrite=True,
        documents={"recipe.json": json.dumps(recipe, indent=2) + "\n"},
    )


def make_model(args, pieces, fit: bool = True):
    """A model that starts at the closed form of the training data, or at another model.

    Of the other model the encoder stays, unless it is trained, too; its decoder is trained on if the shape that is
    asked for has room for it.

    Args:
        fit: whether to fit it; otherwise the weights that depend on the data are left for a checkpoint to fill in.
    """
    model_class = WallocImageModel if args.kind == "image" else WallocAudioModel
    config_class = WallocImageConfig if args.kind == "image" else WallocAudioConfig
    shape = {name: value for name in _SHAPE if (value := getattr(args, name)) is not None}
    if not args.encoder_from:
        model = model_class(config_class(**shape))
        if fit:
            fit_klt(model, collect_statistics(args, model.config, pieces), args.step)
        return model

    source = model_class.from_pretrained(args.encoder_from, dtype=torch.float32)
    if source.config.decoder_type not in ("residual", "restoration", "linear"):
        raise ValueError(
            f"--encoder_from {args.encoder_from} has the decoder {source.config.decoder_type!r}, which has no linear "
            "synthesis to start from; valid: residual, restoration, linear"
        )
    if args.latent_channels not in (None, source.config.latent_channels):
        raise ValueError(
            f"--latent_channels is {args.latent_channels}; {args.encoder_from} has {source.config.latent_channels}"
        )
    model = model_class(config_class.from_dict({**source.config.to_dict(), **shape}))
    model.encoder.load_state_dict(source.encoder.state_dict())
    old, new = source.config, model.config
    fits = (
        old.decoder_type == new.decoder_type != "linear"
        and old.decoder_hidden_size <= new.decoder_hidden_size
        and old.decoder_num_layers <= new.decoder_num_layers
        and old.decoder_kernel_size == new.decoder_kernel_size
        and old.decoder_downsampling == new.decoder_downsampling
    )
    model.decoder.linear.load_state_dict(source.decoder.linear.state_dict())
    if fits and new.decoder_type == "restoration":
        model.decoder.network.grow_from(source.decoder.network)
    elif fits:
        model.decoder.grow_from(source.decoder)
    if source.entropy_tables is not None:
        model.entropy_tables.copy_(source.entropy_tables)
    if source.config.latent_fingerprint not in (None, model.fingerprint()):
        raise ValueError(f"the encoder of {args.encoder_from} is not stored in float32: its codes would change")
    if fit and args.refit_linear:
        fit_linear_synthesis(model, collect_statistics(args, model.config, pieces))
    if fit and args.decoder_type == "residual" and not fits:
        fit_decoder_scales(model, collect_statistics(args, model.config, pieces))
    if fit and fits and new.decoder_type == "residual":
        stream = iter(pieces)
        typical = torch.stack([next(iter(next(stream).values())) for _ in range(32)])
        with torch.no_grad():
            codes = model.quantize(model.encode(typical)[0])
            revived = model.decoder.revive(decompand(codes, model.config.latent_bits))
        print(f"units of the decoder that were silent and start anew: {revived}")
    return model


def collect_statistics(args, config, pieces) -> SubbandStatistics:
    """Of the file that `--statistics` names, or of random pieces."""
    if args.statistics and Path(args.statistics).exists():
        return SubbandStatistics.load(args.statistics, config)
    statistics = SubbandStatistics(config)
    stream = iter(pieces)
    for _ in tqdm(range(args.klt_draws), desc="statistics of the subbands", unit="piece"):
        (piece,) = next(stream).values()
        statistics.update(piece[None])
    if args.statistics:
        statistics.save(args.statistics)
    return statistics


@torch.inference_mode()
def validate(model, cache: MediaCache) -> dict[str, float]:
    """Mean PSNR in dB over 8-bit pixels (or normalised samples) and order-0 compression ratio over all files."""
    patch, device = model.config.patch_size, model.device
    image = model.config.num_dims == 2
    psnr, bits, numbers = [], 0.0, 0
    for i in range(len(cache)):
        array = cache[i]
        if image:
            array = array[: array.shape[0] // patch * patch, : array.shape[1] // patch * patch]
            x = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None].to(device).float() / 255 - 0.5
        else:
            array = array[: min(len(array), 30 * model.config.sampling_rate) // patch * patch]
            x = torch.from_numpy(array.T.astype(np.float32))[None].to(device)
            x = x - x.mean()
            x = x * (0.5 / x.abs().max().clamp_min(1.0))
        codes = model.quantize(model.encode(x)[0])
        y = model.decode(codes)[0]
        error = torch.round(y * 255 + 127.5) / 255 - torch.round(x * 255 + 127.5) / 255 if image else y - x
        psnr.append(-10 * torch.log10(error.square().mean()).item())
        for channel in codes[0].flatten(1).cpu().numpy():
            counts = np.unique(channel, return_counts=True)[1]
            bits += float(-(counts * np.log2(counts / counts.sum())).sum())
        numbers += x.numel()
    bits_per_number = 8 if image else 16
    return {"psnr": round(float(np.mean(psnr)), 3), "order0_cr": round(bits_per_number * numbers / bits, 2)}


if __name__ == "__main__":
    main()
