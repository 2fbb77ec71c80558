#!/usr/bin/env python
"""Turn the results of `evaluate_codec.py` into Markdown: tables, docs/results.md, the README's table, model cards.

    python -m transformers_walloc.evaluation.report docs  # docs/results/*.json -> docs/results.md and README.md
    python -m transformers_walloc.evaluation.report card FOLDER...  # docs/results/*.json -> its README.md, results.json

Nothing here measures: every number comes from a JSON file of docs/results.
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs" / "results"
TITLES = {
    "dimensionality_reduction": ("DR", "{:.3g}"),
    "compression_ratio": ("CR", "{:.1f}"),
    "bpp": ("bpp", "{:.3f}"),
    "kbps": ("kbps", "{:.1f}"),
    "psnr": ("PSNR dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "lpips_db": ("LPIPS dB", "{:.2f}"),
    "dists_db": ("DISTS dB", "{:.2f}"),
    "ssdr": ("SSDR dB", "{:.1f}"),
    "srdr": ("SRDR dB", "{:.1f}"),
    "si_sdr": ("SI-SDR dB", "{:.1f}"),
    "zimtohrli_mos": ("Zimtohrli MOS", "{:.2f}"),
    "cdpam_db": ("CDPAM dB", "{:.1f}"),
}
STAGES = ("prepare", "encode", "entropy_encode", "entropy_decode", "decode", "finish")
UNIT = {"image": "megapixel/s", "audio": "mega-sample/s"}
MAIN_SIZE = {"image": ("1x512x768", "1x256x256"), "audio": ("1x30", "1x5")}


def to_markdown(result: dict) -> str:
    """Tables of one result, with what they were measured on and what is missing."""
    kind, rows = result["kind"], result["rows"]
    parts = [f"Command: `{result['command']}`", described(result)]
    columns = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
    columns += [name for name in result["metrics_unavailable"] if name not in columns]
    timed = any(row.get("speed") for row in rows)
    if result["data"] or timed:
        header = ["codec", *(TITLES[name][0] for name in columns)]
        if timed:
            header += [f"encode {UNIT[kind]}", f"decode {UNIT[kind]}"]
        lines = []
        for row in rows:
            line = [f"`{row['codec']}`", *(cell(row, name) for name in columns)]
            if timed:
                line += [throughput(row, kind, ("encode",)), throughput(row, kind, ("decode",))]
            lines.append(line)
        parts.append(table(header, lines))
    if timed:
        parts += speed_tables(rows, kind)
    if result.get("bd_rate"):
        parts.append(
            "BD-rate in percent of PSNR (negative: fewer bytes than the format at equal PSNR; empty: no overlap)."
        )
        formats = sorted({name for values in result["bd_rate"].values() for name in values})
        lines = [
            [f"`{name}`", *("" if values.get(f) is None else f"{values[f]:+.1f}" for f in formats)]
            for name, values in result["bd_rate"].items()
        ]
        parts.append(table(["codec", *formats], lines))
    notes = [f"* `{row['codec']}`: {row['note']}." for row in rows if row.get("note")]
    notes += [f"* {TITLES[name][0]} is empty: {reason}." for name, reason in result["metrics_unavailable"].items()]
    notes += [f"* `{name}` is missing: {reason}." for name, reason in result["codecs_unavailable"].items()]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def threads_of(machine: dict) -> str:
    return "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def described(result: dict) -> str:
    machine, versions = result["machine"], result["versions"]
    where = f"{machine['processor']}, {machine['cores']} cores, {threads_of(machine)} of torch, {machine['clock']}"
    if machine.get("load") is not None:
        where += f", load {machine['load']:.1f} at the end"
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"Machine: {where}; {software}; {result['date']}."
    if result.get("data"):
        data = result["data"]
        seconds = f", {data['seconds']:g} s from the middle of each" if "seconds" in data else ""
        text = f"Data: {data['name']}, {len(data['files'])} files{seconds}. " + text
    return text


def cell(row: dict, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    text = TITLES[name][1].format(value)
    return f"{text} ({row[f'{name}_files']} files)" if f"{name}_files" in row else text


def throughput(row: dict, kind: str, stages: tuple[str, ...], size: str | None = None) -> str:
    speed = row.get("speed", {})
    sizes = [size] if size else MAIN_SIZE[kind]
    for candidate in sizes:
        timing = speed.get(candidate)
        if timing and any(stage in timing["seconds"] for stage in stages):
            seconds = sum(timing["seconds"].get(stage, 0.0) for stage in stages)
            mark = "" if candidate == sizes[0] else f" ({candidate})"
            return f"{timing['positions'] / seconds / 1e6:.3g}{mark}" if seconds else ""
    return ""


def speed_tables(rows: list[dict], kind: str) -> list[str]:
    """Every stage of every size, in mega-positions per second."""
    parts = []
    sizes = list(dict.fromkeys(size for row in rows for size in row.get("speed", {})))
    for size in sizes:
        stages = [s for s in STAGES if any(s in r.get("speed", {}).get(size, {}).get("seconds", {}) for r in rows)]
        lines = []
        for row in rows:
            if size in row.get("speed", {}):
                lines.append([f"`{row['codec']}`", *(throughput(row, kind, (stage,), size) for stage in stages)])
        shape = "batch x height x width" if kind == "image" else "batch x seconds"
        parts.append(f"Stages at {size} ({shape}), {UNIT[kind]}:")
        parts.append(table(["codec", *(stage.replace("_", " ") for stage in stages)], lines))
    return parts


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


def sweep_table(result: dict) -> str:
    """Decoders of several shapes, trained for the same time."""
    lines = [
        [
            row["shape"],
            f"{row['parameters'] / 1e6:.2f} M",
            str(row["steps"]),
            f"{row['psnr']:.2f}",
            f"{row['decode']:.3g}",
        ]
        for row in result["rows"]
    ]
    return table(["width x blocks (x kernel)", "parameters", "steps", "PSNR dB", "decode megapixel/s"], lines)


def table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def between(text: str, name: str, new: str) -> str:
    """The text with the part between the markers of a name replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no <!-- {name}:begin --> ... <!-- {name}:end --> to write between")
    return pattern.sub(lambda match: match[1] + new.strip("\n") + "\n" + match[2], text)


