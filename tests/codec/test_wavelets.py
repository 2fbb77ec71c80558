"""Wavelet packets against PyWavelets, textbook values, the original implementation and themselves."""

import copy
import pickle

import numpy as np
import pytest
import pywt
import torch

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.codec import fast_wavelets
from transformers_walloc.codec.wavelet_convolutions import analysis_bands, band_order
from transformers_walloc.codec.wavelets import (
    analyse_and_project,
    check_wavelet,
    wavelet_filters,
    wavelet_packet_analysis,
    wavelet_packet_synthesis,
)

SIZES = {1: ((64,), (80,), (208,)), 2: ((64, 48), (32, 112)), 3: ((16, 24, 8),)}
WAVELETS = ("bior4.4", "haar", "db3", "sym4", "bior2.2", "bior6.8")
SYMMETRIC = ("bior4.4", "bior2.2", "bior6.8")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that test images have several either way."""
    monkeypatch.setattr(fast_wavelets, "CPU_TILE_SAMPLES", 2**12)


def tolerance(dtype: torch.dtype, num_levels: int, num_dims: int) -> float:
    """Rounding of that many filters, of which biorthogonal ones amplify and are tabulated to about 12 digits."""
    return 20 * 2.0 ** (0.5 * num_levels * num_dims) * max(torch.finfo(dtype).eps, 1e-12)


def cases():
    for boundary, wavelets in (("periodization", WAVELETS), ("symmetric", SYMMETRIC)):
        for wavelet in wavelets:
            for sizes in SIZES.values():
                for size in sizes:
                    for num_levels in (1, 2, 3, 4, 5):
                        if all(n % 2**num_levels == 0 for n in size):
                            yield pytest.param(
                                wavelet, boundary, num_levels, size, id=f"{wavelet}-{boundary}-{num_levels}-{size}"
                            )


def extended_split(x: np.ndarray, wavelet: str, boundary: str) -> tuple[np.ndarray, np.ndarray]:
    """One level along the last axis by PyWavelets: (low, high), each half as long."""
    if boundary == "periodization":
        return pywt.dwt(x, wavelet, mode="periodization", axis=-1)
    # A signal that is reflected about its first and last sample repeats after 2N - 2 samples.
    margin = 64
    periods = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(margin, margin)], mode="reflect")
    low, high = pywt.dwt(periods, wavelet, mode="periodization", axis=-1)
    middle = slice(margin // 2, margin // 2 + x.shape[-1] // 2)
    return low[..., middle], high[..., middle]


def reference_packets(x: np.ndarray, num_levels: int, wavelet: str, boundary: str) -> np.ndarray:
    """Nested splits of (B, C, *sizes), level by level, the first axis of the signal in the lowest bit of a band."""
    num_dims = x.ndim - 2
    for _ in range(num_levels):
        bands = [x]
        for axis in reversed(range(num_dims)):  # the last axis ends up in the highest bit
            split = []
            for band in bands:
                halves = extended_split(np.moveaxis(band, 2 + axis, -1), wavelet, boundary)
                split += [np.moveaxis(half, -1, 2 + axis) for half in halves]
            bands = split
        x = np.stack(bands, axis=2).reshape(x.shape[0], -1, *bands[0].shape[2:])
    return x


@pytest.mark.parametrize("wavelet, boundary, num_levels, size", list(cases()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_pywavelets_and_reconstructs(wavelet, boundary, num_levels, size, dtype):
    x = torch.randn(2, 3, *size, dtype=dtype)
    bound = tolerance(dtype, num_levels, len(size))
    bands = wavelet_packet_analysis(x, num_levels, wavelet, boundary, num_dims=len(size))
    assert bands.dtype == dtype
    assert bands.shape == (2, 3 * 2 ** (num_levels * len(size)), *(n >> num_levels for n in size))
    expected = torch.from_numpy(reference_packets(x.double().numpy(), num_levels, wavelet, boundary))
    torch.testing.assert_close(bands.double(), expected, atol=bound * expected.abs().max().item(), rtol=0)
    back = wavelet_packet_synthesis(bands, num_levels, wavelet, boundary, num_dims=len(size))
    torch.testing.assert_close(back, x, atol=bound * bands.abs().max().item(), rtol=0)


def test_one_axis_is_pywavelets_own_packet_tree():
    x = np.random.default_rng(0).standard_normal(64)
    tree = pywt.WaveletPacket(x, "bior4.4", mode="periodization", maxlevel=3)
    expected = np.stack([node.data for node in tree.get_level(3, order="natural")])
    bands = wavelet_packet_analysis(torch.from_numpy(x)[None, None], 3, "bior4.4", "periodization", num_dims=1)
    np.testing.assert_allclose(bands[0].numpy(), expected, atol=1e-12)


def test_haar_by_hand():
    """Haar of (1, 3, 5, 11): sums (4, 16) / sqrt 2, differences (-2, -6) / sqrt 2; then the same again."""
    x = torch.tensor([[[1.0, 3.0, 5.0, 11.0]]], dtype=torch.float64)
    bands = wavelet_packet_analysis(x, 2, "haar", "periodization", num_dims=1)
    expected = torch.tensor([[[10.0], [-6.0], [-4.0], [2.0]]], dtype=torch.float64)  # LL LH HL HH
    torch.testing.assert_close(bands, expected, atol=1e-12, rtol=0)
    image = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]], dtype=torch.float64)
    bands = wavelet_packet_analysis(image, 1, "haar", "periodization").flatten()
    # LL; high along the rows' axis; high along the columns' axis; both.
    torch.testing.assert_close(bands, torch.tensor([6.0, -3.0, -2.0, 1.0], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("power", range(4))
def test_cdf97_has_four_vanishing_moments(power):
    """High bands of a cubic polynomial vanish away from the ends, and the low band is a polynomial again."""
    t = torch.linspace(-1, 1, 256, dtype=torch.float64)
    bands = wavelet_packet_analysis((t**power)[None, None], 3, boundary="periodization", num_dims=1)
    assert bands[0, 1:, 8:-8].abs().max() < 1e-10
    assert bands[0, 0, 8:-8].abs().max() > 0.1


def test_constant_image_is_one_coefficient_a_block():
    """The low-pass filter's sum is sqrt 2, so a constant grows by 2 a level; symmetric ends make no border."""
    bands = wavelet_packet_analysis(torch.full((1, 1, 64, 64), 0.25), 3, boundary="symmetric")
    torch.testing.assert_close(bands[:, 0], torch.full((1, 8, 8), 2.0), atol=1e-5, rtol=0)
    assert bands[:, 1:].abs().max() < 1e-5


