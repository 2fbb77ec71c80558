"""Checks of a checkpoint that has just been loaded."""

from typing import Any

from .symmetries import has_symmetry

# Standard deviation of a channel of latents, which a decoder divides by.
MIN_STD = 1e-6


def check_fit(path: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights or entropy tables are not those that its configuration describes.

    Args:
        info: what `from_pretrained` gives with `output_loading_info`.
    """
    for name, found, expected in info["mismatched_keys"]:
        raise ValueError(
            f"{path}: mismatched weights: {name} is {tuple(found)}, the configuration describes {tuple(expected)}"
        )
    for problem, keys in (("missing from", "missing_keys"), ("not expected in", "unexpected_keys")):
        if "entropy_tables" in info[keys]:
            raise ValueError(f"{path}: entropy_tables are {problem} the weights: entropy_tables_size is wrong")


def check_weights(path: str, model: Any) -> None:
    """Refuse weights that would give values which are not finite, or without the symmetry that they should have."""
    for name, tensor in model.state_dict().items():
        if tensor.device.type == "meta" or not tensor.is_floating_point():
            continue
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values")
        if name.endswith("latent_std") and not (tensor > MIN_STD).all():
            raise ValueError(f"{path}: {name} holds {tensor.min().item():g}; valid: above {MIN_STD:g}")
    if model.config.latent_symmetry is not None and not has_symmetry(model.encoder):
        raise ValueError(
            f"{path}: the projection does not have the symmetry that latent_symmetry describes: remove it from the "
            "configuration, and its latents cannot be flipped or rotated"
        )
