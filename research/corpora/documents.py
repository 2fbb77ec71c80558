"""Text pages for training: prose, tables, receipts and code in many fonts on many papers, lightly scanned.

Used by `research.corpora.prepare documents`. The words come from the documentation that Python carries with it, the
figures from the generator, so that nothing has to be downloaded and a seed gives the same pages again (with the same
fonts and versions of Python and Pillow).
"""

import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

KINDS = ("article", "columns", "letter", "table", "receipt", "code", "poster")
PAPERS = ("white", "grey", "cream", "recycled", "tinted", "dark")
FOREIGN = (
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; añoraba a su querido cachorro.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
)


@functools.cache
def page_text() -> tuple[list[str], list[str]]:
    """Paragraphs of prose (over 120 characters each) and blocks of code (several lines each)."""
    prose, code = [], []
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            if block.startswith("   ") and block.count("\n") >= 3:
                code.append(block)
            elif len(block) > 120 and not re.search(r"[*=~+-]{4}", block):
                prose.append(re.sub(r"[*\"`]{2,}", '"', " ".join(block.split())))
    return prose, code


def usable_fonts(files: Sequence[str | Path]) -> list[Path]:
    """The fonts that draw Latin letters and digits as different shapes, sorted by file name."""
    good = []
    for file in sorted(map(Path, files), key=lambda f: (f.name, str(f))):
        try:
            font = ImageFont.truetype(str(file), 24)
            shapes = {bytes(font.getmask(letter)) for letter in "aegMQ07&"}
        except (OSError, ValueError):
            continue
        if len(shapes) == 8:
            good.append(file)
    return good