def test_symmetric_boundary_keeps_opposite_borders_apart():
    x = torch.zeros(1, 1, 128, 128)
    x[..., :8] = 1.0
    other = wavelet_packet_analysis(x, 3, boundary="symmetric")[..., 10:]
    assert other.abs().max() < 1e-6
    assert wavelet_packet_analysis(x, 3, boundary="periodization")[..., 10:].abs().max() > 1e-3


def test_built_in_filters_are_pywavelets():
    for ours, theirs in zip(wavelet_filters("bior4.4"), pywt.Wavelet("bior4.4").filter_bank, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-15)


def test_band_order_of_the_original_images(original):
    codec = original.Codec2D(3, 3, 32, 32, 12, 8, True)
    x = torch.randn(2, 3, 64, 96)
    expected = codec.wavelet_analysis(x, 3)
    torch.testing.assert_close(wavelet_packet_analysis(x, 3, boundary="periodization"), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        wavelet_packet_synthesis(expected, 3, boundary="periodization"),
        codec.wavelet_synthesis(expected, 3),
        atol=2e-5,
        rtol=0,
    )


def test_band_order_of_the_original_audio(original):
    codec = original.Codec1D(2, 8, 108, 108, 27, 8, True, False)
    x = torch.randn(2, 2, 4096)
    expected = codec.wavelet_analysis(x, 8)
    torch.testing.assert_close(
        wavelet_packet_analysis(x, 8, boundary="periodization", num_dims=1), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
@pytest.mark.parametrize("num_levels, size", [(3, (8, 8)), (3, (8, 128)), (4, (16, 32)), (1, (2, 2))])
def test_images_of_few_blocks(boundary, num_levels, size):
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    bands = wavelet_packet_analysis(x, num_levels, "bior4.4", boundary)
    if boundary == "periodization":
        expected = reference_packets(x.numpy(), num_levels, "bior4.4", boundary)
        np.testing.assert_allclose(bands.numpy(), expected, atol=1e-12)
    back = wavelet_packet_synthesis(bands, num_levels, "bior4.4", boundary)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)


