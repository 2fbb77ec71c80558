"""The compiled convolutions of restoration networks against torch's."""

import pytest
import torch
from torch.autograd import forward_ad

from transformers_walloc import WallocImageConfig, WallocImageModel, native
from transformers_walloc.codec import kernels
from transformers_walloc.codec.network_kernel import restore_details
from transformers_walloc.codec.runtime import torch_threads

pytestmark = pytest.mark.skipif(kernels.library() is None, reason=native.describe())


def codec(**options) -> WallocImageModel:
    """A codec whose network adds something: all its weights are random."""
    torch.manual_seed(0)
    fields = {"decoder_hidden_size": 16, "decoder_num_layers": 1, "latent_channels": 12, **options}
    model = WallocImageModel(WallocImageConfig(decoder_type="restoration", **fields)).eval().requires_grad_(False)
    torch.nn.init.kaiming_uniform_(model.decoder.network.head.weight)
    for name, parameter in model.decoder.network.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.1)
    return model


def both_ways(model, codes, **options):
    with kernels.switched_off():
        slow = model.decode(codes, **options).pixel_values
    return slow, model.decode(codes, **options).pixel_values


def random_codes(model, height, width, batch=1):
    return torch.randint(-1, 2, (batch, model.config.latent_channels, height, width), dtype=torch.int8)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_hidden_size": 40, "decoder_num_layers": 2},
        {"decoder_downsampling": 4, "decoder_hidden_size": 64},
        {"decoder_downsampling": 1, "num_levels": 1, "latent_channels": 5, "num_channels": 2},
        {"wavelet": "haar", "boundary": "periodization", "num_levels": 4, "latent_channels": 48},
    ],
)
def test_pixels_are_those_of_torch(options):
    model = codec(**options)
    for height, width, batch in ((1, 1, 1), (3, 7, 2), (9, 31, 1)):
        slow, fast = both_ways(model, random_codes(model, height, width, batch))
        assert fast.shape == slow.shape
        assert 0 < (slow - fast).abs().max() < 1e-5  # not equal: the kernel was used


def gradients(model, x):
    """Of the loss, by the input and by the weights of the decoder."""
    x = x.clone().requires_grad_(True)
    inputs = [x, *(parameter for parameter in model.decoder.parameters() if parameter.requires_grad)]
    torch.manual_seed(0)
    return torch.autograd.grad(model(x).loss, inputs)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 3, 40, 56)),
        ({"decoder_hidden_size": 40, "decoder_num_layers": 2}, (1, 3, 8, 8)),
        ({"decoder_downsampling": 4, "decoder_hidden_size": 64}, (2, 3, 144, 88)),
        ({"decoder_downsampling": 1, "num_levels": 1, "latent_channels": 5, "num_channels": 2}, (1, 2, 6, 66)),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_are_those_of_torch(options, shape, threads):
    with torch_threads(threads):
        model = codec(**options).train().requires_grad_(True)
        x = torch.rand(shape) - 0.5
        with kernels.switched_off():
            expected = gradients(model, x)
        found = gradients(model, x)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-4 * one.norm()
    assert not all(map(torch.equal, expected, found))  # the kernel was used


def test_frozen_codecs_give_gradients_of_latents():
    model = codec()
    latents = random_codes(model, 4, 4).float().requires_grad_(True)
    model.decode(latents).pixel_values.sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_gradients_of_gradients_are_those_of_torch():
    def penalty(model, x):
        x = x.clone().requires_grad_(True)
        torch.manual_seed(0)
        (of_x,) = torch.autograd.grad(model(x).loss, x, create_graph=True)
        return torch.autograd.grad(of_x.square().sum(), list(model.decoder.network.parameters()), allow_unused=True)

    model, x = codec(decoder_hidden_size=24).train().requires_grad_(True), torch.rand(1, 3, 24, 16) - 0.5
    with kernels.switched_off():
        expected = penalty(model, x)
    for one, other in zip(expected, penalty(model, x), strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).norm() <= 1e-3 * one.norm()


