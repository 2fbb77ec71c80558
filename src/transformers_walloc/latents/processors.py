"""Processors of models on latents: tokenizer and chat template of the pixel model, and latents in place of pixels."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils.hub import cached_file

from ..codec.identity import codec_name
from ..codec.modeling_walloc import WallocImageEncoder, WallocImageModel
from ..loading import codec_path
from .codecs import check_identity, codec_of, pack_encoder
from .families import family_of, image_grid
from .families import merge_size as merge_size_of
from .image_processing import WallocLatentImageProcessor
from .processing import WallocLatentProcessor
from .tiling import Tiling
from .values import LatentView


def load_processor_on_latents(pretrained: str, model: Any, codec: Any = None, **options: Any) -> Any:
    """The processor of a model on latents, as `AutoProcessor` gives it for the pixel model.

    What it saves, in the folder of the model, `AutoProcessor.from_pretrained` loads, and pipelines use.

    Args:
        pretrained: Hub id or folder of the pixel model, whose tokenizer and chat template it takes.
        model: that [`load_on_latents`] made of it, or its config.
        codec: Hub id, folder or model of the codec; None for the one that the model's config names.
        **options: of [`WallocLatentImageProcessor`], where they differ.

    Returns:
        A processor of text and images of the pixel model's class; a [`WallocLatentImageProcessor`] for models of images
        alone.

    Raises:
        ValueError: a model that is not on latents, or on those of another codec.
    """
    config = getattr(model, "config", model)
    image_processor = WallocLatentImageProcessor.for_model(config, codec, **options)
    # The vision model of CLIP is loaded from a folder of all of it.
    whole = AutoConfig.from_pretrained(pretrained)
    name = _stated_class(pretrained) or PROCESSOR_MAPPING_NAMES.get(whole.model_type)
    if name is None or _file(pretrained, "tokenizer_config.json") is None or config.model_type != whole.model_type:
        return image_processor
    if image_processor.layout == "padded_rows":
        image_processor.layout = "rows"  # it is the processor that fills them up
    processor_class = WallocLatentProcessor.of(name)
    stated, unused = processor_class.get_processor_dict(pretrained)
    parts: list[Any] = []
    for part in processor_class.get_attributes():
        if part == "image_processor":
            parts.append(image_processor)
        else:
            auto_class = AutoTokenizer if part == "tokenizer" else AutoFeatureExtractor
            parts.append(auto_class.from_pretrained(pretrained))
    return processor_class.from_args_and_dict(parts, stated, **unused)


def _stated_class(pretrained: str) -> str | None:
    """Class of the processor of text and images that a folder or repository names."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        found = _file(pretrained, file)
        if found and (name := json.loads(Path(found).read_text()).get("processor_class")):
            return str(name)
    return None


def _file(pretrained: str, name: str) -> str | None:
    return cached_file(pretrained, name, _raise_exceptions_for_missing_entries=False)


def options_for_model(config: PreTrainedConfig, codec: Any = None) -> dict[str, Any]:
    """Options of a [`WallocLatentImageProcessor`] for a model on latents, by its config; see `for_model`."""
    own = getattr(config, "walloc_latents", None)
    if not isinstance(own, dict):
        raise ValueError(f"the config of {config.name_or_path!r} has no walloc_latents; use load_on_latents")
    known = codec_of(config)
    if codec is None:
        if known is None:
            raise ValueError(f"the config of {config.name_or_path!r} does not say its codec: name it with codec=")
        codec = known["name"]
    name, encoder = load_encoder(codec)
    if known is None:
        warnings.warn(
            f"the config of {config.name_or_path!r} does not say which codec it is on latents of; {name!r} is taken "
            "unchecked. Fold the model again to have it said",
            stacklevel=3,
        )
    check_identity(known, encoder, "codec=")
    unit, grid = LatentView(encoder.config, **own).patch_pixels, image_grid(config)
    options: dict[str, Any] = {
        "codec": codec_name(name) if os.path.isdir(name) else name,  # no folder of this machine; it has the encoder
        "output_name": "pixel_values",
        "scale": "none",
        **own,
        "layout": family_of(config).layout,
        "merge_size": merge_size_of(config),
        "do_resize": grid is not None,
        "fingerprint": known["fingerprint"] if known else encoder.fingerprint(),
        "encoder": pack_encoder(encoder),
    }
    pixels = getattr(config, "walloc_pixels", None)
    if isinstance(pixels, dict) and pixels.get("tiling"):
        tiling = Tiling(pixels["tiling"])
        options.update(
            tiling=tiling.options,
            pixel_patch_size=pixels["patch_size"],
            size=tiling.options.get("size"),
            do_resize=True,
        )
        # What else the processors of these families ask.
        if hasattr(config, "image_grid_pinpoints"):
            options["image_grid_pinpoints"] = config.image_grid_pinpoints
        for name in ("max_soft_tokens", "pooling_kernel_size"):
            if name in tiling.options:
                options[name] = tiling.options[name]
    elif grid is not None:
        options["size"] = {"height": grid * unit, "width": grid * unit}
    return options


def load_encoder(codec: Any) -> tuple[str, WallocImageEncoder]:
    """Name and encoder of a codec, which is a bundled name, a Hub id, a folder, a codec or an encoder."""
    if isinstance(codec, WallocImageEncoder):
        return str(codec.config.name_or_path), codec
    if isinstance(codec, WallocImageModel):
        encoder = WallocImageEncoder(codec.config)
        encoder.load_state_dict({k: v for k, v in codec.state_dict().items() if k in encoder.state_dict()})
        return str(codec.config.name_or_path), encoder.to("cpu").eval()  # type: ignore[arg-type]
    return os.fspath(codec), WallocImageEncoder.from_pretrained(codec_path(codec), dtype=torch.float32)


def load_image_codec(codec: Any) -> WallocImageModel:
    """A codec of images by its name, with its decoder; codecs pass."""
    if isinstance(codec, WallocImageModel):
        return codec
    if not isinstance(codec, str | os.PathLike):
        raise TypeError(f"codec is a {type(codec).__name__}; valid: a bundled name, a Hub id, a folder or a codec")
    model: WallocImageModel = WallocImageModel.from_pretrained(codec_path(codec), dtype=torch.float32).eval()
    return model


def own_image_processor(pretrained: str) -> Any:
    """The image processor of a pixel model, None where its folder has none."""
    files = ("preprocessor_config.json", "processor_config.json")
    if os.path.isdir(pretrained) and not any(os.path.isfile(os.path.join(pretrained, file)) for file in files):
        return None
    try:
        return AutoImageProcessor.from_pretrained(pretrained)
    except (OSError, ValueError, ImportError):
        return None
