"""The text of a model card, from the checkpoint's folder and the stored results. Used by `report.py card`."""

import json
import re
from pathlib import Path

from research.corpora.sources import AUDIO, FONTS, IMAGES
from transformers_walloc.evaluation.report import MAIN_SIZE, TITLES, UNIT, cell, described, table, throughput

KINDS = {
    "rgb-4x": "image",
    "rgb-16x": "image",
    "rgb-16x-klt": "image",
    "stereo-5x": "audio",
    "stereo-20x": "audio",
}
USAGE = {
    "image": """```python
from transformers import AutoImageProcessor, AutoModel
import transformers_walloc

processor = AutoImageProcessor.from_pretrained("walloc/{name}")
model = AutoModel.from_pretrained("walloc/{name}")
inputs = processor(image, return_tensors="pt")
latents = model.encode(inputs["pixel_values"]).latents  # (1, {latent_channels}, height/8, width/8)
blob = model.compress(**inputs)[0]  # a .walloc file
restored = processor.post_process(model.decompress([blob]))[0]
```""",
    "audio": """```python
from transformers import AutoFeatureExtractor, AutoModel
import transformers_walloc

extractor = AutoFeatureExtractor.from_pretrained("walloc/{name}")
model = AutoModel.from_pretrained("walloc/{name}")
inputs = extractor(waveform, sampling_rate=44100, return_tensors="pt")
latents = model.encode(inputs["input_values"]).latents  # (1, {latent_channels}, length/256)
blob = model.compress(**inputs)[0]  # a .walloc file
restored = model.decompress([blob])[0]  # (2, length)
```""",
}
LIMITS = {
    "image": """\
* It is made for learning on latents at low cost, not to beat image formats: compare the rows of the table, in which the
  formats have the same file size.
* The number of latents is fixed by the size of the image; flat images do not get fewer.
* Fine texture is blurred rather than invented: the decoder is trained for squared error alone.
* Other material than that below (medical, satellite, more than 8 bits) is untested.""",
    "audio": """\
* It is made for learning on latents at low cost, not to beat audio formats: those are tuned to hearing, this codec is
  trained for squared error, which favours low frequencies. Treble is lost first (see the picture).
* 44.1 kHz stereo music is what it was trained on; speech and other rates are untested (other rates are resampled).
* A clip is normalised as a whole: streaming needs a gain chosen in advance.""",
}
CITATION = """```bibtex
@inproceedings{jacobellis2025walloc,
  title = {Learned Compression for Compressed Learning},
  author = {Jacobellis, Dan and Yadwadkar, Neeraja J.},
  booktitle = {Data Compression Conference (DCC)},
  year = {2025},
  eprint = {2412.09405},
  archivePrefix = {arXiv}
}
```"""


