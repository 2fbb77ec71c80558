"""Receipts to read: scanned pages with their answers, rendered ones, and how alike two texts are.

A folder of scanned receipts has images/NAME.jpg and answers.json, {NAME: {"company": ..., "date": ..., "total": ...}}.
"""

import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from research.corpora.documents import _Page, usable_fonts
from research.corpora.prepare import system_fonts
from research.tasks.preparation import Preparation

FACTORS = {"resize-224": 4, "resize-448": 2}
PAGE = (896, 448)  # rows and columns; receipts are about twice as high as wide
CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$&'(),-./:*@#+%"
FIELDS = ("company", "date", "total")


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
def fonts() -> list[Path]:
    return usable_fonts(system_fonts())
