"""Speed of encoders, decoders and the inverse wavelet packet transform beside the original implementation's.

The last table is of training: what one process of the loader delivers beside what a training step takes.

    python -m research.benchmark_speed                     # two threads, all sizes
    python -m research.benchmark_speed --threads 1 --only encode --json speed.json
    python -m research.benchmark_speed --device cuda

Every row of a table is timed in turn within one process, on the same input and threads, after warming up; the table
shows medians, in megapixels (images) or million samples of all channels (audio) a second, and the ratio to the original
where the PyPI package `walloc` is installed (`pip install walloc==1.2.1 'setuptools<80'`). Pictures are decoded by the
bundled codecs; all other weights are random.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel, bundled_path
from transformers_walloc.atomic import write_atomically
from transformers_walloc.codec.bottleneck import compand
from transformers_walloc.codec.wavelet_convolutions import analysis_bands, band_order, synthesis_bands
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis
from transformers_walloc.evaluation.stand_ins import stand_ins
from transformers_walloc.media.paths import list_files
from transformers_walloc.training.data import ImageCrops, MediaCache
from transformers_walloc.training.losses import subband_error

IMAGE_SIZES = ((1, 512, 768), (1, 2160, 3840), (8, 256, 256))
AUDIO_SIZES = ((1, 2**20), (8, 2**17))
TRAINING_SIZES = ((14, 192, 192),)
PARTS = ("encode", "synthesis", "decode", "train")
SIGNALS = ("image", "audio")
Rows = dict[str, Callable[[], object]]
# A decode of the original takes seconds at the smallest size, and its attention 67 GB at 3840 x 2160.
MAX_ORIGINAL_DECODE_PIXELS = 2**19
# Beside the original's decoder of as many latent channels: what reduces the dimensions as far.
DECODERS = {12: ("rgb-16x", "rgb-f16c48"), 48: ("rgb-4x",)}


def import_original():
    """The module of the PyPI package `walloc`, or None."""
    try:
        import diffusers.models.autoencoders.autoencoder_kl
        import diffusers.models.autoencoders.autoencoder_oobleck  # noqa: F401

        # The package imports transforms that none of the timed code uses, from a library that is often absent.
        with stand_ins("torchvision"):
            import walloc.walloc

        return walloc.walloc
    except ImportError as error:
        print(f"The original is left out: {error} (pip install walloc==1.2.1 'setuptools<80' diffusers)")
        return None


def median_seconds(rows: Rows, device: str, budget: float) -> dict[str, float]:
    """Time callables in turn, round after round, so that a change of the machine's load meets all of them alike."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in rows}
    rounds = 0
    for run in rows.values():
        for _ in range(3):
            begin = time.perf_counter()
            run()
            synchronize()
            if time.perf_counter() - begin > budget / 5:
                break
    begin = time.perf_counter()
    while rounds < 3 or (rounds < 200 and time.perf_counter() - begin < budget * len(rows)):
        for name, run in rows.items():
            if rounds >= 2 and sum(times[name]) > 2 * budget:
                continue
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, rows: Rows, amount: float, arguments, results: list) -> None:
    """Time and print a table; `amount` is what one call processes, in millions."""
    seconds = median_seconds(rows, arguments.device, arguments.budget)
    reference = next((seconds[name] for name in rows if name.startswith("original")), None)
    print(f"\n{title}")
    for name in rows:
        ratio = "" if reference is None else f"{reference / seconds[name]:8.1f}x"
        print(f"  {name:<46}{amount / seconds[name]:9.2f} M/s{ratio}", flush=True)
        results.append(
            {
                "table": title,
                "row": name,
                "millions_per_second": amount / seconds[name],
                "milliseconds": 1e3 * seconds[name],
                "ratio_to_original": None if reference is None else reference / seconds[name],
            }
        )


def encode_by_convolutions(model, x: torch.Tensor) -> torch.Tensor:
    """The encoder in its differentiable form: wavelet packets by strided convolutions, then the projection."""
    config, projection = model.config, model.encoder.projection
    bands = analysis_bands(x, config.num_levels, config.wavelet, config.boundary, config.num_dims)
    order = band_order(config.num_levels, config.num_dims, x.device, inverse=True)
    weight = projection.weight.flatten(1).unflatten(1, (config.num_channels, -1))[:, :, order].flatten(1)
    return compand(weight @ bands.flatten(2) + projection.bias[:, None], config.latent_bits)


