"""Results as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

TITLES = {
    "dimensionality_reduction": ("DR", "{:.3g}"),
    "compression_ratio": ("CR", "{:.1f}"),
    "bpp": ("bpp", "{:.3f}"),
    "kbps": ("kbps", "{:.1f}"),
    "psnr": ("PSNR dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "gmsd": ("GMSD (0 best)", "{:.4f}"),
    "vsi": ("VSI", "{:.4f}"),
    "fsim": ("FSIM", "{:.4f}"),
    "haarpsi": ("HaarPSI", "{:.4f}"),
    "ssimulacra2": ("SSIMULACRA2", "{:.1f}"),
    "lpips_db": ("LPIPS dB", "{:.2f}"),
    "dists_db": ("DISTS dB", "{:.2f}"),
    "ssdr": ("SSDR dB", "{:.1f}"),
    "srdr": ("SRDR dB", "{:.1f}"),
    "si_sdr": ("SI-SDR dB", "{:.1f}"),
    "zimtohrli_mos": ("Zimtohrli MOS", "{:.2f}"),
    "cdpam_db": ("CDPAM dB", "{:.1f}"),
}
STAGES = ("prepare", "encode", "entropy_encode", "entropy_decode", "decode", "finish")
SHAPES = {"image": "batch x height x width", "audio": "batch x seconds"}  # that speeds are measured at
UNIT = {"image": "megapixel/s", "audio": "mega-sample/s"}
MAIN_SIZE = {"image": ("1x512x768", "1x256x256"), "audio": ("1x30", "1x5")}


def to_markdown(result: dict, all_sizes: bool = True) -> str:
    """Tables of one result, with what they were measured on and what is missing.

    Args:
        result: of `evaluate_codecs`.
        all_sizes: whether the stages of all timed sizes are shown, or of the first of `MAIN_SIZE` alone.
    """
    kind, rows = result["kind"], result["rows"]
    parts = [f"Command: `{result['command']}`"] if result.get("command") else []
    parts.append(described(result))
    columns = [name for name in TITLES if any(row.get(name) is not None for row in rows)]
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
        parts += speed_tables(rows, kind, None if all_sizes else MAIN_SIZE[kind][:1])
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
    notes += [f"* {title} files: {options}." for title, options in result.get("format_options", {}).items()]
    notes += [f"* {TITLES[name][0]} is missing: {reason}." for name, reason in result["metrics_unavailable"].items()]
    notes += [f"* `{name}` is missing: {reason}." for name, reason in result["codecs_unavailable"].items()]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[dict]) -> str:
    """One line for each codec; speeds in mega-positions per second."""
    flat = []
    for row in rows:
        line = {name: value for name, value in row.items() if name != "speed"}
        for size, timing in row.get("speed", {}).items():
            for stage, seconds in timing["seconds"].items():
                line[f"{stage}_mega_per_s_{size}"] = timing["positions"] / seconds / 1e6 if seconds else None
        flat.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


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


def threads_of(machine: dict) -> str:
    return "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


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


def speed_tables(rows: list[dict], kind: str, sizes: Sequence[str] | None = None) -> list[str]:
    """Every stage, in mega-positions per second, of some sizes; None for every size that a row was timed at."""
    parts = []
    if sizes is None:
        sizes = list(dict.fromkeys(size for row in rows for size in row.get("speed", {})))
    for size in sizes:
        stages = [s for s in STAGES if any(s in r.get("speed", {}).get(size, {}).get("seconds", {}) for r in rows)]
        lines = []
        for row in rows:
            if size in row.get("speed", {}):
                lines.append([f"`{row['codec']}`", *(throughput(row, kind, (stage,), size) for stage in stages)])
        parts.append(f"Stages at {size} ({SHAPES[kind]}), {UNIT[kind]}:")
        parts.append(table(["codec", *(stage.replace("_", " ") for stage in stages)], lines))
    return parts


def table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])
