"""The closed-form codec against principal components by singular values, on synthetic signals."""

import numpy as np
import pytest
import torch

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.codec.bottleneck import compand, decompand
from transformers_walloc.codec.wavelets import wavelet_packet_analysis
from transformers_walloc.training.klt import SubbandStatistics, fit_decoder_scales, fit_klt, fit_linear_synthesis

# Synthetic pictures go a little beyond the range of real ones.
pytestmark = pytest.mark.filterwarnings("ignore:pixel_values lie in")


def config(**changes) -> WallocImageConfig:
    values = {"num_channels": 2, "num_levels": 2, "latent_channels": 6, "decoder_type": "linear", **changes}
    return WallocImageConfig(**values)


def smooth_images(count: int, seed: int = 0) -> torch.Tensor:
    """Random images with correlated channels and a spectrum that falls, as photographs have, in about [-0.5, 0.5]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32), indexing="ij")) + 0.05
    spectrum = np.fft.fft2(rng.standard_normal((count, 2, 32, 32))) / frequency**1.5
    images = np.fft.ifft2(spectrum).real @ np.eye(32)
    images = np.einsum("ij,bjhw->bihw", [[1.0, 0.6], [0.2, 0.5]], images)
    return torch.from_numpy(images / images.std() * 0.15 + 0.05).float()


def statistics_of(configuration, images: torch.Tensor, parts: int = 1) -> SubbandStatistics:
    statistics = SubbandStatistics(configuration)
    for part in images.chunk(parts):
        statistics.update(part)
    return statistics


def principal_components(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variances and orthonormal directions of the subbands by the singular values of the data themselves."""
    bands = wavelet_packet_analysis(images.double(), 2, "bior4.4", "symmetric")
    data = bands.permute(0, 2, 3, 1).reshape(-1, bands.shape[1]).numpy()
    mean = data.mean(axis=0)
    _, singular, directions = np.linalg.svd(data - mean, full_matrices=False)
    return mean, singular**2 / len(data), directions


def test_statistics_are_mean_and_covariance():
    images = smooth_images(12)
    statistics = statistics_of(config(), images)
    bands = wavelet_packet_analysis(images, 2, "bior4.4", "symmetric").double()
    data = bands.permute(1, 0, 2, 3).flatten(1).numpy()
    assert statistics.count == data.shape[1]
    np.testing.assert_allclose(statistics.mean, data.mean(axis=1), atol=1e-10)
    np.testing.assert_allclose(statistics.covariance, np.cov(data, bias=True), atol=1e-10)


def test_batches_do_not_matter():
    images = smooth_images(12)
    whole, parts = statistics_of(config(), images), statistics_of(config(), images, parts=5)
    np.testing.assert_allclose(whole.covariance, parts.covariance, atol=1e-6)


def test_projection_spans_the_principal_components():
    images = smooth_images(40)
    model = WallocImageModel(config()).eval()
    variances = fit_klt(model, statistics_of(model.config, images), step=0.05)
    _, expected, directions = principal_components(images)
    np.testing.assert_allclose(variances, expected, atol=1e-5 * expected[0])
    rows = model.encoder.projection.weight.detach().flatten(1).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.sum(rows * directions[:6], axis=1)), 1.0, atol=1e-4)


def test_unquantised_loss_is_the_energy_left_out():
    """Eckart-Young: the mean squared error is the sum of the variances that were dropped (and what Wiener shrinks)."""
    images = smooth_images(40)
    model = WallocImageModel(config()).eval()
    variances = fit_klt(model, statistics_of(model.config, images), step=1e-3)
    bands = wavelet_packet_analysis(images, 2, "bior4.4", "symmetric")
    with torch.no_grad():
        z = torch.nn.functional.conv2d(bands, model.encoder.projection.weight, model.encoder.projection.bias)
        error = (model.decoder(z) - bands).square().mean().item() * bands.shape[1]
    assert error == pytest.approx(variances[6:].sum(), rel=1e-2)