def load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_docs() -> None:
    sections = [
        ("table1", "Images (Table 1 of the paper)"),
        ("table2", "Stereo audio (Table 2 of the paper)"),
        ("table2_all", "Stereo audio, longer clips of all validation files"),
        ("curves_image", "Rate and distortion, images"),
        ("curves_audio", "Rate and distortion, stereo audio"),
    ]
    parts = [
        "# Results",
        "Written by `python -m transformers_walloc.evaluation.report docs` from the JSON files in `docs/results`; "
        "none of it by hand. Rates "
        "count finished files, headers included, against 24 bits per pixel or 16-bit PCM, over all files together; "
        "PSNR and the other measures are means over files. `NAME@linear` is the closed-form (KLT) decoder on the same "
        "codes; `FORMAT@like=NAME` is the smallest file of that format that is no smaller than that of our codec for "
        "the same signal. Encode and decode are the codec's own stages; preparation and entropy coding are listed "
        "apart below each table, and included for conventional formats, which run in one thread (AVIF in several). "
        "Throughput is the median of repeated runs in one process; audio counts the samples of both channels.",
    ]
    for name, title in sections:
        result = load(name)
        if result is None:
            continue
        parts += [f"## {title}", to_markdown(result).strip()]
        parts += [f"![{title}](results/{path.name})" for path in sorted(RESULTS.glob(f"{name}_*.png"))]
    coders = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("coders_*.json"))]
    if coders:
        parts += [
            "## Lossless coders of the codes",
            "`walloc` is what files hold, `generic` the same coder without tables fitted to the codec. `order-0` is an "
            "entropy, without the cost of its tables. `bound` is fitted to the very codes measured, with larger "
            "networks: tables fitted to other data can hardly be expected to reach it. PNG, TIFF and WebP pack the "
            "codes as the original does; `webp, best tiling` takes the smaller of RGB and grey tilings.",
        ]
    for result in coders:
        data, machine = result["data"], result["machine"]
        parts += [
            f"`{result['codec']}` on {data['name']}, {data['items']} items, {data['codes'] / 1e6:.2f} million codes: "
            f"`{result['command']}`, {machine['processor']}, one thread, {machine['clock']}, {result['date']}.",
            coders_table(result["rows"]),
        ]
    sweep = load("sweep_decoders")
    if sweep is not None:
        parts += [
            "## Shapes of the decoder",
            f"Residual decoders, trained equally long on one encoder: `{sweep['command']}`. {described(sweep)}",
            sweep_table(sweep),
            "So short a run favours those that take more steps. More than the shape it counts that units stay alive. "
            "At a learning rate of 2e-3 Muon shut the ReLUs of "
            "nearly all inner blocks within an hour: `train_codec.py --encoder_from`, which starts silent units anew, "
            "found 410 of 512 in an earlier rgb-16x and 457 in rgb-4x. Kernels are now updated as if their inputs were "
            "centred, at 6e-4, and decoders of the same shape gained another 0.3 dB in 40 to 80 minutes. Tried in runs "
            "of some minutes and left out: AdamW for the convolutions (Muon gains more in the same time), depthwise "
            "convolutions (slower a step), 1 x 1 beside 3 x 3 convolutions (no gain for their time), a last layer in "
            "closed form on random features (no gain), and the logarithm of each piece's error as the loss (no gain).",
        ]
    parts += ["## Pictures"] + [
        f"![{path.stem.replace('_', ' ')}](pictures/{path.name})"
        for path in sorted((ROOT / "docs/pictures").glob("*.png"))
    ]
    write(ROOT / "docs" / "results.md", "\n\n".join(parts) + "\n")
    readme = ROOT / "README.md"
    text = readme.read_text() if readme.exists() else ""
    text = text.replace("<!-- results -->", "<!-- results:begin -->\n<!-- results:end -->")
    if "<!-- results:begin -->" in text:
        write(readme, between(text, "results", readme_table()))


