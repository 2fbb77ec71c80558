"""Which codec a model was folded on: said in its config, and checked wherever the two meet again."""

import base64
from typing import Any, TypedDict

import safetensors.torch
import torch
from transformers import PreTrainedConfig

from ..codec.configuration_walloc import WallocImageConfig
from ..codec.identity import called, codec_name
from ..codec.modeling_walloc import WallocImageEncoder


class CodecIdentity(TypedDict):
    """`config.walloc_codec` of a model on latents: name or Hub id, commit on the Hub, fingerprint of the encoder."""

    name: str
    revision: str | None
    fingerprint: str


def identity_of(codec: Any) -> CodecIdentity:
    """Of a codec or its encoder."""
    config = codec.config
    revision = getattr(config, "_commit_hash", None)
    # Commits of the checkpoints that travel with the package are known to no Hub.
    revision = None if revision is None or revision.startswith("0" * 12) else revision
    return CodecIdentity(name=codec_name(config.name_or_path), revision=revision, fingerprint=codec.fingerprint())


def check_identity(expected: Any, found: Any, what: str) -> None:
    """Refuse another codec than the one that a model was made for.

    Args:
        expected: `config.walloc_codec`; None for models of before it was kept, which pass.
        found: a codec, an encoder or a reader of rows: what has `config`, `reads` and `fingerprint`.
        what: has that codec, for the message.
    """
    if expected is not None and not found.reads(expected["fingerprint"]):
        name = called(codec_name(found.config.name_or_path))
        raise ValueError(
            f"{what} is of {name} ({found.fingerprint()}), the model is on latents of {called(expected['name'])} "
            f"({expected['fingerprint']}): use that codec"
        )


def pack_encoder(encoder: WallocImageEncoder) -> dict[str, Any]:
    """An encoder as JSON, a few kilobytes: what is saved with it works wherever its codec's name leads.

    The tables of its entropy coder stay behind; they are needed to read .walloc files alone.
    """
    config = encoder.config.to_diff_dict()
    for name in ("transformers_version", "architectures", "auto_map", "entropy_tables_size"):
        config.pop(name, None)
    weights = {k: v.float().contiguous() for k, v in encoder.state_dict().items() if k != "entropy_tables"}
    return {"config": config, "weights": base64.b64encode(safetensors.torch.save(weights)).decode()}


def unpack_encoder(packed: dict[str, Any], name: str) -> WallocImageEncoder:
    """The inverse of `pack_encoder`, frozen."""
    encoder = WallocImageEncoder(WallocImageConfig(**packed["config"]))
    encoder.load_state_dict(safetensors.torch.load(base64.b64decode(packed["weights"], validate=True)))
    encoder.config.name_or_path = name
    frozen: WallocImageEncoder = encoder.requires_grad_(False).eval()
    return frozen


def codec_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """`walloc_codec` of a model's config, None for models of before it was kept."""
    known = getattr(config, "walloc_codec", None)
    return known if isinstance(known, dict) else None


def check_device(device: Any) -> None:
    """Refuse a device that is not there, before anything is loaded."""
    kind = torch.device(device).type
    available = ["cpu", *(name for name in ("cuda", "mps", "xpu") if getattr(torch, name, None) and _has(name))]
    if kind in ("cuda", "mps", "xpu") and kind not in available:
        raise ValueError(f"device {str(device)!r} is not available here; available: {', '.join(available)}")


def _has(kind: str) -> bool:
    return bool(getattr(torch, kind).is_available())
