"""Muon: momentum with orthogonalised updates, for the convolutions of a decoder."""

import math

import torch


class Muon(torch.optim.AdamW):
    """AdamW, in which groups with `muon=True` get orthogonalised momentum instead.

    The update of a convolution kernel, seen as a matrix (out channels, in channels * kernel), is its Nesterov momentum
    with all singular values moved close to 1 by five Newton-Schulz steps (Jordan et al., "Muon: An optimizer for hidden
    layers in neural networks", 2024), scaled to the root mean square of a typical AdamW update (Liu et al., "Muon is
    Scalable for LLM Training", arXiv 2502.16982, section 2.2), so that learning rates mean the same in both kinds.
    `torch.optim.Muon` takes matrices only.

    Args:
        params: parameter groups as of AdamW; those with `muon=True` hold tensors of at least two dimensions.
        momentum: of the groups with `muon=True`.
    """

    def __init__(self, params, momentum: float = 0.95, **kwargs):
        super().__init__(params, **kwargs)
        self.momentum = momentum
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
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.momentum)
                update = orthogonalise(parameter.grad.lerp(buffer, self.momentum).flatten(1))
                scale = 0.2 * math.sqrt(max(update.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)
                parameter.grad = None  # AdamW leaves parameters without a gradient alone
        super().step()
        return loss


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (m, n) with the same singular vectors and singular values of about 1, by Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
