"""Companding and quantisation against closed values and their defining properties."""

import math
from statistics import NormalDist

import pytest
import torch

from transformers_walloc.codec.bottleneck import (
    MIN_PROBABILITY,
    code_dtype,
    compand,
    companding_scale,
    decompand,
    latent_limit,
    quantize,
)

BITS = (2, 4, 8, 12, 16)


@pytest.mark.parametrize("bits", BITS)
def test_companding_is_the_gaussian_distribution_function(bits):
    """u = 2 m (Phi(z / s) - 1/2) with s = (2**(b-1) - 1) / 1.85 and m = 2**(b-1) - 0.501."""
    scale, limit = (2 ** (bits - 1) - 1) / 1.85, 2 ** (bits - 1) - 0.501
    assert companding_scale(bits) == pytest.approx(scale) and latent_limit(bits) == pytest.approx(limit)
    z = torch.linspace(-5, 5, 101, dtype=torch.float64) * scale
    expected = [2 * limit * (NormalDist().cdf(value / scale) - 0.5) for value in z.tolist()]
    torch.testing.assert_close(compand(z, bits), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-12)


def test_known_values_for_eight_bits():
    """One scale out lie 34.13% of a Gaussian, that is 0.6827 of the limit 127.499."""
    z = torch.tensor([0.0, 127 / 1.85, -127 / 1.85, 1e6], dtype=torch.float64)
    expected = torch.tensor([0.0, 87.0421, -87.0421, 127.499], dtype=torch.float64)
    torch.testing.assert_close(compand(z, 8), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decompanding_inverts(bits, dtype):
    z = torch.linspace(-2.5, 2.5, 1001, dtype=dtype) * companding_scale(bits)
    back = decompand(compand(z, bits), bits)
    assert back.dtype == dtype
    # The slope of the inverse is up to 1 / phi(2.5) = 57 times the one at zero.
    torch.testing.assert_close(back, z, atol=100 * torch.finfo(dtype).eps * companding_scale(bits), rtol=0)


@pytest.mark.parametrize("bits", BITS)
def test_companding_increases_within_the_limits(bits):
    z = torch.linspace(-10, 10, 10001, dtype=torch.float64) * companding_scale(bits)
    u = compand(z, bits)
    assert (u.diff() >= 0).all() and (u[4000:6001].diff() > 0).all()
    assert u.abs().max() <= latent_limit(bits)
    torch.testing.assert_close(u, -u.flip(0))


@pytest.mark.parametrize("bits", BITS)
def test_every_code_fits_its_type(bits):
    dtype, largest = code_dtype(bits), 2 ** (bits - 1) - 1
    assert dtype == (torch.int8 if bits <= 8 else torch.int16)
    codes = torch.round(compand(torch.tensor([-1e9, 1e9], dtype=torch.float64), bits))
    assert codes.tolist() == [-largest, largest]
    assert codes.to(dtype).tolist() == [-largest, largest]


def test_decompanding_clamps_the_probability():
    """Beyond the limit the inverse stops at Phi^-1(1 - 1e-4) = 3.719 scales."""
    z = decompand(torch.tensor([-1e4, 127.499, 1e4], dtype=torch.float64), 8)
    edge = NormalDist().inv_cdf(1 - MIN_PROBABILITY) * companding_scale(8)
    torch.testing.assert_close(z, torch.tensor([-edge, edge, edge], dtype=torch.float64), rtol=1e-9, atol=0)


def test_codes_decompand_as_floats():
    codes = torch.arange(-127, 128, dtype=torch.int8)
    z = decompand(codes, 8)
    assert z.dtype == torch.float32
    assert torch.equal(z, decompand(codes.float(), 8))
    assert (z.diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    z = torch.linspace(-200, 200, 401).to(dtype)
    assert compand(z, 8).dtype == dtype
    assert torch.equal(compand(z, 8), compand(z.float(), 8).to(dtype))
    assert torch.equal(decompand(compand(z, 8), 8), decompand(compand(z, 8).float(), 8).to(dtype))


def test_slope_at_zero():
    """du/dz = 2 m phi(0) / s."""
    z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    compand(z, 8).backward()
    assert z.grad.item() == pytest.approx(2 * 127.499 / math.sqrt(2 * math.pi) / (127 / 1.85), rel=1e-12)


def test_gradients():
    z = (torch.linspace(-2, 2, 9, dtype=torch.float64) * companding_scale(8)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: compand(v, 8), z)
    u = torch.linspace(-110, 110, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: decompand(v, 8), u)


def test_rounding():
    u = torch.tensor([-1.6, -0.4, 0.4, 0.6, 126.7])
    assert quantize(u, "round").tolist() == [-2.0, 0.0, 0.0, 1.0, 127.0]
    assert quantize(u, "round", step=4.0).tolist() == [0.0, 0.0, 0.0, 0.0, 128.0]
    assert quantize(u, "none") is u


@pytest.mark.parametrize("step", [1.0, 3.0])
def test_noise_is_uniform_over_a_cell(step):
    torch.manual_seed(0)
    u = torch.zeros(100_000, dtype=torch.float64, requires_grad=True)
    noisy = quantize(u, "noise", step)
    assert noisy.abs().max() <= step / 2
    assert noisy.mean().abs() < 0.01 * step
    assert noisy.var().item() == pytest.approx(step**2 / 12, rel=0.02)
    noisy.sum().backward()
    assert (u.grad == 1).all()


def test_rounding_error_is_bounded_by_half_a_step():
    torch.manual_seed(0)
    u = torch.rand(1000) * 250 - 125
    assert (quantize(u, "round", 5.0) - u).abs().max() <= 2.5 + 1e-4


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'floor'; valid: noise, round, none"):
        quantize(torch.zeros(2), "floor")
