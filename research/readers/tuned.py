#!/usr/bin/env python
"""What a decoder gains that learns what a frozen ImageNet network needs of its pictures: latents stay as they are.

    pip install '.[train,readers]'
    python -m research.readers.tuned measure --data CALTECH    # minutes; goes on where it was stopped
    python -m research.readers.tuned summarise                 # docs/results -> docs/frozen_readers.md

The decoder of `rgb-16x` goes on learning, at one rate after the other, on rounded latents of crops of the training
pictures of `research.readers.classifier`. The loss is what EfficientNet-Lite0 says differently of the decoded crop than
of the original, and a share of the error of pixels:

    KL(classes of the original | classes of the decoded) + SHARE * mean squared error / that of the decoder at the start

The network does not learn, nor do the encoder and the codes: files stay what they are. Test pictures are those of
`research.readers.classifier`, in its order. Scores: whether the network gives a decoded picture the ImageNet class that
it gives the original, how far its classes are from those of the original (KL), and the PSNR of the pixels.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from research.pages import RESULTS, between
from research.readers.classifier import DEVIATION, MEAN, SIDE, Split, load_network, open_picture, prepared
from research.readers.pictures import Ways
from research.readers.scores import PAGE, differences, load_study, save_study
from transformers_walloc import WallocImageModel
from transformers_walloc.atomic import atomic_file, write_atomically
from transformers_walloc.codec.rate_control import decibels
from transformers_walloc.training.fine_tuning import prepare_for_training

STORE = RESULTS / "readers_tuned.json"
CODEC, DR = "rgb-16x", 16
RATES = {"gentle": 2e-5, "strong": 2e-4}
STEPS, BATCH, CROP = 100, 4, 160  # pixels of the crop, which the network sees enlarged to its 224
SHARE, SAVED_EVERY = 0.1, 10
START = "walloc"
CONDITIONS = {START: "as it comes", **{name: f"tuned at a rate of {rate:g}" for name, rate in RATES.items()}}


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="tune decoders and score them")
    measure.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of pictures for each class")
    measure.add_argument("--pictures", type=int, default=200, help="test pictures (default: %(default)s)")
    measure.add_argument("--cache", type=Path, required=True, metavar="DIR", help="for the decoders")
    commands.add_parser("summarise", help="write the table")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise()
        return 0
    torch.set_num_threads(1)
    split, network = Split(args.data), load_network()
    tested = [path for path, _ in split.order if path in split.test]
    if not 1 <= args.pictures <= len(tested):
        print(f"error: --pictures is {args.pictures}; valid: 1 to {len(tested)}", file=sys.stderr)
        return 2
    codecs = {START: f"walloc/{CODEC}"}
    for condition, rate in RATES.items():
        folder = args.cache / f"{CODEC}-{condition}"
        if not (folder / "config.json").is_file():
            tune(network, [path for path, _ in split.train], rate, args.cache / f"{condition}.pt").save_pretrained(
                folder
            )
        codecs[condition] = str(folder)
    score(network, codecs, tested[: args.pictures])
    return 0


def tune(network: Any, pictures: list[Path], rate: float, checkpoint: Path) -> WallocImageModel:
    """`CODEC` with a decoder that learnt for the network; `checkpoint` keeps what an interrupted command has learnt."""
    codec = prepare_for_training(WallocImageModel.from_pretrained(f"walloc/{CODEC}"))
    network.requires_grad_(False)
    optimizer = torch.optim.Adam(codec.decoder.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10, 2 - 2 * step / STEPS))
    parts: dict[str, Any] = {"decoder": codec.decoder, "optimizer": optimizer, "schedule": schedule}
    first, scale = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        first, scale = state["step"], state["scale"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for step in tqdm(range(first, STEPS), initial=first, total=STEPS, desc=f"rate {rate:g}", mininterval=10):
        x = crops(pictures, step)
        kl, error = losses(network, codec, x)
        scale = scale or error.item()
        optimizer.zero_grad()
        (kl + SHARE * error / scale).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVED_EVERY == 0:
            print(f"step {step + 1}: KL {kl.item():.3f}, PSNR {-10 * error.log10().item():.2f} dB", file=sys.stderr)
            state = {name: part.state_dict() for name, part in parts.items()}
            with atomic_file(checkpoint) as temporary:
                torch.save({**state, "step": step + 1, "scale": scale}, temporary)
    return codec.eval()


def crops(pictures: list[Path], step: int) -> torch.Tensor:
    """(BATCH, 3, CROP, CROP) in [-0.5, 0.5], the same for every rate: random places, half of them flipped."""
    draw, found = random.Random(step), []
    for path in draw.sample(pictures, BATCH):
        picture = open_picture(path)
        if min(picture.size) < CROP:
            picture = picture.resize([round(size * CROP / min(picture.size)) for size in picture.size])
        left, top = (draw.randint(0, size - CROP) for size in picture.size)
        pixels = np.array(picture.crop((left, top, left + CROP, top + CROP)))
        found.append(pixels[:, ::-1] if draw.random() < 0.5 else pixels)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255 - 0.5


def losses(network: Any, codec: WallocImageModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the network's classes of decoded pictures are from those of the originals, and the error of pixels."""

    def classes(pixels: torch.Tensor) -> torch.Tensor:
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic")
        return network((255 * (pixels + 0.5) - MEAN) / DEVIATION).log_softmax(1)

    with torch.no_grad():
        expected, codes = classes(x), codec.quantize(codec.encode(x).latents)
    decoded = codec.decode(codes).pixel_values
    kl = F.kl_div(classes(decoded), expected, reduction="batchmean", log_target=True)
    return kl, F.mse_loss(decoded, x)


