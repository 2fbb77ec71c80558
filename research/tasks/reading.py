#!/usr/bin/env python
"""Reading the lines of receipts on equally many numbers: pages resized to 224 or 448 rows against latents of 896 rows.

    python -m research.tasks.reading --data SROIE

What a model of documents needs first, and small enough to be learnt on a CPU: a convolutional network along the line
reads its characters (connectionist temporal classification, Graves et al. 2006). It learns from rendered receipts and
is measured on other rendered ones (character errors) and on the real pages that are the test of documents.py: a
window of 32 of 896 rows slides down the page, 8 rows a step, and company, date and total count as found where they
stand, whole, in what one window reads. ANLS is that of the answers which plain rules (`receipt_text.answers_in`) pick
from what was read. Nothing is fitted to the real pages.

Pages, numbers and conditions are those of documents.py; a window is 32 x 448 of 896 x 448 pixels:

    resize-224    8 x 112 x 3 =  2,688 numbers      walloc-16x    4 x 56 x 12 =  2,688
    resize-448   16 x 224 x 3 = 10,752 numbers      walloc-4x     4 x 56 x 48 = 10,752

Every condition has the same lines, tokens (56, each of the window's whole height), widths and steps; only the kernel of
the first layer has another shape.

Rendered print is cleaner than scanned print, and a model may make much of detail that real pages do not have. CONDITION
+real learns from real lines as well: those that PP-OCR reads with confidence on training pages at their full size
(`pip install rapidocr-onnxruntime`; twenty minutes for 160 pages, kept in the folder of --cache). One page in ten is
left out to measure character errors against PP-OCR's reading. Its batches are as many and as large as without.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFont
from torch import nn
from torch.utils.data import ConcatDataset, Dataset
from transformers import Trainer

from research.tasks.preparation import Preparation
from research.tasks.receipt_text import WINDOW, Line, answers_in, ocr_lines, spelled
from research.tasks.receipts import (
    CHARACTERS,
    FIELDS,
    PAGE,
    Receipt,
    anls,
    fonts,
    levenshtein,
    page_of,
    prepare,
    read_answers,
)
from research.tasks.receipts import split as split_pages
from research.tasks.runs import RunArguments, run_task, training_arguments

CONDITIONS = {
    "resize-224": "resized to 224 rows",
    "walloc-16x": "latents of 896 rows, rgb-16x",
    "walloc-16x-klt": "latents of 896 rows, rgb-16x-klt",
    "resize-448": "resized to 448 rows",
    "walloc-4x": "latents of 896 rows, rgb-4x",
    "walloc-4x-klt": "latents of 896 rows, rgb-4x-klt",
}
REAL = "+real"
CONDITIONS |= {name + REAL: f"{title}, real lines too" for name, title in CONDITIONS.items()}
STRIDE = 8  # rows of the page
TOKENS = 56  # of a window
OUTPUTS = 3  # characters that a token can tell, so that narrow ones and repeated ones have room
BLANK = 0


@dataclass(frozen=True)
class Settings:
    data: str = field(default="sroie", metadata={"help": "folder with images/ and answers.json"})
    test: int = field(default=126, metadata={"help": "real pages to read, the last by name"})
    rendered: int = field(default=400, metadata={"help": "rendered pages to learn from, about 35 lines each"})
    rendered_test: int = field(default=40, metadata={"help": "rendered pages to measure the errors on"})
    real: int = field(default=160, metadata={"help": "real pages whose lines PP-OCR reads, for the conditions +real"})
    steps: int = field(default=2000, metadata={"help": "of the optimiser"})
    batch_size: int = field(default=32, metadata={"help": "lines a step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "the largest, of AdamW"})
    width: int = field(default=192, metadata={"help": "of the network"})
    layers: int = field(default=5, metadata={"help": "residual blocks"})
    bf16: bool = field(default=False, metadata={"help": "autocast, for a GPU"})
    cache: str = field(default="", metadata={"help": "folder that keeps the prepared pages for the next command"})

    def __post_init__(self):
        for name, least in {"test": 1, "rendered": 1, "rendered_test": 1, "layers": 1, "real": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


# --- lines --------------------------------------------------------------------------------------------------------


class DenseReceipt(Receipt):
    """A rendered receipt full of lines, which it keeps."""

    def __init__(self, fonts: Sequence[Path], seed: int | str):
        self.parts: dict[int, list[tuple[float, str, ImageFont.FreeTypeFont]]] = {}
        super().__init__(fonts, seed)

    def lines(self):
        draw = self.random
        self.write(self.facts["company"], self.body.font_variant(size=draw.randint(18, 24)), align="center")
        while not self.full():
            kind = draw.random()
            if kind < 0.45:
                self.amount(f"{self.words(2)[:18].upper()}", draw.randint(5, 30000))
            elif kind < 0.6:
                code = "".join(draw.choice("0123456789-/.:") for _ in range(draw.randint(4, 16)))
                self.write(f"{self.words(1)[:12]} {code}", align=draw.choice(("left", "center")))
            elif kind < 0.75:
                day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(2010, 2020)
                separator = draw.choice("/-.")
                self.write(f"DATE: {day:02}{separator}{month:02}{separator}{year} {draw.randint(0, 23):02}:{month:02}")
            elif kind < 0.97:
                text = self.words(draw.randint(2, 5))
                self.write(text.upper() if draw.random() < 0.6 else text, align=draw.choice(("left", "center")))
            else:
                self.rule()

    def words(self, count: int) -> str:
        return "".join(c for c in super().words(count) if c.upper() in CHARACTERS)

    def put(self, x: float, text: str, font=None, fill=None):
        super().put(x, text, font, fill)
        self.parts.setdefault(self.y, []).append((x, text, font or self.body))

    def found(self) -> list[Line]:
        """What was written, in upper case; parts of a line are separated by a space."""
        lines = []
        for y, parts in self.parts.items():
            text, columns, end = "", [], 0.0
            for x, part, font in sorted(parts, key=lambda part: part[0]):
                if text:
                    text += " "
                    columns.append((end + x) / 2)
                edges = [x + font.getlength(part[:i]) for i in range(len(part) + 1)]
                text += part.upper()
                columns += [(a + b) / 2 for a, b in itertools.pairwise(edges)]
                end = edges[-1]
            if text:
                lines.append(Line(y + self.line_height(parts[0][2]) // 2, text, tuple(columns)))
        return lines


def window_of(middle: int) -> int:
    """First row of the window, on the grid of latents, whose middle is nearest."""
    return min(max(round((middle - WINDOW / 2) / STRIDE) * STRIDE, 0), PAGE[0] - WINDOW)


class Lines(Dataset):
    """Windows of pages (pages, channels, rows, columns), uint8 pixels or int8 codes, with what stands in them."""

    def __init__(self, pages: torch.Tensor, lines: Sequence[tuple[int, Line]], transform):
        self.pages, self.lines, self.transform = pages, lines, transform

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> dict:
        page, line = self.lines[i]
        return {"pixel_values": self.transform(window(self.pages[page], window_of(line.middle))), "labels": line}


def window(page: torch.Tensor, row: int) -> torch.Tensor:
    """(channels, rows, columns) of the window that starts at a row of the 896."""
    scale = PAGE[0] // page.shape[1]
    return page[:, row // scale : (row + WINDOW) // scale]


def collate(examples: list[dict]) -> dict:
    """labels: (batch, longest), -100 behind the end; places: (batch, 168), the character in the middle of a place."""
    lines = [e["labels"] for e in examples]
    codes = [torch.tensor([CHARACTERS.index(c) + 1 for c in line.text]) for line in lines]
    places = torch.full((len(lines), TOKENS * OUTPUTS), BLANK)
    for row, line, code in zip(places, lines, codes, strict=True):
        at = torch.tensor(line.columns).mul(len(row) / PAGE[1]).long().clamp(0, len(row) - 1)
        row[at] = code
    return {
        "pixel_values": torch.stack([e["pixel_values"] for e in examples]),
        "labels": nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=-100),
        "places": places,
    }


# --- model --------------------------------------------------------------------------------------------------------


class LineReader(nn.Module):
    """4 x 56 patches of the window, a convolution, then residual convolutions along the line, three outputs a token.

    The loss is that of CTC per character plus the cross-entropy of the places where the rendered characters stand,
    without which many thousands of steps pass before CTC finds an alignment.
    """

    def __init__(self, channels: int, rows: int, columns: int, width: int, layers: int):
        super().__init__()
        patch = (rows * STRIDE // WINDOW, columns // TOKENS)
        self.embedding = nn.Sequential(
            nn.Conv2d(channels, width // 2, patch, stride=patch),
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, (WINDOW // STRIDE, 1)),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width), nn.Conv1d(width, width, 5, padding=2), nn.GELU(), nn.Conv1d(width, width, 1)
            )
            for _ in range(layers)
        )
        self.head = nn.Sequential(nn.GroupNorm(1, width), nn.Conv1d(width, OUTPUTS * (len(CHARACTERS) + 1), 1))

    def forward(self, pixel_values: torch.Tensor, labels=None, places=None) -> dict:
        """logits: (batch, 168, characters + 1)."""
        x = self.embedding(pixel_values).squeeze(2)
        for block in self.blocks:
            x = x + block(x)
        logits = self.head(x).float().unflatten(1, (OUTPUTS, -1)).permute(0, 3, 1, 2).flatten(1, 2)
        if labels is None:
            return {"logits": logits}
        lengths = (labels >= 0).sum(1)
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            labels.clamp_min(0),
            torch.full_like(lengths, logits.shape[1]),
            lengths,
            blank=BLANK,
            zero_infinity=True,
        )
        return {"loss": loss + F.cross_entropy(logits.transpose(1, 2), places), "logits": logits}


def to_text(logits: torch.Tensor) -> list[str]:
    """The best path: repeated outputs count once, then blanks go."""
    best = logits.argmax(-1).tolist()
    return ["".join(CHARACTERS[k - 1] for k, _ in itertools.groupby(row) if k != BLANK) for row in best]


@torch.no_grad()
def read(model: LineReader, windows: Sequence[torch.Tensor]) -> list[str]:
    model.eval()
    device = next(model.parameters()).device
    texts = []
    for start in range(0, len(windows), 128):
        texts += to_text(model(torch.stack(list(windows[start : start + 128])).to(device))["logits"])
    return texts


def character_errors(model: LineReader, lines: Lines, spaces: bool = True) -> float:
    """Percent of the characters; without spaces where the reference has none, as PP-OCR's reading of a line."""
    read_texts = read(model, [lines[i]["pixel_values"] for i in range(len(lines))])
    pairs = [(text, line.text) for text, (_, line) in zip(read_texts, lines.lines, strict=True)]
    if not spaces:
        pairs = [(text.replace(" ", ""), line.replace(" ", "")) for text, line in pairs]
    return 100 * sum(levenshtein(text, line) for text, line in pairs) / max(1, sum(len(line) for _, line in pairs))


