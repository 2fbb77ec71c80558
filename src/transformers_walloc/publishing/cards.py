"""Model cards: README.md of a checkpoint's folder, from its configuration, its recipe and what was measured."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..atomic import write_atomically
from ..evaluation.tables import MAIN_SIZE, SHAPES, TITLES, UNIT, cell, described, table, throughput

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_card(folder: str | Path, result: dict | None = None, **facts) -> None:
    """Write README.md into a checkpoint's folder, and results.json if there is a result.

    Args:
        folder: with config.json, model.safetensors and, from training, recipe.json.
        result: of `evaluate_codecs`, which may hold other codecs' rows, too.
        facts: see `model_card`.
    """
    folder = Path(folder)
    own = rows_of(result, folder.resolve().name) if result is not None else None
    write_atomically(folder / "README.md", str(model_card(folder, own, **facts)))
    if own is not None:
        write_atomically(folder / "results.json", json.dumps(own, indent=1) + "\n")


def model_card(
    folder: str | Path,
    result: dict | None = None,
    repo_id: str | None = None,
    licence: str | None = None,
    licence_text: str = "",
    data: Sequence[str] | None = None,
    preparation: Sequence[str] = (),
    validation: str = "",
    bundled: bool = False,
    purpose: str = "",
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        folder: with config.json, model.safetensors and, from training, recipe.json; its name is the codec's.
        result: as `rows_of` gives it; None if it was not measured yet.
        repo_id: on the Hub; default: the folder's name.
        licence: of the weights, as the Hub abbreviates it, such as "apache-2.0".
        licence_text: the same in a sentence.
        data: what it was trained on, a line for each source; default: what recipe.json says.
        preparation: commands before those of recipe.json.
        validation: a sentence on the files that training did not see.
        bundled: whether it travels with the package.
        purpose: what to take it for, as the end of a sentence.
    """
    folder = Path(folder)
    name, config = folder.resolve().name, AutoConfig.from_pretrained(folder)
    image = config.num_dims == 2
    patch = config.patch_size
    recipe_path = folder / "recipe.json"
    runs = runs_of(json.loads(recipe_path.read_text())) if recipe_path.exists() else []
    rate = "" if image else f"{config.sampling_rate / 1000:g} kHz"
    channels = {1: "grey" if image else "mono", 2: "stereo", 3: "RGB"}.get(config.num_channels)
    kind = "images" if image else f"audio at {rate}"
    text = _TEMPLATES.get_template("card.md.jinja").render(
        card_data=card_data(name, image, result, licence, base_model_of(runs)).to_yaml(),
        name=name,
        repo_id=repo_id or name,
        image=image,
        config=config,
        signal=f"{channels} {kind}" if channels else f"{kind} of {config.num_channels} channels",
        grid=f"height/{patch} x width/{patch}" if image else f"length/{patch}",
        reduction=f"{config.dimensionality_reduction:.3g}",
        bundled=bundled,
        purpose=purpose,
        patch=patch,
        rows=result_table(name, result) if result is not None else "",
        speed_size=f"{MAIN_SIZE[result['kind']][0]} ({SHAPES[result['kind']]})" if result and _timed(result) else "",
        described=described(result) if result is not None else "",
        command=_command_for(result) if result is not None else "",
        pictures={stem: _suffix(folder, stem) for stem in ("reconstruction", "atlas")},
        learned_projection=any(run.get("train_encoder") for run in runs),
        data=data if data is not None else next((run["sources"] for run in runs if run.get("sources")), []),
        commands=[*preparation, *commands_of(runs, name)] if runs else [],
        minutes=sum(run.get("minutes") or 0 for run in runs),
        machine=runs[0].get("machine") if runs else None,
        notes=[run["note"] for run in runs if run.get("note")],
        validation=validation,
        weights=_stored_as(folder / "model.safetensors"),
        licence=licence_text,
    )
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


def card_data(
    name: str, image: bool, result: dict | None, licence: str | None, base_model: str | None = None
) -> ModelCardData:
    """The header that the Hub reads, with the measured values of the codec's own row."""
    # Pipelines that transformers has, and that give latents.
    task, kind = ("image-feature-extraction", "image") if image else ("feature-extraction", "audio")
    own = [row for row in result["rows"] if row["codec"] == name] if result is not None else []
    columns = [c for c in TITLES if own and own[0].get(c) is not None and c != "dimensionality_reduction"]
    measured = [
        EvalResult(
            task_type=task,
            task_name=f"{kind.capitalize()} compression",
            dataset_type=re.sub("[^a-z0-9]+", "-", result["data"]["name"].lower()),
            dataset_name=result["data"]["name"],
            metric_type=column,
            metric_name=TITLES[column][0],
            metric_value=float(TITLES[column][1].format(own[0][column])),
        )
        for column in columns
        if result is not None
    ]
    return ModelCardData(
        model_name=name,
        license=licence,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag=task,
        tags=["walloc", "compression", "codec", "wavelets", "feature-extraction", kind],
        metrics=columns or ["psnr"],
        eval_results=measured or None,
    )