def test_no_levels_leave_the_signal_as_it_is():
    x = torch.randn(1, 3, 5, 7)
    assert torch.equal(wavelet_packet_analysis(x, 0), x)
    assert torch.equal(wavelet_packet_synthesis(x, 0), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = torch.randn(1, 3, 64, 64).to(dtype)
    bands = wavelet_packet_analysis(x, 3)
    assert bands.dtype == torch.float32
    torch.testing.assert_close(bands, wavelet_packet_analysis(x.float(), 3), atol=0, rtol=0)
    weight = torch.randn(4, 192).to(dtype)
    torch.testing.assert_close(
        analyse_and_project(x, weight, None, 3, "bior4.4", "symmetric", 2),
        analyse_and_project(x.float(), weight.float(), None, 3, "bior4.4", "symmetric", 2),
    )


# ---------------------------------------------------------------------------------------------- the fast routes


def two_steps(x, weight, bias, num_levels, wavelet, boundary, num_dims):
    """The definition: PyWavelets' cascade, then the projection, in double precision."""
    bands = torch.from_numpy(reference_packets(x.detach().double().numpy(), num_levels, wavelet, boundary))
    y = torch.einsum("oi,bi...->bo...", weight.detach().double(), bands)
    return y if bias is None else y + bias.detach().double().view(-1, *[1] * num_dims)


@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
@pytest.mark.parametrize(
    "batch, channels, outputs, num_levels, size",
    [
        (1, 3, 12, 3, (128, 192)),
        (2, 3, 48, 3, (72, 104)),  # no multiple of what one product gives
        (1, 1, 5, 1, (34, 46)),
        (1, 4, 7, 4, (160, 240)),
        (1, 3, 3, 3, (8, 72)),
        (1, 12, 6, 3, (264, 360)),  # several tiles either way
        (1, 1, 4, 5, (64, 96)),
        (2, 2, 3, 3, (2048,)),
        (1, 2, 27, 8, (2**17,)),
        (1, 1, 2, 8, (256 * 50,)),
        (1, 1, 2, 2, (16, 8, 24)),
    ],
)
def test_fused_encoder_is_the_cascade_and_the_projection(
    small_tiles, boundary, batch, channels, outputs, num_levels, size
):
    num_dims = len(size)
    x = torch.rand(batch, channels, *size) - 0.5
    weight = torch.randn(outputs, channels * 2 ** (num_levels * num_dims)) / 8
    bias = torch.randn(outputs)
    for kernel_bias in (bias, None):
        y = analyse_and_project(x, weight, kernel_bias, num_levels, "bior4.4", boundary, num_dims)
        expected = two_steps(x, weight, kernel_bias, num_levels, "bior4.4", boundary, num_dims)
        assert y.shape == expected.shape
        assert (y - expected).abs().max() < 1e-4


@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
@pytest.mark.parametrize("size", [(136, 200), (296, 440), (64, 1032)])
def test_tiles_and_convolutions_agree(small_tiles, boundary, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    order = band_order(3, 2)
    by_convolutions = analysis_bands(x, 3, "bior4.4", boundary, 2).unflatten(1, (3, 64))[:, :, order].flatten(1, 2)
    bands = wavelet_packet_analysis(x, 3, "bior4.4", boundary)
    torch.testing.assert_close(bands, by_convolutions, atol=1e-12, rtol=0)
    torch.testing.assert_close(wavelet_packet_synthesis(bands, 3, "bior4.4", boundary), x, atol=1e-10, rtol=0)


def test_views_of_any_memory_format():
    x = torch.randn(2, 3, 80, 96)
    weight = torch.randn(6, 192)
    expected = analyse_and_project(x, weight, None, 3, "bior4.4", "symmetric", 2)
    for view in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], dim=1)[:, :3],
    ):
        torch.testing.assert_close(analyse_and_project(view, weight, None, 3, "bior4.4", "symmetric", 2), expected)
    bands = wavelet_packet_analysis(x, 3).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(wavelet_packet_synthesis(bands, 3), x, atol=1e-5, rtol=0)


