#!/usr/bin/env python
"""What a frozen OCR still reads of receipts: resized pages against WaLLoC latents, at equally many numbers.

    pip install rapidocr-onnxruntime rapidfuzz
    python -m research.readers.documents measure --data SROIE --pages 126     # hours; resumable, one page at a time
    python -m research.readers.documents measure-answers --data SROIE         # the same for questions
    python -m research.readers.documents summarise    # docs/results -> docs/frozen_readers.md and README.md

PP-OCR (weights inside the wheel rapidocr-onnxruntime) reads each page as it is and from `DR` times fewer numbers:

    resize    the page made smaller by sqrt(DR) per side (Lanczos), 8 bits, and enlarged to its size again (bicubic)
    linear    latents of rgb-4x-klt or rgb-16x-klt, rounded, and decoded by the linear branch of their decoder
    walloc    latents of rgb-4x or rgb-16x, rounded, and decoded by the trained decoder

DR 4 and 16 are the codecs as they are, 8 and 32 the first half of the channels of rgb-4x-klt and rgb-16x-klt. Nothing
is trained here. SROIE has images/NAME.jpg and answers.json, {NAME: {"company": ..., "date": ..., "address": ...,
"total": ...}}; its last 126 pages by name are test. A field is found if the text that was read holds it, regardless of
case, spaces and punctuation: date and total to the letter, company and address with at least 90% of the letters right
in place.

`measure-answers` asks for company, date and total: plain rules pick each from the lines that were read
(`research.tasks.receipt_text.answers_in`), and the score is their ANLS (Biten et al., ICDAR 2019). `constant` gives
each page the answers that score best on the other pages.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from research.pages import RESULTS
from research.readers.pictures import Ways
from research.readers.scores import Study, load_study, save_study, summarise
from research.tasks.receipt_text import answers_in, lines_of_boxes, spelled
from research.tasks.receipts import FIELDS as QUESTIONS
from research.tasks.receipts import anls

STORE, ANSWERS = RESULTS / "readers_documents.json", RESULTS / "readers_answers.json"
FIELDS = {"company": 90, "date": 100, "address": 90, "total": 100}  # percent of letters in place that count as found
# Codec and channels that are kept.
LINEAR = {4: ("rgb-4x-klt", 48), 8: ("rgb-4x-klt", 24), 16: ("rgb-16x-klt", 12), 32: ("rgb-16x-klt", 6)}
CODECS = {"linear": LINEAR, "walloc": {**LINEAR, 4: ("rgb-4x", 48), 16: ("rgb-16x", 12)}}
RATIOS = list(LINEAR)
WAYS = {"resize": "resized", "linear": "WaLLoC, linear", "walloc": "WaLLoC"}
CONDITIONS = ["original", *(f"{way}-{dr}" for dr in RATIOS for way in WAYS)]
ANSWER_RATIOS, ANSWER_WAYS = (4, 16), {"resize": "resized", "walloc": "WaLLoC"}
ANSWER_CONDITIONS = ["original", *(f"{way}-{dr}" for dr in ANSWER_RATIOS for way in ANSWER_WAYS)]
ANSWER_MEASURES = {"anls": "ANLS of the answers, %", **{part: f"{part}, %" for part in QUESTIONS}}
MEASURES = {"found": "fields found, %", **{field: f"{field}, %" for field in FIELDS}, "anls": "ANLS"}


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, title, conditions in (
        ("measure", "read pages and keep what was found", CONDITIONS),
        ("measure-answers", "read pages and keep how good the answers are", ANSWER_CONDITIONS),
    ):
        measure = commands.add_parser(name, help=title)
        measure.add_argument("--data", type=Path, required=True, metavar="DIR", help="SROIE: images/ and answers.json")
        measure.add_argument("--pages", type=int, default=126, help="of the last 126, evenly spread (default: all)")
        measure.add_argument("--conditions", nargs="+", default=conditions, choices=conditions, metavar="NAME")
        measure.add_argument("--threads", type=int, default=1, help="of OCR and codec (default: %(default)s)")
    commands.add_parser("summarise", help="write the tables and the picture")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise("documents", STORE, MEASURES, RATIOS, WAYS)
        if ANSWERS.is_file():
            summarise("answers", ANSWERS, ANSWER_MEASURES, ANSWER_RATIOS, ANSWER_WAYS)
        return 0
    torch.set_num_threads(args.threads)
    answers = json.loads((args.data / "answers.json").read_text())
    names = sorted(answers)[-126:]
    if not 1 <= args.pages <= len(names):
        print(f"error: --pages is {args.pages}; valid: 1 to {len(names)}", file=sys.stderr)
        return 2
    # Evenly spread and nested: more pages later keep those that were read.
    order = sorted(range(len(names)), key=lambda i: int(f"{i:07b}"[::-1], 2))
    chosen = [names[i] for i in order[: args.pages]]
    title, asked = "PP-OCR, test receipts of SROIE", args.command == "measure-answers"
    store = ANSWERS if asked else STORE
    study = load_study(store, f"{title}, questions for {', '.join(QUESTIONS)}" if asked else title)
    if asked and any(study.get("constant", name, "constant") is None for name in chosen):
        answer_constantly(study, {name: answers[name] for name in names}, chosen)
    read, ways = reader(args.threads), Ways(CODECS)
    for name in tqdm(chosen, unit="page", mininterval=5):
        page = Image.open(next((args.data / "images").glob(f"{name}.*"))).convert("RGB")
        for condition in args.conditions:
            key = ways.key(condition)
            if study.get(condition, name, key) is None:
                boxes = read(ways.view(page, condition))
                if asked:
                    lines = [line.text for line in lines_of_boxes(boxes, page.size, everything=True)]
                    scores = score_answers(answers_in(lines), answers[name])
                else:
                    scores = score(" ".join(text for _, text, _ in boxes), answers[name])
                study.put(condition, name, key, scores)
                save_study(store, study)
    return 0


def reader(threads: int) -> Callable[[Image.Image], list[tuple[np.ndarray, str, float]]]:
    """PP-OCR: a picture -> the corners, the text and the confidence of the lines that it reads, in its order."""
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR(intra_op_num_threads=threads, inter_op_num_threads=1)

    def read(page: Image.Image) -> list[tuple[np.ndarray, str, float]]:
        lines, _ = engine(np.asarray(page)[:, :, ::-1], use_cls=False)  # the pages are upright
        return [(np.asarray(corners), text, float(sure)) for corners, text, sure in lines or []]

    return read


def score_answers(picked: dict[str, str], answers: dict[str, str]) -> dict[str, float]:
    """ANLS of each question that the page has an answer to, regardless of spaces, and their mean `anls`."""
    found = {
        part: anls(spelled(answers[part]).replace(" ", ""), picked[part].replace(" ", ""))
        for part in QUESTIONS
        if answers.get(part)
    }
    return {**found, "anls": float(np.mean(list(found.values())))}


def answer_constantly(study: Study, answers: dict[str, dict[str, str]], chosen: list[str]) -> None:
    """Scores of the best constant answer to each question: for a page, the one that is best on all other pages."""
    scores: dict[str, dict[str, float]] = {name: {} for name in chosen}
    for part in QUESTIONS:
        plain = {name: spelled(found.get(part, "")).replace(" ", "") for name, found in answers.items()}
        guesses = sorted(set(plain.values()))
        likeness = np.array([[anls(answer, guess) for guess in guesses] for answer in plain.values()])
        total = likeness.sum(0)
        for i, name in enumerate(plain):
            if name in scores and plain[name]:
                scores[name][part] = float(likeness[i, (total - likeness[i]).argmax()])
    for name, found in scores.items():
        study.put("constant", name, "constant", {**found, "anls": float(np.mean(list(found.values())))})


def score(text: str, answers: dict[str, str]) -> dict[str, float]:
    """For each field that the page has: 1 if it was found, else 0; `found`, their mean; `anls`, the mean similarity.

    The similarity is that of the best matching part of the text (1 - edit distance / length), 0 below one half, as in
    ANLS (Biten et al., ICDAR 2019).
    """
    from rapidfuzz import fuzz

    plain, found, similarity = letters(text), {}, []
    for field, least in FIELDS.items():
        answer = letters(answers.get(field, ""))
        if answer:
            percent = fuzz.partial_ratio(answer, plain) if len(plain) >= len(answer) else fuzz.ratio(answer, plain)
            found[field] = float(answer in plain if least == 100 else percent >= least)
            similarity.append(percent / 100 if percent >= 50 else 0.0)
    return {**found, "found": float(np.mean(list(found.values()))), "anls": float(np.mean(similarity))}


def letters(text: str) -> str:
    """Letters and digits in capitals, and the points between digits, which tell 1.00 from 100."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)", "", re.sub(r"[^A-Z0-9.]", "", text.upper()))


if __name__ == "__main__":
    sys.exit(main())
