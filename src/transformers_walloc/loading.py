"""Codecs by name: a model and its processor from a bundled name, a Hub id or a folder."""

import difflib
import math
import os
import re
import warnings
from typing import Any

import torch
from transformers import AutoConfig

from .bundled import BUNDLED_NAMES, NAMESPACE, bundled_path
from .codec.bottleneck import companding_scale, latent_limit
from .codec.configuration_walloc import WallocAudioConfig, WallocConfig, WallocImageConfig, WallocVolumeConfig
from .codec.decoders import LinearDecoder
from .codec.feature_extraction_walloc import WallocAudioFeatureExtractor
from .codec.image_processing_walloc import WallocImageProcessor
from .codec.image_processing_walloc_volume import WallocVolumeImageProcessor
from .codec.modeling_walloc import WallocAudioEncoder, WallocAudioModel, WallocImageEncoder, WallocImageModel
from .codec.modeling_walloc_volume import WallocVolumeEncoder, WallocVolumeModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# Of each kind, the model and its encoder alone.
MODELS = {
    "image": (WallocImageModel, WallocImageEncoder),
    "audio": (WallocAudioModel, WallocAudioEncoder),
    "volume": (WallocVolumeModel, WallocVolumeEncoder),
}


def load_codec(
    name: str | os.PathLike[str],
    encoder_only: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    linear: bool = False,
) -> tuple[Any, Any]:
    """A codec's model in evaluation mode, and the processor for what goes in and comes out.

    The processor is made from the model's configuration, so that a checkpoint in the making, which has no file for it,
    can be used too.

    Args:
        name: a bundled name (`rgb-16x`), a Hub id, or a folder with a config.json.
        encoder_only: load the model without its decoder.
        linear: put the best linear decoder in the place of a trained one: a preview, much faster and less sharp.

    Raises:
        ValueError: the model is not a WaLLoC codec, or the folder has no config.json.
        OSError: there is no such model, or it is not to be had without a network.
    """
    path = codec_path(name)
    config = AutoConfig.from_pretrained(path)
    if not isinstance(config, WallocConfig):
        raise ValueError(f"{name}: a model of type {config.model_type!r} is no WaLLoC codec")
    model_class: Any = MODELS[config.kind][encoder_only]
    model = model_class.from_pretrained(path, dtype=dtype).eval()
    if linear and not encoder_only:
        use_linear_decoder(model)
    return (model if device is None else model.to(device)), make_processor(config)


def make_processor(config: WallocConfig) -> Any:
    """The image processor or feature extractor that suits a codec's configuration."""
    if isinstance(config, WallocImageConfig | WallocVolumeConfig):
        stated = {"raster_format": config.raster_format} if config.raster_format else {}
        processor = WallocImageProcessor if isinstance(config, WallocImageConfig) else WallocVolumeImageProcessor
        return processor(num_channels=config.num_channels, patch_size=config.patch_size, **stated)
    if not isinstance(config, WallocAudioConfig):
        raise TypeError(f"config must be one of a WaLLoC codec, got {type(config).__name__}")
    return WallocAudioFeatureExtractor(
        feature_size=config.num_channels, sampling_rate=config.sampling_rate, hop_length=config.patch_size
    )


@torch.no_grad()
def use_linear_decoder(model: Any) -> None:
    """Give a model the best linear decoder for its encoder, in closed form.

    A restoration decoder has it. Of a residual one it is what remains of `fit_klt` in the encoder: the projection's
    rows are orthogonal with one common scale, so the synthesis is its transpose, shrunk by the Wiener factors that the
    variances of the latents (kept in the decoder) and the step of rounding give.

    Raises:
        ValueError: a decoder of another type.
    """
    config = model.config
    if config.decoder_type == "linear":
        return
    decoder: Any = LinearDecoder(config)
    if config.decoder_type == "restoration":
        decoder.linear.load_state_dict(model.decoder.linear.state_dict())
        model.decoder = decoder
        return
    if config.decoder_type != "residual":
        raise ValueError(f"decoder_type is {config.decoder_type!r}; valid: residual, restoration, linear")
    projection = model.encoder.projection
    weight, bias = projection.weight.flatten(1).double(), projection.bias.double()
    scale = float(weight.norm(dim=1).mean())
    slope = 2 * latent_limit(config.latent_bits) / (companding_scale(config.latent_bits) * math.sqrt(2 * math.pi))
    step = 1 / (slope * scale)
    variances = (model.decoder.latent_std.double() / scale) ** 2
    wiener = variances / (variances + step**2 / 12)
    inverse = torch.linalg.pinv(weight)
    decoder.linear.weight.copy_((inverse * wiener).reshape(decoder.linear.weight.shape))
    decoder.linear.bias.copy_(-inverse @ bias)
    model.decoder = decoder


def codec_path(name: str | os.PathLike[str]) -> str:
    """What `from_pretrained` takes for a codec's name: a bundled folder, a local folder or a Hub id.

    Raises:
        ValueError: neither is meant, as nobody has to be asked to know: a name that is not bundled and has no owner, a
            bundled name with other signs or capitals, a path that leads nowhere, a folder without config.json.
    """
    name = os.fspath(name)
    if name in BUNDLED_NAMES:
        try:
            return str(bundled_path(name))
        except FileNotFoundError:
            return f"{NAMESPACE}/{name}"
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ValueError(f"{name}: the folder has no config.json")
        return name
    namespace, _, short = name.rpartition("/")
    same = [known for known in BUNDLED_NAMES if _letters(known) == _letters(short)]
    close = same or difflib.get_close_matches(short, BUNDLED_NAMES, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    ours = namespace == NAMESPACE and short not in BUNDLED_NAMES
    if not _HUB_ID.fullmatch(name) or (ours and same):
        raise ValueError(
            f"{name}: no such folder, and no such bundled codec; {hint}"
            f"valid: {', '.join(BUNDLED_NAMES)}, a folder that exists, or a Hub id (owner/name)"
        )
    if ours:
        known = f"{name} is not one of the bundled {', '.join(BUNDLED_NAMES)}"
        warnings.warn(f"{known}; {hint}Asking the Hub", stacklevel=2)
    return name


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
