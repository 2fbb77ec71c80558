#!/usr/bin/env python
"""What models see of a page and of a photograph, on pixels and on latents, for the same tokens.

    python -m research.token_budgets table --write    # docs/results/token_budgets.json, the guide's tables: seconds
    python -m research.token_budgets time --write     # times: minutes
    python -m research.token_budgets picture          # docs/pictures/budget.jpg

Each family stands at the patch size and the options of a published checkpoint, as its `preprocessor_config.json` or
that of a copy has them. For ViT, DINOv3, CLIP, Gemma 4 and Granite-Docling they are the defaults of the class in
transformers; the budgets of 972 tokens are ours. The family's own image processor in transformers says how it cuts and
resizes; models on latents cut alike, and every token covers more pixels.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont

from research.pages import RESULTS, ROOT, between, load
from transformers_walloc import WallocImageModel, WallocLatentImageProcessor, load_on_latents
from transformers_walloc.atomic import atomic_file, write_atomically
from transformers_walloc.codec.pixels import to_8_bits
from transformers_walloc.evaluation.machine import machine
from transformers_walloc.evaluation.metrics import psnr
from transformers_walloc.latents.families import FAMILIES
from transformers_walloc.latents.folding import equal_cost_patch_size
from transformers_walloc.latents.tiling import Plan, Tile, Tiling
from transformers_walloc.loading import use_linear_decoder

PAGE = ROOT / "docs" / "guides" / "vision_language.md"
PICTURE = ROOT / "docs" / "pictures" / "budget.jpg"
PICTURES = {"page": (1754, 1240), "photograph": (3024, 4032)}  # height, width
BUDGET = 972 * 28**2  # pixels of Qwen2-VL for 972 tokens
CODECS = {16: "walloc/rgb-f16c48", 14: "walloc/rgb-16x"}  # by pixels per side of a patch


@dataclass(frozen=True)
class Checkpoint:
    """How a family's image processor is set up.

    Args:
        like: a repository with these options.
        patch: pixels per side.
        merge: patches per side of a token of the text.
        processor: class in transformers, without its backend; None for one square.
        options: of that class, where its defaults differ; of a square, its side.
    """

    like: str
    patch: int
    merge: int = 1
    processor: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def plan(self, height: int, width: int) -> Plan:
        if self.processor is None:
            return Plan([Tile.whole((self.options["side"],) * 2)], 1, 1)
        return Tiling(self.tiling()).plan(height, width)

    def tiling(self) -> dict[str, Any]:
        own = getattr(transformers, f"{self.processor}Pil")(**self.options)
        return Tiling.options_of(own, self.patch) or {}


def _square(like: str, patch: int, side: int, merge: int = 1) -> Checkpoint:
    return Checkpoint(like, patch, merge, None, {"side": side})


def _budget(like: str, patch: int, low: int, high: int, processor: str = "Qwen2VLImageProcessor") -> Checkpoint:
    size = {"shortest_edge": low, "longest_edge": high}
    return Checkpoint(like, patch, 2, processor, {"patch_size": patch, "merge_size": 2, "size": size})


_GRIDS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
_CLIP = _square("openai/clip-vit-large-patch14", 14, 224)
_SIGLIP = _square("google/siglip-so400m-patch14-384", 14, 378)
_SIGLIP2 = Checkpoint(
    "google/siglip2-base-patch16-naflex", 16, 1, "Siglip2ImageProcessor", {"patch_size": 16, "max_num_patches": 256}
)
_QWEN2 = _budget("Qwen/Qwen2-VL-2B-Instruct, max_pixels=762048", 14, 4 * 28**2, BUDGET)
_QWEN3 = _budget("Qwen/Qwen3-VL-2B-Instruct, max_pixels=995328", 16, 65536, 972 * 32**2)
CHECKPOINTS = {
    "vit": _square("google/vit-base-patch16-224", 16, 224),
    "dinov3_vit": _square("facebook/dinov3-vitb16-pretrain-lvd1689m", 16, 224),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "pixtral": Checkpoint(
        "mistral-community/pixtral-12b", 16, 1, "PixtralImageProcessor",
        {"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}},
    ),
    "paligemma": _square("google/paligemma2-3b-mix-448", 14, 448),
    "gemma3": Checkpoint(
        "google/gemma-3-4b-it", 14, 4, "Gemma3ImageProcessor", {"size": {"height": 896, "width": 896}}
    ),
    "gemma4": Checkpoint(
        "the defaults of its class", 16, 3, "Gemma4ImageProcessor",
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
    ),
    "llava_onevision": Checkpoint(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 14, 1, "LlavaOnevisionImageProcessor",
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": _GRIDS},
    ),
    "internvl": Checkpoint(
        "OpenGVLab/InternVL3-1B-hf", 14, 2, "GotOcr2ImageProcessor",
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12},
    ),
    "idefics3": Checkpoint(
        "HuggingFaceM4/Idefics3-8B-Llama3", 14, 2, "Idefics3ImageProcessor",
        {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
    ),
    "smolvlm": Checkpoint(
        "HuggingFaceTB/SmolVLM-256M-Instruct", 16, 4, "SmolVLMImageProcessor",
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    ),
    "granite_docling": Checkpoint(
        "the defaults of its class", 16, 4, "GraniteDoclingImageProcessor", {"size": {"height": 512, "width": 512}}
    ),
    "paddleocr_vl": _budget("PaddlePaddle/PaddleOCR-VL", 14, 147384, 2822400, "PaddleOCRVLImageProcessor"),
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _budget("Qwen/Qwen2.5-VL-3B-Instruct, max_pixels=762048", 14, 4 * 28**2, BUDGET),
    "qwen3_vl": _QWEN3,
    "qwen3_5": _QWEN3,
    "glm4v": _budget("zai-org/GLM-OCR", 14, 12544, 9633792, "Glm4vImageProcessor"),
    "glm_ocr": _budget("zai-org/GLM-OCR", 14, 12544, 9633792, "Glm46VImageProcessor"),
    "colpali": _square("vidore/colpali-v1.3-hf", 14, 448),
    "colqwen2": _budget("vidore/colqwen2-v0.1", 14, 4 * 28**2, 768 * 28**2),
}  # fmt: skip


def row(checkpoint: Checkpoint, config: Any, height: int, width: int) -> dict[str, Any]:
    """What a family sees of one picture, by the codec of a config.

    Returns:
        tokens: of the text, of all tiles, without what stands between them.
        inputs: numbers of a patch, on pixels and on latents.
        scale: length of the canvas for that of the picture, on pixels and on latents; above 1 it is enlarged.
        whole: tokens that show every pixel of the picture, on pixels and on latents.
    """
    patch_size = equal_cost_patch_size(config, checkpoint.patch)
    plan = checkpoint.plan(height, width)
    patches = sum((t.box[2] // checkpoint.patch) * (t.box[3] // checkpoint.patch) for t in plan.tiles)
    canvas = max((tile.canvas for tile in plan.tiles), key=math.prod)
    scale = math.sqrt(math.prod(canvas) / (height * width))
    units = [checkpoint.patch, patch_size * config.patch_size]  # pixels per side of a patch
    tokens = [unit * checkpoint.merge for unit in units]
    return {
        "tokens": round(patches / checkpoint.merge**2),
        "inputs": [3 * checkpoint.patch**2, config.latent_channels * patch_size**2],
        "scale": [scale, scale * units[1] / units[0]],
        "whole": [math.ceil(height / token) * math.ceil(width / token) for token in tokens],
    }


def measure() -> dict[str, Any]:
    configs = {patch: transformers.AutoConfig.from_pretrained(name) for patch, name in CODECS.items()}
    found: dict[str, Any] = {}
    for family, checkpoint in CHECKPOINTS.items():
        patch = checkpoint.patch
        pictures = {name: row(checkpoint, configs[patch], *size) for name, size in PICTURES.items()}
        found[family] = {"like": checkpoint.like, "patch": patch, "codec": CODECS[patch], **pictures}
    return found


def table(found: dict[str, Any]) -> str:
    """Tokens of each picture, and its width as the model sees it, on pixels and on latents."""
    lines = [
        "| model type | options of | codec | page: tokens | width seen | photograph: tokens | width seen |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    shown: dict[str, list[str]] = {}
    for family, values in found.items():
        cells = [values["like"], f"`{values['codec'].removeprefix('walloc/')}`"]
        for name in PICTURES:
            one = values[name]
            cells.append(f"{one['tokens']:,}")
            cells.append(" → ".join(f"{100 * scale:.0f}%" for scale in one["scale"]))
        shown.setdefault(" | ".join(cells), []).append(family)
    return "\n".join([*lines, *(f"| {', '.join(families)} | {cells} |" for cells, families in shown.items())])


def times_table(found: dict[str, Any]) -> str:
    lines = [
        "| picture | width seen | tokens | processor, seconds | model, against pixels |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in found["rows"]:
        times = f"{one['processor_seconds']:.2f} | {one['model']:.2f}"
        lines.append(
            f"| {one['picture']}, {one['through']} | {100 * one['scale']:.0f}% | {one['tokens']:,} | {times} |"
        )
    return "\n".join(lines)


def _model_of_qwen() -> Any:
    """Qwen2-VL with two narrow layers on each side, and its own patches."""
    transformers.set_seed(0)
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 64, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}  # fmt: skip
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 14}
    ids: dict[str, Any] = {
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_end_token_id": 63,
    }
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    return transformers.AutoModelForImageTextToText.from_config(config)


def _ask(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    count = int(inputs["image_grid_thw"].prod()) // 4
    ids = torch.tensor([[1, 62, *[60] * count, 63, 5, 6]])
    types = (ids == 60).long()
    model.generate(**inputs, input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types,
                   max_new_tokens=1, do_sample=False)  # fmt: skip


@torch.inference_mode()
def measure_times(rounds: int) -> dict[str, Any]:
    """Processor time on one thread: of the processors in seconds, of a narrow Qwen2-VL up to the first token in parts
    of what it takes on pixels at 972 tokens."""
    torch.set_num_threads(1)
    native = {name: 2 * height * width for name, (height, width) in PICTURES.items()}
    with tempfile.TemporaryDirectory() as folder:
        _model_of_qwen().save_pretrained(folder)
        own = {high: transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": high})
               for high in (BUDGET, native["page"])}  # fmt: skip
        own[BUDGET].save_pretrained(folder)
        pixels = transformers.AutoModelForImageTextToText.from_pretrained(folder)
        latents = load_on_latents(folder, CODECS[14], transformers.AutoModelForImageTextToText)
        on_latents = WallocLatentImageProcessor.for_model(latents.config)
    rows = []
    for name, size in PICTURES.items():
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        ways: dict[str, tuple[Callable, Any]] = {"pixels": (own[BUDGET], pixels), "latents": (on_latents, latents)}
        if name == "page":  # a photograph takes 15,600 tokens so, which is too much for a CPU
            ways["pixels at its own size"] = (own[native["page"]], pixels)
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        grids: dict[str, Any] = {}
        for _ in range(rounds):
            for way, (processor, model) in ways.items():
                start = time.process_time()
                inputs = processor(picture, return_tensors="pt")
                between_both = time.process_time()
                _ask(model, dict(inputs))
                spent[way].append((between_both - start, time.process_time() - between_both))
                grids[way] = inputs["image_grid_thw"][0].tolist()
        base = statistics.median(seconds for _, seconds in spent["pixels"])
        for way, each in spent.items():
            processor_time, model_time = (statistics.median(part) for part in zip(*each, strict=True))
            unit = 56 if way == "latents" else 14
            scale = math.sqrt(grids[way][1] * grids[way][2] * unit**2 / math.prod(size))
            rows.append({
                "picture": name, "through": way, "tokens": grids[way][1] * grids[way][2] // 4, "scale": scale,
                "processor_seconds": processor_time, "model": model_time / base,
            })  # fmt: skip
    return {"rounds": rounds, "machine": machine(1), "rows": rows}


def small_print(height: int, width: int, line: int = 26) -> Image.Image:
    """A sheet full of text, as a camera of 12 megapixels would bring it."""
    sheet = Image.new("RGB", (width, height), (246, 244, 238))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(19)
    words = ("invoice", "number", "total", "date", "item", "price", "net", "due", "address", "account", "tax", "paid")
    rng = np.random.default_rng(0)
    for top in range(60, height - 60, line):
        left = 60.0
        while left < width - 260:
            word = f"{rng.choice(words)} {rng.integers(10, 9999)}" if rng.random() < 0.3 else str(rng.choice(words))
            pen.text((left, top), word, (30, 30, 34), font)
            left += pen.textlength(word + "  ", font)
    return sheet


@torch.inference_mode()
def seen(picture: Image.Image) -> tuple[Image.Image, Image.Image, dict[str, float]]:
    """What 972 tokens of Qwen2-VL are made of, brought to the picture's size: on pixels, and through latents.

    Through latents it is what the linear synthesis gives, which a folded model starts from.
    """
    codec = WallocImageModel.from_pretrained(CODECS[14]).eval()
    use_linear_decoder(codec)
    plan = _QWEN2.plan(picture.height, picture.width)
    height, width = plan.tiles[0].canvas
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    large = picture.resize((width * 4, height * 4), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1)[None] / 255 - 0.5
    array = to_8_bits(codec.decode(codec.encode(x).latents).pixel_values[0]).permute(1, 2, 0).numpy()
    pixels = small.resize(picture.size, Image.Resampling.BICUBIC)
    through = Image.fromarray(array).resize(picture.size, Image.Resampling.BICUBIC)
    found = {"pixels": pixels, "latents": through}
    return pixels, through, {name: psnr(np.asarray(picture), np.asarray(image)) for name, image in found.items()}


def draw() -> tuple[Image.Image, dict[str, float]]:
    picture = small_print(*PICTURES["photograph"])
    pixels, through, quality = seen(picture)
    box = (1500, 1200, 1900, 1440)
    panels = {"12 megapixels, a part": picture, "972 tokens, pixels": pixels, "972 tokens, latents": through}
    sheet = Image.new("RGB", (3 * 400 + 16, 240 + 26), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for index, (caption, image) in enumerate(panels.items()):
        pen.text((index * 408 + 200, 1), caption, "black", font, anchor="ma")
        sheet.paste(image.crop(box), (index * 408, 26))
    return sheet, quality


def write_page(name: str, text: str) -> None:
    write_atomically(PAGE, between(PAGE.read_text(), name, text))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "time", "picture"))
    parser.add_argument("--write", action="store_true", help="into docs/")
    parser.add_argument("--rounds", type=int, default=3, help="of time")
    args = parser.parse_args(argv)
    if args.what == "picture":
        sheet, quality = draw()
        with atomic_file(PICTURE) as path:
            sheet.save(path, "JPEG", quality=88, optimize=True)
        print(json.dumps(quality))
        return
    stored = load("token_budgets") or {}
    if args.what == "table":
        stored["families"] = measure()
        name, text = "tokens", table(stored["families"])
    else:
        stored["times"] = measure_times(args.rounds)
        name, text = "first-token", times_table(stored["times"])
    print(text)
    if args.write:
        write_atomically(RESULTS / "token_budgets.json", json.dumps(stored, indent=1) + "\n")
        write_page(name, text)


assert CHECKPOINTS.keys() == FAMILIES.keys()

if __name__ == "__main__":
    main()
