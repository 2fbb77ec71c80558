#!/usr/bin/env python
"""The pages of this project with measured numbers: docs/results.md, the table of README.md, the bundled codecs' cards.

    python -m research.report docs                  # docs/results/*.json -> docs/results.md and README.md
    python -m research.report card model_cards/*    # docs/results/*.json -> README.md and results.json of each folder

Nothing here measures: every number comes from a JSON file of docs/results.
"""

import argparse
import json
from pathlib import Path

from research import pages
from research.cards import PURPOSES, write_card
from transformers_walloc.atomic import write_atomically
from transformers_walloc.cli.options import DEFAULT_CODECS
from transformers_walloc.evaluation.rivals import AUDIO_FORMATS, IMAGE_FORMATS
from transformers_walloc.evaluation.tables import (
    TITLES,
    cell,
    table,
    to_markdown,
)

SECTIONS = {
    "table1": "Images (Table 1 of the paper)",
    "table1_unseen": "Images that nothing was trained on or chosen by: Caltech-101, JPEGs of about 300 x 200",
    "table2": "Stereo audio (Table 2 of the paper)",
    "table2_all": "Stereo audio, longer clips of all validation files",
    "table2_cdpam": "Stereo audio, CDPAM of short clips",
    "curves_image": "Rate and distortion, images",
    "curves_audio": "Rate and distortion, stereo audio",
}
FORMATS = IMAGE_FORMATS | AUDIO_FORMATS
# Title: what the pictures show, and how their files are called, {} being the codec.
PICTURES = {
    "Decoded": ("A picture, what the codec decodes, and others at as many bytes or numbers.", "{}_kodim01.jpg"),
    "Sound": ("Waveforms and spectrograms of the same for a clip of music.", "{}_01_-_Ezer_Ev.jpg"),
    "Atlas": ("What each latent channel stands for: it is set to one at the centre, and decoded.", "atlas_{}.png"),
    "Channels": ("The latents of a signal, a tile for each channel.", "channels_{}.png"),
    "Histograms": ("How often each code occurs, on a logarithmic scale, by channel.", "histograms_{}.png"),
}


def write_docs() -> None:
    """Write docs/results.md and the table of README.md."""
    write_atomically(pages.ROOT / "docs" / "results.md", results_page())
    readme = pages.ROOT / "README.md"
    if readme.exists():
        write_atomically(readme, pages.between(readme.read_text(), "results", readme_table()))


def results_page() -> str:
    sections = []
    for name, title in SECTIONS.items():
        if (result := pages.load(name)) is not None:
            pictures = [path.name for path in sorted(pages.RESULTS.glob(f"{name}_*.png"))]
            sections.append(
                {"title": title, "text": to_markdown(result, all_sizes=False).strip(), "pictures": pictures}
            )
    coders = [json.loads(path.read_text()) for path in sorted(pages.RESULTS.glob("coders_*.json"))]
    field = pages.load("field")
    if field is not None:
        measured = pages.load("table1")
        field |= {"table": field_table(field, measured), "most": field_best(field, measured) if measured else ""}
    return pages.render(
        "results.md.jinja",
        sections=sections,
        coders=[coder | {"table": coders_table(coder["rows"])} for coder in coders],
        field=field,
        pictures=pictures_of_codecs(),
    )


def pictures_of_codecs() -> list[dict]:
    """Of each kind what it shows, one picture, and the names and files of the others."""
    kinds = []
    for title, (shows, name) in PICTURES.items():
        before, after = name.split("{}")
        found = sorted((pages.ROOT / "docs" / "pictures").glob(name.format("*")))
        codecs = {path.name.removeprefix(before).removesuffix(after): path.name for path in found}
        if not codecs:
            continue
        first = "rgb-16x" if "rgb-16x" in codecs else next(iter(codecs))
        others = ", ".join(f"[`{codec}`](pictures/{file})" for codec, file in codecs.items() if codec != first)
        kinds.append({"title": title, "shows": shows, "codec": first, "file": codecs[first], "others": others})
    return kinds


