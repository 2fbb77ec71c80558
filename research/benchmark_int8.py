"""What 8-bit integers bring to decoding on this CPU: rgb-16x in torch and as the two graphs of `walloc export`.

    python -m research.benchmark_int8 [--images FOLDER] [--rounds 3]

One thread, CPU time, every way in turn, the best round of each; PSNR of 8-bit pictures. The ranges of activations are
those of two photographs of scikit-image; the two others are measured, or the pictures of a folder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from research.benchmark_kernels import load_pictures
from transformers_walloc import WallocImageModel, WallocImageProcessor, bundled_path
from transformers_walloc.codec.pixels import to_8_bits
from transformers_walloc.evaluation.metrics import psnr
from transformers_walloc.export import export_codec

Decode = Callable[[torch.Tensor], np.ndarray]


def graph(path: Path) -> Decode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda codes: session.run(None, {"codes": codes.numpy(), "step": np.ones(1, np.float32)})[0]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="FOLDER", help="of pictures to measure on")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = WallocImageModel.from_pretrained(bundled_path("rgb-16x")).eval().requires_grad_(False)
    processor = WallocImageProcessor()

    def signals(pictures: list[PIL.Image.Image]) -> list[torch.Tensor]:
        return [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures]

    first, *others, last = load_pictures(None)
    originals = signals(load_pictures(arguments.images) if arguments.images else others)
    codes = [model.quantize(model.encode(original).latents) for original in originals]
    with tempfile.TemporaryDirectory() as folder:
        parts = ["decoder", "decoder_int8"]
        paths = export_codec(model, folder, parts=parts, calibration=signals([first, last]))
        ways: dict[str, Decode] = {
            "torch, float32": lambda one: model.decode(one).pixel_values.numpy(),
            "ONNX Runtime, float32": graph(paths["decoder"]),
            "ONNX Runtime, int8": graph(paths["decoder_int8"]),
        }
        measure(ways, originals, codes, arguments.rounds)


def measure(
    ways: dict[str, Decode], originals: list[torch.Tensor], codes: list[torch.Tensor], rounds: int
) -> dict[str, tuple[float, float]]:
    """Print and return megapixels a second and PSNR of each way."""
    best = dict.fromkeys(ways, math.inf)
    quality: dict[str, float] = {}
    for _ in range(rounds):
        for name, decode in ways.items():
            begin = time.process_time()
            decoded = [decode(one) for one in codes]
            best[name] = min(best[name], time.process_time() - begin)
            pairs = zip(originals, decoded, strict=True)
            quality[name] = float(
                np.mean([psnr(to_8_bits(x).numpy(), to_8_bits(torch.from_numpy(y)).numpy()) for x, y in pairs])
            )
    pixels = sum(original[0, 0].numel() for original in originals) / 1e6
    reference = next(iter(ways))
    print(f"{'':<24}{'MP/s':>8}{'ratio':>8}{'dB':>9}{'loss':>8}")
    for name in ways:
        ratio, loss = best[reference] / best[name], quality[reference] - quality[name]
        print(f"{name:<24}{pixels / best[name]:8.3f}{ratio:8.2f}{quality[name]:9.3f}{loss:8.3f}")
    return {name: (pixels / best[name], quality[name]) for name in ways}


if __name__ == "__main__":
    main()
