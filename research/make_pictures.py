#!/usr/bin/env python
"""The pictures of docs and model cards: reconstructions, spectrograms, latent atlases, histograms and channel maps.

    python -m research.make_pictures --images DIR --audio DIR        # docs/pictures and model_cards/*/

Figures 5 to 11 of the paper, for our codecs, on the images and clips that are named with --image and --clip.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from research.pages import ROOT
from transformers_walloc.atomic import atomic_file
from transformers_walloc.evaluation import metrics, plots
from transformers_walloc.evaluation.codecs import CodecUnavailableError
from transformers_walloc.evaluation.measure import MODELS
from transformers_walloc.evaluation.signals import SAMPLING_RATE, Signals
from transformers_walloc.evaluation.specs import make_codec, shown_spec
from transformers_walloc.loading import load_codec

CARD_DPI = 75  # cards travel with every installation


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="folder of images")
    parser.add_argument("--image", nargs="+", default=[], metavar="PART", help="parts of the names of those to show")
    parser.add_argument("--audio", metavar="DIR", help="folder of audio")
    parser.add_argument("--clip", nargs="+", default=[], metavar="PART", help="parts of the names of those to show")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a clip, from its middle")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: the bundled codecs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", metavar="DIR")
    parser.add_argument(
        "--cards", type=Path, default=ROOT / "model_cards", metavar="DIR", help="folder of model folders"
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_arguments(argv)
    for kind, folder, wanted in (("image", args.images, args.image), ("audio", args.audio, args.clip)):
        if not folder:
            continue
        models = [model for model in args.models or MODELS[kind] if can_be_loaded(model)]
        signals = Signals(folder, kind, seconds=args.seconds)
        chosen = [s for s in signals if any(part in s.name for part in wanted)] if wanted else [next(iter(signals))]
        if not chosen:
            raise SystemExit(f"no file of {folder} has {' or '.join(wanted)} in its name")
        for signal in chosen:
            stem = Path(signal.name).stem
            for model in models:
                name = shown_spec(model)
                figure = compare(kind, signal.array, [model, *rivals(kind, model)])
                save_small(figure, args.out / f"{name}_{stem}.jpg")
                card = args.cards / name
                if card.is_dir() and signal is chosen[0]:
                    save_small(figure, card / "reconstruction.jpg", CARD_DPI)
        for model in models:
            draw_latents(kind, model, chosen[0].array, args.out, args.cards)


def can_be_loaded(model: str) -> bool:
    try:
        load_codec(model)
    except OSError as error:
        print(f"{model} is left out: {error}")
        return False
    return True


def rivals(kind: str, model: str) -> list[str]:
    """A format at the same file size and, for images, resizing to as few numbers."""
    if kind == "audio":
        return [f"opus@like={model}"]
    factor = round(load_codec(model)[0].config.dimensionality_reduction ** 0.5)
    return [f"resize@factor={factor}", f"webp@like={model}"]


def compare(kind: str, original: np.ndarray, specs: list[str]):
    """The figure of one signal through several codecs, captions with rate and PSNR."""
    signals = {"original": original}
    for spec in specs:
        try:
            codec = make_codec(spec, kind)
        except CodecUnavailableError as error:
            print(f"{spec} is left out: {error}")
            continue
        blob = codec.write(original)
        decoded = codec.read(blob, original)
        ratio = metrics.compression_ratio(original.size, len(blob), 8 if kind == "image" else 16)
        psnr = (metrics.psnr if kind == "image" else metrics.audio_psnr)(original, decoded)
        name = spec if spec.startswith("resize") else shown_spec(spec).partition("@")[0]
        name = name.replace("resize@factor=", "resized by 1/")
        signals[f"{name}, CR {ratio:.1f}, {psnr:.2f} dB"] = decoded
    return plots.reconstructions(signals) if kind == "image" else plots.waveforms(signals, SAMPLING_RATE)


def draw_latents(kind: str, spec: str, array: np.ndarray, out: Path, cards: Path) -> None:
    name = shown_spec(spec)
    model, _ = load_codec(spec)
    with torch.inference_mode():
        codes = model.decompress_codes(make_codec(spec, kind).write(array))[0].numpy()
    atlas = plots.latent_atlas(model)
    save_small(atlas, out / f"atlas_{name}.png")
    if (cards / name).is_dir():
        save_small(atlas, cards / name / "atlas.png", CARD_DPI)
    seconds = array.shape[-1] / SAMPLING_RATE if kind == "audio" else None
    save_small(plots.channel_maps(codes, seconds), out / f"channels_{name}.png")
    save_small(plots.latent_histograms(codes), out / f"histograms_{name}.png")


def save_small(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Photographs as JPEG, drawings as PNG of 256 colours: both stay in the repository's history for good."""
    with tempfile.TemporaryDirectory() as scratch:
        (drawn,) = plots.save(figure, Path(scratch, "figure"), ["png"], dpi)
        with Image.open(drawn) as opened:
            picture = opened.convert("RGB")
    with atomic_file(path) as file:
        if path.suffix == ".jpg":
            picture.save(file, "JPEG", quality=80, optimize=True)
        else:
            picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


if __name__ == "__main__":
    main()