def test_fewer_channels_are_the_first_channels():
    images = smooth_images(40)
    small, large = (WallocImageModel(config(latent_channels=n)).eval() for n in (3, 9))
    for model in (small, large):
        fit_klt(model, statistics_of(model.config, images), step=0.05)
    with torch.no_grad():
        torch.testing.assert_close(small.encode(images).latents, large.encode(images).latents[:, :3])
    torch.testing.assert_close(small.decoder.linear.weight, large.decoder.linear.weight[:, :3])


def test_fitting_is_deterministic():
    images = smooth_images(40)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = WallocImageModel(config(decoder_type="residual", decoder_hidden_size=8, decoder_num_layers=1))
        fit_klt(model, statistics_of(model.config, images), step=0.05)
        states.append({k: v for k, v in model.state_dict().items() if "stem" not in k and "blocks" not in k})
    assert states[0].keys() == states[1].keys() and len(states[0]) >= 6
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_step_is_one_code_near_zero(step):
    """Moving a signal by `step` along a principal direction moves its latent by one unit of code."""
    images = smooth_images(40)
    model = WallocImageModel(config()).eval()
    fit_klt(model, statistics_of(model.config, images), step=step)
    weight, bias = (p.detach().double() for p in model.encoder.projection.parameters())
    direction = weight.flatten(1) / weight.flatten(1).norm(dim=1, keepdim=True)  # (latents, subbands)
    scale = weight.flatten(1).norm(dim=1)
    moved = direction[2] * step * scale[2]
    z = torch.zeros(2, dtype=torch.float64)
    z[1] = moved.norm()
    first, second = compand(z, model.config.latent_bits)
    assert (second - first).item() == pytest.approx(1.0, rel=1e-3)
    assert bias.isfinite().all()


def test_decoder_turns_codes_into_least_squares_subbands():
    """Between the fitted synthesis and the best linear map of the decoded codes there is almost nothing to gain."""
    images = smooth_images(60)
    model = WallocImageModel(config()).eval()
    fit_klt(model, statistics_of(model.config, images), step=0.1)
    bands = wavelet_packet_analysis(images, 2, "bior4.4", "symmetric")
    with torch.no_grad():
        z = decompand(model.quantize(model.encode(images).latents), 8)
        ours = (model.decoder(z) - bands).square().mean().item()
    rows = torch.cat([z, torch.ones_like(z[:, :1])], dim=1).transpose(0, 1).flatten(1).T.double()
    target = bands.transpose(0, 1).flatten(1).T.double()
    best = torch.linalg.lstsq(rows, target).solution
    least = (rows @ best - target).square().mean().item()
    assert least <= ours * (1 + 1e-6)
    assert ours < 1.02 * least


def test_linear_synthesis_of_any_projection_is_least_squares():
    images = smooth_images(60)
    model = WallocImageModel(config()).eval()
    with torch.no_grad():
        model.encoder.projection.weight.mul_(10)
        model.encoder.projection.bias.normal_()
    fit_linear_synthesis(model, statistics_of(model.config, images))
    bands = wavelet_packet_analysis(images, 2, "bior4.4", "symmetric")
    with torch.no_grad():
        z = decompand(model.quantize(model.encode(images).latents), 8)
        ours = (model.decoder(z) - bands).square().mean().item()
    rows = torch.cat([z, torch.ones_like(z[:, :1])], dim=1).transpose(0, 1).flatten(1).T.double()
    target = bands.transpose(0, 1).flatten(1).T.double()
    least = (rows @ torch.linalg.lstsq(rows, target).solution - target).square().mean().item()
    assert least <= ours * (1 + 1e-6)
    assert ours < 1.02 * least


def test_restoration_decoder_starts_as_the_linear_one():
    images = smooth_images(40)
    linear = WallocImageModel(config()).eval()
    restoring = WallocImageModel(config(decoder_type="restoration", decoder_hidden_size=8, decoder_num_layers=1)).eval()
    with torch.no_grad():
        restoring.decoder.network.head.weight.normal_()
    for model in (linear, restoring):
        fit_klt(model, statistics_of(model.config, images), step=0.05)
    with torch.no_grad():
        codes = linear.quantize(linear.encode(images).latents)
        assert torch.equal(restoring.decode(codes).pixel_values, linear.decode(codes).pixel_values)


