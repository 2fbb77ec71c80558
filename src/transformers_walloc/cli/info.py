"""`walloc info`: needs no model, and no torch."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from .. import native
from ..codec.bitstream import unpack
from ..codec.side_data import RECORDS, split_records
from ..codec.varints import WallocFormatError
from ..media.messages import MediaError
from ..media.paths import WALLOC_SUFFIX, find_files, read_bytes
from .console import complain

EXAMPLES = """\
  walloc info photo.walloc
  walloc info --json small/ | jq .bits_per_pixel
  walloc info --kernels"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = ".walloc files, folders, patterns, - for standard input"
    parser.add_argument("inputs", nargs="*", metavar="FILE", help=what)
    parser.add_argument(
        "--kernels", action="store_true", help="say whether the compiled kernels run, see docs/concepts/kernels.md"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object in each line")


def run(inputs: Sequence[str], *, json: bool = False, kernels: bool = False) -> int:
    """Print what files contain, and which kernels run; returns the exit status, 1 if a file cannot be read."""
    if not (inputs or kernels):
        raise MediaError("no files: name some, or ask for --kernels")
    status = 0
    if kernels:
        print(native.describe())
    for source, _ in find_files(inputs, (WALLOC_SUFFIX,)):
        try:
            facts = describe(source, read_bytes(source))
        except ValueError as error:
            complain(error)
            status = 1
            continue
        print(_as_json(facts) if json else _as_text(facts))
    return status


def describe(source: str, data: bytes) -> dict[str, Any]:
    """What a .walloc file says about itself, as a flat dict.

    Raises:
        MediaError: it is none; the message names `source`.
    """
    try:
        header, payload = unpack(data, None, None)
    except WallocFormatError as error:
        raise MediaError(f"{source}: {error}") from error
    count = math.prod(header.sizes)
    facts: dict[str, Any] = {"file": source, "bytes": len(data), "codec": header.codec, "kind": header.kind}
    if header.kind == "volume":
        facts |= dict(zip(("depth", "height", "width"), header.sizes, strict=True))
        facts |= {"channels": header.num_channels, "bits_per_voxel": 8 * len(data) / count}
        if header.frame_rate:
            facts["frame_rate"] = header.frame_rate
        uncompressed = count * header.num_channels
        if header.raster:
            raster = header.read_raster()[0]
            facts |= raster.to_dict()
            uncompressed *= raster.itemsize
    elif header.kind == "image":
        channels = 1 if "gray" in header.sample_format else header.num_channels
        facts |= {"height": header.sizes[0], "width": header.sizes[1]}
        facts |= {"channels": channels, "bits_per_pixel": 8 * len(data) / count}
        uncompressed = count * channels
        if header.raster:
            raster = header.read_raster()[0]
            facts |= raster.to_dict()
            uncompressed *= raster.itemsize
        elif "16-bit" in header.sample_format:
            uncompressed *= 2
    else:
        rate = header.sampling_rate or 1
        facts |= {"samples": count, "channels": header.num_channels, "sampling_rate": rate, "seconds": count / rate}
        facts |= {"gain": header.gain, "offset": header.offset, "kilobits_per_second": len(data) * rate / count / 125}
        uncompressed = count * header.num_channels * 2
        if header.source:
            channels, rate, length = header.source
            facts |= {"source_channels": channels, "source_sampling_rate": rate, "source_samples": length}
            uncompressed = channels * length * 2
    for kind, content in split_records(header.side_data).items():
        facts[f"{RECORDS[kind]}_bytes"] = len(content)
    if header.sample_format:
        facts["sample_format"] = header.sample_format
    patch = header.patch_size**header.num_dims
    return facts | {
        "compression_ratio": uncompressed / len(data),
        "dimensionality_reduction": header.num_channels * patch / header.latent_channels,
        "latent_shape": list(header.latent_shape),
        "coded_channels": header.coded_channels,
        "latent_bits": header.latent_bits,
        "step": header.step,
        "patch_size": header.patch_size,
        "header_bytes": len(data) - len(payload),
        "coder": header.coder,
        "fingerprint": header.fingerprint,
        "entropy_tables": header.tables,
    }


def _as_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts)


def _as_text(facts: dict[str, Any]) -> str:
    def readable(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return "x".join(map(str, value)) if isinstance(value, list) else str(value)

    width = max(map(len, facts))
    return "".join(f"{name:{width}}  {readable(value)}\n" for name, value in facts.items())
