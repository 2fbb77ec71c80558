"""Feed damaged and hostile .walloc files to the decoder and count what comes back.

    python -m research.fuzz_bitstream 1000000 [--skip DONE]

Every input must either decode to a signal of the size that its header states, within the limit, or end in
`WallocFormatError`, and take no more than `MAX_SECONDS` of processor time; all together may not make the process grow
by more than `MAX_GROWTH`. Anything else is printed with the input and makes the exit status 1. Most damage is caught by
the checksum, so most of the inputs get a valid one and reach the parser and the entropy decoder.
Every 10,000 inputs have random numbers of their own; `--skip` goes on where an interrupted run has stopped.
`research.fuzz_coverage` looks for inputs by what they reach.
"""

import argparse
import collections
import dataclasses
import resource
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageModel,
    WallocVolumeConfig,
    WallocVolumeModel,
)
from transformers_walloc.codec.bitstream import Header, pack, unpack
from transformers_walloc.codec.entropy_tables import GenericHeader
from transformers_walloc.codec.raster_format import RasterFormat
from transformers_walloc.codec.side_data import SideData
from transformers_walloc.codec.varints import WallocFormatError

MAX_PIXELS = 2**16
MAX_SAMPLES = 2**18
MAX_SECONDS = 2.0
MAX_GROWTH = 512  # MiB
BLOCK = 10_000


def valid_files(seed: int) -> list[tuple[torch.nn.Module, bytes]]:
    """Codecs with random weights, without and with entropy tables of their own, and small files of theirs."""
    torch.manual_seed(seed)
    small: dict[str, Any] = {"latent_channels": 4, "decoder_type": "linear"}
    image = WallocImageModel(WallocImageConfig(num_levels=2, **small)).eval()
    audio = WallocAudioModel(WallocAudioConfig(num_levels=3, **small)).eval()
    pixels, samples = torch.rand(1, 3, 32, 48) - 0.5, torch.rand(1, 2, 512) - 0.5
    restoring: dict[str, Any] = {"decoder_type": "restoration", "decoder_hidden_size": 8, "decoder_num_layers": 2}
    restored = WallocImageModel(WallocImageConfig(num_levels=2, latent_channels=4, **restoring)).eval()
    fitted = WallocImageModel(image.config).eval()
    fitted.load_state_dict(image.state_dict())
    fitted.set_entropy_tables(
        GenericHeader.measure(image.decompress_codes(image.compress(pixels))[0].numpy()).tables(2)
    )
    files = [
        (model, model.compress(pixels, [[29, 41]], **options)[0])
        for model in (image, fitted, restored)
        for options in _OPTIONS
    ]
    volume = WallocVolumeModel(WallocVolumeConfig(num_levels=1, **small)).eval()
    voxels = torch.rand(1, 1, 8, 16, 24, generator=torch.Generator().manual_seed(seed)) - 0.5
    files += [(volume, volume.compress(voxels, [[7, 15, 24]], **options)[0]) for options in _OPTIONS]
    files += [(audio, audio.compress(samples, gain=[2.0], offset=[0.5], **options)[0]) for options in _OPTIONS]
    return files


_OPTIONS: tuple[dict, ...] = ({}, {"step": 16.0}, {"num_channels": 2})


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(len(data))]


def flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    damaged = bytearray(data)
    for bit in rng.integers(8 * len(data), size=rng.integers(1, 9)):
        damaged[bit // 8] ^= 1 << int(bit) % 8
    return bytes(damaged)


def random_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(6)] + rng.bytes(int(rng.integers(200)))


def header_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes of the header at random, with a valid checksum."""
    end = len(data) - len(unpack(data)[1]) - 4
    damaged = bytearray(data)
    for position in rng.integers(5, end, size=rng.integers(1, 4)):
        damaged[position] = rng.integers(256)
    return _with_checksum(bytes(damaged[:-4]))


def payload_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut, grown or altered payload, with a valid checksum."""
    header, payload = unpack(data)
    changes: list[Callable[[], bytes]] = [
        lambda: flip_bits(rng, payload),
        lambda: truncate(rng, payload),
        lambda: payload + rng.bytes(int(rng.integers(1, 40))),
        lambda: rng.bytes(int(rng.integers(300))),
        lambda: b"\xff" * int(rng.integers(300)),
    ]
    return pack(header, changes[rng.integers(len(changes))]())


def bombs(rng: np.random.Generator, data: bytes) -> bytes:
    """Consistent headers that ask for sizes, channels and levels of any magnitude."""
    header, payload = unpack(data)
    sizes = tuple(int(2 ** rng.uniform(0, 31.9)) for _ in header.sizes)
    fields: dict = {"sizes": sizes}
    if rng.random() < 0.5:
        levels, channels = int(rng.integers(1, 13)), int(2 ** rng.uniform(0, 16))
        latents = int(min(2 ** rng.uniform(0, 16), channels * 2**levels))
        fields |= {"num_levels": levels, "num_channels": channels, "latent_channels": latents, "coded_channels": 0}
    return pack(dataclasses.replace(header, **fields), payload)


