"""Pretrained vision and vision-language models, loaded so that they take latents in place of pixels."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging

from ..codec.modeling_walloc import WallocImageModel
from .codecs import codec_of, identity_of
from .families import embedding_parameters, family_of, pixel_patch_size, reshape_config, vision_config
from .folding import (
    Resample,
    average_patch_embedding,
    equal_cost_patch_size,
    exact_halo,
    fold_patch_embedding,
    random_patch_embedding,
)
from .layouts import arrange_kernels, kernels_of
from .processors import load_image_codec, own_image_processor
from .tiling import Tiling
from .values import LatentView, Scale

Initialization = Literal["fold", "average", "random"]


def load_on_latents(
    pretrained: str,
    codec: str | WallocImageModel,
    auto_class: Any = AutoModel,
    patch_size: int | None = None,
    halo: int | None = 0,
    initialization: Initialization = "fold",
    scale: Scale | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    resample: Resample = "box",
    colours: Sequence[Sequence[float]] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained vision or vision-language model so that it takes WaLLoC latents in place of pixels.

    The grid of tokens stays as it is; every patch covers `patch_size` latents, `patch_size * 2**num_levels` pixels. The
    returned model is of the pretrained class and carries its new shape in its config, and what it takes as
    `config.walloc_latents`; `config.walloc_codec` says of which codec. Feed it what [`load_processor_on_latents`] makes
    of images and text, or `LatentView(codec.config, **config.walloc_latents)` of pixels, latents or codes.

    Args:
        pretrained: Hub id or folder of a model of one of the `FAMILIES`.
        codec: whose latents it is to take: a bundled name, a Hub id, a folder, or the model with its decoder.
        auto_class: class to load with, such as `AutoModelForImageClassification`.
        patch_size: latents per side of a patch; None for as many numbers per token as before (`equal_cost_patch_size`).
        halo: further latents on each side that the patch embedding sees; None for as many as an exact fold takes, 0
            for patches that do not overlap.
        initialization: of the patch embedding: `fold` composes the pretrained one with the codec's synthesis, `average`
            gives every latent channel the mean of the pretrained one over its colours (`average_patch_embedding`),
            `random` draws weights (from torch's generator) that give every latent channel the same say.
        scale: of the latents, see [`LatentView.scaled`]. It changes what a step of training does, and not what the
            model computes at its start.
        image_mean, image_std: normalisation of the pixels that the model was trained on; None to read them from its
            image processor.
        resample: filter of the resize that the fold reproduces.
        colours: what each channel of the pixel model is made of, in parts of the codec's channels, see
            `folding.colour_matrix`: gray codecs and those of as many channels as the model need none.
        **kwargs: for `from_pretrained` (`dtype`, `device_map`, ...), and what is to differ in the config, as
            `num_labels`.

    Raises:
        ValueError: an unknown codec, family, initialization or scale, a model that is on latents already, or channels
            that need `colours`.
    """
    if initialization not in get_args(Initialization):
        raise ValueError(f"unknown initialization {initialization!r}; valid: {', '.join(get_args(Initialization))}")
    codec = load_image_codec(codec)
    # CLIPVisionModel and the like are a part of what their folder holds, and know their own config.
    config_class = getattr(auto_class, "config_class", None) or AutoConfig
    config, kwargs = config_class.from_pretrained(pretrained, return_unused_kwargs=True, **kwargs)
    kwargs["ignore_mismatched_sizes"] = True
    if known := codec_of(config) or getattr(config, "walloc_latents", None):
        name = known.get("name", "a codec")
        raise ValueError(
            f"{pretrained} is on latents of {name} already: load it with {auto_class.__name__}.from_pretrained, or "
            "fold the pixel model that it was made of"
        )
    family, pixel_patch = family_of(config), pixel_patch_size(config)
    pixel_channels = getattr(vision_config(config), family.channels, 3)
    patch_size = equal_cost_patch_size(codec.config, pixel_patch) if patch_size is None else patch_size
    if halo is None:
        halo = exact_halo(codec.config, patch_size, pixel_patch, resample)
    windows = {"patch_size": patch_size, "halo": halo, "constant_channel": family.constant_channel}
    view = LatentView.scaled(codec.config, scale, **windows)
    if family.normalises:
        image_mean = image_std = (0.5,)
    processor = own_image_processor(pretrained)
    if image_mean is None or image_std is None:
        processor = processor or AutoImageProcessor.from_pretrained(pretrained)  # which says what is missing
        image_mean, image_std = image_mean or processor.image_mean, image_std or processor.image_std

    pixel_model = auto_class.from_pretrained(pretrained, config=copy.deepcopy(config), **kwargs)
    weight, bias = embedding_parameters(pixel_model, family)
    del pixel_model
    reshape_config(config, codec.config.latent_channels, view.kernel_size)
    with _without_report():
        model = auto_class.from_pretrained(pretrained, config=config, **kwargs)
    new_weight, new_bias = embedding_parameters(model, family)
    model.config.walloc_latents = view.to_dict()
    model.config.walloc_codec = identity_of(codec)
    tiling = None if processor is None else Tiling.options_of(processor, pixel_patch)
    model.config.walloc_pixels = {"patch_size": pixel_patch, "tiling": tiling}
    weight = kernels_of(weight, family.layout, pixel_channels)
    if initialization == "random":
        folded = random_patch_embedding(len(weight), codec, view.kernel_size)
        shift = torch.zeros(len(folded), dtype=torch.float64)
    elif initialization == "average":
        folded = average_patch_embedding(weight, codec, view.kernel_size)
        shift = torch.zeros(len(folded), dtype=torch.float64) if bias is None else bias.detach().double().cpu()
    else:
        folded, shift = fold_patch_embedding(
            weight, bias, codec, patch_size, halo, image_mean, image_std, resample, colours=colours
        )
    folded, shift = on_scale(folded, shift, view, centred=initialization == "random")
    with torch.no_grad():
        if new_bias is not None:
            new_bias.copy_(shift)
        new_weight.copy_(arrange_kernels(folded, shift, family.layout, new_weight, bias=new_bias is not None))
    # Adapters name the base that they go with, which the pixel model is not. Once saved and loaded it has a name.
    model.name_or_path = model.config.name_or_path = ""
    folded_model: PreTrainedModel = model
    return folded_model


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """transformers would say that the patch embedding, which is filled in next, does not fit, and repeat the rest."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def on_scale(
    weight: torch.Tensor, shift: torch.Tensor, view: LatentView, centred: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights for `latent_values` -> weights for the values of a view.

    Args:
        centred: leave the shift as it is: tokens are around it where latents are around their mean.
    """
    if view.mean is None or view.std is None:
        return weight, shift
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (view.mean, view.std))
    if not centred:
        shift = shift + torch.einsum("dcij,c->d", weight, mean)
    return weight * std[:, None, None], shift
