"""What stands on receipts, as text: the lines that an OCR reads of them, and the answers that these hold."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from research.tasks.receipts import CHARACTERS, PAGE, page_file
from transformers_walloc.atomic import write_atomically

WINDOW = 32  # rows of the page, in which a line has to fit
MONTHS = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
DATE = re.compile(
    rf"(?<!\d)(?:\d{{1,2}}[-/.]\d{{1,2}}[-/.](?:20[012]\d|[012]\d(?!\d))|20[012]\d[-/]\d\d[-/]\d\d"
    rf"|\d{{1,2}}[- ]?(?:{MONTHS})[A-Z]*[- ,]*(?:20[012]\d|[12]\d))"
)
AMOUNT = re.compile(r"\d{1,6}\.\d\d(?!\d)")
TOTAL, NO_TOTAL = re.compile("TOTAL|PAYABLE|AMOUNT|NETT?AMT"), re.compile("SUB|QTY|DISC|SAV|EXCL|ITEM|CHANGE")
FINAL = re.compile("ROUND(?!ING)|INCL|DUE|PAYABLE|NET|GRAND")
FIRM = re.compile(r"SDN|BHD|ENTERPRISE|TRADING|HARDWARE|RESTAURANT|RESTORAN|STATION|MART|BOOK|SHOP|GIFT|CENTRE|CAFE")


@dataclass(frozen=True)
class Line:
    """Where a line of a page stands: the row of its middle, its characters and the columns of theirs."""

    middle: int
    text: str
    columns: tuple[float, ...]


def lines_of_boxes(
    boxes: Iterable[tuple[np.ndarray, str, float]], size: tuple[int, int], everything: bool = False
) -> list[Line]:
    """What an OCR read of a page, as lines of the page of 896 x 448; those that a window does not hold are left out.

    Args:
        boxes: corners (4, 2) as (x, y), clockwise from the upper left, text and confidence.
        size: (width, height) of the page that was read.
        everything: keep what is unsure, tall or partly of other characters as well.
    """
    scale = np.array([PAGE[1] / size[0], PAGE[0] / size[1]])
    parts = []
    for corners, text, confidence in boxes:
        text = unicodedata.normalize("NFKC", text).upper()
        strange = any(c.isalnum() and c not in CHARACTERS for c in text)
        text = "" if strange and not everything else spelled(text)
        box = np.asarray(corners, float) * scale
        left, right = (box[0] + box[3]) / 2, (box[1] + box[2]) / 2
        parts.append((left, right, box[:, 1].max() - box[:, 1].min(), text, confidence))
    parts.sort(key=lambda part: part[0][1] + part[1][1])
    rows: list[list] = []
    for part in parts:
        middle = (part[0][1] + part[1][1]) / 2
        last = rows[-1][-1] if rows else None
        if last is not None and middle - (last[0][1] + last[1][1]) / 2 < 0.5 * min(part[2], last[2]):
            rows[-1].append(part)  # stands in the same line
        else:
            rows.append([part])
    lines = []
    for row in rows:
        # A word that was not understood spoils its line, and a tall or slanting one does not fit into a window.
        if everything:
            row = [part for part in row if part[3]]
        elif any(confidence < 0.9 or not text or height > WINDOW for *_, height, text, confidence in row):
            continue
        if not row:
            continue
        row.sort(key=lambda part: part[0][0])
        text, columns = "", list[float]()
        for left, right, _, word, _ in row:
            if text:
                text += " "
                columns.append((columns[-1] + left[0]) / 2)
            text += word
            columns += list(left[0] + (right[0] - left[0]) * (np.arange(len(word)) + 0.5) / len(word))
        middle = np.mean([(left[1] + right[1]) / 2 for left, right, *_ in row])
        lines.append(Line(round(float(middle)), text, tuple(float(c) for c in columns)))
    return lines


def ocr_lines(folder: str, names: Sequence[str], cache: str) -> list[list[Line]]:
    """The lines of each page as PP-OCR reads it at its full size; from `cache` where they were read before."""
    kept, engine, found = Path(cache, f"ocr_lines_{Path(folder).name}.json"), None, []
    texts = json.loads(kept.read_text()) if cache and kept.exists() else {}
    for name in tqdm(names, desc="PP-OCR", unit="page", mininterval=5):
        page = Image.open(page_file(folder, name)).convert("RGB")
        if name not in texts:
            if engine is None:
                from rapidocr_onnxruntime import RapidOCR

                engine = RapidOCR(intra_op_num_threads=torch.get_num_threads(), inter_op_num_threads=1)
            boxes, _ = engine(np.asarray(page)[:, :, ::-1], use_cls=False)
            texts[name] = [(np.round(box, 1).tolist(), text, float(sure)) for box, text, sure in boxes or []]
            if cache:
                write_atomically(kept, json.dumps(texts))
        found.append(lines_of_boxes(texts[name], page.size))
    return found


def answers_in(lines: Sequence[str]) -> dict[str, str]:
    """Company, date and total by plain rules; "" where nothing looks like one.

    Args:
        lines: from the top of the page to its bottom, a line perhaps several times.
    """
    dates = [found for line in lines for found in DATE.findall(line)]
    amounts = [found for line in lines for found in AMOUNT.findall(line)]
    totals: dict[int, list[str]] = {}
    for line in (line.replace(" ", "") for line in lines):
        found = AMOUNT.findall(line)
        if found and TOTAL.search(line) and not NO_TOTAL.search(line):
            rank = 2 if FINAL.search(line) else 0 if re.search("GST|TAX", line) else 1
            totals.setdefault(rank, []).append(found[-1])
    head = [line for line in lines[: max(4, len(lines) // 4)] if sum(c.isalpha() for c in line) >= 6]
    firms = [line for line in head if FIRM.search(line)]
    return {
        "company": (firms or head or [""])[0],
        "date": _most_frequent(dates),
        "total": _most_frequent(totals[max(totals)] if totals else amounts),
    }


def _most_frequent(texts: Sequence[str]) -> str:
    return Counter(texts).most_common(1)[0][0] if texts else ""


def spelled(text: str) -> str:
    """In the alphabet of the task: upper case, other characters left out, single spaces."""
    return " ".join("".join(c for c in text.upper() if c in CHARACTERS).split())