def render_page(
    fonts: Sequence[str | Path], seed: int | str, size: tuple[int, int] | None = None, kind: str | None = None
) -> Image.Image:
    """One RGB page of text, the same for the same seed, fonts and size.

    fonts: font files; Pillow's own font is used if there are none.
    size: (width, height) in pixels; by default about 900 x 1200 (receipts are narrower), a quarter of them landscape.
    kind: one of `KINDS`; drawn by default.
    Raises ValueError for an unknown kind or a size below 64 pixels.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if size is not None and min(size) < 64:
        raise ValueError(f"a page needs at least 64 x 64 pixels, got {size[0]} x {size[1]}")
    page = _Page(fonts, random.Random(f"page-{seed}"), size, kind)
    getattr(page, page.kind)()
    return page.scan()


class _Page:
    """A page being written: `y` is the position of the pen, `left` and `right` bound the column."""

    def __init__(self, fonts, generator: random.Random, size, kind):
        self.random = generator
        self.fonts = list(fonts)
        self.kind = kind or generator.choice(KINDS)
        if size is None:
            size = (generator.randint(820, 980), generator.randint(1100, 1300))
            if self.kind == "receipt":
                size = (generator.randint(520, 640), size[1])
            elif generator.random() < 0.25:
                size = size[::-1]
        self.width, self.height = size
        self.prose, self.code_blocks = page_text()
        self.paper, self.ink, self.accent = self._colours()
        self.image = Image.new("RGB", size, self.paper)
        self.canvas = ImageDraw.Draw(self.image)
        self.margin = int(min(size) * generator.uniform(0.05, 0.11))
        self.left, self.right, self.y = self.margin, self.width - self.margin, self.margin
        self.body = self.font(generator.choice((11, 12, 13, 14, 15, 16, 18, 20, 24, 30)))

    def _colours(self):
        uniform = self.random.uniform
        kind = self.random.choice((*PAPERS, "white", "white"))
        paper = {
            "white": (255, 255, 255),
            "grey": (int(uniform(215, 245)),) * 3,
            "cream": (250, 243, int(uniform(215, 235))),
            "recycled": (226, 219, int(uniform(195, 210))),
            "tinted": tuple(int(uniform(205, 255)) for _ in range(3)),
            "dark": tuple(int(uniform(15, 50)) for _ in range(3)),
        }[kind]
        level = uniform(215, 250) if kind == "dark" else uniform(0, 60)
        ink = tuple(int(np.clip(level + uniform(-12, 12), 0, 255)) for _ in range(3))
        accent = tuple(int(uniform(120, 255) if kind == "dark" else uniform(0, 170)) for _ in range(3))
        return paper, ink, accent

    def font(self, size: int):
        if not self.fonts:
            return ImageFont.load_default(size)
        return ImageFont.truetype(str(self.random.choice(self.fonts)), size)

    def paragraph(self) -> str:
        text = self.random.choice(self.prose)
        return f"{text} {self.random.choice(FOREIGN)}" if self.random.random() < 0.1 else text

    def words(self, count: int) -> str:
        words = self.random.choice(self.prose).split()
        start = self.random.randrange(max(1, len(words) - count))
        return " ".join(words[start : start + count]).strip(".,:;()")

    def line_height(self, font) -> int:
        return sum(font.getmetrics())

    def full(self, font=None) -> bool:
        return self.y + self.line_height(font or self.body) > self.height - self.margin // 2

    def put(self, x: float, text: str, font=None, fill=None):
        self.canvas.text((x, self.y), text, font=font or self.body, fill=fill or self.ink)

    def write(self, text: str, font=None, fill=None, align: str = "left", spacing: float = 1.2, indent: int = 0):
        """Breaks text into lines of the column and moves the pen below them; stops at the end of the page."""
        font = font or self.body
        words = text.split()
        widths = [font.getlength(word) for word in words]
        space, start = font.getlength(" "), 0
        while start < len(words) and not self.full(font):
            room = self.right - self.left - indent
            used, end = widths[start], start + 1
            while end < len(words) and used + space + widths[end] <= room:
                used += space + widths[end]
                end += 1
            line, slack = words[start:end], room - used
            if align == "justify" and end < len(words) and slack > 0:
                x, gap = self.left + indent, space + slack / max(len(line) - 1, 1)
                for word, width in zip(line, widths[start:end], strict=True):
                    self.put(x, word, font, fill)
                    x += width + gap
            else:
                shift = {"center": slack / 2, "right": slack}.get(align, 0)
                self.put(self.left + indent + max(shift, 0), " ".join(line), font, fill)
            start = end
            self.y += int(self.line_height(font) * spacing)
            indent = 0

    def rule(self):
        self.canvas.line(
            (self.left, self.y, self.right, self.y), fill=self.accent, width=self.random.choice((1, 1, 2, 3))
        )
        self.y += self.random.randint(6, 16)

    def heading(self, scale: float = 1.8):
        font = self.font(int(self.body.size * scale))
        fill = self.random.choice((self.ink, self.accent))
        self.write(
            self.words(self.random.randint(2, 6)).capitalize(), font, fill, self.random.choice(("left", "center"))
        )
        self.y += int(self.body.size * 0.6)

    def article(self):
        self.heading(self.random.uniform(1.6, 3))
        align, spacing = self.random.choice(("left", "justify")), self.random.uniform(1.0, 1.5)
        while not self.full():
            if self.random.random() < 0.2:
                self.heading(1.3)
            self.write(self.paragraph(), align=align, spacing=spacing, indent=self.random.choice((0, 30)))
            self.y += self.random.randint(4, 18)

    def columns(self):
        self.heading(2.5)
        self.rule()
        if self.body.size > 18:
            self.body = self.body.font_variant(size=15)
        count, top, gap = self.random.choice((2, 2, 3)), self.y, self.random.randint(16, 36)
        width = (self.right - self.left - gap * (count - 1)) // count
        for column in range(count):
            self.left, self.y = self.margin + column * (width + gap), top
            self.right = self.left + width
            if self.random.random() < 0.5:
                self._figure(int(width * self.random.uniform(0.4, 0.8)))
            while not self.full():
                self.write(self.paragraph(), align="justify", spacing=1.1, indent=16)

    def _figure(self, height: int):
        """A chart: bars, lines and points, or a smooth picture."""
        bottom = min(self.y + height, self.height - self.margin)
        box = (self.left, self.y, self.right, bottom)
        if bottom <= self.y + 20:
            return
        style = self.random.choice(("bars", "curve", "picture"))
        steps = self.random.randint(6, 14)
        xs = np.linspace(self.left + 6, self.right - 6, steps)
        ys = [bottom - 4 - self.random.random() * (bottom - self.y - 12) for _ in xs]
        if style == "picture":
            noise = np.array([self.random.randrange(256) for _ in range(5 * 4 * 3)], np.uint8).reshape(4, 5, 3)
            picture = Image.fromarray(noise).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC)
            self.image.paste(picture, box[:2])
        elif style == "bars":
            for x, top in zip(xs[:-1], ys, strict=False):
                self.canvas.rectangle((x, top, x + (xs[1] - xs[0]) * 0.7, bottom), fill=self.accent, outline=self.ink)
        else:
            self.canvas.line(list(zip(xs, ys, strict=True)), fill=self.accent, width=2)
        self.canvas.rectangle(box, outline=self.ink)
        self.y = bottom + 6
        self.write(f"Fig. {self.random.randint(1, 9)}: {self.words(7)}", self.body.font_variant(size=11))
        self.y += 8

    def letter(self):
        for _ in range(4):
            self.write(self.words(3), align="right")
        self.y += 40
        self.write(f"{self.random.randint(1, 28)}.{self.random.randint(1, 12)}.{self.random.randint(1970, 2030)}")
        self.y += 30
        for _ in range(self.random.randint(2, 5)):
            self.write(self.paragraph(), spacing=1.3)
            self.y += 14
        self.y += 30
        self.write(self.words(2), self.font(34), self.accent)

    def table(self):
        self.heading(1.6)
        columns = self.random.randint(3, 7)
        edges = [self.left + (self.right - self.left) * i // columns for i in range(columns + 1)]
        small = self.body.font_variant(size=min(self.body.size, 16))
        height = int(self.line_height(small) * self.random.uniform(1.2, 1.9))
        lines, banded, top, row = self.random.random() < 0.6, self.random.random() < 0.5, self.y, 0
        while self.y + height < self.height - self.margin:
            if row == 0 or (banded and row % 2):
                mix = 0.35 if row == 0 else 0.08
                tint = tuple(int(p + (a - p) * mix) for p, a in zip(self.paper, self.accent, strict=True))
                self.canvas.rectangle((self.left, self.y, self.right, self.y + height), fill=tint)
            for i in range(columns):
                text = self.words(1)[:12] if row == 0 or i == 0 else self._figures()
                x = edges[i] + 5 if i == 0 else edges[i + 1] - 5 - small.getlength(text)
                self.canvas.text((x, self.y + height // 6), text, font=small, fill=self.ink)
            self.y += height
            row += 1
            if lines:
                self.canvas.line((self.left, self.y, self.right, self.y), fill=self.ink)
        if lines:
            for x in edges:
                self.canvas.line((x, top, x, self.y), fill=self.ink)

    def _figures(self) -> str:
        value = self.random.uniform(0, 10 ** self.random.randint(1, 5))
        return self.random.choice((f"{value:,.2f}", f"{value:.0f}", f"{value:.1f} %", f"{value:.3g}", f"-{value:.2f}"))

    def receipt(self):
        self.body = self.body.font_variant(size=self.random.randint(14, 20))
        self.write(self.words(3).upper(), self.body.font_variant(size=26), align="center")
        for _ in range(3):
            self.write(self.words(4), align="center")
        total = 0.0
        while self.y < self.height - self.margin - 9 * self.line_height(self.body):
            price = round(self.random.uniform(0.2, 99), 2)
            total += price
            text = f"{price:.2f}"
            self.put(self.right - self.body.getlength(text), text)
            self.write(f"{self.random.randint(1, 9)} x {self.words(2)[:16].upper()}")
        self.rule()
        for name, value in (("SUBTOTAL", total / 1.1), ("TAX 10%", total - total / 1.1), ("TOTAL", total)):
            text = f"{value:.2f}"
            self.put(self.right - self.body.getlength(text), text)
            self.write(name)
        x = self.left
        while x < self.right:  # a bar code
            bar = self.random.choice((1, 1, 2, 3, 4))
            self.canvas.rectangle((x, self.y + 8, x + bar - 1, self.y + 60), fill=self.ink)
            x += bar + self.random.choice((1, 2, 2, 3, 4))

    def code(self):
        mono = [f for f in self.fonts if re.search("mono|courier|consol", Path(f).name, re.IGNORECASE)]
        size = self.random.randint(11, 20)
        self.body = ImageFont.truetype(str(self.random.choice(mono)), size) if mono else self.font(size)
        number = self.random.randint(1, 900)
        while not self.full():
            for line in self.random.choice(self.code_blocks).splitlines():
                if self.full():
                    break
                self.put(self.left, f"{number:4d}", fill=self.accent)
                comment = line.lstrip().startswith(("#", ">>>", "class ", "def "))
                self.put(self.left + 4 * size, line[:110], fill=self.accent if comment else self.ink)
                self.y += int(self.line_height(self.body) * 1.05)
                number += 1

    def poster(self):
        font = self.body
        while not self.full(font):
            fill, align = self.random.choice((self.ink, self.accent)), self.random.choice(("left", "center", "right"))
            self.write(self.words(self.random.randint(1, 4)), font, fill, align, 1.1)
            if self.random.random() < 0.2:
                self._figure(self.random.randint(80, 260))
            font = self.font(self.random.choice((20, 28, 40, 56, 80)))

    def scan(self, rotate: bool = True) -> Image.Image:
        """What a scanner adds: slight rotation, uneven light, paper grain, blur, noise. A quarter stays clean."""
        image, uniform = self.image, self.random.uniform
        if self.random.random() < 0.25:
            return image
        if self.random.random() < 0.5 and rotate:
            image = image.rotate(uniform(-1.2, 1.2), Image.Resampling.BICUBIC, fillcolor=self.paper)
        if self.random.random() < 0.6:
            image = image.filter(ImageFilter.GaussianBlur(uniform(0.25, 0.7)))
        rng = np.random.default_rng(self.random.getrandbits(64))
        corners = rng.uniform(1 - uniform(0, 0.12), 1, (3, 3)).astype(np.float32)
        light = Image.fromarray(corners).resize(image.size, Image.Resampling.BICUBIC)
        coarse = rng.normal(0, uniform(0, 3), (self.height // 6 + 1, self.width // 6 + 1)).astype(np.float32)
        grain = Image.fromarray(coarse).resize(image.size, Image.Resampling.BILINEAR)
        fine = rng.normal(0, uniform(0, 3), (self.height, self.width, 1))
        pixels = np.asarray(image, np.float32) * np.asarray(light)[..., None] + np.asarray(grain)[..., None] + fine
        return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
