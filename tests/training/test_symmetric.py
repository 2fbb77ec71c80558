"""Symmetric closed forms and training that keeps them: against the covariance of data seen in all eight positions."""

import json
import logging

import numpy as np
import pytest
import torch
from block_codecs import block_model, photographs

from transformers_walloc import WallocImageConfig, WallocImageEncoder, WallocImageModel, transform_latents
from transformers_walloc.codec.symmetries import SYMMETRIES, move_grid, subband_symmetry
from transformers_walloc.codec.wavelets import wavelet_packet_analysis
from transformers_walloc.training.klt import SubbandStatistics, fit_klt, fit_linear_synthesis
from transformers_walloc.training.symmetric import keep_symmetric, make_symmetric, symmetric_moments


def block_config(**changes) -> WallocImageConfig:
    values = {"wavelet": "haar", "boundary": "periodization", "num_levels": 3, "latent_channels": 10}
    return WallocImageConfig(**{**values, "decoder_type": "linear", **changes})


def statistics_of(config, *images: torch.Tensor) -> SubbandStatistics:
    statistics = SubbandStatistics(config)
    for image in images:
        statistics.update(image)
    return statistics


@pytest.mark.parametrize("name", SYMMETRIES)
def test_subbands_move_as_the_picture(name):
    config = block_config()
    pixels = photographs(64).double()
    bands, moved = (wavelet_packet_analysis(x, 3, "haar", "periodization") for x in (pixels, move_grid(pixels, name)))
    permutation = subband_symmetry(config, name)
    expected = move_grid(bands, name)[:, permutation.index] * torch.from_numpy(permutation.signs)[:, None, None]
    torch.testing.assert_close(moved, expected)


def test_moments_are_those_of_all_eight_positions():
    config = block_config()
    pixels = photographs(128)
    seen = statistics_of(config, *(move_grid(pixels, name).contiguous() for name in SYMMETRIES))
    once = statistics_of(config, pixels)
    mean, covariance = symmetric_moments(config, once.mean, once.covariance)
    np.testing.assert_allclose(mean, seen.mean, atol=1e-6)
    np.testing.assert_allclose(covariance, seen.covariance, atol=1e-5)


def test_the_rows_are_eigenvectors_in_order_of_variance():
    config = block_config()
    model, statistics = WallocImageModel(config), statistics_of(config, photographs())
    variances = fit_klt(model, statistics, 0.1, symmetric=True)
    _, covariance = symmetric_moments(config, statistics.mean, statistics.covariance)
    rows = model.encoder.projection.weight.detach().flatten(1).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)
    np.testing.assert_allclose(rows @ covariance, variances[:, None] * rows, atol=1e-3)
    assert (np.diff(variances) <= 1e-9).all()
    # Nothing better was passed over, but for a pair that would not fit.
    best = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(variances[:-1], best[: len(variances) - 1], rtol=1e-6)


def test_the_synthesis_is_the_least_squares_one_and_symmetric():
    config = block_config()
    model, statistics = WallocImageModel(config), statistics_of(config, photographs())
    fit_klt(model, statistics, 0.1, symmetric=True)
    closed_form = model.decoder.linear.weight.detach().clone()
    fit_linear_synthesis(model, statistics)
    torch.testing.assert_close(model.decoder.linear.weight.detach(), closed_form, atol=1e-4, rtol=1e-3)
    latents = model.encode(photographs()).latents
    for name in SYMMETRIES:
        moved = model.decode(transform_latents(latents, config, name)).pixel_values
        torch.testing.assert_close(moved, move_grid(model.decode(latents).pixel_values, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimiser, rate", [(torch.optim.Adam, 0.02), (torch.optim.SGD, 1000.0)])
def test_training_keeps_the_symmetry(optimiser, rate):
    model = block_model(10, 3, "restoration").train()
    keep_symmetric(model)
    before = model.encoder.projection.weight.detach().clone()
    steps = optimiser(model.encoder.parameters(), lr=rate)
    torch.manual_seed(0)
    for _ in range(10):
        steps.zero_grad()
        model(photographs(64)).loss.backward()
        steps.step()
    assert (model.encoder.projection.weight - before).abs().max() > 1e-3
    make_symmetric(model.eval())
    with torch.no_grad():
        latents = model.encode(photographs()).latents
        for name in SYMMETRIES:
            moved = model.encode(move_grid(photographs(), name).contiguous()).latents
            torch.testing.assert_close(transform_latents(latents, model.config, name), moved, atol=1e-3, rtol=0)


def test_free_training_loses_it_and_saving_says_so(tmp_path, caplog, monkeypatch):
    model = block_model(10, 3)
    with torch.no_grad():
        model.encoder.projection.weight += 0.1 * torch.randn_like(model.encoder.projection.weight)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    model.save_pretrained(tmp_path)
    assert "lost its symmetry" in caplog.text
    assert WallocImageModel.from_pretrained(tmp_path).config.latent_symmetry is None


def test_a_folder_whose_weights_lack_it_is_refused(tmp_path):
    model = block_model(10, 3)
    model.save_pretrained(tmp_path)
    assert WallocImageEncoder.from_pretrained(tmp_path).config.latent_symmetry == model.config.latent_symmetry
    assert WallocImageModel.from_pretrained(tmp_path, dtype=torch.bfloat16).config.latent_symmetry is not None
    config = json.loads((tmp_path / "config.json").read_text())
    config["latent_symmetry"]["hflip"][3] *= -1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not have the symmetry that latent_symmetry describes"):
        WallocImageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent_symmetry": {"hflip": [1] * 10}}, "a dictionary of vflip, hflip, transpose"),
        ({"latent_symmetry": {"vflip": [1] * 10, "hflip": [2] * 10, "transpose": list(range(1, 11))}}, "1 or -1"),
        ({"latent_symmetry": {"vflip": [1] * 10, "hflip": [1] * 10, "transpose": [1] * 10}}, "signed permutation"),
        ({"latent_symmetry": {"vflip": [1] * 10, "hflip": [1] * 10, "transpose": [2, 3, 1, *range(4, 11)]}}, "signed"),
        (
            {
                "latent_symmetry": {"vflip": [1] * 10, "hflip": [1] * 10, "transpose": list(range(1, 11))},
                "wavelet": "bior4.4",
            },
            "overlaps",
        ),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        block_config(**changes)


def test_overlapping_wavelets_have_no_symmetric_fit():
    config = WallocImageConfig(decoder_type="linear")
    with pytest.raises(ValueError, match="symmetric codecs need wavelet 'haar'"):
        fit_klt(WallocImageModel(config), statistics_of(config, photographs()), 0.1, symmetric=True)