def test_a_bad_pixel_stays_in_its_image(small_tiles):
    """Buffers are used again from tile to tile and from image to image."""
    x = torch.randn(2, 1, 64, 72)
    clean = wavelet_packet_analysis(x[1:], 3, boundary="symmetric")
    x[0] = float("nan")
    assert wavelet_packet_analysis(x, 3, boundary="symmetric")[0].isnan().all()
    torch.testing.assert_close(wavelet_packet_analysis(x, 3, boundary="symmetric")[1:], clean)


def test_fused_encoder_follows_the_weights():
    model = WallocImageModel(WallocImageConfig(decoder_type="linear")).eval()
    x = torch.rand(1, 3, 64, 64) - 0.5
    with torch.no_grad():
        before = model.encode(x).latents
        model.encoder.projection.weight.mul_(0.5)
        model.encoder.projection.bias.add_(1.0)
        after = model.encode(x).latents
        bands = wavelet_packet_analysis(x, 3, boundary="symmetric")
        z = torch.nn.functional.conv2d(bands, model.encoder.projection.weight, model.encoder.projection.bias)
        expected = 2 * 127.499 * (torch.special.ndtr(z / (127 / 1.85)) - 0.5)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("needed", ["weight", "signal", "both"])
@pytest.mark.parametrize("num_levels, size", [(2, (32, 40)), (3, (2048,))])
@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
def test_gradients(needed, num_levels, size, boundary):
    num_dims = len(size)
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=needed != "weight")
    bands = 2 ** (num_dims * num_levels)
    weight = torch.randn(2, 2 * bands, dtype=torch.float64, requires_grad=needed != "signal")
    bias = torch.randn(2, dtype=torch.float64, requires_grad=needed != "signal")
    y = analyse_and_project(x, weight, bias, num_levels, "bior4.4", boundary, num_dims)
    cotangent = torch.randn_like(y)
    wanted = [t for t in (x, weight, bias) if t.requires_grad]
    got = torch.autograd.grad(y, wanted, cotangent)
    # The encoder is affine in its weights and linear in the signal, so finite steps of any length are exact.
    for tensor, gradient in zip(wanted, got, strict=True):
        step = torch.randn_like(tensor)
        moved = [t + step if t is tensor else t for t in (x, weight, bias)]
        with torch.no_grad():
            change = analyse_and_project(*moved, num_levels, "bior4.4", boundary, num_dims) - y
        torch.testing.assert_close((change * cotangent).sum(), (gradient * step).sum(), rtol=1e-9, atol=1e-9)


def test_synthesis_has_gradients():
    bands = torch.randn(1, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: wavelet_packet_synthesis(b, 1, boundary="symmetric"), bands)


# ------------------------------------------------------------------------------------------ taps survive everything


def test_taps_survive_saving_moving_copying(tmp_path):
    model = WallocImageModel(WallocImageConfig(decoder_type="linear")).eval()
    x = torch.rand(1, 3, 64, 64) - 0.5
    with torch.no_grad():
        expected = model.encode(x).latents
        model.save_pretrained(tmp_path)
        loaded = WallocImageModel.from_pretrained(tmp_path).eval()  # built on the meta device
        torch.testing.assert_close(loaded.encode(x).latents, expected, atol=0, rtol=0)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double().float()):
            torch.testing.assert_close(twin.encode(x).latents, expected, atol=0, rtol=0)
        half = copy.deepcopy(model).to(torch.bfloat16)
        again = half.to(torch.float32)  # only the weights were rounded
        weight = again.encoder.projection.weight.flatten(1)
        z = two_steps(x, weight, again.encoder.projection.bias, 3, "bior4.4", "symmetric", 2)
        latents = 2 * 127.499 * (torch.special.ndtr(z / (127 / 1.85)) - 0.5)
        torch.testing.assert_close(again.encode(x).latents.double(), latents, atol=1e-4, rtol=0)


