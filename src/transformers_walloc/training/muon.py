"""Muon: momentum with orthogonalised updates, for the convolutions of a decoder."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F


class Muon(torch.optim.AdamW):
    """AdamW, in which groups with `muon=True` get orthogonalised momentum instead.

    The update of a convolution kernel, seen as a matrix (out channels, in channels * kernel), is its Nesterov momentum
    with all singular values moved close to 1 by five Newton-Schulz steps (Jordan et al., "Muon: An optimizer for hidden
    layers in neural networks", 2024), scaled to the root mean square of a typical AdamW update (Liu et al., "Muon is
    Scalable for LLM Training", arXiv 2502.16982, section 2.2), so that learning rates mean the same in both kinds.
    `torch.optim.Muon` takes matrices only.

    An update of constant size drifts where gradients are small but steady. The steadiest is the one that shuts ReLUs
    to be rid of noise, along the mean of a layer's input, until no unit is left alive. So kernels may be updated as if
    their inputs were centred, `w * (x - mean) + b`: what a unit is on average then follows its bias alone.

    Args:
        params: parameter groups as of AdamW; those with `muon=True` hold tensors of at least two dimensions.
        momentum: of the groups with `muon=True`.
        centred: convolutions whose kernels are updated as if their inputs were centred; they must have biases that are
            trained, too.
    """

    def __init__(self, params, momentum: float = 0.95, centred: Iterable[torch.nn.Conv2d] = (), **kwargs):
        super().__init__(params, **kwargs)
        self.momentum = momentum
        self.input_means = {layer.weight: _InputMean(layer) for layer in centred}
        for group in self.param_groups:
            group.setdefault("muon", False)
            if group["muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("groups with muon=True take tensors of at least two dimensions")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["muon"]:
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                centre = self.input_means.get(parameter)
                if centre is not None:
                    centre.remove_from_gradient()
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.momentum)
                update = orthogonalise(parameter.grad.lerp(buffer, self.momentum).flatten(1))
                scale = 0.2 * math.sqrt(max(update.shape))
                change = update.view_as(parameter).mul_(-group["lr"] * scale)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)
                if centre is not None:
                    centre.compensate(change)
                parameter.grad = None  # AdamW leaves parameters without a gradient alone
        super().step()
        return loss


class _InputMean:
    """Mean of what a convolution reads, (in channels,), over the last batches and all processes."""

    def __init__(self, layer: torch.nn.Conv2d, decay: float = 0.9):
        if layer.bias is None:
            raise ValueError("a convolution without a bias cannot be centred")
        self.weight, self.bias, self.decay = layer.weight, layer.bias, decay
        self.mean: torch.Tensor | None = None
        layer.register_forward_pre_hook(self._observe)

    @torch.no_grad()
    def _observe(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor]):
        if layer.training:
            mean = inputs[0].mean(dim=(0, 2, 3), dtype=torch.float32)
            self.mean = mean if self.mean is None else mean.lerp_(self.mean, self.decay)

    def remove_from_gradient(self):
        """The gradient of the kernel becomes that for centred inputs."""
        if self.mean is None or self.bias.grad is None or self.weight.grad is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.mean)
            self.mean /= torch.distributed.get_world_size()
        self.weight.grad -= self.bias.grad[:, None, None, None] * self.mean[:, None, None]

    def compensate(self, change: torch.Tensor):
        """The bias takes back what a change of the kernel did to the mean output."""
        if self.mean is not None:
            self.bias -= change.sum(dim=(2, 3)) @ self.mean


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (m, n) with the same singular vectors and singular values of about 1, by Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # What is this small stays small in five steps, and its products would be denormal, which makes a CPU several times
    # slower: the momentum of a unit that gets no gradients any more shrinks to the smallest denormals and stays there.
    wide = F.hardshrink(wide / (wide.norm() + 1e-7), 1e-12)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
