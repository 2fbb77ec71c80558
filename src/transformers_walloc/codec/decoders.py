"""Decoders: decompanded latents -> subbands of the wavelet packet transform, and for `restoration` on to pixels.

All map (batch, latent_channels, *grid) to (batch, subband_channels, *grid) for grids of one (audio), two (image) or
three (volume) dimensions. Ours have no operation that spans the grid (no attention, no normalisation over positions),
so that a latent influences only `receptive_field` positions around it and tiles decode to the same values as the whole.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_walloc import WallocConfig
from .layers import pointwise, pointwise_layer
from .network_kernel import restore_details
from .runtime import channels_last


def make_decoder(config: WallocConfig) -> nn.Module:
    """The decoder that `config.decoder_type` names.

    Raises:
        ImportError: one of the original's decoders is asked for and the package diffusers is not installed.
    """
    if config.decoder_type == "linear":
        return LinearDecoder(config)
    if config.decoder_type == "residual":
        return ResidualDecoder(config)
    if config.decoder_type == "restoration":
        return RestorationDecoder(config)
    return _original_decoder(config)


class LinearDecoder(nn.Module):
    """Subbands as a linear map of the latents, for example the synthesis half of a Karhunen-Loeve transform."""

    receptive_field = 0

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.linear = pointwise_layer(config, config.latent_channels, config.subband_channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(batch, latent_channels, *grid) decompanded latents -> (batch, subband_channels, *grid) subbands."""
        return pointwise(self.linear, z)


class RestorationDecoder(LinearDecoder):
    """A linear synthesis, and the `network` that restores the picture which the wavelet synthesis makes of it."""

    def __init__(self, config: WallocConfig):
        super().__init__(config)
        self.network = RestorationNetwork(config)