def readme_table() -> str:
    """Our codecs, their closed form, the formats at the same size and the original: what a reader wants first."""
    parts = []
    for name, columns in (
        ("table1", ("dimensionality_reduction", "compression_ratio", "psnr", "ms_ssim")),
        ("table2", ("dimensionality_reduction", "compression_ratio", "psnr", "ssdr", "srdr")),
    ):
        result = load(name)
        if result is None:
            continue
        kind = result["kind"]
        header = ["", *(TITLES[c][0] for c in columns), f"encode {UNIT[kind]}", f"decode {UNIT[kind]}"]
        lines = []
        for row in result["rows"]:
            if not row["codec"].startswith(("rgb-", "stereo-", "original-")) and "@like=" not in row["codec"]:
                continue
            known = [cell(row, c) for c in columns]
            speed = [throughput(row, kind, ("encode",)), throughput(row, kind, ("decode",))]
            lines.append([f"`{row['codec']}`", *known, *speed])
        parts += [f"{result['data']['name']}, {len(result['data']['files'])} files:", table(header, lines)]
    if parts:
        machine = (load("table1") or load("table2"))["machine"]
        parts.append(f"{machine['processor']}, {threads_of(machine)}. All tables: [docs/results.md](docs/results.md).")
    return "\n\n".join(parts)


def rows_of(result: dict, name: str) -> list[dict]:
    """The rows that belong to one of our codecs: itself, its linear decoder, formats at its size."""
    return [row for row in result["rows"] if row["codec"].split("@like=")[-1].partition("@")[0] == name]


def write_card(folder: Path) -> None:
    """Write README.md and results.json of a model folder from its configuration and the stored results."""
    from transformers_walloc.evaluation.model_card import KINDS, model_card

    name = folder.resolve().name
    if name not in KINDS:
        raise ValueError(f"{folder} is not one of our codecs; valid: {', '.join(KINDS)}")
    result = load("table1" if KINDS[name] == "image" else "table2")
    if result is not None:
        rows = rows_of(result, name)
        result = dict(result, rows=rows, codecs_unavailable={}) if rows else None
    if result is not None:
        write(folder / "results.json", json.dumps(result, indent=1) + "\n")
    write(folder / "README.md", model_card(folder.resolve(), result))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.replace(path)


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
            write_card(folder)


if __name__ == "__main__":
    main()
