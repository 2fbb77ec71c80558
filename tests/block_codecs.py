"""A small symmetric block codec: a closed-form fit to a few photographs."""

import functools

import skimage.data
import torch

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.training.klt import SubbandStatistics, fit_klt


def photographs(size: int = 256) -> torch.Tensor:
    """(3, 3, size, size) in [-0.5, 0.5]."""
    arrays = [skimage.data.astronaut()[100:, 80:], skimage.data.coffee()[40:, 150:], skimage.data.chelsea()[:, 60:]]
    crops = [torch.from_numpy(array[:size, :size].copy()).permute(2, 0, 1) for array in arrays]
    return torch.stack(crops).float() / 255 - 0.5


@functools.cache
def _state(latent_channels: int, num_levels: int, decoder_type: str):
    config = WallocImageConfig(
        wavelet="haar",
        boundary="periodization",
        num_levels=num_levels,
        latent_channels=latent_channels,
        decoder_type=decoder_type,
        decoder_hidden_size=16,
        decoder_num_layers=1,
    )
    torch.manual_seed(0)
    model = WallocImageModel(config).eval()
    statistics = SubbandStatistics(config)
    statistics.update(photographs())
    fit_klt(model, statistics, 0.1, symmetric=True)
    return config.to_dict(), model.state_dict()


def block_model(latent_channels: int = 48, num_levels: int = 4, decoder_type: str = "linear") -> WallocImageModel:
    config, state = _state(latent_channels, num_levels, decoder_type)
    model = WallocImageModel(WallocImageConfig.from_dict(config)).eval()
    model.load_state_dict(state)
    return model