def model_card(folder: Path, result: dict | None) -> str:
    """README.md of a model folder.

    Args:
        folder: with config.json and, from `train_codec.py`, recipe.json.
        result: of `evaluate_codec.py tables`, restricted to this codec's rows; None if not measured yet.
    """
    name = folder.name
    kind = KINDS[name]
    config = json.loads((folder / "config.json").read_text())
    latent_channels = config["latent_channels"]
    patch, dims = 2 ** config["num_levels"], 2 if kind == "image" else 1
    reduction = config["num_channels"] * patch**dims / latent_channels
    grid = "height/8 x width/8" if kind == "image" else "length/256"
    decoder = "linear" if config["decoder_type"] == "linear" else "convolutional"
    signal = "RGB images" if kind == "image" else "stereo audio at 44.1 kHz"
    parts = [
        front_matter(name, kind, result),
        f"# {name}",
        f"A WaLLoC codec (Wavelet Learned Lossy Compression) for {signal}: a linear encoder turns "
        f"{'an image' if kind == 'image' else 'a clip'} into {latent_channels} latent channels on a grid of {grid}, "
        f"{reduction:.3g} times fewer numbers than the original, and a {decoder} decoder restores it. Models can "
        "be trained on the latents in place of the "
        f"{'pixels' if kind == 'image' else 'samples'}; rounded and entropy coded, the latents are a compact file. "
        "Package: `pip install transformers-walloc`.",
        "## Use",
        USAGE[kind].format(name=name, latent_channels=latent_channels),
        "The checkpoint comes with the package, so this works without a network. `walloc compress` and "
        "`walloc decompress` do the same on the command line.",
        "## Results",
        results(name, kind, result),
    ]
    if (folder / "reconstruction.png").exists():
        parts.append(f"![Original and reconstruction{'s' if kind == 'image' else ''}](reconstruction.png)")
    if (folder / "atlas.png").exists():
        parts += ["What each latent channel stands for (an impulse in the middle of an empty latent, decoded):"]
        parts += ["![Latent atlas](atlas.png)"]
    parts += [
        "## Training",
        training(folder, name, kind, config),
        "## Limits",
        LIMITS[kind],
        "## Licence and citation",
        "Code and weights: Apache-2.0. The method is that of the paper; the weights were trained anew.",
        CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(name: str, kind: str, result: dict | None) -> str:
    """The YAML header of the Hub."""
    measured = [] if result is None else [row for row in result["rows"] if row["codec"] == name]
    columns = [c for c in TITLES if measured and measured[0].get(c) is not None and c != "dimensionality_reduction"]
    lines = [
        "license: apache-2.0",
        "library_name: transformers",
        f"pipeline_tag: {'image-to-image' if kind == 'image' else 'audio-to-audio'}",
        "tags:",
        *(f"- {tag}" for tag in ("walloc", "compression", "codec", "wavelets", "feature-extraction", kind)),
        "metrics:",
        *(f"- {metric}" for metric in (columns or ["psnr"])),
    ]
    if measured and result is not None:
        lines += [
            "model-index:",
            f"- name: {name}",
            "  results:",
            "  - task:",
            f"      type: {'image-to-image' if kind == 'image' else 'audio-to-audio'}",
            f"      name: {'Image' if kind == 'image' else 'Audio'} compression",
            "    dataset:",
            f"      type: {re.sub('[^a-z0-9]+', '-', result['data']['name'].lower())}",
            f"      name: {result['data']['name']}",
            "    metrics:",
        ]
        for column in columns:
            value = TITLES[column][1].format(measured[0][column])
            lines += [f"    - type: {column}", f"      value: {value}", f"      name: {TITLES[column][0]}"]
    return "\n".join(["---", *lines, "---"])


def results(name: str, kind: str, result: dict | None) -> str:
    if result is None:
        report = "python -m transformers_walloc.evaluation.report card"
        return f"Not measured yet: `python scripts/evaluate_codec.py tables`, then `{report}`."
    rows = result["rows"]
    columns = [c for c in TITLES if any(row.get(c) is not None for row in rows)]
    header = ["", *(TITLES[c][0] for c in columns), f"encode {UNIT[kind]}", f"decode {UNIT[kind]}"]
    lines = []
    for row in rows:
        speed = [throughput(row, kind, ("encode",)), throughput(row, kind, ("decode",))]
        lines.append([label(row["codec"], name), *(cell(row, c) for c in columns), *speed])
    size, shape = MAIN_SIZE[kind][0], "batch x height x width" if kind == "image" else "batch x seconds"
    return "\n\n".join(
        [
            table(header, lines),
            f"Rates count finished files; speeds are for {size} ({shape}). The formats are given at least as many "
            "bytes for every file. Stages, other sizes and further codecs: "
            "`docs/results.md` of the repository; the raw numbers: `results.json`.",
            described(result),
            f"Command: `{result['command']}`",
        ]
    )


def label(codec: str, name: str) -> str:
    if codec == name:
        return f"**{name}**"
    if codec == f"{name}@linear":
        return "linear decoder, same file"
    form, _, _ = codec.partition("@like=")
    return f"{form.upper() if form in ('jpeg', 'mp3') else form.capitalize()}, same size"


def training(folder: Path, name: str, kind: str, config: dict) -> str:
    text = [
        "Projection and linear synthesis are the Karhunen-Loeve transform of the training data in the wavelet packet "
        "domain, in closed form."
    ]
    if config["decoder_type"] == "restoration":
        blocks, width, size = (config[f"decoder_{key}"] for key in ("num_layers", "hidden_size", "downsampling"))
        text[0] = (
            "The projection starts at the Karhunen-Loeve transform of the training data in the wavelet packet domain "
            f"and is trained together with the decoder: a linear synthesis, and a network ({blocks} residual blocks of "
            f"width {width} on blocks of {size} x {size} pixels) that restores the picture it gives. Noise stands for "
            "rounding, and the loss is the mean over crops of the logarithm of the squared error."
        )
    elif config["decoder_type"] == "linear":
        text[0] += " There is no network on top of them yet."
    else:
        text[0] += (
            f" The decoder's network ({config['decoder_num_layers']} residual blocks of width "
            f"{config['decoder_hidden_size']}) starts at zero on top of them and is trained for squared error on "
            "rounded latents, with the encoder as it is."
        )
    recipe_path = folder / "recipe.json"
    if recipe_path.exists():
        recipe = json.loads(recipe_path.read_text())
        text += ["Training data:", "\n".join(f"* {line}" for line in data_lines(recipe, kind))]
        text += ["Commands, as recorded in `recipe.json`:", commands_of(recipe, name)]
        if recipe.get("machine"):
            minutes = sum(run.get("minutes") or 0 for run in runs_of(recipe))
            text.append(f"{f'{minutes:g} minutes in all, on' if minutes else 'On'} {recipe['machine']}.")
        text += [run["note"] for run in runs_of(recipe) if run.get("note")]
    if kind == "audio":
        names = ", ".join(f"`{source.package}` ({source.licence})" for source in AUDIO if source.validation)
        text.append(f"Validation music, never trained on: {names}.")
    else:
        text.append("Validation: the 24 Kodak images, never trained on.")
    return "\n\n".join([*text, weights_line(folder / "model.safetensors")])


def data_lines(recipe: dict, kind: str) -> list[str]:
    """What a codec was trained on, with licences: the packages that the recipe names, or else all of the corpus."""
    sources = {source.package: source for source in (IMAGES if kind == "image" else AUDIO) if not source.validation}
    used = next((run["sources"] for run in runs_of(recipe) if run.get("sources")), list(sources))
    lines = [f"`{name}` (Debian 12): {sources[name].licence}" if name in sources else name for name in used]
    if any(entry.startswith("documents") for entry in recipe.get("train", [])):
        fonts = ", ".join(f"`{source.package}` ({source.licence})" for source in FONTS)
        lines.append(f"pages of text rendered with {fonts}")
    return lines


def weights_line(path: Path) -> str:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    numbers = {"F16": "half precision", "F32": "float32", "BF16": "bfloat16"}
    kinds = sorted({entry["dtype"] for name, entry in header.items() if name != "__metadata__"} & set(numbers))
    stored = " and ".join(numbers[dtype] for dtype in kinds)
    return f"Weights: {path.stat().st_size / 1e6:.2f} MB in {stored}, loaded as float32."


def runs_of(recipe: dict) -> list[dict]:
    """The recipe and those that it builds on, newest first."""
    runs = [recipe]
    while runs[-1].get("earlier"):
        runs.append(runs[-1]["earlier"])
    return runs


def commands_of(recipe: dict, name: str) -> str:
    """The command lines that a recipe stands for, folders by their last name."""
    lines = []
    for run in runs_of(recipe):
        if run.get("entropy_tables"):
            lines.append(command_of(f"python -m transformers_walloc.training.fit_tables {name}", run["entropy_tables"]))
        others = ("sources", "machine", "entropy_tables", "earlier", "note")
        options = {key: value for key, value in run.items() if key not in others}
        lines.append(command_of("python scripts/train_codec.py", options))
    lines.append("python -m research.corpora.prepare images audio documents --out corpus")
    lines.reverse()
    return "\n".join(["```", *lines, "```"])


def command_of(command: str, options: dict) -> str:
    words = [command]
    for option, value in options.items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [value]
        shown = [
            Path(v).name if isinstance(v, str) and "/" in v else f"{v:g}" if isinstance(v, float) else str(v)
            for v in values
        ]
        words.append(f"--{option}" + ("" if value is True else " " + " ".join(shown)))
    return " ".join(words)
