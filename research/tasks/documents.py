#!/usr/bin/env python
"""Reading receipts on equally many numbers: pages resized to 224 or 448 rows against latents of 896 rows.

    python -m research.tasks.documents --data SROIE --config research/tasks/configs/documents_small.json

SROIE has images/NAME.jpg and answers.json, {NAME: {"company": ..., "date": ..., "total": ...}}, and the last 126 by
name are test. A vision transformer reads a page and a small text decoder writes the fields, character by character,
both of transformers and from random weights (`VisionEncoderDecoderModel`, `Trainer`). They learn first from rendered
receipts, then from the real ones. Every condition has the same pages, tokens (14 x 7), widths and steps; only the
kernel of the first layer has another shape:

    resize-224   224 x 112 x 3 =  75,264 numbers      walloc-16x   896 x 448 pixels -> 112 x 56 x 12 =  75,264
    resize-448   448 x 224 x 3 = 301,056 numbers      walloc-4x    896 x 448 pixels -> 112 x 56 x 48 = 301,056

A character of a receipt is about 10 pixels wide at 896 rows, 5 at 448, 2.5 at 224. Measured are ANLS (average
normalised Levenshtein similarity, Biten et al. 2019: below 0.5 counts as 0) and exact matches, both regardless of case.
`prior` looks at no page and gives each field's most frequent answer of the training set.
"""

import functools
import json
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import Trainer, TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from research.corpora.documents import _Page, usable_fonts
from research.corpora.prepare import system_fonts
from research.tasks.preparation import Preparation
from research.tasks.runs import RunArguments, run_task, training_arguments

CONDITIONS = {
    "prior": "no page: the most frequent answers",
    "resize-224": "resized to 224 rows",
    "walloc-16x": "latents of 896 rows, rgb-16x",
    "resize-448": "resized to 448 rows",
    "walloc-4x": "latents of 896 rows, rgb-4x",
}
FACTORS = {"resize-224": 4, "resize-448": 2}
PAGE = (896, 448)  # rows and columns; receipts are about twice as high as wide
TOKENS = (14, 7)
CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$&'(),-./:*@#+%"
PAD, START, END, BREAK = range(4)  # the tokens before the characters
FIELDS = ("company", "date", "total")


@dataclass(frozen=True)
class Settings:
    data: str = field(default="sroie", metadata={"help": "folder with images/ and answers.json"})
    fields: tuple[str, ...] = field(default=FIELDS, metadata={"help": "to read, in this order", "nargs": "+"})
    test: int = field(default=126, metadata={"help": "pages for the test, the last by name"})
    max_pages: int = field(default=0, metadata={"help": "training pages; 0 for all"})
    rendered: int = field(default=2000, metadata={"help": "rendered receipts for the start"})
    rendered_steps: int = field(default=8000, metadata={"help": "of the optimiser, on these"})
    steps: int = field(default=4000, metadata={"help": "of the optimiser, on the real ones"})
    batch_size: int = field(default=16, metadata={"help": "pages a step"})
    learning_rate: float = field(default=5e-4, metadata={"help": "the largest, of AdamW, in both parts"})
    width: int = field(default=256, metadata={"help": "of encoder and decoder"})
    layers: int = field(default=6, metadata={"help": "of the encoder"})
    decoder_layers: int = field(default=3, metadata={"help": "of the decoder"})
    bf16: bool = field(default=False, metadata={"help": "autocast, for a GPU"})
    cache: str = field(default="", metadata={"help": "folder that keeps the prepared pages for the next command"})

    def __post_init__(self):
        object.__setattr__(self, "fields", tuple(self.fields))
        if not self.fields or set(self.fields) - set(FIELDS):
            raise ValueError(f"fields are {self.fields}; valid: some of {', '.join(FIELDS)}")
        if self.width % 32:
            raise ValueError(f"width is {self.width}; it must be a multiple of 32")


class Pages(Dataset):
    """Prepared pages (pages, channels, rows, columns), uint8 pixels or int8 codes, with the tokens of their answers."""

    def __init__(self, pages: torch.Tensor, texts: Sequence[Sequence[str]], transform):
        self.pages, self.transform = pages, transform
        tokens = [to_tokens(text) for text in texts]
        length = max(map(len, tokens))
        self.labels = [torch.tensor(t + [-100] * (length - len(t))) for t in tokens]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        return {"pixel_values": self.transform(self.pages[i]), "labels": self.labels[i]}


# --- text ---------------------------------------------------------------------------------------------------------


def to_tokens(answers: Sequence[str]) -> list[int]:
    """The answers, each closed by BREAK, then END. Characters that the vocabulary lacks are left out."""
    tokens = []
    for answer in answers:
        tokens += [CHARACTERS.index(c) + 4 for c in answer.upper() if c in CHARACTERS] + [BREAK]
    return [*tokens, END]


def to_answers(tokens: Sequence[int], count: int) -> list[str]:
    """Inverse of `to_tokens`: `count` strings, empty where the tokens end before."""
    answers = [""]
    for token in tokens:
        if token == END or len(answers) > count:
            break
        if token == BREAK:
            answers.append("")
        elif token >= 4:
            answers[-1] += CHARACTERS[token - 4]
    return (answers + [""] * count)[:count]


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that turn one string into the other."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