def rows_of(result: dict, name: str) -> dict | None:
    """A result with the rows that belong to one codec, else None.

    These are the codec itself, its linear decoder, formats at its size, and resizing to as few numbers.
    """
    rows = [row for row in result["rows"] if row["codec"].split("@like=")[-1].partition("@")[0] == name]
    reductions = {row.get("dimensionality_reduction") for row in rows if row["codec"] == name}
    resized = (row for row in result["rows"] if row["codec"].startswith("resize@factor="))
    rows += [row for row in resized if rows and row.get("dimensionality_reduction") in reductions]
    return dict(result, rows=rows, codecs_unavailable={}) if rows else None


def _command_for(result: dict) -> str:
    """The command of a measurement, for the codecs of these rows alone."""
    codecs = " ".join(row["codec"] for row in result["rows"])
    return re.sub(r"(--codecs) (?:(?!--)\S+ ?)+", rf"\1 {codecs} ", result.get("command", "")).strip()


def result_table(name: str, result: dict) -> str:
    """A table in Markdown of one measurement: the codec `name` and its rivals, with rate, quality and speed."""
    rows, kind = result["rows"], result["kind"]
    columns = [c for c in TITLES if any(row.get(c) is not None for row in rows)]
    stages = ("encode", "decode") if _timed(result) else ()
    header = ["", *(TITLES[c][0] for c in columns), *(f"{stage} {UNIT[kind]}" for stage in stages)]
    lines = []
    for row in rows:
        speed = [throughput(row, kind, (stage,)) for stage in stages]
        lines.append([_label(row["codec"], name), *(cell(row, c) for c in columns), *speed])
    return table(header, lines)


def _timed(result: dict) -> bool:
    """Whether any row has speeds."""
    return any(throughput(row, result["kind"], ("encode",)) for row in result["rows"])


def _label(codec: str, name: str) -> str:
    from ..evaluation.rivals import AUDIO_FORMATS, IMAGE_FORMATS

    if codec == name:
        return f"**{name}**"
    if codec == f"{name}@linear":
        return "linear decoder, same file"
    if codec.startswith(f"{name}@"):
        options = dict(option.split("=") for option in codec.partition("@")[2].split(","))
        said = {"step": "step of rounding {}", "refine": "codes refined in {} steps", "channels": "first {} channels"}
        if options.keys() <= said.keys():
            return ", ".join(said[key].format(value) for key, value in options.items())
    if codec.startswith("resize@factor="):
        return f"resized by {codec.partition('=')[2]} per side"
    form, _, other = codec.partition("@like=")
    formats = IMAGE_FORMATS | AUDIO_FORMATS
    return f"{formats[form].title}, same size" if other and form in formats else codec


def runs_of(recipe: dict) -> list[dict]:
    """The recipe and those that it builds on, newest first."""
    runs = [recipe]
    while runs[-1].get("earlier"):
        runs.append(runs[-1]["earlier"])
    return runs


def base_model_of(runs: Sequence[dict]) -> str | None:
    """The Hub id of the codec that the first run started from, which the Hub shows as the parent."""
    first = runs[-1] if runs else {}
    origin = first.get("continue_from") or first.get("encoder_from") or ""
    return origin if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else None


def commands_of(runs: Sequence[dict], name: str) -> list[str]:
    """The command lines that runs stand for, oldest first, folders by their last name."""
    lines = []
    for run in reversed(runs):
        others = ("sources", "machine", "entropy_tables", "earlier", "note")
        lines.append(_command("walloc train", {key: value for key, value in run.items() if key not in others}))
        if run.get("entropy_tables"):
            lines.append(_command(f"walloc fit-tables {name}", run["entropy_tables"]))
    return lines


def _command(command: str, options: dict) -> str:
    words = [command]
    for option, value in options.items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        shown = [
            Path(v).name if isinstance(v, str) and "/" in v else f"{v:g}" if isinstance(v, float) else str(v)
            for v in values
        ]
        words.append(f"--{option.replace('_', '-')}" + ("" if value is True else " " + " ".join(shown)))
    return " ".join(words)


def _suffix(folder: Path, stem: str) -> str:
    """Of a picture in a folder, or nothing."""
    return next((suffix for suffix in ("jpg", "png") if (folder / f"{stem}.{suffix}").exists()), "")


def _stored_as(path: Path) -> str:
    """Size and number formats of a safetensors file, from its header."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    numbers = {"F16": "half precision", "F32": "float32", "BF16": "bfloat16"}
    kinds = sorted({entry["dtype"] for name, entry in header.items() if name != "__metadata__"} & set(numbers))
    return f"{path.stat().st_size / 1e6:.2f} MB in {' and '.join(numbers[dtype] for dtype in kinds)}"
