"""What the compiled kernels bring: numpy and torch beside the kernels, in one run, in CPU time of one thread.

    python -m research.benchmark_kernels [--images FOLDER] [--rounds 5] [--json OUT] [--write]

Every row is done in turn with the kernels switched off and on, round after round, so that a change of the machine's
load meets both; the table shows the best round of each. Pictures are scikit-image's photographs, or those of a folder.
--write keeps the numbers in docs/results and puts the table into docs/concepts/kernels.md.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from transformers_walloc import WallocImageConfig, WallocImageEncoder, WallocImageProcessor, bundled_path, native
from transformers_walloc.atomic import write_atomically
from transformers_walloc.codec import kernels
from transformers_walloc.codec.entropy_coding import EntropyTables, decode_codes, encode_codes
from transformers_walloc.codec.wavelets import wavelet_packet_analysis
from transformers_walloc.evaluation.machine import machine, versions
from transformers_walloc.latents.datasets import LATENTS, LatentTransform, encode_rows
from transformers_walloc.loading import load_codec

from .pages import RESULTS, ROOT, between

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ROW_SIZE = (448, 448)  # of the images in the data sets, in pixels


def load_pictures(folder: str | None) -> list[PIL.Image.Image]:
    if folder:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        return [PIL.Image.open(path).convert("RGB") for path in paths]
    import skimage.data

    return [PIL.Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]


def best_seconds(function: Callable[[], object], rounds: int) -> tuple[float, float]:
    """With the kernels switched off, and with them."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, switch in enumerate((True, False)):
            with kernels.switched_off() if switch else nullcontext(), torch.inference_mode():
                begin = time.process_time()
                function()
                best[i] = min(best[i], time.process_time() - begin)
    return best[0], best[1]


class Table:
    def __init__(self, rounds: int):
        self.rounds = rounds
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, unit: str, amount: float, function: Callable[[], object], note: str = "") -> None:
        off, on = (amount / seconds for seconds in best_seconds(function, self.rounds))
        self.rows.append({"row": name, "unit": unit, "fallback": off, "kernels": on, "ratio": on / off, "note": note})
        print(f"{name:<46}{off:10.2f}{on:10.2f} {unit:<10}{on / off:6.2f}x {note}", flush=True)


