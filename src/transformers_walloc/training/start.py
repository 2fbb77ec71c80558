"""Where the training of a codec starts: at the closed form of its data, or at another codec."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..codec.bottleneck import decompand
from ..codec.configuration_walloc import WallocConfig
from ..codec.modeling_walloc import WallocAudioModel, WallocImageModel
from ..loading import MODELS, codec_path
from .data import RandomPieces
from .growing import grow_from, revive, transfer_network
from .klt import SubbandStatistics, fit_decoder_scales, fit_klt, fit_linear_synthesis

# Settings of a recipe that are those of the configuration.
_SHAPE = (
    "num_levels",
    "wavelet",
    "boundary",
    "latent_channels",
    "decoder_type",
    "decoder_hidden_size",
    "decoder_num_layers",
    "decoder_kernel_size",
    "decoder_downsampling",
)


def make_model(recipe: Any, pieces: RandomPieces, fit: bool = True) -> WallocImageModel | WallocAudioModel:
    """A model that starts at the closed form of the training data, or at another model.

    Of the other model the encoder stays, unless it is trained, too.

    Args:
        pieces: signals for the closed form, for the scales of a new network, and for finding units that are silent.
        fit: whether to fit it; otherwise the weights that depend on the data are left for a checkpoint to fill in.

    Raises:
        ValueError: the other model has no linear synthesis, another number of channels, or a network that is larger.
    """
    model_class: Any = MODELS[recipe.kind][0]
    config_class = model_class.config_class
    shape = {name: value for name in _SHAPE if (value := getattr(recipe, name)) is not None}
    if not recipe.source:
        model: Any = model_class(config_class(**shape))
        if fit and recipe.step is not None:
            fit_klt(model, collect_statistics(recipe, model.config, pieces), recipe.step, symmetric=recipe.symmetric)
        _take_network(model, recipe, model_class)
        return model

    source = model_class.from_pretrained(codec_path(recipe.source), dtype=torch.float32)
    if source.config.decoder_type not in ("residual", "restoration", "linear"):
        raise ValueError(
            f"{recipe.source} has the decoder {source.config.decoder_type!r}, which has no linear synthesis to start "
            "from; valid: residual, restoration, linear"
        )
    if recipe.latent_channels not in (None, source.config.latent_channels):
        raise ValueError(
            f"latent_channels is {recipe.latent_channels}; {recipe.source} has {source.config.latent_channels}"
        )
    model = model_class(config_class.from_dict({**source.config.to_dict(), **shape}))
    model.encoder.load_state_dict(source.encoder.state_dict())
    if source.entropy_tables is not None:
        model.entropy_tables.copy_(source.entropy_tables)
    if source.config.latent_fingerprint not in (None, model.fingerprint()):
        raise ValueError(f"the encoder of {recipe.source} is not stored in float32: its codes would change")
    if recipe.continue_from:
        grow_from(model.decoder, source.decoder)
    else:
        model.decoder.linear.load_state_dict(source.decoder.linear.state_dict())
        if source.config.decoder_type != "linear":
            print(f"the network of {recipe.source} is left out, a new one starts; continue_from would train it on")
        _take_network(model, recipe, model_class)
    if not fit:
        return model
    if recipe.refit_linear:
        fit_linear_synthesis(model, collect_statistics(recipe, model.config, pieces))
    if model.config.decoder_type == "residual":
        if recipe.continue_from:
            with torch.no_grad():
                codes = model.quantize(model.encode(_some_pieces(pieces, 32))[0])
                revived = revive(model.decoder, decompand(codes, model.config.latent_bits))
            print(f"units of the decoder that were silent and start anew: {revived}")
        else:
            fit_decoder_scales(model, collect_statistics(recipe, model.config, pieces))
    return model


def _take_network(model: Any, recipe: Any, model_class: Any) -> None:
    if recipe.network_from:
        source = model_class.from_pretrained(codec_path(recipe.network_from), dtype=torch.float32)
        transfer_network(model.decoder, source.decoder)


def collect_statistics(recipe: Any, config: WallocConfig, pieces: RandomPieces) -> SubbandStatistics:
    """Of the file that `recipe.statistics` names, or of random pieces."""
    if recipe.statistics and Path(recipe.statistics).exists():
        return SubbandStatistics.load(recipe.statistics, config)
    statistics = SubbandStatistics(config)
    stream = iter(pieces)
    for _ in tqdm(range(recipe.klt_draws), desc="statistics of the subbands", unit="piece"):
        (piece,) = next(stream).values()
        statistics.update(piece[None])
    if recipe.statistics:
        statistics.save(recipe.statistics)
    return statistics


def _some_pieces(pieces: RandomPieces, count: int) -> torch.Tensor:
    stream = iter(pieces)
    return torch.stack([next(iter(next(stream).values())) for _ in range(count)])
