"""Flips, rotations and transpositions of stored latents: as if the picture had been moved before it was encoded."""

import torch

from ..codec.configuration_walloc import WallocConfig
from ..codec.symmetries import channel_symmetry, move_grid


def transform_latents(latents: torch.Tensor, config: WallocConfig, name: str) -> torch.Tensor:
    """Move latents or codes as the picture would be moved.

    It equals encoding the moved picture: up to rounding for latents, and for codes but for latents that lie halfway
    between two codes. Pictures whose sizes are no multiples of `config.patch_size` are padded at the bottom and on the
    right: their latents move with the padding, which is then at the other side.

    ```python
    codec = AutoModel.from_pretrained("walloc/rgb-f16c48")
    latents = codec.encode(pixels).latents
    mirrored = transform_latents(latents, codec.config, "hflip")  # codec.encode(pixels.flip(-1)).latents
    ```

    Args:
        latents: (..., latent_channels, h, w) floating-point latents or integer codes, on any device.
        config: of a symmetric block codec, such as `walloc/rgb-f16c48`.
        name: `identity`, `hflip`, `vflip`, `rot180`, `transpose`, `transverse` (a transposition over the other
            diagonal), or `rot90` or `rot270` counter-clockwise, as `numpy.rot90` and Pillow turn.

    Returns:
        A new tensor of the same type; h and w change places where the picture's do.

    Raises:
        ValueError: an unknown name, latents of another number of channels, or a codec whose latents cannot be moved:
            one with overlapping wavelets, and all of audio and volumes.
    """
    if config.num_dims != 2:
        raise ValueError("only latents of images can be moved; those of audio and volumes have other symmetries")
    permutation = channel_symmetry(config, name)
    if latents.ndim < 3 or latents.shape[-3] != config.latent_channels:
        raise ValueError(f"latents must be (..., {config.latent_channels}, h, w), got {tuple(latents.shape)}")
    index, signs = (torch.from_numpy(part).to(latents.device) for part in permutation)
    moved = move_grid(latents, name).index_select(-3, index)
    return moved * signs.to(latents.dtype)[:, None, None]
