"""The estimate of bits, and training with it."""

import pytest
import torch
from training_runs import crops, first_batches, make_trainer, small_codec

from transformers_walloc.training.trainer import estimated_bits


def test_estimated_bits_are_those_of_laplace_cells():
    torch.manual_seed(0)
    laplace = torch.distributions.Laplace(torch.tensor([3.0, -1.0]), torch.tensor([6.0, 0.7], dtype=torch.float64))
    latents = laplace.sample((200, 200)).permute(2, 0, 1)[None]
    torch.manual_seed(1)
    bits = estimated_bits(latents)
    torch.manual_seed(1)
    noisy = latents + torch.rand_like(latents) - 0.5
    centre = noisy.mean(dim=(2, 3), keepdim=True)
    fitted = torch.distributions.Laplace(centre, (noisy - centre).abs().mean(dim=(2, 3), keepdim=True))
    direct = -torch.log2(fitted.cdf(noisy + 0.5) - fitted.cdf(noisy - 0.5)).mean()
    assert abs(bits - direct) < 1e-4
    entropies = []
    for channel in torch.round(latents[0]).flatten(1):
        shares = torch.unique(channel, return_counts=True)[1] / channel.numel()
        entropies.append(-(shares * shares.log2()).sum())
    assert abs(bits - sum(entropies) / 2) < 0.1


def test_estimated_bits_have_finite_gradients_everywhere():
    latents = torch.stack([torch.full((4, 4), 5.0), torch.linspace(-127, 127, 16).view(4, 4), torch.zeros(4, 4)])[None]
    latents.requires_grad_(True)
    (gradient,) = torch.autograd.grad(estimated_bits(latents), latents)
    assert gradient.isfinite().all()


def order0_bits(model, batches) -> float:
    with torch.no_grad():
        codes = torch.cat([model.quantize(model.encode(batch).latents) for batch in batches])
    bits = 0.0
    for channel in codes.transpose(0, 1).flatten(1):
        shares = torch.unique(channel, return_counts=True)[1] / channel.numel()
        bits -= float((shares * shares.log2()).sum())
    return bits


@pytest.mark.parametrize("signal_fraction", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_rate_term_lowers_the_rate_of_held_pictures(photos, tmp_path, signal_fraction):
    held, rates = first_batches(crops(photos, "held", size=64), 16, 1), {}
    for weight in (0.0, 0.1):
        model = small_codec(photos)
        model.encoder.requires_grad_(True)
        options = dict(rate_weight=weight, signal_fraction=signal_fraction, linear_learning_rate=1e-2)
        make_trainer(photos, tmp_path, model, options=options, max_steps=30, save_strategy="no").train()
        rates[weight] = order0_bits(model.eval(), held)
    assert rates[0.1] < 0.995 * rates[0.0]


def test_rate_term_needs_a_trained_encoder(photos, tmp_path):
    with pytest.raises(ValueError, match=r"rate_weight is 0\.1, but the encoder"):
        make_trainer(photos, tmp_path, options={"rate_weight": 0.1})
    with pytest.raises(ValueError, match=r"rate_weight is -1"):
        make_trainer(photos, tmp_path, options={"rate_weight": -1.0})
