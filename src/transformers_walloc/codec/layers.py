"""Linear layers that are called as modules, and what may be derived from their weights in place of a call.

Others change models from outside: adapters (peft), hooks, parametrisations, quantised and replaced layers. All of them
take effect where a layer is called. A faster route that reads weights is therefore taken only through `from_weights`.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.modules import module as _global

from .configuration_walloc import WallocConfig

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
Derived = TypeVar("Derived")

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_OWN_MODULES = f"{__name__.rpartition('.')[0]}."

# Of each module, by a key: the weights that something was derived from, and that.
_derived: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[list[torch.Tensor], Any]]] = WeakKeyDictionary()


def pointwise_layer(config: WallocConfig, inputs: int, outputs: int, padding: int = 0) -> Convolution:
    """A convolution of kernel 1 over the axes of a codec's signals."""
    return _CONVOLUTIONS[config.num_dims](inputs, outputs, 1, padding=padding)


def is_plain(module: nn.Module) -> bool:
    """Whether a call of a module computes what its weights say and nothing else.

    It does not if it or a part of it has hooks, another `forward` or class than its own, or weights of a type of their
    own, as adapters, parametrisations, quantisation and offloading bring them.
    """
    if any(getattr(_global, name) for name in _GLOBAL_HOOKS):
        return False
    return all(_is_plain(part) for part in module.modules())


def is_foreign(module: nn.Module) -> bool:
    """Whether a module is of a class that codecs are not made of, so that it may use weights in a way of its own."""
    return not _is_own(module) and type(module).__name__ != "OptimizedModule"  # of torch.compile


def is_pointwise(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether a module is a plain convolution of kernel 1: at every position the product with its weight."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and {*module.kernel_size, *module.stride, module.groups} == {1}
        and module.bias is not None
        and is_plain(module)
    )


def from_weights(module: nn.Module, key: Hashable, make: Callable[[], Derived]) -> Derived | None:
    """What `make` derives from the weights of a module, kept for as long as these stay the same.

    Weights are compared by content, since not every way to change them leaves a trace.

    Args:
        key: tells apart what is derived from one module.

    Returns:
        What `make` returned; None where `is_plain` is false or a weight holds no values (device `meta`): call the
        module then.
    """
    if not is_plain(module):
        return None
    weights: list[torch.Tensor] = list(module.parameters())
    if any(weight.is_meta for weight in weights):
        return None
    kept = _derived.setdefault(module, {})
    known = kept.get(key)
    if known is None or not _are_equal(known[0], weights):
        known = kept[key] = [weight.detach().clone() for weight in weights], make()
    return known[1]


def pointwise(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution of kernel 1 in float32, also where autocast or its weights would make it coarser.

    Subbands span more bits of precision than half precision has.

    Args:
        layer: a `pointwise_layer`, or what has been put in its place.
        x: (batch, inputs, *grid).

    Returns:
        (batch, outputs, *grid).
    """
    if is_pointwise(layer) and not any(layer.padding):
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = layer.weight.flatten(1).float(), layer.bias
            bias = None if bias is None else bias.float()
            y: torch.Tensor = F.conv1d(x.float().flatten(2), weight[:, :, None], bias).unflatten(2, x.shape[2:])
            return y
    weights = {name: weight for name, weight in layer.named_parameters() if weight.is_floating_point()}
    other = {name: weight for name, weight in weights.items() if weight.dtype != torch.float32}
    with torch.autocast(x.device.type, enabled=False):
        if not other:
            y = layer(x.float())
        elif any(weight.is_meta for weight in other.values()):  # a hook of accelerate brings the values
            y = layer(x.to(next(iter(other.values())).dtype)).float()
        else:
            y = functional_call(layer, {name: weight.float() for name, weight in other.items()}, (x.float(),))
    return y


def _is_own(module: nn.Module) -> bool:
    kind = type(module)
    return kind in (*_CONVOLUTIONS.values(), nn.ModuleList) or f"{kind.__module__}.".startswith(_OWN_MODULES)


def _is_plain(module: nn.Module) -> bool:
    if not _is_own(module) or "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
        return False
    return all(type(weight) in (nn.Parameter, torch.Tensor) for weight in module.parameters(recurse=False))


def _are_equal(known: list[torch.Tensor], weights: list[torch.Tensor]) -> bool:
    if len(known) != len(weights):
        return False
    return all(
        (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b) for a, b in zip(known, weights, strict=True)
    )
