"""What ties a .walloc file to a codec: its name, the fingerprint of its encoder, its entropy tables.

A fingerprint is a hash of the weights that make the codes. Rounding them to half precision changes the hash, and hardly
the codes, so a checkpoint also carries the hashes of its weights' roundings: whatever the precision that it is stored
or loaded in, weights with one of these hashes are the codec, and all others are another one.
"""

import functools
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import safetensors.numpy
import torch
from safetensors import SafetensorError

from .bitstream import MAX_CODEC_BYTES, tables_id
from .configuration_walloc import WallocConfig
from .entropy_coding import EntropyTables
from .kinds import KINDS
from .layers import is_foreign

# Fields that give codes their meaning, beside the weights of the encoder.
_FIELDS = ("num_dims", "num_channels", "num_levels", "latent_channels", "latent_bits", "wavelet", "boundary")


class IdentityMixin:
    """`fingerprint` of models with an `encoder`, and which files they read."""

    config: Any
    encoder: Any
    # Fingerprints of a checkpoint of an earlier version: of its weights, and what it called itself in files.
    _earlier: tuple[str, str] | None = None

    def extra_repr(self) -> str:
        """The first line of what the model prints."""
        config = self.config
        positions = KINDS[config.kind].positions
        grid = " x ".join([str(config.patch_size)] * config.num_dims)
        name = codec_name(config.name_or_path)
        return (
            f"{f'{name!r}, ' if name else ''}DR {config.dimensionality_reduction:g}, "
            f"grid of {grid} {positions}, {config.latent_channels} channels"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        config, parameters = self.config, sum(weight.numel() for weight in self.parameters())  # type: ignore[attr-defined]
        facts = {
            "class": type(self).__name__,
            "codec": codec_name(config.name_or_path) or "without a name",
            "dimensionality reduction": f"{config.dimensionality_reduction:g}",
            "one latent": f"{config.latent_channels} numbers for {config.patch_size**config.num_dims} "
            f"{KINDS[config.kind].positions} of {config.num_channels} channels",
            "parameters": f"{parameters:,}",
            "fingerprint": self.fingerprint(),
        }
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
        return f"<table>{rows}</table>"

    def fingerprint(self) -> str:
        """Identifies what codes of this model mean: 16 hexadecimal digits over the encoder and its configuration.

        Codecs with equal fingerprints read each other's codes; the decoder network is left out, so that a better one
        for the same encoder opens older files. Of a codec in half precision it is that of the weights before rounding.
        """
        own = self._own_fingerprint()
        stated = self.config.latent_fingerprint
        return stated if stated is not None and own in (self.config.rounded_fingerprints or ()) else own

    def reads(self, fingerprint: str) -> bool:
        """Whether codes that were written with a fingerprint mean the same to this model."""
        own = self._own_fingerprint()
        return fingerprint in (own, self.fingerprint()) or (own, fingerprint) == self._earlier

    def recall_identity(self) -> None:
        """Complete the configuration of a checkpoint that has just been loaded, if an earlier version wrote it.

        Those stated the fingerprint of the codec alone. If they stored the weights in float32, it is that of the
        weights. If not, the weights may have been trained since: files with that fingerprint are read, but not written.
        """
        config, weights = self.config, self._weights()
        stated = config.latent_fingerprint
        if stated is None or config.rounded_fingerprints or any(weight.is_meta for weight in weights):
            return
        own = self._own_fingerprint()
        if own == stated:
            config.rounded_fingerprints = rounded_fingerprints(config, weights)
        elif _are_rounded(weights):
            if config.rounded_fingerprints is None:
                config.rounded_fingerprints = [own]
            else:
                self._earlier = own, stated

    def state_identity(self) -> None:
        """Write the fingerprints of the weights into the configuration."""
        config, fingerprint = self.config, self.fingerprint()
        known = {*(config.rounded_fingerprints or ())} if fingerprint == config.latent_fingerprint else set()
        known.update(rounded_fingerprints(config, self._weights()))
        config.latent_fingerprint, config.rounded_fingerprints = fingerprint, sorted(known - {fingerprint})

    def _own_fingerprint(self) -> str:
        foreign = [f"{type(m).__module__}.{type(m).__qualname__}" for m in self.encoder.modules() if is_foreign(m)]
        return latent_fingerprint(self.config, self._weights(), foreign)

    def _weights(self) -> list[torch.Tensor]:
        """Of the encoder, on whatever device they are, or fetched if accelerate keeps them elsewhere."""
        weights: list[torch.Tensor] = []
        for module in self.encoder.modules():
            if not hasattr(module, "_hf_hook"):
                weights += module.parameters(recurse=False)
                continue
            from accelerate.utils import align_module_device

            with align_module_device(module):
                weights += [weight.detach().cpu() for weight in module.parameters(recurse=False)]
        return weights


def latent_fingerprint(config: WallocConfig, weights: Iterable[torch.Tensor], foreign: Sequence[str] = ()) -> str:
    """16 hexadecimal digits over the weights of an encoder, as float32, and the fields that codes depend on.

    Args:
        foreign: classes of layers that do something else with the weights.
    """
    fields = [getattr(config, name) for name in (*_FIELDS, "encoder_padding")] + list(foreign)
    digest = hashlib.sha256(json.dumps(fields).encode())
    for weight in weights:
        digest.update(weight.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def rounded_fingerprints(config: WallocConfig, weights: Sequence[torch.Tensor]) -> list[str]:
    """The fingerprints of what half precision, and one kind of it after the other, makes of the weights."""
    halves = torch.float16, torch.bfloat16
    ways = [(first, second) for first in halves for second in halves]
    rounded = ([weight.detach().to(first).to(second) for weight in weights] for first, second in ways)
    return sorted({latent_fingerprint(config, each) for each in rounded})


def _are_rounded(weights: Iterable[torch.Tensor]) -> bool:
    """Whether the weights have been stored in half precision."""
    wide = [weight.detach().float() for weight in weights]
    return any(all(torch.equal(w, w.to(half).float()) for w in wide) for half in (torch.float16, torch.bfloat16))


def codec_name(name_or_path: str | os.PathLike[str] | None) -> str:
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


def called(name: str) -> str:
    """A codec's name in a message; folders and models that were never saved have none."""
    return f"codec {name!r}" if name else "a codec without a name"


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
