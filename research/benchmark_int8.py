"""What 8-bit integers would bring to decoding on this CPU: the restoration network of rgb-16x, quantised statically.

    python -m research.benchmark_int8 [--size 256] [--rounds 3]

ONNX Runtime's QDQ format, weights per channel, stem and head in float32, calibrated on two photographs; run by ONNX
Runtime with unsigned and with signed activations, and by OpenVINO where it is installed (`pip install openvino`). One
thread, CPU time, every way in turn, the best round of each; PSNR on two other photographs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transformers_walloc import WallocImageModel, bundled_path
from transformers_walloc.codec.bottleneck import decompand

CALIBRATION, VALIDATION = ("astronaut", "rocket"), ("coffee", "chelsea")
INPUTS = ("picture", "latents")
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def network_inputs(model: Any, name: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(original, linearly decoded picture, decompanded latents) of the middle of a photograph."""
    import skimage.data

    photograph = getattr(skimage.data, name)()
    y, x = ((length - size) // 2 for length in photograph.shape[:2])
    pixels = torch.from_numpy(photograph[y : y + size, x : x + size].copy()).permute(2, 0, 1)[None] / 255 - 0.5
    with torch.no_grad():
        codes = model.encode_to_codes(pixels).float()
        picture = model._synthesise(model.decode_subbands(codes))
        latents = decompand(codes, model.config.latent_bits)
    return pixels.numpy(), picture.numpy(), latents.numpy()


def export_network(network: torch.nn.Module, inputs: tuple[np.ndarray, ...], path: Path) -> None:
    tensors = tuple(map(torch.from_numpy, inputs))
    program = torch.onnx.export(network, tensors, dynamo=True, input_names=list(INPUTS), output_names=["restored"])
    assert program is not None
    program.save(str(path))


def quantise(source: Path, target: Path, samples: Sequence[tuple[np.ndarray, ...]], signed: bool) -> int:
    """Number of convolutions that are left in float32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter([dict(zip(INPUTS, sample, strict=True)) for sample in samples])

        def get_next(self):
            return next(self.rest, None)

    # The residual blocks are k x k convolutions of equal width; what joins and leaves them stays as it is.
    graph = onnx.load(source).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    inner = [node.name for node in convolutions if len(set(shapes[node.input[1]][:2])) == 1]
    activations = QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Without VNNI, sums of two products of unsigned and signed bytes saturate: 7 bits for weights.
        reduce_range=not signed,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=inner,
    )
    return len(convolutions) - len(inner)


def onnxruntime_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda picture, latents: session.run(None, dict(zip(INPUTS, (picture, latents), strict=True)))[0]


def openvino_run(path: Path) -> Run:
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda picture, latents: compiled([picture, latents])[0]


def psnr(original: np.ndarray, restored: np.ndarray) -> float:
    error = np.mean((original - restored.clip(-0.5, 0.5)) ** 2, dtype=np.float64)
    return -10 * math.log10(error)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="of the pictures' side, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = WallocImageModel.from_pretrained(bundled_path("rgb-16x")).eval().requires_grad_(False)
    network = model.decoder.network
    samples = [network_inputs(model, name, arguments.size)[1:] for name in CALIBRATION]
    validation = [network_inputs(model, name, arguments.size) for name in VALIDATION]
    ways: dict[str, Run] = {
        "torch, float32": lambda *inputs: network(*map(torch.from_numpy, inputs)).numpy(),
    }
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "float32.onnx")
        export_network(network, samples[0], plain)
        ways["ONNX Runtime, float32"] = onnxruntime_run(plain)
        for name, signed in (("unsigned activations", False), ("signed activations", True)):
            path = Path(folder, f"int8-{signed}.onnx")
            left = quantise(plain, path, samples, signed)
            ways[f"ONNX Runtime, int8, {name}"] = onnxruntime_run(path)
        print(f"{left} convolutions stay in float32")
        try:
            ways["OpenVINO, float32"] = openvino_run(plain)
            ways["OpenVINO, int8, unsigned activations"] = openvino_run(Path(folder, "int8-False.onnx"))
        except ImportError as error:
            print(f"OpenVINO is left out: {error}")
        measure(ways, validation, arguments.rounds)


def measure(ways: dict[str, Run], validation: Sequence[tuple[np.ndarray, ...]], rounds: int) -> None:
    best = dict.fromkeys(ways, math.inf)
    quality = {}
    for _ in range(rounds):
        for name, run in ways.items():
            begin = time.process_time()
            restored = [run(picture, latents) for _, picture, latents in validation]
            best[name] = min(best[name], time.process_time() - begin)
            quality[name] = np.mean([psnr(one[0], other) for one, other in zip(validation, restored, strict=True)])
    pixels = sum(math.prod(original.shape[2:]) for original, *_ in validation) / 1e6
    reference = next(iter(ways))
    print(f"{'':<40}{'MP/s':>8}{'ratio':>8}{'dB':>9}{'loss':>8}")
    for name in ways:
        loss = quality[reference] - quality[name]
        ratio = best[reference] / best[name]
        print(f"{name:<40}{pixels / best[name]:8.3f}{ratio:8.2f}{quality[name]:9.3f}{loss:8.3f}")


if __name__ == "__main__":
    main()