def image_synthesis_rows(original, device: str, batch: int, height: int, width: int, channels: int) -> Rows:
    bands = torch.randn(batch, 192, height // 8, width // 8, device=device)
    rows: Rows = {}
    if original:
        codec = original.Codec2D(3, 3, 32, 32, 12, 8, True).to(device)
        rows["original"] = lambda: codec.wavelet_synthesis(bands, 3)
    rows["ours, as convolutions (differentiable)"] = lambda: synthesis_bands(bands, 3, "bior4.4", "symmetric", 2)
    rows["ours, boundary periodization"] = lambda: wavelet_packet_synthesis(bands, 3, boundary="periodization")
    rows["ours"] = lambda: wavelet_packet_synthesis(bands, 3)
    return rows


def on(device: str, model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The model in evaluation mode on a device."""
    return model.to(device, dtype).eval()


def image_encode_rows(original, device: str, batch: int, height: int, width: int, channels: int) -> Rows:
    x = torch.rand(batch, 3, height, width, device=device) - 0.5
    model = on(device, WallocImageModel(WallocImageConfig(latent_channels=channels)))
    periodic = on(device, WallocImageModel(WallocImageConfig(latent_channels=channels, boundary="periodization")))
    patches = nn.Conv2d(3, channels, 8, stride=8, device=device)
    rows: Rows = {}
    if original:
        codec = original.Codec2D(3, 3, 32, 32, channels, 8, True).to(device).eval()
        encoder = codec.encoder[:2]  # projection and companding, without rounding
        rows["original"] = lambda: encoder(codec.wavelet_analysis(x, 3))
    rows["ours, as convolutions (differentiable)"] = lambda: encode_by_convolutions(model, x)
    rows["ours, boundary periodization"] = lambda: periodic.encode(x)
    rows["ours"] = lambda: model.encode(x)
    rows["an 8 x 8 patch convolution, as a ViT's"] = lambda: patches(x)
    return rows


def image_decode_rows(original, device: str, batch: int, height: int, width: int, channels: int) -> Rows:
    rows: Rows = {}
    if original and batch * height * width <= MAX_ORIGINAL_DECODE_PIXELS:
        codec = original.Codec2D(3, 3, 32, 768, channels, 8, True).to(device).eval()
        floats = torch.randint(-20, 20, (batch, channels, height // 8, width // 8), device=device).float()
        rows["original (width 768)"] = lambda: codec.wavelet_synthesis(codec.decoder(floats), 3)
    for name in DECODERS[channels]:
        for dtype in (torch.float32, torch.bfloat16) if multiplies_bfloat16(device) else (torch.float32,):
            model = on(device, WallocImageModel.from_pretrained(bundled_path(name)), dtype)
            patch = model.config.patch_size
            shape = batch, model.config.latent_channels, height // patch, width // patch
            codes = torch.randint(-20, 20, shape, device=device).to(torch.int8)
            rows[f"{name}, {str(dtype).removeprefix('torch.')}"] = partial(model.decode, codes)
    return rows


def multiplies_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 are not emulated."""
    return device == "cuda" or torch.cpu._is_avx512_bf16_supported()


def audio_synthesis_rows(original, device: str, batch: int, length: int, channels: int) -> Rows:
    bands = torch.randn(batch, 512, length // 256, device=device)
    rows: Rows = {}
    if original:
        codec = original.Codec1D(2, 8, 108, 108, 27, 8, True, False).to(device)
        rows["original"] = lambda: codec.wavelet_synthesis(bands, 8)
    rows["ours"] = lambda: wavelet_packet_synthesis(bands, 8, num_dims=1)
    return rows


def audio_encode_rows(original, device: str, batch: int, length: int, channels: int) -> Rows:
    x = torch.rand(batch, 2, length, device=device) - 0.5
    model = on(device, WallocAudioModel(WallocAudioConfig(latent_channels=channels)))
    rows: Rows = {}
    if original:
        codec = original.Codec1D(2, 8, 4 * channels, 4 * channels, channels, 8, True, False).to(device).eval()
        encoder = codec.encoder[:2]
        rows["original"] = lambda: encoder(codec.wavelet_analysis(x, 8))
    rows["ours, as convolutions (differentiable)"] = lambda: encode_by_convolutions(model, x)
    rows["ours"] = lambda: model.encode(x)
    return rows


def audio_decode_rows(original, device: str, batch: int, length: int, channels: int) -> Rows:
    config = WallocAudioConfig(latent_channels=channels)
    model = on(device, WallocAudioModel(config))
    half = on(device, WallocAudioModel(config), torch.bfloat16)
    codes = torch.randint(-20, 20, (batch, channels, length // 256), device=device).to(torch.int8)
    rows: Rows = {}
    if original:
        codec = original.Codec1D(2, 8, 768, 768 // channels * channels, channels, 8, True, True).to(device).eval()
        # Its encoder pads by one frame on either side, which its decoder takes off again.
        floats = nn.functional.pad(codes.float(), (1, 1))
        rows["original (width 768, post filter)"] = lambda: codec.post(
            codec.wavelet_synthesis(codec.decoder(floats), 8)
        )
    rows["ours, float32"] = lambda: model.decode(codes)
    rows["ours, bfloat16"] = lambda: half.decode(codes)
    return rows


@torch.inference_mode(False)
def train_rows(original, device: str, batch: int, height: int, width: int, channels: int) -> Rows:
    """A batch of random crops by one process of the loader, and a training step of the default decoder on it."""
    model = on(device, WallocImageModel(WallocImageConfig(latent_channels=channels)))
    model.to(memory_format=torch.channels_last)
    model.train().encoder.requires_grad_(False)
    x = torch.rand(batch, 3, height, width, device=device) - 0.5

    @torch.inference_mode(False)
    def step():
        with torch.autocast(device, torch.bfloat16):
            loss: Any = subband_error(model, x).loss
        loss.backward()
        model.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        picture = np.random.default_rng(0).integers(0, 256, (1024, 1536, 3), np.uint8)
        Image.fromarray(picture).save(f"{folder}/noise.png")
        cache = MediaCache(list_files(folder, [".png"]), "image", folder)
        cache[0]  # maps the file, which outlives its name
    batches = iter(DataLoader(ImageCrops([cache], [1.0], height), batch_size=batch))
    return {"crops, one loader process": lambda: next(batches), "training step, bfloat16 autocast": step}


TABLES: dict[tuple[str, str], tuple[str, Callable[..., Rows], tuple[int, ...]]] = {
    ("encode", "image"): ("Encoder", image_encode_rows, (12, 48)),
    ("encode", "audio"): ("Encoder", audio_encode_rows, (27, 108)),
    ("synthesis", "image"): ("Inverse wavelet packet transform", image_synthesis_rows, (0,)),
    ("synthesis", "audio"): ("Inverse wavelet packet transform", audio_synthesis_rows, (0,)),
    ("decode", "image"): ("Decoder", image_decode_rows, (12, 48)),
    ("decode", "audio"): ("Decoder", audio_decode_rows, (27, 108)),
    ("train", "image"): ("Training", train_rows, (12,)),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=PARTS, action="append", help="tables to print (default all); may be repeated")
    parser.add_argument("--signal", choices=SIGNALS, action="append", help="default both")
    parser.add_argument("--small", action="store_true", help="small inputs, for a quick look")
    parser.add_argument("--no-original", action="store_true", help="leave the original out, installed or not")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time a row for, about (default 1)")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers to a file")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; it must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    sizes: dict[str, tuple] = {"image": IMAGE_SIZES, "audio": AUDIO_SIZES}
    if arguments.small:
        sizes = {"image": ((1, 64, 96),), "audio": ((1, 2**15),)}
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"torch {torch.__version__} on {where}")
    original = None if arguments.no_original else import_original()
    results: list[dict] = []
    with torch.inference_mode():
        for (part, signal), (name, make_rows, latent_channels) in TABLES.items():
            if part not in (arguments.only or PARTS) or signal not in (arguments.signal or SIGNALS):
                continue
            for size in TRAINING_SIZES if part == "train" else sizes[signal]:
                is_slow = (part, signal, arguments.device) == ("decode", "image", "cpu")
                if is_slow and original and math.prod(size) > MAX_ORIGINAL_DECODE_PIXELS:
                    continue  # nothing to compare with
                for channels in latent_channels:
                    rows = make_rows(original, arguments.device, *size, channels)
                    batch, *extent = size
                    what = (
                        f"{batch} x {extent[1]} x {extent[0]} RGB"
                        if signal == "image"
                        else f"{batch} x {extent[0]} stereo"
                    )
                    latents = f", {channels} latent channels" if channels else ""
                    amount = math.prod(size) * (2 if signal == "audio" else 1) / 1e6
                    report(f"{name}{latents}, {what}", rows, amount, arguments, results)
    if arguments.json:
        document = {"torch": torch.__version__, "where": where, "results": results}
        write_atomically(arguments.json, json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