def is_found(answer: str, lines: Sequence[str]) -> bool:
    """Whether the whole answer stands in one of the lines, spaces aside."""
    wanted = spelled(answer).replace(" ", "")
    return bool(wanted) and any(wanted in line.replace(" ", "") for line in lines)


# --- runs ---------------------------------------------------------------------------------------------------------


def _dense(seed: int) -> DenseReceipt:
    return DenseReceipt(fonts(), f"dense-{seed}")


@functools.cache
def _lines(seed: int) -> list[Line]:
    return _dense(seed).found()


@functools.cache  # for all seeds
def inputs(condition: str, settings: Settings) -> dict:
    """Rendered lines for training and test, and the real pages."""
    s = settings
    prepared = Preparation(condition.removesuffix(REAL))
    learnt, names = split_pages(s.data, s.test)
    total = s.rendered + s.rendered_test

    def upright(i: int) -> Image.Image:
        return DenseReceipt(fonts(), f"dense-{i}").scan(rotate=False)

    drawn = prepare(prepared, s.cache, f"rendered upright {total}", range(total), upright)
    real = prepare(prepared, s.cache, f"real {s.data} {names}", names, lambda name: page_of(s.data, name))
    lines = [(i, line) for i in range(total) for line in _lines(i)]
    transform = prepared.transform(drawn[:: max(1, total // 100)])
    train: Dataset = Lines(drawn, [line for line in lines if line[0] < s.rendered], transform)
    read = {}
    if condition.endswith(REAL):
        if s.real > len(learnt):
            raise ValueError(f"real is {s.real}; valid: 2 to {len(learnt)}, the pages that are not of the test")
        learnt = learnt[: s.real]
        scanned = prepare(prepared, s.cache, f"real {s.data} {learnt}", learnt, lambda name: page_of(s.data, name))
        at = [(i, line) for i, found in enumerate(ocr_lines(s.data, learnt, s.cache)) for line in found]
        first = s.real - max(1, s.real // 10)
        train = ConcatDataset([train, Lines(scanned, [line for line in at if line[0] < first], transform)])
        read = {"read": Lines(scanned, [line for line in at if line[0] >= first], transform)}
    return {
        "train": train,
        "test": Lines(drawn, [line for line in lines if line[0] >= s.rendered], transform),
        **read,
        "real": dict(zip(names, real, strict=True)),
        "transform": transform,
    }


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    """One condition with one seed; see `runs.run_task`."""
    s = settings
    found = inputs(condition, s)
    torch.manual_seed(seed)  # after the preparation, which only the first seed does
    channels, rows, columns = found["train"][0]["pixel_values"].shape
    model = LineReader(channels, rows, columns, s.width, s.layers)
    options = training_arguments(seed, arguments, s.steps, s.batch_size, s.learning_rate, bf16=s.bf16)
    trainer = Trainer(model, options, train_dataset=found["train"], data_collator=collate)
    loss = trainer.train().training_loss

    hits, similarity = dict.fromkeys(FIELDS, 0), 0.0
    for name, page in found["real"].items():
        page = found["transform"](page)
        lines = read(model, [window(page, row) for row in range(0, PAGE[0] - WINDOW + 1, STRIDE)])
        picked = answers_in(lines)
        for part in FIELDS:
            answer = read_answers(s.data)[name].get(part, "")
            hits[part] += is_found(answer, lines)
            similarity += anls(spelled(answer).replace(" ", ""), picked[part].replace(" ", ""))
    pages = len(found["real"])
    real = {"real_character_errors": character_errors(model, found["read"], spaces=False)} if "read" in found else {}
    return {
        "metrics": {
            "found": 100 * sum(hits.values()) / (pages * len(FIELDS)),
            **{f"found_{part}": 100 * count / pages for part, count in hits.items()},
            "anls": 100 * similarity / (pages * len(FIELDS)),
            "character_errors": character_errors(model, found["test"]),
            **real,
            "train_loss": loss,
        },
        "model_inputs": channels * rows * columns,
        "tokens": TOKENS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "examples": {"training lines": len(found["train"]), "test lines": len(found["test"]), "real pages": pages},
    }


def main(argv=None) -> list[dict]:
    return run_task("reading", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