@torch.inference_mode()
def score(network: Any, codecs: dict[str, str], pictures: list[Path]) -> None:
    study = load_study(STORE, "EfficientNet-Lite0, test photographs of Caltech-101")
    ways = Ways({condition: {DR: (name, 12)} for condition, name in codecs.items()})
    keys = {condition: ways.key(f"{condition}-{DR}") for condition in codecs}
    for done, path in enumerate(tqdm(pictures, unit="picture", mininterval=10), 1):
        name, picture = f"{path.parent.name}/{path.name}", open_picture(path)
        if missing := study.missing(name, keys):
            views = [picture, *(ways.view(picture, f"{condition}-{DR}") for condition in missing)]
            x = torch.from_numpy(np.stack([prepared(view) for view in views]))
            logits = network(x).log_softmax(1)
            for condition, view, found in zip(missing, views[1:], logits[1:], strict=True):
                kl = F.kl_div(found, logits[0], reduction="sum", log_target=True)
                same = float(found.argmax() == logits[0].argmax())
                study.put(
                    condition, name, keys[condition], {"same": same, "kl": float(kl), "psnr": psnr(picture, view)}
                )
        if done % 20 == 0:
            save_study(STORE, study)
    save_study(STORE, study)


def psnr(picture: Image.Image, view: Image.Image) -> float:
    error = np.square(np.asarray(picture, float) - np.asarray(view, float)).mean()
    return decibels(max(error, 1e-9) / 255**2)


def summarise() -> None:
    study = load_study(STORE, "")
    found = [condition for condition in CONDITIONS if condition in study.scores]
    signals = study.common(found)
    measures = {"same": ("same ImageNet class, %", 100), "kl": ("KL of the classes", 1), "psnr": ("PSNR, dB", 1)}
    titles = {condition: CONDITIONS[condition] for condition in found}
    heads = f"decoder of `{CODEC}`", "difference (95% interval)"
    compared = differences(study, signals, titles, measures, heads, START, digits=2)
    text = f"{len(signals)} test photographs; {STEPS} steps of {BATCH} crops:\n\n{compared}"
    write_atomically(PAGE, between(PAGE.read_text(), "tuned", text))


if __name__ == "__main__":
    sys.exit(main())
