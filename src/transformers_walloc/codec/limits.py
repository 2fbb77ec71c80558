"""What a codec can take: of memory, told from a file's header before anything is allocated, and of values."""

import math
import warnings
from typing import Any

import torch

from .bitstream import Header
from .configuration_walloc import WallocConfig
from .entropy_context import SHIFTED_CHANNELS
from .entropy_tables import EntropyTables
from .varints import WallocFormatError

MAX_MEMORY = 2 * 2**30
# Decoding runs in tiles of latents above this many positions, so that the decoder's activations stay bounded.
MAX_TILE_POSITIONS = 2**16
# Of float32 activations that are alive at a time in a decoder's network, and of the tensors around it.
_ACTIVATIONS, _FLOAT = 4, 4


_CHECKED_CALLS = 3  # of each model; the first batch may be black


def warn_of_range(model: Any, name: str, x: torch.Tensor) -> None:
    """Warn where signals are not in [-0.5, 0.5] as the processor gives them, and what is outside would saturate.

    Looks at the first calls of a model alone, since a device is waited for, and at none that a compiler traces.
    """
    calls = getattr(model, "_range_checks", 0)
    if calls >= _CHECKED_CALLS or not x.is_floating_point() or x.is_meta or torch.compiler.is_compiling():
        return
    model._range_checks = calls + 1
    try:
        low, high = x.detach().min().item(), x.detach().max().item()
    except RuntimeError:  # there are no values: inside of vmap, of a tracer
        return
    if 0.75 < max(high, -low) < math.inf:  # infinite values are refused elsewhere
        model._range_checks = _CHECKED_CALLS
        warnings.warn(
            f"{name} lie in {low:.3g} to {high:.3g}, and the codec takes -0.5 to 0.5: what is outside saturates. The "
            "processor of the codec would have scaled them (x / 255 - 0.5 of 0 to 255, x - 0.5 of 0 to 1, audio by its "
            "peak)",
            stacklevel=4,
        )


def check_memory(header: Header, config: WallocConfig, decode: bool, max_memory: int | None) -> None:
    """Refuse a file that would take more than `max_memory` bytes; None for no limit."""
    needed = decoding_memory(header, config, decode)
    if max_memory is not None and needed > max_memory:
        raise WallocFormatError(
            f"decoding this {header.kind} of {' x '.join(map(str, header.sizes))} takes about {needed / 1e9:.2g} GB of "
            f"memory, more than the limit of {max_memory / 1e9:.2g} GB; raise max_memory if you trust the file"
        )


def decoding_memory(header: Header, config: WallocConfig, decode: bool = True) -> int:
    """About the bytes that `decompress` takes at its peak beside the model, for decoders of this package at most.

    Args:
        header: of a file of this codec.
        decode: whether the signal is wanted, too, and not only the codes.
    """
    positions, codes = math.prod(header.grid), math.prod(header.latent_shape)
    # Planes of float32 that the context networks look at; the compiled coder takes less.
    planes = 4 * header.coded_channels + 4 * min(header.coded_channels, SHIFTED_CHANNELS) + 64
    reading = 2 * codes + _FLOAT * positions * planes
    if not decode:
        return reading
    signal = _FLOAT * header.padded_size * header.num_channels
    # Codes as floats, before and after the step; subbands and signal, or the signal twice; a tile of the network.
    return max(reading, 2 * codes + 2 * _FLOAT * codes + 2 * signal + _network_memory(config, positions))


def check_payload(payload: bytes, header: Header, tables: EntropyTables) -> None:
    """Refuse a payload that is too short for its codes, whatever they are, before any of them is decoded."""
    frequencies = tables.frequencies
    likeliest = float((frequencies.max(axis=1) / frequencies.sum(axis=1)).max())
    codes = math.prod(header.coded_shape)
    # Less what the coder's own rounding of probabilities, and its last words, may save.
    least = 0.95 * codes * -math.log2(likeliest) / 8 - 16
    if len(payload) < least:
        raise WallocFormatError(f"the latents are damaged: {len(payload)} bytes cannot hold {codes} codes")


def _network_memory(config: WallocConfig, positions: int) -> int:
    whole = config.decoder_type in ("kl", "oobleck")  # these run on the whole grid
    tile = positions if whole else min(positions, MAX_TILE_POSITIONS * 5 // 4)  # with its halo
    channels = 3 * config.subband_channels + 3 * config.latent_channels
    if config.decoder_type == "restoration":
        channels += _ACTIVATIONS * config.decoder_hidden_size * (config.patch_size // config.decoder_downsampling) ** 2
    elif config.decoder_type != "linear":
        channels += _ACTIVATIONS * config.decoder_hidden_size
    return _FLOAT * tile * channels
