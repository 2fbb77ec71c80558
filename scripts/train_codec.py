#!/usr/bin/env python
"""Train a WaLLoC codec on folders of images or audio: closed-form start, then the decoder.

The projection and the linear synthesis come from one pass over the data (Karhunen-Loeve transform) and are the whole
codec already; the network of the decoder starts at zero on top of them and is trained with uniform noise in place of
rounding. The run can be stopped at any time and continues where it was when the same command is given again.

    python scripts/train_codec.py --kind image --latent_channels 12 --step 0.1 \\
        --train /data/photos:0.93 /data/documents:0.07 --validation /data/kodak --output runs/rgb-16x --minutes 60
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.klt import SubbandStatistics, fit_klt
from transformers_walloc.training import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    AudioSegments,
    CodecTrainer,
    ImageCrops,
    MediaCache,
    export_codec,
    list_media,
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
    codec.add_argument("--latent_channels", type=int, required=True)
    codec.add_argument("--step", type=float, required=True, help="quantisation step of the transform's coefficients")
    codec.add_argument("--decoder_type", choices=["residual", "linear"], default="residual")
    codec.add_argument("--decoder_hidden_size", type=int, default=None)
    codec.add_argument("--decoder_num_layers", type=int, default=None)
    codec.add_argument(
        "--encoder_from", default=None, metavar="MODEL", help="keep the encoder of this model, refit nothing"
    )
    codec.add_argument("--train_encoder", action="store_true", help="tune the projection too; it is frozen otherwise")
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
    run.add_argument("--learning_rate", type=float, default=6e-4)
    run.add_argument("--linear_learning_rate", type=float, default=1e-4)
    run.add_argument("--signal_fraction", type=float, default=0.15, help="share at the end with loss on samples")
    run.add_argument("--eval_steps", type=int, default=1000)
    run.add_argument("--save_steps", type=int, default=500)
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--no_bf16", action="store_true", help="train in float32 instead of bfloat16 autocast")
    run.add_argument("--cpu", action="store_true")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    set_seed(args.seed)
    output = Path(args.output)
    image = args.kind == "image"
    cache_dir = args.cache or output / "cache"
    suffixes = IMAGE_SUFFIXES if image else AUDIO_SUFFIXES
    caches, shares = [], []
    for entry in args.train:
        folder, _, share = entry.rpartition(":") if ":" in entry else (entry, "", "1")
        caches.append(MediaCache(list_media(folder, suffixes), args.kind, cache_dir))
        shares.append(float(share))
    validation_files = list_media(args.validation, suffixes)[: args.validation_files]
    validation = MediaCache(validation_files, args.kind, cache_dir)

    checkpoint = get_last_checkpoint(output) if output.is_dir() else None
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    seed = f"{args.seed}-{resumed_at}"
    pieces: ImageCrops | AudioSegments
    if image:
        pieces = ImageCrops(caches, shares, args.piece_size or 192, seed)
    else:
        pieces = AudioSegments(caches, shares, args.piece_size or 65536, seed)

    model = make_model(args, pieces)
    output.mkdir(parents=True, exist_ok=True)
    if args.max_steps == 0:
        print("closed form:", validate(model, validation))
        export(model, args)
        return
    model.encoder.requires_grad_(args.train_encoder)
    if image:
        model = model.to(memory_format=torch.channels_last)  # two to four times as fast on a CPU

    def evaluate_codec(model):
        return validate(model, validation)

    trainer = CodecTrainer(
        model=model,
        args=TrainingArguments(
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
        ),
        train_dataset=pieces,
        eval_dataset=[],
        linear_learning_rate=args.linear_learning_rate,
        signal_fraction=args.signal_fraction,
        time_budget=args.minutes * 60 if args.minutes else None,
        evaluate_codec=evaluate_codec,
    )
    if checkpoint:
        trainer.average.load(checkpoint)
    elif trainer.is_world_process_zero():
        print("closed form:", validate(model, validation), flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        with trainer.average.applied_to(model):
            metrics = validate(model, validation)
            export(model, args)
        print("trained:", metrics)


def export(model, args):
    """The finished checkpoint, and beside it the recipe: all settings, folders by their names."""
    folder = Path(args.output) / "model"
    export_codec(model, folder)
    recipe = dict(vars(args), train=[Path(entry).name for entry in args.train], validation=Path(args.validation).name)
    for name in ("output", "cache", "cpu", "workers", "statistics"):
        del recipe[name]
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def make_model(args, pieces):
    """A model that starts at the closed form of the training data, or at the encoder of another model."""
    shape = {
        name: value
        for name in ("latent_channels", "decoder_type", "decoder_hidden_size", "decoder_num_layers")
        if (value := getattr(args, name)) is not None
    }
    if args.kind == "image":
        model, name = WallocImageModel(WallocImageConfig(**shape)), "pixel_values"
    else:
        model, name = WallocAudioModel(WallocAudioConfig(**shape)), "input_values"
    if args.encoder_from:
        source = type(model).from_pretrained(args.encoder_from)
        model.encoder.load_state_dict(source.encoder.state_dict())
        model.decoder.load_state_dict(source.decoder.state_dict(), strict=False)
        return model
    if args.statistics and Path(args.statistics).exists():
        statistics = SubbandStatistics.load(args.statistics, model.config)
    else:
        statistics = SubbandStatistics(model.config)
        stream = iter(pieces)
        for _ in tqdm(range(args.klt_draws), desc="closed-form fit", unit="piece"):
            statistics.update(next(stream)[name][None])
        if args.statistics:
            statistics.save(args.statistics)
    fit_klt(model, statistics, args.step)
    return model


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
