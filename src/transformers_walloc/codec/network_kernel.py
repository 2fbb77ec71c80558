"""The compiled convolutions (native/convolution.cpp) of the network that restores pictures: 3 x 3 taps, float32."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F

from .kernels import check, library
from .layers import from_weights, is_plain
from .runtime import is_traced

_CHANNELS = 16  # of which numbers of channels are multiples
# G of F(4 x 4, 3 x 3): 3 taps to 6 numbers (Lavin and Gray 2016, for the points 0, 1, -1, 2, -2 and infinity).
_TAPS_TO_NUMBERS = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
)
_NUMBERS = torch.kron(_TAPS_TO_NUMBERS, _TAPS_TO_NUMBERS)  # (36, 9): of 3 x 3 taps the 6 x 6


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias", "residual")),
        ("relu", ctypes.c_int64),
    )


def restore_details(network: Any, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
    """What a `RestorationNetwork` gives before its results become pixels, up to rounding; None if torch has to do it.

    That is so where autocast, other devices, types or sizes of filters, gradient checkpointing or a compiler are asked
    for, and where the network is not the plain one. Gradients come from the kernel, too.

    Args:
        pixels: (batch, num_channels * downsampling**2, height, width), what goes into the stem.
        latents: (batch, hidden_size / 4, height, width), what goes into the join.
    """
    weights = list(network.parameters())
    if is_traced(pixels, latents, *weights) or library() is None:
        return None
    if torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack():
        return None
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in (pixels, latents, *weights)):
        return None
    if any(type(x) is not torch.Tensor for x in (pixels, latents)) or tuple(network.stem.weight.shape[2:]) != (3, 3):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (pixels, latents, *weights)):
        checkpointed = network.training and any(block.gradient_checkpointing for block in network.blocks)
        return None if checkpointed or not is_plain(network) else _differentiable_details(network, pixels, latents)
    kernel = from_weights(network, "convolutions", lambda: NetworkKernel(network))
    return None if kernel is None else kernel.run(pixels, latents)


class NetworkKernel:
    """The 3 x 3 convolutions of a `RestorationNetwork` in the layout of the kernel."""

    def __init__(self, network: Any):
        self._join, self._stem, self._head = map(_Layer, (network.latent_join, network.stem, network.head))
        self._blocks = [(_Layer(block.conv1), _Layer(block.conv2)) for block in network.blocks]

    def run(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """See `restore_details`; one picture after the other, for the sake of memory."""
        return torch.cat([self._run_one(*pair) for pair in zip(pixels.split(1), latents.split(1), strict=True)])

    def _run_one(self, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        hidden = self._join.convolve(_rows_first(latents))
        hidden = self._stem.convolve(_rows_first(pixels), residual=hidden, out=hidden, relu=True)
        inner = None
        for first, second in self._blocks:
            inner = first.convolve(hidden, out=inner, relu=True)
            # A result takes the place of what is added to it.
            hidden = second.convolve(inner, residual=hidden, out=hidden)
        return self._head.convolve(hidden).permute(0, 3, 1, 2)[:, : self._head.outputs]


class _Layer:
    def __init__(self, layer: torch.nn.Conv2d):
        self.outputs = len(layer.weight)
        self._weights = _weight_numbers(layer.weight.detach().double())
        self._bias = _padded_bias(layer.bias, self.outputs)

    def convolve(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        """See `_convolve`."""
        return _convolve(x, self._weights, self._bias, **options)


def _convolve(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(batch, height, width, inputs) -> (batch, height, width, outputs), both filled up to multiples of 16 channels.

    Args:
        weights, bias: as `_weight_numbers` and `_padded_bias` give them.
        residual: what is added, in the shape of the result.
        relu: whether negative results become zero.
        out: where the result goes, which may be `residual`; a new tensor if None.
    """
    inputs, outputs = weights.shape[1:]
    shape = (*x.shape[:3], outputs)
    out = x.new_empty(shape) if out is None else out
    for values, expected in ((x, (*shape[:3], inputs)), (out, shape), (residual, shape), (bias, (outputs,))):
        if values is not None and not (values.shape == expected and values.is_contiguous()):
            raise ValueError(f"expected contiguous values of shape {expected}, got {tuple(values.shape)}")
    convolution = _Convolution(inputs, outputs, _address(weights), _address(bias), _address(residual), relu)
    threads = torch.get_num_threads()
    check(_kernels().walloc_convolve(ctypes.byref(convolution), _address(x), *shape[:3], threads, _address(out)))
    return out


