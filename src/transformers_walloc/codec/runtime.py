"""What surrounds a computation: processes that were forked, and tracing, where no value can be looked at."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch.autograd import forward_ad


def is_traced(*tensors: torch.Tensor | None) -> bool:
    """Whether operations are recorded by a compiler or transformed, as by `vmap`, `grad` and `jvp` of `torch.func`."""
    return is_recorded() or is_transformed(*tensors)


def is_recorded() -> bool:
    """Whether operations are recorded, by `torch.compile` or by `torch.jit.trace`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed(*tensors: torch.Tensor | None) -> bool:
    """Whether tensors are inside `vmap`, `grad` or the like, which know nothing of memory formats either, or carry the
    derivative along a direction (`torch.autograd.forward_ad`)."""
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return any(
        tensor is not None and (wrapped(tensor) or forward_ad.unpack_dual(tensor).tangent is not None)
        for tensor in tensors
    )


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same values, the channels of a position side by side: (batch, channels, height, width), or with a depth."""
    if is_transformed(x):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch's operations, in the whole process, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


# The threads of OpenMP do not live on in a forked process, which then waits for them for ever. With one thread there is
# none to wait for; the loaders of torch set their workers to one as well.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