def test_residual_decoder_starts_as_the_linear_one():
    images = smooth_images(40)
    linear = WallocImageModel(config()).eval()
    residual = WallocImageModel(config(decoder_type="residual", decoder_hidden_size=8, decoder_num_layers=1)).eval()
    for model in (linear, residual):
        fit_klt(model, statistics_of(model.config, images), step=0.05)
    with torch.no_grad():
        codes = linear.quantize(linear.encode(images).latents)
        torch.testing.assert_close(residual.decode(codes).pixel_values, linear.decode(codes).pixel_values)
        z = decompand(codes, 8)
        left = residual.decoder(z) - wavelet_packet_analysis(images, 2, "bior4.4", "symmetric")
    std = left.transpose(0, 1).flatten(1).std(dim=1)
    assert (residual.decoder.subband_scale <= 1.3 * std + 1e-3).all()
    torch.testing.assert_close(residual.decoder.latent_std, z.transpose(0, 1).flatten(1).std(dim=1), rtol=0.1, atol=0.1)


def test_audio():
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.standard_normal((8, 2, 4096)), axis=-1)
    clips = torch.from_numpy(noise / np.abs(noise).max(axis=(1, 2), keepdims=True) * 0.5).float()
    model = WallocAudioModel(WallocAudioConfig(num_levels=4, latent_channels=12, decoder_type="linear")).eval()
    variances = fit_klt(model, statistics_of(model.config, clips), step=0.01)
    with torch.no_grad():
        error = (model(clips).reconstruction - clips).square().mean()
    assert (np.diff(variances) <= 0).all()
    assert error < 0.01 * clips.var()


def test_bad_input_is_refused():
    images = smooth_images(40)
    model = WallocImageModel(config())
    statistics = statistics_of(model.config, images)
    for step in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"step is .*; it must be positive"):
            fit_klt(model, statistics, step=step)
    with pytest.raises(ValueError, match="1 positions cannot give the covariance of 32 subbands"):
        fit_klt(model, statistics_of(model.config, images[:1, :, :4, :4]), step=0.1)
    images[3, 0, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics.update(images)
    with pytest.raises(ValueError, match="multiples of 4"):
        statistics.update(torch.zeros(1, 2, 30, 32))


def test_scales_of_a_decoder_are_those_of_the_data():
    images = smooth_images(12)
    configuration = config(decoder_type="residual", decoder_hidden_size=4, decoder_num_layers=1)
    statistics = statistics_of(configuration, images)
    fitted, given = WallocImageModel(configuration), WallocImageModel(configuration)
    fit_klt(fitted, statistics, 0.1)
    given.encoder.load_state_dict(fitted.encoder.state_dict())
    given.decoder.linear.load_state_dict(fitted.decoder.linear.state_dict())
    fit_decoder_scales(given, statistics)
    torch.testing.assert_close(given.decoder.latent_std, fitted.decoder.latent_std)
    torch.testing.assert_close(given.decoder.subband_scale, fitted.decoder.subband_scale, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        bands = wavelet_packet_analysis(images, 2, "bior4.4", "symmetric")
        latents = given.encoder.projection(bands)
        left = bands - given.decoder.linear(latents)
    for scale, values in ((given.decoder.latent_std, latents), (given.decoder.subband_scale, left)):
        torch.testing.assert_close(scale, values.transpose(0, 1).flatten(1).std(dim=1), rtol=1e-2, atol=1e-4)


def test_scales_without_a_network_or_data_are_refused():
    with pytest.raises(ValueError, match="only a residual decoder has scales"):
        fit_decoder_scales(WallocImageModel(config()), statistics_of(config(), smooth_images(2)))
    model = WallocImageModel(config(decoder_type="residual", decoder_hidden_size=4, decoder_num_layers=1))
    with pytest.raises(ValueError, match="the statistics are empty"):
        fit_decoder_scales(model, SubbandStatistics(model.config))