def _differentiable_details(network: Any, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """What `NetworkKernel.run` computes, with gradients."""
    hidden = _convolution(network.latent_join, _rows_first(latents))
    hidden = _convolution(network.stem, _rows_first(pixels), hidden, relu=True)
    for block in network.blocks:
        hidden = _convolution(block.conv2, _convolution(block.conv1, hidden, relu=True), hidden)
    return _convolution(network.head, hidden).permute(0, 3, 1, 2)[:, : len(network.head.weight)]


def _convolution(
    layer: torch.nn.Conv2d, x: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False
) -> torch.Tensor:
    result: torch.Tensor = _DifferentiableConvolution.apply(x, layer.weight, layer.bias, residual, relu)
    return result


class _DifferentiableConvolution(torch.autograd.Function):
    """A convolution of (batch, height, width, channels), channels filled up to multiples of 16."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        relu: bool,
    ) -> torch.Tensor:
        out = _convolve(x, _weight_numbers(weight.detach()), _padded_bias(bias, len(weight)), residual, relu)
        ctx.save_for_backward(x, weight, bias, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, out = ctx.saved_tensors
        gradient = gradient.contiguous()
        if out is not None:
            gradient = gradient * (out > 0)
        of_residual = gradient if ctx.needs_input_grad[3] else None
        if torch.is_grad_enabled():  # gradients of gradients are asked for
            inputs = [value for value, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            again = F.conv2d(x[..., : weight.shape[1]].permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
            found = iter(torch.autograd.grad(again, inputs, gradient[..., : len(weight)], create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), of_residual, None
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            # That of the inputs is the convolution with the taps turned around and the channels exchanged.
            numbers = _weight_numbers(weight.detach().flip(2, 3).transpose(0, 1))
            of_x = _convolve(gradient, numbers, gradient.new_zeros(x.shape[3]))
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, gradient, weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 1, 2))[: len(weight)]
        return of_x, of_weight, of_bias, of_residual, None


def _weight_gradient(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    inputs, outputs, threads = x.shape[3], gradient.shape[3], torch.get_num_threads()
    sums = x.new_zeros(len(_NUMBERS), inputs, outputs)
    arguments = _address(x), _address(gradient), *x.shape[:3], threads, _address(sums)
    check(_kernels().walloc_convolve_gradient(inputs, outputs, *arguments))
    taps = (_NUMBERS.T.to(sums.dtype) @ sums.flatten(1)).view(3, 3, inputs, outputs)
    return taps[:, :, : weight.shape[1], : weight.shape[0]].permute(3, 2, 0, 1)


def _weight_numbers(weight: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs, 3, 3) taps -> (36, inputs, outputs) numbers, channels filled up, in float32."""
    taps = weight.permute(2, 3, 1, 0)
    numbers = (_NUMBERS.to(taps.dtype) @ taps.reshape(9, -1)).view(len(_NUMBERS), *taps.shape[2:])
    inputs, outputs = taps.shape[2:]
    return F.pad(numbers, (0, _padded(outputs) - outputs, 0, _padded(inputs) - inputs)).float().contiguous()


def _padded_bias(bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    bias = torch.zeros(outputs) if bias is None else bias.detach().float()
    return F.pad(bias, (0, _padded(outputs) - outputs)).contiguous()


def _kernels() -> ctypes.CDLL:
    kernels = library()
    if kernels is None:
        raise RuntimeError("the compiled kernels are switched off")
    return kernels


def _rows_first(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, height, width, channels), filled up with channels of zeros."""
    return F.pad(x.permute(0, 2, 3, 1), (0, _padded(x.shape[1]) - x.shape[1])).contiguous()


def _address(values: torch.Tensor | None) -> ctypes.c_void_p:
    """Where the first of some values lies; the caller keeps them alive."""
    return ctypes.c_void_p(None if values is None else values.data_ptr())


def _padded(channels: int) -> int:
    return -(-channels // _CHANNELS) * _CHANNELS