def fields(rng: np.random.Generator, data: bytes) -> bytes:
    """Optional fields of the header, damaged or not, that contradict the others or not."""
    header, payload = unpack(data)
    changes: list[dict[str, Any]] = [
        {"step": float(2 ** rng.uniform(0, 17))},
        {"coded_channels": int(rng.integers(0, 6))},
        {"codec": rng.bytes(int(rng.integers(4))).decode("latin-1")},
        {"sample_format": str(rng.choice(["gray", "8-bit", "24-bit", "float"]))},
        {"frame_rate": float(rng.normal() * 10 ** rng.uniform(0, 40))},
        {"raster": _raster(rng, header)},
        {
            "side_data": _damaged(
                rng, SideData(alpha=rng.integers(9, size=(29, 41), dtype=np.uint8), profile=b"x").pack()
            )
        },
        {"source": (int(rng.integers(1, 4)), int(2 ** rng.uniform(0, 24)), int(2 ** rng.uniform(0, 31)))},
        {"gain": float(rng.normal() * 10 ** rng.uniform(0, 40)), "offset": float(10 ** rng.uniform(0, 40))},
    ]
    chosen = rng.choice(len(changes), size=rng.integers(1, 3), replace=False)
    try:
        header = dataclasses.replace(header, **{name: value for i in chosen for name, value in changes[i].items()})
    except WallocFormatError:  # cannot be written, so it is written as it was
        return data
    return pack(header, payload)


def _raster(rng: np.random.Generator, header: Header) -> bytes:
    """A raster format with a mask of missing samples, whole or damaged, or of another size."""
    sizes = header.sizes if rng.random() < 0.5 else (20, 30)
    packed = RasterFormat(dtype="int16", low=-5, high=900, nodata=-9).pack(rng.random(sizes) < 0.1)
    return _damaged(rng, packed)


def _damaged(rng: np.random.Generator, field: bytes) -> bytes:
    damages = (lambda _, whole: whole, truncate, flip_bits)
    return damages[rng.integers(3)](rng, field)


def _with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


MUTATIONS = (truncate, flip_bits, random_bytes, header_bytes, payload_bytes, bombs, fields)


def fuzz(
    count: int, seed: int = 0, skip: int = 0, report: Callable[[str], None] = print
) -> tuple[collections.Counter, list[str]]:
    """Counts of (mutation, outcome) of the inputs from `skip` to `count`, and all that must not happen, described."""
    if skip % BLOCK:
        raise ValueError(f"skip is a multiple of {BLOCK}, got {skip}")
    files = valid_files(seed)
    counts: collections.Counter = collections.Counter()
    failures: list[str] = []
    slowest = 0.0
    for index in range(skip, count):
        if index % BLOCK == 0:
            rng = np.random.default_rng((seed, index // BLOCK))
        mutate = MUTATIONS[index % len(MUTATIONS)]
        model, data = files[rng.integers(len(files))]
        if rng.random() < 0.05:  # the wrong model
            model = files[rng.integers(len(files))][0]
        damaged = mutate(rng, data)
        start = time.process_time()
        try:
            outcome = decode(model, damaged)
        except WallocFormatError:
            outcome = "refused"
        except BaseException as error:
            failures.append(f"{mutate.__name__}: {type(error).__name__}: {error}: {damaged.hex()}")
            outcome = "FAILED"
            if isinstance(error, KeyboardInterrupt):
                break
        seconds = time.process_time() - start
        if seconds > MAX_SECONDS:
            failures.append(f"{mutate.__name__}: {seconds:.1f} s: {damaged.hex()}")
            outcome = "FAILED"
        slowest = max(slowest, seconds)
        counts[mutate.__name__, outcome] += 1
        if (index + 1) % BLOCK == 0:
            report(f"{index + 1} inputs, {len(failures)} failures, slowest {slowest:.3f} s")
    report(f"slowest input: {slowest:.3f} s of processor time")
    return counts, failures


def decode(model, data: bytes) -> str:
    """Decode and check the result against the header, within the limits."""
    limit = {"max_samples": MAX_SAMPLES} if model.config.num_dims == 1 else {"max_pixels": MAX_PIXELS}
    (signal,) = model.decompress([data], **limit)
    header: Header = unpack(data)[0]
    if header.side_data:
        header.read_side_data()
    if tuple(signal.shape) != (header.num_channels, *header.sizes) or not torch.isfinite(signal).all():
        raise AssertionError(f"decoded {tuple(signal.shape)} for a header of {header.sizes}")
    return "decoded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=2000, help="inputs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="inputs that were done before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    counts, failures = fuzz(options.count, options.seed, options.skip, report=lambda line: print(line, flush=True))
    seconds = time.perf_counter() - start
    print(f"\n{'mutation':16}{'refused':>10}{'decoded':>10}{'FAILED':>10}")
    for mutate in MUTATIONS:
        cells = (counts[mutate.__name__, outcome] for outcome in ("refused", "decoded", "FAILED"))
        print(f"{mutate.__name__:16}" + "".join(f"{cell:10}" for cell in cells))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > MAX_GROWTH:
        failures.append(f"peak memory grew by {grown:.0f} MiB; limit: {MAX_GROWTH}")
    took = f"{seconds:.0f} s, {len(failures)} failures; peak memory grew by {grown:.0f} MiB"
    print(f"\n{counts.total()} inputs in {took}")
    for failure in failures[:20]:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
