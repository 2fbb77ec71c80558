"""Checkpoints of the original implementation (PyPI package `walloc`, version 1.2.1) as models of this package.

    pip install 'transformers-walloc[original]'
    walloc convert RGB_16x.pth RGB_16x.json rgb-16x-original

The folder then loads with `AutoModel.from_pretrained("rgb-16x-original")`.

The original publishes a pickle of tensors beside a JSON file of its constructor's arguments. Both are read as foreign
input: no pickled code runs, and a weight that is missing, left over, of another shape or not finite is an error.

| original                | here                  |                                                             |
|-------------------------|-----------------------|-------------------------------------------------------------|
| `encoder.0.*`           | `encoder.projection.*`| linear; audio pads it by one latent at either end           |
| `decoder.1.*`           | `decoder.*`           | weight norm (`weight_g`, `weight_v`) folded to plain weights|
| `post.*`                | `post_filter.*`       | audio with `post_filter`                                    |
| `wt.*`, `iwt.*`         | -                     | filters of CDF 9/7: compared with ours, then dropped        |
"""

import json
import os
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ..atomic import atomic_folder
from ..codec.configuration_walloc import WallocAudioConfig, WallocImageConfig
from ..codec.modeling_walloc import WallocAudioModel, WallocImageModel
from ..codec.wavelets import wavelet_filters
from ..loading import make_processor

ORIGINAL_POST_FILTER_SIZE = 129
REQUIRED_KEYS = ("channels", "J", "Ne", "Nd", "latent_dim", "latent_bits", "lightweight_encode")
_PREFIXES = {"encoder.projection.": "encoder.0.", "decoder.": "decoder.1.", "post_filter.": "post."}


