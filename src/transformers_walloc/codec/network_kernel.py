"""The compiled convolutions (native/convolution.cpp) of the network that restores pictures: 3 x 3 taps, float32."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .kernels import address, check, library
from .layers import from_weights
from .runtime import is_recorded

_CHANNELS = 16  # of which numbers of channels are multiples
# G of F(4 x 4, 3 x 3): 3 taps to 6 numbers (Lavin and Gray 2016, for the points 0, 1, -1, 2, -2 and infinity).
_TAPS_TO_NUMBERS = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=np.float64) / 24
)


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "residual")),
        ("relu", ctypes.c_int64),
    )


def restore_details(network: Any, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
    """What a `RestorationNetwork` gives before its results become pixels, up to rounding; None if torch has to do it.

    That is so where gradients, autocast, other devices, types or sizes of filters, or a compiler are asked for, and
    where the network is not the plain one.

    Args:
        pixels: (batch, num_channels * downsampling**2, height, width), what goes into the stem.
        latents: (batch, hidden_size / 4, height, width), what goes into the join.
    """
    if is_recorded() or library() is None:
        return None
    if torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack():
        return None
    weights = list(network.parameters())
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in (pixels, latents, *weights)):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (pixels, latents, *weights)):
        return None
    if any(
        type(x) is not torch.Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x) for x in (pixels, latents)
    ):
        return None
    kernel = from_weights(network, "convolutions", lambda: NetworkKernel(network))
    return None if kernel is None or not kernel.fits else kernel.run(pixels, latents)


class NetworkKernel:
    """The 3 x 3 convolutions of a `RestorationNetwork` in the layout of the kernel."""

    def __init__(self, network: Any):
        self.fits = tuple(network.stem.weight.shape[2:]) == (3, 3)
        if self.fits:
            self._join, self._stem, self._head = map(_Layer, (network.latent_join, network.stem, network.head))
            self._blocks = [(_Layer(block.conv1), _Layer(block.conv2)) for block in network.blocks]

    def run(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """See `restore_details`."""
        results = [self._run_one(*pair) for pair in zip(pixels, latents, strict=True)]
        return torch.stack(results)

    def _run_one(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """(channels, height, width) each."""
        hidden = self._join.convolve(_channels_last(latents))
        hidden = self._stem.convolve(_channels_last(pixels), residual=hidden, out=hidden, relu=True)
        inner = None
        for first, second in self._blocks:
            inner = first.convolve(hidden, out=inner, relu=True)
            # A result takes the place of what is added to it.
            hidden = second.convolve(inner, residual=hidden, out=hidden)
        return torch.from_numpy(self._head.convolve(hidden)).permute(2, 0, 1)[: self._head.outputs]


class _Layer:
    def __init__(self, layer: torch.nn.Conv2d):
        weight = layer.weight.detach().double().numpy()
        self.outputs, inputs = weight.shape[:2]
        numbers = np.einsum("ai,bj,oeij->abeo", _TAPS_TO_NUMBERS, _TAPS_TO_NUMBERS, weight)
        self._weights = np.zeros((6, 6, _padded(inputs), _padded(self.outputs)), np.float32)
        self._weights[:, :, :inputs, : self.outputs] = numbers
        self._bias = np.zeros(_padded(self.outputs), np.float32)
        if layer.bias is not None:
            self._bias[: self.outputs] = layer.bias.detach().numpy()

    def convolve(
        self, x: np.ndarray, residual: np.ndarray | None = None, out: np.ndarray | None = None, relu: bool = False
    ) -> np.ndarray:
        """(height, width, inputs) -> (height, width, outputs), both padded to multiples of 16 channels."""
        kernels = library()
        if kernels is None:
            raise RuntimeError("the compiled kernels are switched off")
        inputs, outputs = self._weights.shape[2:]
        shape = (*x.shape[:2], outputs)
        out = np.empty(shape, np.float32) if out is None else out
        for array, expected in ((x, (*x.shape[:2], inputs)), (out, shape), (residual, shape)):
            if array is not None and not (array.shape == expected and array.flags.c_contiguous):
                raise ValueError(f"expected contiguous values of shape {expected}, got {array.shape}")
        pointers = (address(array) for array in (self._weights, self._bias, residual))
        convolution = _Convolution(inputs, outputs, *pointers, relu)
        threads = torch.get_num_threads()
        check(kernels.walloc_convolve(ctypes.byref(convolution), address(x), *shape[:2], threads, address(out)))
        return out


def _channels_last(x: torch.Tensor) -> np.ndarray:
    """(channels, height, width) -> (height, width, channels), filled up with channels of zeros."""
    return F.pad(x.detach().permute(1, 2, 0), (0, _padded(len(x)) - len(x))).contiguous().numpy()


def _padded(channels: int) -> int:
    return -(-channels // _CHANNELS) * _CHANNELS
