"""What ties a .walloc file to a codec: its name, the fingerprint of its encoder, its entropy tables."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable

import safetensors.numpy
import torch
from safetensors import SafetensorError

from .bitstream import MAX_CODEC_BYTES, tables_id
from .configuration_walloc import WallocConfig
from .entropy_coding import EntropyTables

# Fields that give codes their meaning, beside the weights of the encoder.
_FIELDS = ("num_dims", "num_channels", "num_levels", "latent_channels", "latent_bits", "wavelet", "boundary")


def latent_fingerprint(config: WallocConfig, weights: Iterable[torch.Tensor]) -> str:
    """16 hexadecimal digits over the weights of an encoder, as float32, and the fields that codes depend on."""
    fields = [getattr(config, name) for name in (*_FIELDS, "encoder_padding")]
    digest = hashlib.sha256(json.dumps(fields).encode())
    for weight in weights:
        digest.update(weight.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def codec_name(name_or_path: str | os.PathLike | None) -> str:
    """What files call a codec: its Hub id, without the namespace walloc, or the name of its folder.

    Never a path of the machine that wrote the file.
    """
    text = str(name_or_path or "").replace("\\", "/").rstrip("/")
    if cached := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", text):
        text = "/".join(cached.groups())
    elif text.count("/") != 1 or text[0] in "./~" or os.path.isdir(text):
        text = text.rsplit("/", 1)[-1]
    text = "".join(c if c.isprintable() else "?" for c in text.removeprefix("walloc/"))
    return text.encode(errors="replace")[:MAX_CODEC_BYTES].decode(errors="ignore")


def tables_to_bytes(tables: EntropyTables | None, latent_channels: int) -> bytes:
    """Tables as a checkpoint carries them; nothing for the generic ones, None.

    Raises:
        ValueError: they are for another number of channels.
    """
    if tables is None:
        return b""
    if tables.num_channels != latent_channels:
        raise ValueError(f"the tables are for {tables.num_channels} channels; the codec has {latent_channels}")
    return safetensors.numpy.save(dict(tables.to_arrays()))


def tables_from_buffer(buffer: torch.Tensor | None, latent_channels: int) -> tuple[EntropyTables, str]:
    """The tables in a buffer of a model, and their `tables_id`; without a buffer or if it is zero, the generic ones.

    Raises:
        ValueError: damaged tables, or some for another number of channels.
    """
    data = b"" if buffer is None or not buffer.any() else buffer.cpu().numpy().tobytes()
    return _parse_tables(data, latent_channels)


@functools.lru_cache(maxsize=8)
def _parse_tables(data: bytes, latent_channels: int) -> tuple[EntropyTables, str]:
    if data:
        try:
            tables = EntropyTables.from_arrays(safetensors.numpy.load(data))
        except (SafetensorError, KeyError, TypeError) as error:  # also of a dtype that numpy does not have
            raise ValueError(f"the entropy tables of the checkpoint are damaged: {error}") from error
        if tables.num_channels != latent_channels:
            raise ValueError(f"the checkpoint's entropy tables are for {tables.num_channels} channels")
    else:
        tables = EntropyTables.default(latent_channels)
    return tables, tables_id(tables.to_arrays())