class RestorationNetwork(nn.Module):
    """Adds to a linearly decoded picture what linearity cannot know, where edges live: on a grid close to the pixels.

    ```
    picture --+------------------------------------------------------------------------+--> picture
              |                                                                        |
              +-- space to depth -- k x k --+-- ReLU -- N x [k x k, ReLU, k x k, +] -- k x k -- depth to space
    latents -- k x k -- depth to space -- k x k
    ```

    One filter serves all positions of a block, which a network on the grid of the latents has to learn one by one; the
    latents tell the positions apart. Blocks of `decoder_downsampling` pixels per axis become channels. The last
    convolution starts at zero, so training starts at the linear codec. Pixels depend on the latents that are up to
    `receptive_field` positions away.
    """

    def __init__(self, config: WallocConfig):
        super().__init__()
        width, self.downsampling = config.decoder_hidden_size, config.decoder_downsampling
        self.magnification = config.patch_size // self.downsampling
        pixels, latents = config.num_channels * self.downsampling**2, max(1, width // 4)
        self.stem = _convolution(config, pixels, width)
        self.latent_stem = _convolution(config, config.latent_channels, latents * self.magnification**2)
        self.latent_join = _convolution(config, latents, width)
        self.blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.decoder_num_layers))
        self.head = _convolution(config, width, pixels)
        radius = config.decoder_kernel_size // 2
        self.receptive_field = radius + math.ceil(radius * (2 * config.decoder_num_layers + 2) / self.magnification)

    def forward(self, picture: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """
        Args:
            picture: (batch, num_channels, height, width), about within [-0.5, 0.5].
            z: the decompanded latents that it was made of, (batch, latent_channels, height/patch, width/patch).
        """
        dtype = self.stem.weight.dtype
        # Scales bring pixels, latents and what is added close to unit variance.
        pixels = F.pixel_unshuffle((4.0 * picture).to(dtype), self.downsampling)
        latents = channels_last(torch.asinh(0.1 * z.float()).to(dtype))
        latents = F.pixel_shuffle(self.latent_stem(latents), self.magnification)
        detail = restore_details(self, pixels, latents)
        if detail is None:
            hidden = self.stem(channels_last(pixels))
            hidden = F.relu(hidden + self.latent_join(latents))
            for block in self.blocks:
                hidden = block(hidden)
            detail = self.head(hidden)
        return picture + 0.1 * F.pixel_shuffle(detail, self.downsampling).to(picture.dtype)


class ResidualDecoder(nn.Module):
    """The linear synthesis plus a convolutional network that adds what linearity cannot know.

    ```
    z --+------------------------- 1x1 ------------------------------+--> subbands
        |                                                            |
        +-- asinh(3 z / std) -- k x k -- N x [k x k, ReLU, k x k, +] -- k x k -- * scale
    ```

    The last convolution starts at zero, so training starts at the linear codec. `latent_std` and `subband_scale` hold
    the standard deviations of the latents and of what the linear synthesis leaves of each subband.

    The network runs on (batch, channels, height, width) in channels-last memory, with a height of 1 for audio: on a CPU
    training is two to four times as fast as with contiguous images or with one-dimensional convolutions. Volumes have
    three-dimensional convolutions.
    """

    latent_std: torch.Tensor
    subband_scale: torch.Tensor

    def __init__(self, config: WallocConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.linear = pointwise_layer(config, config.latent_channels, config.subband_channels)
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.register_buffer("subband_scale", torch.ones(config.subband_channels))
        self.stem = _convolution(config, config.latent_channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.decoder_num_layers))
        self.head = _convolution(config, width, config.subband_channels)
        self.receptive_field = (config.decoder_kernel_size // 2) * (2 * config.decoder_num_layers + 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(batch, latent_channels, *grid) decompanded latents -> (batch, subband_channels, *grid) subbands."""
        per_channel = (-1, *[1] * (z.ndim - 2))
        hidden = torch.asinh(3.0 * z.float() / self.latent_std.float().view(per_channel)).to(self.stem.weight.dtype)
        if z.ndim == 3:
            hidden = hidden[:, :, None]
        hidden = self.stem(channels_last(hidden))
        for block in self.blocks:
            hidden = block(hidden)
        # Subbands span more than eight bits of precision, so the sum is formed in float32 whatever the network runs in.
        detail = self.head(hidden).float()
        if z.ndim == 3:
            detail = detail[:, :, 0]
        subbands: torch.Tensor = pointwise(self.linear, z) + detail * self.subband_scale.float().view(per_channel)
        return subbands


class ResidualBlock(GradientCheckpointingLayer):
    """Two convolutions around a ReLU, added to what comes in."""

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.conv1 = _convolution(config, config.decoder_hidden_size, config.decoder_hidden_size)
        self.conv2 = _convolution(config, config.decoder_hidden_size, config.decoder_hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, hidden_size, *grid) -> the same shape."""
        result: torch.Tensor = hidden + self.conv2(F.relu(self.conv1(hidden)))
        return result


class PostFilter(nn.Conv1d):
    """Filters the waveform behind the synthesis; starts as the identity."""


def _convolution(config: WallocConfig, inputs: int, outputs: int) -> nn.Conv2d | nn.Conv3d:
    kernel = config.decoder_kernel_size
    if config.num_dims == 3:
        return nn.Conv3d(inputs, outputs, kernel, padding="same")
    return nn.Conv2d(inputs, outputs, (1, kernel) if config.num_dims == 1 else kernel, padding="same")


def _original_decoder(config: WallocConfig) -> nn.Module:
    """The decoders of the original implementation, for its converted checkpoints; they live in diffusers."""
    try:
        from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDecoder
        from diffusers.models.autoencoders.vae import Decoder
    except ImportError as error:
        raise ImportError(
            f"decoder_type {config.decoder_type!r} needs diffusers: pip install 'transformers-walloc[original]'"
        ) from error
    if config.decoder_type == "kl":
        return Decoder(
            in_channels=config.latent_channels,
            out_channels=config.subband_channels,
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(config.decoder_hidden_size,),
            layers_per_block=2,
            norm_num_groups=32,
            act_fn="silu",
            mid_block_add_attention=True,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates the weight norm that is taken off below
        decoder = OobleckDecoder(
            channels=config.latent_channels,
            input_channels=config.latent_channels,
            audio_channels=config.subband_channels,
            upsampling_ratios=[1, 1],
            channel_multiples=[config.decoder_hidden_size // config.latent_channels] * 2,
        )
        for module in decoder.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)  # conversion folds it into plain weights
    return decoder