def convert_original_checkpoint(
    weights: dict[str, torch.Tensor], original_config: dict, sampling_rate: int = 44100
) -> WallocImageModel | WallocAudioModel:
    """Build the model that computes what the original's `Codec2D` or `Codec1D` does.

    Args:
        weights: the original's state dict, as `load_original_weights` returns it.
        original_config: the original's constructor arguments, as `load_original_config` returns them.
        sampling_rate: of audio, in Hz; the original does not record it (the published codecs were trained at 44100).

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ValueError: the configuration lacks a key or asks for the deep encoder, or the weights do not fit it; the
            message names all that are missing, unknown or of another shape.
    """
    _check_original_config(original_config)
    projection = weights.get("encoder.0.weight")
    if projection is None or projection.ndim not in (3, 4):
        raise ValueError(
            "missing weight 'encoder.0.weight' with 3 (audio) or 4 (image) axes: not a checkpoint of Codec1D or Codec2D"
        )
    common = {
        "num_channels": original_config["channels"],
        "num_levels": original_config["J"],
        "latent_channels": original_config["latent_dim"],
        "latent_bits": original_config["latent_bits"],
        "decoder_hidden_size": original_config["Nd"],
        "wavelet": "bior4.4",
        "boundary": "periodization",
    }
    config: WallocImageConfig | WallocAudioConfig
    if projection.ndim == 4:
        config = WallocImageConfig(**common, decoder_type="kl")
    else:
        if not isinstance(original_config.get("post_filter"), bool):
            raise ValueError("missing or not true/false in the configuration of an audio codec: post_filter")
        config = WallocAudioConfig(
            **common,
            decoder_type="oobleck",
            encoder_padding=1,
            post_filter_size=ORIGINAL_POST_FILTER_SIZE if original_config["post_filter"] else 0,
            sampling_rate=sampling_rate,
        )
    with torch.device("meta"):
        model = WallocImageModel(config) if isinstance(config, WallocImageConfig) else WallocAudioModel(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(_convert_weights(weights, expected, config), strict=True, assign=True)
    return model.eval()


def convert_files(
    checkpoint: str | PathLike,
    config: str | PathLike,
    folder: str | PathLike,
    dtype: torch.dtype = torch.float32,
    sampling_rate: int = 44100,
    overwrite: bool = False,
) -> tuple[WallocImageModel | WallocAudioModel, list[str]]:
    """Convert the original's two files to a model folder.

    Args:
        checkpoint: pickle of weights, as `load_original_weights` reads it.
        config: JSON file, as `load_original_config` reads it.
        folder: to write; see `save_model_folder`.
        dtype: what the decoder is stored in; the encoder is always stored in float32.
        sampling_rate: of audio codecs, in Hz.
        overwrite: whether an existing folder may be replaced.

    Returns:
        The model, and the entries of the configuration that are not part of a model and were left out.

    Raises:
        ValueError: files that are damaged, hostile or do not fit each other.
        FileExistsError: the folder exists and `overwrite` is false.
    """
    original_config, ignored = load_original_config(config)
    model = convert_original_checkpoint(load_original_weights(checkpoint), original_config, sampling_rate)
    save_model_folder(model, folder, dtype, overwrite)
    return model, ignored


def load_original_config(path: str | PathLike) -> tuple[dict, list[str]]:
    """Read the original's JSON configuration.

    Returns:
        The constructor's arguments, and the names of other entries (published files carry training settings), which
        have no meaning for a model and are left out.

    Raises:
        ValueError: not a JSON object, or an argument is missing or of the wrong type.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no configuration at {path}")
    with open(path, encoding="utf-8") as file:
        try:
            config = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object with {', '.join(REQUIRED_KEYS)}")
    known = (*REQUIRED_KEYS, "post_filter")
    arguments = {name: value for name, value in config.items() if name in known}
    _check_original_config(arguments)
    return arguments, sorted(config.keys() - known)


def load_original_weights(path: str | PathLike) -> dict[str, torch.Tensor]:
    """Read the state dict of a checkpoint of the original, either plain or under the key `model_state_dict`.

    Tensors, numbers, containers and `types.SimpleNamespace` (in which the original keeps its configuration) are read;
    a pickle that asks for anything else is refused, so that a hostile one runs no code.

    Raises:
        ValueError: truncated or corrupted, holds other objects, or holds no state dict.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([SimpleNamespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it is corrupted or holds more than weights and settings, which could run code when "
            f"loaded. If you trust it, load it with the original, save its state_dict() alone, and convert that. "
            f"{_first_sentence(error)}"
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise ValueError(f"{path} is truncated, corrupted or no checkpoint: {_first_sentence(error)}") from error
    weights = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds no state dict: expected {{'model_state_dict': {{name: tensor}}}}")
    wrong = [str(name) for name, value in weights.items() if not (isinstance(name, str) and _is_weight(value))]
    if wrong:
        raise ValueError(f"{path} holds entries that are not floating point tensors: {_listing(wrong)}")
    return dict(weights)


def save_model_folder(
    model: WallocImageModel | WallocAudioModel,
    folder: str | PathLike,
    decoder_dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    documents: Mapping[str, str] | None = None,
):
    """Write a model and its processor as a folder that `from_pretrained` reads, all of it or nothing.

    Args:
        folder: is created; an existing one is replaced if `overwrite`, and refused otherwise.
        decoder_dtype: what the decoder's network is stored in. Everything linear stays float32: the encoder defines
            what codes mean, and the linear synthesis spans more than half precision resolves. The configuration says
            float32, so that the model loads as that unless another `dtype` is asked for.
        overwrite: whether an existing folder may be replaced.
        documents: text files to write beside, by name.

    Raises:
        FileExistsError: the folder exists and `overwrite` is false.
        ValueError: the folder exists and is not that of a model.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already")
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder (no config.json) and is not replaced")
    state_dict = {
        name: tensor.to(decoder_dtype if _is_network(name) else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with atomic_folder(folder, overwrite) as new:
        model.save_pretrained(new, state_dict=state_dict)
        make_processor(model.config).save_pretrained(new)
        for name, text in (documents or {}).items():
            (new / name).write_text(text, encoding="utf-8")


def _is_network(name: str) -> bool:
    linear = ("decoder.linear.", "decoder.latent_std", "decoder.subband_scale")
    return name.startswith("decoder.") and not name.startswith(linear)


def _check_original_config(config: dict):
    missing = [name for name in REQUIRED_KEYS if name not in config]
    if missing:
        raise ValueError(f"missing in the original's configuration: {', '.join(missing)}")
    if config["lightweight_encode"] is not True:
        raise ValueError(
            f"lightweight_encode is {config['lightweight_encode']!r}: the original's deep encoder is not supported, "
            "only its linear one (lightweight_encode: true)"
        )
    for name in REQUIRED_KEYS[:-1]:
        if name == "Ne" and config[name] is None:
            continue  # the width of a linear encoder, which has none
        if type(config[name]) is not int or not 0 <= config[name] < 2**20:
            raise ValueError(f"{name} of the original's configuration must be an integer, got {config[name]!r}")


def _convert_weights(
    weights: dict[str, torch.Tensor],
    expected: dict[str, tuple[int, ...]],
    config: WallocImageConfig | WallocAudioConfig,
) -> dict[str, torch.Tensor]:
    """Fold and rename; `expected` gives names and shapes of this package."""
    filters = _filter_buffers(config.num_dims)
    shapes: dict[str, tuple[int, ...]] = {name: taps.shape for name, taps in filters.items()}
    sources: dict[str, tuple[str, ...]] = {}
    for name, shape in expected.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        source = _PREFIXES[prefix] + name.removeprefix(prefix)
        if config.decoder_type == "oobleck" and name.startswith("decoder.") and name.endswith(".weight"):
            sources[name] = (source + "_g", source + "_v")
            shapes[source + "_g"] = (shape[0], 1, 1)
            shapes[source + "_v"] = shape
        else:
            sources[name] = (source,)
            shapes[source] = shape

    # Names and shapes first: until they are known to fit, no tensor is worth reading.
    problems = []
    if missing := sorted(shapes.keys() - weights.keys()):
        problems.append(f"missing weights: {_listing(missing)}")
    if unknown := sorted(weights.keys() - shapes.keys()):
        problems.append(f"unknown weights: {_listing(unknown)}")
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else shape
        if name in filters:  # stored with axes of size one around the taps
            found = (weights[name].numel(),) if name in weights else shape
        if found != shape:
            problems.append(f"{name} has shape {found}, the configuration asks for {shape}")
    if problems:
        raise ValueError("the checkpoint does not fit the original's configuration: " + "; ".join(problems))
    if broken := [name for name in shapes if not weights[name].isfinite().all()]:
        raise ValueError(f"NaN or infinite values in {_listing(broken)}")
    for name, taps in filters.items():
        if not np.allclose(weights[name].double().numpy().ravel(), taps, atol=1e-6):
            raise ValueError(f"{name} does not hold the filter of the wavelet bior4.4 (CDF 9/7)")

    converted = {}
    for name, parts in sources.items():
        tensor = weights[parts[0]].double()
        if len(parts) == 2:
            direction = weights[parts[1]].double()
            length = direction.flatten(1).norm(dim=1)[:, None, None]
            if not length.all():
                raise ValueError(f"{parts[1]} has a direction of length zero: its weight norm is undefined")
            tensor = tensor * direction / length
        converted[name] = tensor.float().contiguous()
    return converted


def _filter_buffers(num_dims: int) -> dict[str, np.ndarray]:
    """The original's wavelet buffers: analysis taps are stored reversed, synthesis taps as they are."""
    filters = wavelet_filters("bior4.4")
    buffers: dict[str, np.ndarray] = {}
    for axis in ("",) if num_dims == 1 else ("_col", "_row"):
        buffers |= {f"wt.h0{axis}": filters.dec_lo[::-1], f"wt.h1{axis}": filters.dec_hi[::-1]}
        buffers |= {f"iwt.g0{axis}": filters.rec_lo, f"iwt.g1{axis}": filters.rec_hi}
    return buffers


def _is_weight(value) -> bool:
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        return False
    return value.layout == torch.strided and value.is_floating_point()


def _listing(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
