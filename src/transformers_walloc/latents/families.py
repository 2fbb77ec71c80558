"""Where families of models keep their patch embedding, what their configs call its shape, and how they take patches."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from .layouts import Layout, padded_patch_size


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Args:
        embedding: end of the name of the module that is the patch embedding.
        channels: what the config of the vision model calls the number of input channels.
        bias: whether the patch embedding has one; if not, latents carry a one.
        layout: see `model_inputs`.
        any_size: whether the model takes images of any whole number of patches.
        normalises: whether the model itself brings pixels from [0, 1] to [-1, 1].
        frames: whether the number of channels also shapes other layers, so that three channels have to stay and latents
            stand as frames of a video.
    """

    embedding: str
    channels: str = "num_channels"
    bias: bool = True
    layout: Layout = "image"
    any_size: bool = False
    normalises: bool = False
    frames: bool = False

    @property
    def constant_channel(self) -> bool:
        """Whether latents carry a channel of ones; rows of Gemma 4 carry a single one."""
        return not self.bias and self.layout != "positions"


_SIGLIP = Family("embeddings.patch_embedding")
_CLIP = replace(_SIGLIP, bias=False)
_NESTED = replace(_SIGLIP, layout="nested")
_NAFLEX = replace(_SIGLIP, layout="naflex", any_size=True)
_GLM = Family("visual.patch_embed.proj", "in_channels", layout="rows", any_size=True)
_QWEN2 = replace(_GLM, bias=False)
FAMILIES = {
    "vit": Family("embeddings.patch_embeddings.projection"),
    "dinov3_vit": Family("embeddings.patch_embeddings"),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "pixtral": Family("patch_conv", bias=False, any_size=True),
    "paligemma": _SIGLIP,
    "gemma3": _SIGLIP,
    "gemma4": Family("patch_embedder.input_proj", bias=False, layout="positions", any_size=True, normalises=True),
    "llava_onevision": replace(_SIGLIP, layout="tiles"),
    "internvl": Family("vision_tower.embeddings.patch_embeddings.projection"),
    "idefics3": _NESTED,
    "smolvlm": _NESTED,
    "granite_docling": replace(_SIGLIP, layout="masked"),
    "paddleocr_vl": replace(_SIGLIP, layout="patches", any_size=True),
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _GLM,
    "qwen3_5": _GLM,
    "glm4v": _GLM,
    "glm_ocr": replace(_GLM, frames=True),
    "colpali": _SIGLIP,
    "colqwen2": replace(_QWEN2, layout="padded_rows"),
}

# What is not linear in the pixels up to its first layer, or counts on zeros around the image, by model type.
_STEM = (
    "starts with a convolution that reaches beyond its stride or the image: fold that module by hand, with "
    "fold_patch_embedding(..., stride, padding), exact but at the border, where the pixel model sees zeros"
)
REFUSED = {
    "florence2": "has overlapping, zero-padded patches, and later stages that count on the same padding",
    "pix2struct": "normalises every image by its own mean and deviation, which is not linear in the pixels",
    **dict.fromkeys(
        (
            "mobilenet_v1",
            "mobilenet_v2",
            "resnet",
            "regnet",
            "efficientnet",
            "rt_detr",
            "rt_detr_v2",
            "vitpose_backbone",
        ),
        _STEM,
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The row of a model, by its config."""
    if reason := REFUSED.get(config.model_type):
        raise ValueError(f"a model of type {config.model_type!r} cannot be loaded on latents: it {reason}")
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"no patch embedding known for model type {config.model_type!r}; valid: {', '.join(FAMILIES)}; for another "
            "model fold its module by hand, with fold_patch_embedding"
        )
    return FAMILIES[config.model_type]


def vision_config(config: PreTrainedConfig) -> Any:
    """The part of a config that describes the patches."""
    inner = getattr(config, "vlm_config", config)
    return getattr(inner, "vision_config", inner)


def embedding_parameters(model: Any, family: Family) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the patch embedding."""
    for name, module in model.named_modules():
        if name.endswith(family.embedding):
            return module.weight, module.bias
    raise ValueError(f"{type(model).__name__} has no module {family.embedding!r}")


def pixel_patch_size(config: PreTrainedConfig) -> int:
    """Pixels per side of a patch of a model of pixels; ValueError where they are not squares."""
    vision = vision_config(config)
    for name in ("patch_size", "image_size"):
        value = getattr(vision, name, 0)
        if not isinstance(value, int) and len(set(value)) > 1:
            raise ValueError(f"{name} of {config.name_or_path} is {value}; valid: one number, for squares")
    return _side(vision.patch_size)


def reshape_config(config: PreTrainedConfig, channels: int, kernel_size: int) -> None:
    """Let a config describe the same grid of patches of latents, in place.

    Args:
        channels: of the latents.
        kernel_size: latents per side of a window.
    """
    family, vision = family_of(config), vision_config(config)
    old, new = _side(vision.patch_size), kernel_size
    if family.layout == "positions":
        new = padded_patch_size(channels * kernel_size**2)
    elif family.frames:
        colours = getattr(vision, family.channels)
        if channels % colours:
            raise ValueError(f"{config.model_type} takes frames of {colours} channels, {channels} latents are none")
        vision.temporal_patch_size = channels // colours
    else:
        setattr(vision, family.channels, channels + family.constant_channel)
        if hasattr(vision, "temporal_patch_size"):
            vision.temporal_patch_size = 1  # a still image is one frame
    vision.patch_size = _like(vision.patch_size, new)
    if hasattr(vision, "window_size"):  # of attention, in pixels; it is used in patches
        vision.window_size = vision.window_size // old * new
    if hasattr(vision, "image_size"):
        vision.image_size = _like(vision.image_size, _side(vision.image_size) // old * new)
    if hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [
            [length // old * new for length in point] for point in config.image_grid_pinpoints
        ]


def image_grid(config: PreTrainedConfig) -> int | None:
    """Patches per side of the images that a model was made for; None where it takes any number."""
    vision = vision_config(config)
    return None if family_of(config).any_size else _side(vision.image_size) // _side(vision.patch_size)


def merge_size(config: PreTrainedConfig) -> int:
    """Patches per side of a token."""
    vision = vision_config(config)
    return getattr(vision, "spatial_merge_size", getattr(vision, "pooling_kernel_size", 1))


def _side(size: Any) -> int:
    return size if isinstance(size, int) else size[0]


def _like(old: Any, side: int) -> Any:
    return side if isinstance(old, int) else [side] * len(old)