@pytest.mark.parametrize("enabled", [False, True])
def test_derivatives_along_a_direction_are_those_of_torch(enabled):
    """Forward mode, by inputs and by weights, of encoder and decoder; kernels would lose them."""
    model = codec()
    z, x = torch.randn(1, 12, 4, 4), torch.rand(1, 3, 32, 32) - 0.5

    class Sides(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, z):
            return self.model.encode(x).latents, self.model.decode(z).pixel_values

    def dual(value):
        return forward_ad.make_dual(value, torch.ones_like(value))

    def tangents(by_weights):
        with forward_ad.dual_level(), torch.set_grad_enabled(enabled):
            if by_weights:
                weights = {f"model.{path}": dual(model.get_parameter(path)) for path in paths}
                results = torch.func.functional_call(Sides(), weights, (x, z))
            else:
                results = Sides()(dual(x), dual(z))
            return [forward_ad.unpack_dual(result).tangent for result in results]

    paths = ("encoder.projection.weight", "decoder.network.head.weight")
    for by_weights in (False, True):
        with kernels.switched_off():
            expected = tangents(by_weights)
        for one, other in zip(expected, tangents(by_weights), strict=True):
            assert other is not None and one.abs().sum() > 0
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_frozen_layers_get_no_gradients():
    model, x = codec(decoder_num_layers=2).train(), torch.rand(1, 3, 24, 16) - 0.5
    trained = model.decoder.network.blocks[1].conv2
    trained.requires_grad_(True)
    with kernels.switched_off():
        torch.manual_seed(0)
        model(x).loss.backward()
    expected, trained.weight.grad = trained.weight.grad, None
    torch.manual_seed(0)
    model(x).loss.backward()
    assert (trained.weight.grad - expected).norm() <= 1e-4 * expected.norm()
    assert [name for name, value in model.named_parameters() if value.grad is not None] == [
        "decoder.network.blocks.1.conv2.weight",
        "decoder.network.blocks.1.conv2.bias",
    ]


def test_parts_and_threads_give_the_same_bits():
    """Parts that start at multiples of four, with the surroundings that their results depend on."""
    network = codec().decoder.network
    pixels, latents = torch.randn(1, 12, 60, 92), torch.randn(1, 4, 60, 92)
    whole = restore_details(network, pixels, latents)
    part = restore_details(network, pixels[..., 8:40, 24:72], latents[..., 8:40, 24:72])
    assert torch.equal(part[..., 8:-8, 8:-8], whole[..., 16:32, 32:64])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(restore_details(network, pixels, latents), whole)
    finally:
        torch.set_num_threads(threads)


def test_new_weights_are_used():
    model = codec()
    codes = random_codes(model, 4, 4)
    before = model.decode(codes).pixel_values
    model.decoder.network.blocks[0].conv1.weight.mul_(-1)
    slow, fast = both_ways(model, codes)
    assert (before - fast).abs().max() > 1e-3 and (slow - fast).abs().max() < 1e-5


def test_what_torch_has_to_see_goes_through_torch():
    """Hooks, checkpointed gradients, autocast, half precision and other sizes of filters."""
    model, called = codec(), []
    codes = random_codes(model, 4, 4)
    handle = model.decoder.network.blocks[0].conv2.register_forward_hook(lambda *_: called.append(1))
    assert torch.equal(*both_ways(model, codes)) and len(called) == 2
    handle.remove()
    checkpointed = codec().train().requires_grad_(True)
    checkpointed.gradient_checkpointing_enable()
    x = torch.rand(1, 3, 16, 16) - 0.5
    with kernels.switched_off():
        expected = gradients(checkpointed, x)
    assert all(map(torch.equal, expected, gradients(checkpointed, x)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(*both_ways(model, codes))
    assert torch.equal(*both_ways(codec(decoder_kernel_size=5), codes))
    slow, fast = both_ways(codec(dtype="bfloat16").to(torch.bfloat16), codes)
    assert torch.equal(slow, fast)