def measure_encoders(table: Table, pictures: list[PIL.Image.Image]) -> None:
    megapixels = sum(picture.width * picture.height for picture in pictures) / 1e6
    processor = WallocImageProcessor()

    def jpeg(picture: PIL.Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    files = [jpeg(picture) for picture in pictures]
    table.add("Pillow decodes the JPEGs", "MP/s", megapixels, lambda: [decode_jpeg(file) for file in files])
    floats = [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    table.add("pixel_unshuffle alone, of floats", "MP/s", megapixels, lambda: [F.pixel_unshuffle(x, 8) for x in floats])
    for name in ("rgb-16x", "rgb-4x"):
        model = WallocImageEncoder.from_pretrained(bundled_path(name))

        def encode(model=model) -> list[torch.Tensor]:
            # Without kernels, what was done before there were any: a picture of floats.
            rescale = kernels.library() is None
            codes = []
            for picture in pictures:
                pixels = processor(picture, do_rescale=rescale, return_tensors="pt")["pixel_values"]
                codes.append(model.encode_to_codes(pixels))
            return codes

        table.add(f"picture to codes, {name}", "MP/s", megapixels, encode)
        table.add(f"encode of floats, {name}", "MP/s", megapixels, partial(encode_floats, model, floats))
        snippet = partial(process_and_encode, model, processor, pictures)
        table.add(f"processor and encode, {name}", "MP/s", megapixels, snippet)
        with torch.no_grad():
            codes = [item[0].numpy() for item in encode()]
        tables, count = model.get_entropy_tables(), sum(item.size for item in codes) / 1e6
        data = encode_all(codes, tables)
        table.add(
            f"entropy decoding, {name}",
            "Mcodes/s",
            count,
            partial(decode_all, data, codes, tables),
        )
        table.add(
            f"entropy encoding, {name}",
            "Mcodes/s",
            count,
            partial(encode_all, codes, tables),
        )


def measure_blocks(table: Table, pictures: list[PIL.Image.Image]) -> None:
    """A codec of 16 x 16 blocks: the lowest frequencies of the cosine transform, beside one strided convolution."""
    megapixels = sum(picture.width * picture.height for picture in pictures) / 1e6
    model, processor = cosine_codec(), WallocImageProcessor(patch_size=16)
    floats = [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    bits = [processor(picture, do_rescale=False, return_tensors="pt")["pixel_values"] for picture in pictures]
    taps = torch.randn(48, 3, 16, 16)
    table.add(
        "one strided convolution of 16 x 16, by torch", "MP/s", megapixels,
        lambda: [F.conv2d(x, taps, stride=16) for x in floats],
    )  # fmt: skip
    table.add("encode of floats, blocks to 48 channels", "MP/s", megapixels, partial(encode_floats, model, floats))
    table.add(
        "encode of bytes, blocks to 48 channels", "MP/s", megapixels, lambda: [model.encode_to_codes(x) for x in bits]
    )


def cosine_codec() -> WallocImageEncoder:
    """Sixteen cosines of each colour; what is measured does not depend on their values."""
    config = WallocImageConfig(wavelet="haar", boundary="periodization", num_levels=4, latent_channels=48)
    model = WallocImageEncoder(config)
    place = (torch.arange(16) + 0.5) / 16 * torch.pi
    waves = torch.stack([torch.cos(k * place) for k in range(4)])
    blocks = torch.einsum("ay,bx->abyx", waves, waves).reshape(16, 1, 16, 16)
    bands = wavelet_packet_analysis(blocks, 4, "haar", "periodization").flatten(1)  # (16, 256)
    weight = torch.einsum("kb,cd->kcdb", bands, torch.eye(3)).reshape(48, 768)
    with torch.no_grad():
        model.encoder.projection.weight.copy_(weight[..., None, None])
        model.encoder.projection.get_parameter("bias").zero_()
    return model


def process_and_encode(
    model: WallocImageEncoder, processor: WallocImageProcessor, pictures: list[PIL.Image.Image]
) -> list[torch.Tensor]:
    return [model.encode(processor(picture, return_tensors="pt")["pixel_values"]).latents for picture in pictures]


def encode_floats(model: WallocImageEncoder, floats: list[torch.Tensor]) -> list[torch.Tensor]:
    return [model.encode(x).latents for x in floats]


def measure_decoders(table: Table, picture: PIL.Image.Image) -> None:
    """512 x 512 pixels: the network in float32, in bfloat16 by torch where that is fast, and the linear decoder."""
    crop = picture.resize((512, 512))
    pixels = WallocImageProcessor()(crop, do_rescale=False, return_tensors="pt")["pixel_values"]
    model, linear = (load_codec("rgb-16x", linear=linear)[0] for linear in (False, True))
    with torch.no_grad():
        codes = model.encode_to_codes(pixels)
    megapixels = 512 * 512 / 1e6
    table.add("decode, rgb-16x", "MP/s", megapixels, lambda: model.decode(codes))

    def decode_narrow() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model.decode(codes)

    if torch.cpu._is_avx512_bf16_supported():  # others take half a minute for each
        table.add("decode, rgb-16x, bfloat16 by torch", "MP/s", megapixels, decode_narrow)
    table.add("decode, rgb-16x, linear decoder", "MP/s", megapixels, lambda: linear.decode(codes))
    part = pixels[..., :256, :256]
    table.add("compress, refine=10, rgb-16x", "MP/s", 256 * 256 / 1e6, lambda: model.compress(part, refine=10))


def measure_training(table: Table, picture: PIL.Image.Image) -> None:
    """Steps of training the decoder's network, of four crops: forward and backward, the optimizer left out."""
    model = load_codec("rgb-f16c48")[0].requires_grad_(False).train()
    model.decoder.network.requires_grad_(True)
    crops = [picture.crop((x, y, x + 96, y + 96)) for x, y in ((0, 0), (96, 0), (0, 96), (96, 96))]
    pixels = WallocImageProcessor(patch_size=16)(crops, return_tensors="pt")["pixel_values"]

    def step() -> None:
        with torch.inference_mode(False):
            model.zero_grad()
            model(pixels.clone()).loss.backward()

    table.add("training of the network, rgb-f16c48", "MP/s", 4 * 96 * 96 / 1e6, step)


def encode_all(codes: list[np.ndarray], tables: EntropyTables) -> list[bytes]:
    return [encode_codes(item, tables) for item in codes]


def decode_all(data: list[bytes], codes: list[np.ndarray], tables: EntropyTables) -> list[np.ndarray]:
    return [decode_codes(item, like.shape, tables) for item, like in zip(data, codes, strict=True)]


def decode_jpeg(file: bytes) -> PIL.Image.Image:
    picture = PIL.Image.open(io.BytesIO(file))
    picture.load()
    return picture


def measure_data_sets(table: Table, pictures: list[PIL.Image.Image]) -> None:
    """Rows of data sets: photographs as JPEG, decoded and resized to floats, and the latents of the resized ones."""
    count = len(pictures)
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    size = sum(map(len, files)) / count / 1e3

    def read_jpegs() -> list[torch.Tensor]:
        resized = (decode_jpeg(file).resize(ROW_SIZE, PIL.Image.Resampling.BICUBIC) for file in files)
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255) for image in resized]

    table.add("JPEG: rows read, decoded and resized", "rows/s", count, read_jpegs, f"{size:.1f} kB a row")
    codec = WallocImageEncoder.from_pretrained(bundled_path("rgb-16x"))
    transform = LatentTransform(codec)
    for storage in ("webp", "walloc", "int8"):

        def write(storage: str = storage) -> list[dict]:
            return encode_rows(pictures, codec, storage, ROW_SIZE)  # type: ignore[arg-type]

        rows = write()
        size = sum(len(row["bytes"]) for row in rows) / count / 1e3
        table.add(f"{storage}: rows read", "rows/s", count, partial(transform, {LATENTS: rows}), f"{size:.1f} kB")

        table.add(f"{storage}: rows written, resized", "rows/s", count, write)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of photographs (default scikit-image's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="OUT", help="also write the numbers to a file")
    parser.add_argument("--write", action="store_true", help="also write docs/results/kernels.json and the page")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    pictures = load_pictures(arguments.images)
    print(f"{native.describe()}\n{len(pictures)} pictures, one thread, CPU time\n")
    print(f"{'':<46}{'fallback':>10}{'kernels':>10}")
    table = Table(arguments.rounds)
    measure_encoders(table, pictures)
    measure_blocks(table, pictures)
    measure_decoders(table, pictures[0])
    measure_training(table, pictures[0])
    measure_data_sets(table, pictures)
    result = {"machine": machine(1), "versions": versions(), "rounds": arguments.rounds, "rows": table.rows}
    text = json.dumps(result, indent=1)
    if arguments.json:
        write_atomically(arguments.json, text)
    if arguments.write:
        write_atomically(RESULTS / "kernels.json", text)
        page = ROOT / "docs" / "concepts" / "kernels.md"
        write_atomically(page, between(page.read_text(), "kernels", page_table(result)))


def page_table(result: dict[str, Any]) -> str:
    """Markdown; pixels are also compared with those that Pillow decodes from JPEG in the same time."""
    rows = result["rows"]
    jpeg = rows[0]["kernels"]
    lines = [
        f"One thread of {result['machine']['processor']}, load {result['machine']['load']:.0f} on "
        f"{result['machine']['cores']} cores, best of {result['rounds']} rounds of CPU time.",
        "",
        "| | without | with | ratio | of Pillow's JPEG decoding |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        share = f"{row['kernels'] / jpeg:.2f}" if row["unit"] == "MP/s" and row["kernels"] > 0.005 * jpeg else ""
        ratio = f"{row['ratio']:.1f}" if abs(row["ratio"] - 1) > 0.1 else ""
        name = f"{row['row']}, {row['unit']}" + (f" ({row['note']})" if row["note"] else "")
        off, on = (f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (row["fallback"], row["kernels"]))
        lines.append(f"| {name} | {off} | {on} | {ratio} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
