"""Encoding and decoding on a device in GB/s of pixels, beside a copy on it and a ViT's patch convolution.

    python -m research.benchmark_device --device cuda
    python -m research.benchmark_device --device cpu --size 64 --batches 1 --rounds 1 --eager

Pixels are 3 numbers of the row's dtype each, so a copy in the same dtype is what could be reached. Batches of 1 and 64,
float32 and bfloat16, eager and through torch.compile; weights of rgb-16x. Best of the rounds, after warming up.

Before that, how far codes and pixels of a photograph (scikit-image's astronaut) are from those that the CPU gives.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from transformers_walloc import WallocImageModel, bundled_path
from transformers_walloc.atomic import write_atomically

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(function: Callable[[], Any], device: str, rounds: int) -> float:
    """The best of some rounds; on a GPU by its own clock."""
    for _ in range(2):
        function()
    best = float("inf")
    for _ in range(rounds):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            function()
            best = min(best, time.perf_counter() - start)
    return best


def make_rows(model: Any, patches: nn.Module, pixels: torch.Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    codes = model.encode_to_codes(pixels)
    target = torch.empty_like(pixels)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return model.encode(x).latents

    def decode(codes: torch.Tensor) -> torch.Tensor:
        return model.decode(codes)[0]

    wrap: Any = torch.compile if compiled else (lambda function, **_: function)
    encode, decode, convolve = (wrap(function, dynamic=False) for function in (encode, decode, patches))
    return {
        "copy on the device": lambda: target.copy_(pixels),
        "8 x 8 patch convolution of a ViT": lambda: convolve(pixels),
        "encode": lambda: encode(pixels),
        "decode": lambda: decode(codes),
    }


@torch.no_grad()
def compare_with_cpu(name: str, device: str) -> dict[str, float]:
    """How far the results of a codec on a device are from the CPU's, for a photograph of 512 x 512 pixels."""
    from skimage.data import astronaut

    pixels = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 255.0 - 0.5
    on_cpu = WallocImageModel.from_pretrained(bundled_path(name)).eval()
    latents = on_cpu.encode(pixels).latents
    codes = on_cpu.quantize(latents)
    decoded = on_cpu.decode(codes)[0]
    there = copy.deepcopy(on_cpu).to(device)
    found = there.encode(pixels.to(device)).latents
    restored = there.decode(codes.to(device))[0]
    half = there.to(torch.bfloat16).decode(codes.to(device))[0]
    return {
        "latents_max": (found.cpu() - latents).abs().max().item(),
        "codes_differ_percent": 100 * (there.quantize(found).cpu() != codes).double().mean().item(),
        "pixels_max_levels": 255 * (restored.cpu() - decoded).abs().max().item(),
        "bf16_psnr": -10 * (half.cpu().float() - decoded).square().mean().log10().item(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", type=int, default=1024, help="of the pictures' side, in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers to a file")
    arguments = parser.parse_args(argv)
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}")
    differences = {name: compare_with_cpu(name, device) for name in ("rgb-16x", "rgb-4x")}
    for codec, found in differences.items():
        print(
            f"{codec} against the CPU: latents {found['latents_max']:.2g} at most, "
            f"{found['codes_differ_percent']:.3g}% of the codes differ, "
            f"pixels by {found['pixels_max_levels']:.2g} of 255 at most, in bfloat16 {found['bf16_psnr']:.1f} dB"
        )
    print(f"{'GB/s':<36}{'dtype':>6}{'batch':>6}{'eager':>10}" + ("" if arguments.eager else f"{'compiled':>10}"))
    results = []
    for name, dtype in DTYPES.items():
        model = WallocImageModel.from_pretrained(bundled_path("rgb-16x"), dtype=dtype).to(device).eval()
        model.requires_grad_(False)
        patches = nn.Conv2d(3, 768, 8, stride=8, device=device, dtype=dtype).requires_grad_(False)
        for batch in arguments.batches:
            pixels = torch.rand(batch, 3, arguments.size, arguments.size, device=device, dtype=dtype) - 0.5
            gigabytes = pixels.numel() * pixels.element_size() / 1e9
            table: dict[str, list[float]] = {}
            for compiled in (False,) if arguments.eager else (False, True):
                with torch.no_grad():
                    for row, run in make_rows(model, patches, pixels, compiled).items():
                        table.setdefault(row, []).append(gigabytes / seconds(run, device, arguments.rounds))
            for row, speeds in table.items():
                print(f"{row:<36}{name:>6}{batch:>6}" + "".join(f"{speed:10.2f}" for speed in speeds), flush=True)
                results.append({"row": row, "dtype": name, "batch": batch, "gigabytes_per_second": speeds})
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"differences": differences, "speed": results}, indent=1))


if __name__ == "__main__":
    main()