def readme_table() -> str:
    """The codecs that a reader chooses from, each beside what it stands in for at as many numbers or bytes."""
    header = ["name", "DR", "one latent", "PSNR, dB", "resized, dB", "format, dB", "file, against raw", "take it for"]
    lines = []
    for name, use in PURPOSES.items():
        result = pages.load("table1" if name.startswith("rgb") else "table2")
        rows = {row["codec"]: row for row in result["rows"]} if result else {}
        if result is None or name not in rows or name.endswith("-klt"):  # their numbers are in docs/results.md
            continue
        config = json.loads((pages.ROOT / "model_cards" / name / "config.json").read_text())
        side, channels = 2 ** config["num_levels"], config["latent_channels"]
        block = f"{side} x {side} pixels" if name.startswith("rgb") else f"{side} stereo samples"
        reduction = rows[name]["dimensionality_reduction"]
        resized = rows.get(f"resize@factor={reduction**0.5:g}") if result["kind"] == "image" else None
        formats = [row for codec, row in rows.items() if codec.endswith(f"@like={name}")]
        formats = [row for row in formats if comparable(row, rows[name])]
        best = max(formats, key=lambda row: row["psnr"], default=None)
        rival = f"{cell(best, 'psnr')} ({FORMATS[best['codec'].partition('@')[0]].title})" if best else ""
        smaller = f"{rows[name]['compression_ratio']:.0f}x smaller"
        title = f"`{name}`" + (" (default)" if name in DEFAULT_CODECS.values() else "")
        known = [title, f"{reduction:.3g}", f"{channels} numbers for {block}", cell(rows[name], "psnr")]
        lines.append([*known, cell(resized, "psnr") if resized else "", rival, smaller, use])
    return table(header, lines)


def comparable(row: dict, ours: dict) -> bool:
    """Whether a format has about as many bytes; not all can go as low, as MP3 cannot."""
    return ours["compression_ratio"] / row["compression_ratio"] < 1.2


def field_table(field: dict, measured: dict | None) -> str:
    """Published figures with their sources, and ours of the same images, measured here, below them."""
    columns = ["dimensionality_reduction", "bpp", "psnr", "lpips_db", "dists_db"]
    lines = [
        [row["codec"], *(cell(row, c) for c in columns), field["sources"][row["source"]]]
        for row in sorted(field["rows"], key=lambda row: (row.get("dimensionality_reduction", 0), row["bpp"]))
    ]
    if measured is not None:
        ours = [row for row in measured["rows"] if row["codec"].startswith("rgb-") and "@" not in row["codec"]]
        ours.sort(key=lambda row: (row["dimensionality_reduction"], row["bpp"]))
        lines += [[f"`{row['codec']}`", *(cell(row, c) for c in columns), "measured here"] for row in ours]
    return table(["codec", *(TITLES[c][0] for c in columns), "source"], lines)


def field_best(field: dict, measured: dict) -> str:
    """A sentence: at our dimensionality reductions, what has the highest PSNR of others, and of ours."""
    parts = []
    for reduction in (4, 16):
        other, ours = (
            max((row for row in rows if row.get("dimensionality_reduction") == reduction), key=lambda row: row["psnr"])
            for rows in (field["rows"], [row for row in measured["rows"] if row["codec"] in PURPOSES])
        )
        best = f"{other['codec']} has the highest PSNR of others, {other['psnr']:.2f} dB at {other['bpp']:.3f} bpp"
        parts.append(f"At DR {reduction}, {best}; `{ours['codec']}` has {ours['psnr']:.2f} at {ours['bpp']:.3f}.")
    return " ".join(parts)


def coders_table(rows: list[dict]) -> str:
    """Lossless coders of the same codes, largest first, sizes relative to lossless WebP in the original's packing."""
    webp = next(row["bytes"] for row in rows if row["coder"] == "webp")
    lines = []
    for row in sorted(rows, key=lambda row: -row["bytes"]):
        line = [row["coder"], f"{row['bytes']:.0f}", f"{row['bits_per_code']:.4f}", f"{row['bytes'] / webp - 1:+.1%}"]
        for name in ("encode_mega_codes_per_s", "decode_mega_codes_per_s"):
            line.append(f"{row[name]:.2f}" if name in row else "")
        lines.append(line)
    return table(["coder", "bytes", "bits/code", "against WebP", "encode Mcodes/s", "decode Mcodes/s"], lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("docs", help="write docs/results.md and the table of README.md")
    card = commands.add_parser("card", help="write model cards")
    card.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="model_cards/NAME")
    args = parser.parse_args(argv)
    if args.command == "docs":
        write_docs()
    else:
        for folder in args.folders:
            if (folder / "fit.json").exists():  # docs/results has nothing of it
                print(f"{folder}: left alone, its card says what its own fit measured")
            else:
                write_card(folder)


if __name__ == "__main__":
    main()