def test_what_inference_mode_made_serves_training():
    with torch.inference_mode():
        wavelet_packet_analysis(torch.randn(1, 1, 24, 24), 3, "bior2.6", "symmetric")
    x = torch.randn(1, 1, 24, 24, requires_grad=True)
    wavelet_packet_analysis(x, 3, "bior2.6", "symmetric").sum().backward()
    assert x.grad.isfinite().all()


class Packets(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return wavelet_packet_analysis(torch.full((1, 1, 16, 16), float(index)), 2)[0]


def test_forked_workers():
    expected = torch.stack([Packets()[i] for i in range(4)])  # fills the caches in the parent
    loader = torch.utils.data.DataLoader(Packets(), batch_size=4, num_workers=2)
    torch.testing.assert_close(next(iter(loader)), expected)


class RoundTrip(torch.nn.Module):
    def __init__(self, boundary):
        super().__init__()
        self.boundary = boundary
        self.weight = torch.nn.Parameter(torch.randn(6, 192) / 8)

    def forward(self, x):
        y = analyse_and_project(x, self.weight, None, 3, "bior4.4", self.boundary, 2)
        subbands = torch.einsum("oi,bohw->bihw", self.weight, y)
        return wavelet_packet_synthesis(subbands, 3, "bior4.4", self.boundary)


@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
def test_export(boundary):
    module, x = RoundTrip(boundary), torch.randn(1, 3, 72, 80)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), module(x), atol=1e-4, rtol=0)
    # Tracing must not leave its stand-ins for tensors in the caches.
    with torch.no_grad():
        torch.testing.assert_close(module(x), exported.module()(x), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["periodization", "symmetric"])
def test_compile_in_one_graph(boundary):
    module, x = RoundTrip(boundary), torch.randn(1, 3, 72, 80)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    expected, got = module(x), compiled(x)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), module.weight)
    (gradient,) = torch.autograd.grad(got.square().sum(), module.weight)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3 * expected_gradient.abs().max().item())


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown wavelet 'morlet'; valid: .*bior4\.4"):
        wavelet_filters("morlet")
    with pytest.raises(ValueError, match="unknown boundary 'zero'; valid: periodization, symmetric"):
        check_wavelet("bior4.4", "zero")
    with pytest.raises(ValueError, match="'db3' has none"):
        check_wavelet("db3", "symmetric")


@pytest.mark.parametrize(
    "x, arguments, error, message",
    [
        (torch.zeros(1, 3, 60, 64), {"num_levels": 3}, ValueError, "multiples of 8"),
        (torch.zeros(3, 64, 64), {"num_levels": 3}, ValueError, r"got shape \(3, 64, 64\)"),
        (torch.zeros(0, 3, 64, 64), {"num_levels": 3}, ValueError, "empty input"),
        (torch.zeros(1, 3, 0, 64), {"num_levels": 3}, ValueError, "empty input"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), {"num_levels": 3}, TypeError, "uint8"),
        (torch.zeros(1, 3, 64, 64), {"num_levels": 3, "num_dims": 4}, ValueError, "valid: 1, 2, 3"),
        (torch.zeros(1, 3, 64, 64), {"num_levels": 3, "wavelet": "nope"}, ValueError, "unknown wavelet"),
    ],
)
def test_bad_signals_are_refused(x, arguments, error, message):
    with pytest.raises(error, match=message):
        wavelet_packet_analysis(x, **arguments)


def test_bad_subbands_are_refused():
    with pytest.raises(ValueError, match="100 channels are not a multiple of 64 subbands"):
        wavelet_packet_synthesis(torch.zeros(1, 100, 4, 4), 3)
