"""Surgery on residual decoders: larger ones that start as smaller ones, units that have died start anew."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..codec.decoders import ResidualDecoder, RestorationDecoder


@torch.no_grad()
def grow_from(decoder: nn.Module, smaller: nn.Module) -> None:
    """Make a decoder compute what a narrower or shallower one of the same codec computes, with room to learn more.

    As in Chen, Goodfellow and Shlens (Net2Net, ICLR 2016): new features are computed from random weights, but nothing
    reads them yet, and new blocks add nothing yet.

    Args:
        decoder: residual or restoration decoder.
        smaller: of the same type, with the same kernels and numbers of channels.

    Raises:
        ValueError: `smaller` is wider or deeper or of another type, or one has no network.
    """
    for kind in (ResidualDecoder, RestorationDecoder):
        if isinstance(decoder, kind) and isinstance(smaller, kind):
            break
    else:
        raise ValueError("a decoder can start as another one only where both have networks of the same type")
    new, old = _network(decoder), _network(smaller)
    _check_room(new, old)
    linear, source = decoder.get_submodule("linear"), smaller.get_submodule("linear")
    if linear.weight.shape != source.weight.shape or old.head.weight.shape[0] != new.head.weight.shape[0]:
        raise ValueError("the decoders differ in kernels or numbers of channels")
    if getattr(old, "magnification", None) != getattr(new, "magnification", None):
        raise ValueError("the decoders differ in downsampling")
    linear.load_state_dict(source.state_dict())
    for name, scales in smaller.named_buffers(recurse=False):
        decoder.get_buffer(name).copy_(scales)
    _embed_layers(new, old, ("stem", "latent_stem", "latent_join", "head"))


@torch.no_grad()
def transfer_network(decoder: nn.Module, source: nn.Module) -> None:
    """Start a restoration network as that of another codec, which sees the same kind of picture of other latents.

    What reads the latents themselves starts at zero, since they mean something else; it learns soon what they tell.

    Args:
        decoder, source: restoration decoders of any grids and channels of latents.

    Raises:
        ValueError: `source` is wider or deeper, or one is no restoration decoder.
    """
    if not (isinstance(decoder, RestorationDecoder) and isinstance(source, RestorationDecoder)):
        raise ValueError("only the network of a restoration decoder can be taken over from another codec")
    new, old = decoder.network, source.network
    _check_room(new, old)
    for value in new.latent_stem.parameters():
        value.zero_()
    _embed_layers(new, old, ("stem", "latent_join", "head"))


@torch.no_grad()
def revive(decoder: ResidualDecoder, z: torch.Tensor, share: float = 1e-3) -> int:
    """Give units that are silent new random weights, which nothing reads yet; how many they were.

    A unit of a block whose ReLU passes next to nothing gets no gradient and would never learn again.

    Args:
        z: decompanded latents of typical signals, (batch, latent_channels, *grid).
        share: of the positions; units that are active at fewer are silent.
    """
    revived = 0

    def inspect(layer: nn.Module, inputs: tuple, output: torch.Tensor):
        active[layer] = (output > 0).float().mean(dim=(0, 2, 3))

    active: dict[nn.Module, torch.Tensor] = {}
    convolutions = [(block.get_submodule("conv1"), block.get_submodule("conv2")) for block in decoder.blocks]
    hooks = [first.register_forward_hook(inspect) for first, _ in convolutions]
    try:
        decoder(z)
    finally:
        for hook in hooks:
            hook.remove()
    for first, second in convolutions:
        silent = active[first] < share
        revived += int(silent.sum())
        (weight, bias), (reading, _) = first.parameters(), second.parameters()
        fresh = nn.init.kaiming_uniform_(torch.empty_like(weight), a=math.sqrt(5))
        weight[silent] = fresh[silent]
        bias[silent] = 0.0
        reading[:, silent] = 0.0
    return revived


def _network(decoder: nn.Module) -> Any:
    return decoder.network if isinstance(decoder, RestorationDecoder) else decoder


def _check_room(larger: Any, smaller: Any) -> None:
    """ValueError unless the stem and the blocks of `smaller` fit into those of `larger`."""
    widths = [network.stem.weight.shape[0] for network in (smaller, larger)]
    depths = [len(network.blocks) for network in (smaller, larger)]
    if widths[0] > widths[1] or depths[0] > depths[1]:
        raise ValueError(
            f"a decoder of width {widths[0]} with {depths[0]} blocks does not fit into one of width {widths[1]} with "
            f"{depths[1]} blocks"
        )
    if smaller.stem.weight.shape[1:] != larger.stem.weight.shape[1:]:
        raise ValueError("the decoders differ in kernels or numbers of channels")


def _embed_layers(new: Any, old: Any, names: Sequence[str]) -> None:
    """Layers of these names, where there are any, and blocks; blocks that are added pass on what they are given."""
    for name in names:
        if hasattr(new, name):
            _embed(new.get_submodule(name), old.get_submodule(name))
    for block, earlier in zip(new.blocks, old.blocks, strict=False):
        _embed(block, earlier)
    for added in list(new.blocks)[len(old.blocks) :]:
        for value in added.get_submodule("conv2").parameters():
            value.zero_()


def _embed(layer: nn.Module, source: nn.Module) -> None:
    """The convolutions of `source` as the first outputs of those of `layer`, which ignore the inputs that are new."""
    for old, new in zip(source.parameters(), layer.parameters(), strict=True):
        first = new[: len(old)].zero_()
        first[:, : old.shape[1]].copy_(old) if old.ndim > 1 else first.copy_(old)