def anls(answer: str, prediction: str) -> float:
    """Normalised Levenshtein similarity of one answer, 0 where it is below 0.5 (Biten et al., ICDAR 2019)."""
    a, b = answer.strip().lower(), prediction.strip().lower()
    distance = levenshtein(a, b) / max(len(a), len(b), 1)
    return 1 - distance if distance < 0.5 else 0.0


def measure(answers: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], fields: Sequence[str]) -> dict:
    """Percent, mean over pages and fields, and the ANLS of each field."""
    scores = np.array(
        [[anls(*pair) for pair in zip(*row, strict=True)] for row in zip(answers, predictions, strict=True)]
    )
    return {
        "metrics": {"anls": 100 * float(scores.mean()), "exact_match": 100 * float((scores == 1).mean())},
        "fields": {name: 100 * float(score) for name, score in zip(fields, scores.mean(0), strict=True)},
    }


# --- pages --------------------------------------------------------------------------------------------------------


class Receipt(_Page):
    """A rendered receipt and what is to be read from it."""

    def __init__(self, fonts: Sequence[Path], seed: int | str):
        super().__init__(fonts, random.Random(f"receipt-{seed}"), PAGE[::-1], "receipt")
        draw = self.random
        self.margin = draw.randint(8, 40)
        self.left, self.right, self.y = self.margin, self.width - self.margin, self.margin
        self.body = self.font(draw.randint(14, 20))
        separator, order = draw.choice("/-."), draw.choice(("{0:02}{s}{1:02}{s}{2}", "{2}{s}{1:02}{s}{0:02}"))
        date = order.format(draw.randint(1, 28), draw.randint(1, 12), draw.randint(2014, 2019), s=separator)
        company = self.words(draw.randint(2, 4)).upper() + draw.choice((" SDN BHD", " ENTERPRISE", " (M) SDN BHD", ""))
        company = "".join(c for c in company if c in CHARACTERS)[:30].strip()
        self.facts = {"company": company, "date": date, "total": ""}
        self.lines()

    def lines(self):
        draw = self.random
        self.write(self.facts["company"], self.body.font_variant(size=draw.randint(18, 24)), align="center")
        for _ in range(draw.randint(1, 3)):
            self.write(self.words(4), align="center")
        self.write(draw.choice(("DATE: ", "DATE ", "")) + self.facts["date"] + draw.choice(("", " 12:30", " 18:05")))
        self.rule()
        cents = 0
        for _ in range(draw.randint(1, 18)):
            cents += (price := draw.choice((draw.randint(50, 3000), draw.randint(2, 60) * 50)))
            self.amount(f"{self.words(2)[:16].upper()}", price)
        self.rule()
        self.facts["total"] = f"{cents / 100:.2f}"
        self.amount(draw.choice(("TOTAL", "TOTAL RM", "GRAND TOTAL")), cents)
        paid = -(-cents // 1000) * 1000
        self.amount("CASH", paid)
        self.amount("CHANGE", paid - cents)
        self.write(self.words(4), align="center")

    def amount(self, name: str, cents: int):
        text = f"{cents / 100:.2f}"
        self.put(self.right - self.body.getlength(text), text)
        self.write(name)


@functools.cache
def read_answers(folder: str) -> dict[str, dict[str, str]]:
    file = Path(folder, "answers.json")
    if not file.is_file():
        raise ValueError(f"{folder} has no answers.json; valid: a folder with images/ and answers.json")
    return dict(sorted(json.loads(file.read_text()).items()))


def split(folder: str, test: int) -> tuple[list[str], list[str]]:
    """Names of the pages for training and for the test."""
    names = list(read_answers(folder))
    if not 0 < test < len(names):
        raise ValueError(f"test is {test}; valid: 1 to {len(names) - 1} of the {len(names)} pages")
    return names[:-test], names[-test:]


def page_file(folder: str, name: str) -> Path:
    found = sorted(Path(folder, "images").glob(f"{name}.*"))
    if not found:
        raise ValueError(f"{folder}/images has no page {name}")
    return found[0]


def page_of(folder: str, name: str) -> Image.Image:
    return Image.open(page_file(folder, name)).convert("RGB").resize(PAGE[::-1], Image.Resampling.LANCZOS)


def prepare(
    prepared: Preparation, folder: str, part: str, items: Sequence, page: Callable[[Any], Image.Image]
) -> torch.Tensor:
    """(pages, channels, rows, columns): uint8 pixels of the resized pages, or int8 codes; kept in `folder`."""
    rows, columns = (n // FACTORS.get(prepared.condition, 1) for n in PAGE)

    def encoded(item) -> torch.Tensor:
        x = torch.from_numpy(np.array(page(item))).permute(2, 0, 1)[None].float()
        return prepared.encode(x, (rows, columns))[0]

    return prepared.keep(folder, (PAGE, part), items, encoded, "page")


@functools.cache  # for all seeds
def inputs(condition: str, settings: Settings) -> dict:
    """Data sets of the rendered, the training and the test pages."""
    prepared = Preparation(condition)
    train, test = split(settings.data, settings.test)
    train = train[: settings.max_pages or None]
    answers = read_answers(settings.data)
    names = {"train": train, "test": test}

    def pages_of(part: str, items: Sequence, page: Callable[[Any], Image.Image]) -> torch.Tensor:
        return prepare(prepared, settings.cache, part, items, page)

    data = {p: pages_of(f"{p} {settings.data} {n}", n, lambda x: page_of(settings.data, x)) for p, n in names.items()}
    transform = prepared.transform(data["train"][:: max(1, len(train) // 100)])
    texts = {p: [[answers[x].get(f, "") for f in settings.fields] for x in n] for p, n in names.items()}
    found = {part: Pages(data[part], texts[part], transform) for part in names}
    if settings.rendered:
        seeds = range(settings.rendered)
        facts = [_facts(i) for i in tqdm(seeds, desc="rendering", unit="page", mininterval=5)]
        pages = pages_of(f"rendered {settings.rendered}", seeds, lambda i: _receipt(i)[0])
        found["rendered"] = Pages(pages, [[of[f] for f in settings.fields] for of in facts], transform)
    return {**found, "texts": texts}


@functools.lru_cache(maxsize=500)  # pages that the next condition need not draw again
def _receipt(seed: int) -> tuple[Image.Image, dict[str, str]]:
    receipt = Receipt(fonts(), seed)
    return receipt.scan(), receipt.facts


@functools.cache
def _facts(seed: int) -> dict[str, str]:
    return _receipt(seed)[1]


@functools.cache
def fonts() -> list[Path]:
    return usable_fonts(system_fonts())


# --- runs ---------------------------------------------------------------------------------------------------------


def make_model(settings: Settings, channels: int, rows: int, columns: int) -> VisionEncoderDecoderModel:
    """The model of a condition: patches of rows / 14 a side, and all behind them the same."""
    width = settings.width
    encoder = ViTConfig(
        image_size=(rows, columns),
        patch_size=rows // TOKENS[0],
        num_channels=channels,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=width // 32,
    )
    special: dict[str, Any] = {
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
        "decoder_start_token_id": START,
    }
    decoder = TrOCRConfig(
        vocab_size=len(CHARACTERS) + 4,
        d_model=width,
        decoder_layers=settings.decoder_layers,
        decoder_attention_heads=width // 32,
        decoder_ffn_dim=4 * width,
        cross_attention_hidden_size=width,
        max_position_embeddings=128,
        **special,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.pad_token_id, config.decoder_start_token_id, config.eos_token_id = PAD, START, END
    return VisionEncoderDecoderModel(config)


@torch.no_grad()
def read(model: VisionEncoderDecoderModel, pages: Pages, settings: Settings) -> list[list[str]]:
    """What the model reads from each page, greedily."""
    model.eval()
    options = {"max_length": 100, "num_beams": 1, "do_sample": False}
    options |= {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START}
    answers = []
    for start in range(0, len(pages), settings.batch_size):
        batch = [pages[i]["pixel_values"] for i in range(start, min(start + settings.batch_size, len(pages)))]
        tokens = model.generate(torch.stack(batch).to(model.device), **options)
        answers += [to_answers(row[1:], len(settings.fields)) for row in tokens.tolist()]
    return answers


def run(condition: str, seed: int, settings: Settings, arguments: RunArguments) -> dict:
    """One condition with one seed; see `runs.run_task`."""
    s = settings
    if condition == "prior":
        answers, (train, test) = read_answers(s.data), split(s.data, s.test)
        train = train[: s.max_pages or None]
        guess = [Counter(answers[n].get(f, "").upper() for n in train).most_common(1)[0][0] for f in s.fields]
        texts = [[answers[n].get(f, "") for f in s.fields] for n in test]
        return {**measure(texts, [guess] * len(texts), s.fields), "model_inputs": 0}
    found = inputs(condition, s)
    torch.manual_seed(seed)  # after the preparation, which only the first seed does
    channels, rows, columns = found["train"].pages.shape[1:]
    model = make_model(s, channels, rows, columns)
    losses = []
    for part, steps in (("rendered", s.rendered_steps), ("train", s.steps)):
        if steps and part in found:
            options = training_arguments(seed, arguments, steps, s.batch_size, s.learning_rate, bf16=s.bf16)
            losses.append(Trainer(model, options, train_dataset=found[part]).train().training_loss)
    results = measure(found["texts"]["test"], read(model, found["test"], s), s.fields)
    results["metrics"]["train_loss"] = statistics.fmean(losses[-1:] or [0.0])
    return {
        **results,
        "model_inputs": channels * rows * columns,
        "tokens": TOKENS[0] * TOKENS[1],
        "parameters": model.num_parameters(),
        "examples": {part: len(found[part]) for part in ("rendered", "train", "test") if part in found},
    }


def main(argv=None) -> list[Path]:
    return run_task("documents", __doc__, Settings, CONDITIONS, run, argv)


if __name__ == "__main__":
    main()
