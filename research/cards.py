"""The cards of the bundled codecs: what the package's `write_card` cannot know of them."""

import json
from pathlib import Path

from research import pages
from research.corpora.sources import AUDIO, FONTS, IMAGES
from transformers_walloc.bundled import BUNDLED_NAMES, NAMESPACE
from transformers_walloc.publishing import cards

# What to take each codec for, in README.md and on its card.
PURPOSES = {
    "rgb-16x": "models with patches of 14 pixels (CLIP, Qwen2-VL); the sharpest of 16 times fewer numbers",
    "rgb-4x": "fine texture; in place of shrinking by half",
    "rgb-16x-klt": "smaller files and a faster decoder than those of rgb-16x, less sharp",
    "rgb-4x-klt": "ordered channels, of which the first few are a codec of their own",
    "rgb-f16c48": "models with patches of 16 pixels (ViT, SigLIP 2, Qwen3-VL); flips and crops of stored latents",
    "rgb-f16c192": "fine texture, where stored latents are flipped or cropped, or patches have 16 pixels",
    "rgb-f16c12": "the fewest numbers: previews, many frames; latents can be flipped and cropped",
    "stereo-20x": "music in the fewest numbers",
    "stereo-5x": "music at a higher quality",
}
PREPARATION = "python -m research.corpora.prepare images audio documents --out corpus"


def write_card(folder: Path) -> None:
    """Write README.md and results.json of a bundled codec from docs/results."""
    name = folder.resolve().name
    if name not in BUNDLED_NAMES:
        raise ValueError(f"{folder} is not one of our codecs; valid: {', '.join(BUNDLED_NAMES)}")
    image = json.loads((folder / "config.json").read_text())["model_type"] == "walloc_image"
    recipe_path = folder / "recipe.json"
    recipe = json.loads(recipe_path.read_text()) if recipe_path.exists() else None
    cards.write_card(
        folder,
        pages.load("table1" if image else "table2"),
        repo_id=f"{NAMESPACE}/{name}",
        licence="apache-2.0",
        licence_text="Code and weights: Apache-2.0.",
        data=data_lines(recipe, image) if recipe else None,
        preparation=[PREPARATION],
        validation=validation_line(name, image, recipe),
        bundled=True,
        purpose=PURPOSES.get(name, ""),
    )


def data_lines(recipe: dict, image: bool) -> list[str]:
    """What a codec was trained on, with licences: the packages that the recipe names, or else all of the corpus."""
    sources = {source.package: source for source in (IMAGES if image else AUDIO) if not source.validation}
    used = next((run["sources"] for run in cards.runs_of(recipe) if run.get("sources")), list(sources))
    lines = [f"`{name}` (Debian 12): {sources[name].licence}" if name in sources else name for name in used]
    if any(entry.startswith("documents") for entry in recipe.get("train") or []):
        fonts = ", ".join(f"`{source.package}` ({source.licence})" for source in FONTS)
        lines.append(f"pages of text rendered with {fonts}")
    return lines


def validation_line(name: str, image: bool, recipe: dict | None) -> str:
    """What the codec was measured on, and whether that had chosen it."""
    if image:
        said = ["The 24 Kodak images were never trained on."]
        if recipe:
            on_kodak = any(Path(run.get("validation") or "").name == "kodak" for run in cards.runs_of(recipe))
            said.append(f"Checkpoints were chosen on {'them' if on_kodak else 'other photographs'}.")
        unseen = pages.load("table1_unseen") or {"rows": []}
        for row in [row for row in unseen["rows"] if row["codec"] == name]:
            quality = f"{row['psnr']:.2f} dB at {row['bpp']:.3f} bits per pixel"
            said.append(f"{row['files']} pictures of Caltech-101, which decided nothing, have {quality}.")
        return " ".join(said)
    names = ", ".join(f"`{source.package}` ({source.licence})" for source in AUDIO if source.validation)
    return f"Validation music, never trained on: {names}."
