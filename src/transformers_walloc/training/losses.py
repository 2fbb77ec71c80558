"""What codecs are trained on beside the error of the reconstruction."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..codec.bottleneck import quantize
from ..codec.modeling_walloc import CodecModel
from ..codec.outputs import WallocModelOutput
from ..codec.wavelets import wavelet_packet_analysis


def subband_error(codec: CodecModel, x: torch.Tensor) -> WallocModelOutput:
    """Mean squared error of the wavelet packet coefficients: cheaper than that of the reconstruction, which is left
    out, and nearly the same (CDF 9/7 is nearly orthonormal).

    Args:
        x: (batch, num_channels, *sizes) in [-0.5, 0.5], sizes multiples of `config.patch_size`.

    Returns:
        `loss` and `latents`.

    Raises:
        ValueError: the decoder has a network behind the synthesis, which this would leave out.
    """
    codec.check_signal(x)
    if hasattr(codec.decoder, "network"):
        raise ValueError("the error of the subbands leaves the restoration network out: use that of the signal")
    config = codec.config
    with torch.no_grad():
        target = wavelet_packet_analysis(x, config.num_levels, config.wavelet, config.boundary, config.num_dims)
    latents = codec.encoder.from_subbands(target)
    decoded = codec.decode_subbands(quantize(latents, codec.training_mode()))
    return WallocModelOutput(loss=F.mse_loss(decoded.float(), target), latents=latents.to(x.dtype))


def forward_with(function: Any, wrapped: nn.Module, codec: CodecModel, x: torch.Tensor) -> WallocModelOutput:
    """`function(codec, x)`, called through what wraps the codec.

    `DistributedDataParallel` prepares the exchange of gradients when it is called itself, and calls no other method of
    its module than `forward`: the function takes the place of that one for once.
    """
    if wrapped is codec:
        return function(codec, x)
    usual = codec.__dict__.get("forward")  # where accelerate has put its own on top

    def once(x: torch.Tensor) -> WallocModelOutput:
        restore()
        return function(codec, x)

    def restore() -> None:
        del codec.forward
        if usual is not None:
            codec.forward = usual

    codec.forward = once
    return wrapped(x)
