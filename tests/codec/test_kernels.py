"""The compiled kernels against numpy and torch, which define what they must give."""

import contextlib

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_walloc import WallocImageConfig, WallocImageEncoder, WallocImageProcessor, bundled_path, native
from transformers_walloc.cli import info
from transformers_walloc.codec import kernels
from transformers_walloc.codec.encoder_kernel import PictureEncoder, band_rows
from transformers_walloc.codec.entropy_coding import EntropyTables, decode_codes, encode_codes
from transformers_walloc.codec.entropy_context import feature_counts
from transformers_walloc.codec.entropy_kernel import kernel_levels
from transformers_walloc.codec.entropy_tables import CLASS_BITS, Network, default_plan
from transformers_walloc.codec.pixels import encode_pixels, scale_pixels
from transformers_walloc.codec.wavelets import wavelet_packet_analysis
from transformers_walloc.native.build import BuildError, compile_libraries, levels, library_name

pytestmark = pytest.mark.skipif(kernels.library() is None, reason=native.describe())

PICTURES = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea")}


@pytest.fixture(scope="module")
def codecs():
    return {
        name: WallocImageEncoder.from_pretrained(bundled_path(name)).requires_grad_(False)
        for name in ("rgb-16x", "rgb-4x")
    }


def random_tables(num_channels: int, ndim: int, seed: int) -> EntropyTables:
    """Networks of random weights and an odd number of units, whose predictions use every feature."""
    rng = np.random.default_rng(seed)
    plan, networks = default_plan(num_channels, ndim), {}
    for (group, index), inputs in feature_counts(plan, ndim).items():
        size, hidden = plan[group][0], int(rng.integers(1, 40))
        first = rng.integers(-60, 61, (hidden + size, inputs)).astype(np.float32)
        second = rng.integers(-300, 301, (2 * size, hidden)).astype(np.float32)
        bias = np.concatenate([np.zeros(size), rng.integers(0, 30 << CLASS_BITS, size)]).astype(np.float32)
        networks[group, index] = Network(first, np.zeros(hidden + size, np.float32), second, bias)
    return EntropyTables(num_channels, ndim, plan, networks)


def both_ways(function, *arguments):
    """The result of numpy and torch, and that of the kernels; ValueError as its type."""
    results = []
    for context in (kernels.switched_off, contextlib.nullcontext):
        with context():
            try:
                results.append(function(*arguments))
            except ValueError:
                results.append(ValueError)
    return results


def test_switches(monkeypatch):
    assert "compiled" in native.describe()
    with kernels.switched_off():
        assert kernels.library() is None
        assert kernel_levels(np.zeros((1, 1), np.int8)) is None
    assert kernels.library() is not None
    monkeypatch.setenv("WALLOC_NO_NATIVE", "1")
    native.load.cache_clear()
    try:
        assert kernels.library() is None
        assert "numpy" in native.describe() and "WALLOC_NO_NATIVE" in native.describe()
    finally:
        monkeypatch.undo()
        native.load.cache_clear()


def test_build_is_atomic_and_says_what_failed(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nwhile [ $1 != -o ]; do shift; done\ntouch $2\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    paths = compile_libraries(tmp_path / "native")
    assert [path.name for path in paths] == [library_name(level) for level in levels()]
    assert sorted(paths) == sorted((tmp_path / "native").iterdir())
    (tmp_path / "native" / "walloc-kernels-avx2-0.so").touch()  # of another version, in another environment
    assert compile_libraries(tmp_path / "native") == paths
    assert len(list((tmp_path / "native").iterdir())) == len(paths) + 1
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildError, match="false"):
        compile_libraries(tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("codec", ["rgb-16x", "rgb-4x"])
def test_bytes_and_codes_of_pictures(level, codecs, codec, picture):
    model = codecs[codec]
    pixels = torch.from_numpy(PICTURES[picture][:256, :330].copy()).permute(2, 0, 1)[None]
    codes = encode_pixels(model.encoder, pixels, 1.0)[0].numpy()
    tables = model.get_entropy_tables()
    slow, fast = both_ways(encode_codes, codes, tables)
    assert slow == fast
    assert np.array_equal(decode_codes(fast, codes.shape, tables), codes)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.one_of(
        st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 20), st.integers(1, 300)),
    ),
    spare=st.integers(0, 8),
    scale=st.sampled_from([0.3, 2, 30, 200]),
)
def test_any_shape_and_tables(seed, shape, spare, scale):
    rng = np.random.default_rng(seed)
    codes = np.clip(np.rint(np.cumsum(rng.laplace(size=shape), -1) * scale), -128, 127).astype(np.int8)
    tables = random_tables(shape[0] + spare, len(shape) - 1, seed)
    slow, fast = both_ways(encode_codes, codes, tables)
    assert slow == fast
    assert np.array_equal(decode_codes(fast, shape, tables), codes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), ndim=st.integers(1, 2))
def test_damaged_bytes_end_alike(seed, ndim):
    rng = np.random.default_rng(seed)
    shape = (4, *rng.integers(1, 12, ndim).tolist())
    codes = rng.integers(-9, 10, shape).astype(np.int8)
    tables = random_tables(4, ndim, seed)
    data = bytearray(encode_codes(codes, tables))
    kind = rng.integers(4)
    if kind == 0:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[: int(rng.integers(len(data)))]
    elif kind == 2:
        data += rng.bytes(int(rng.integers(1, 9)) * 4)
    else:
        data[4:] = rng.bytes(len(data) - 4)
    slow, fast = both_ways(decode_codes, bytes(data), shape, tables)
    assert (slow is ValueError) == (fast is ValueError)
    assert slow is ValueError or np.array_equal(slow, fast)


def test_weights_beyond_16_bits_are_left_to_numpy():
    tables = random_tables(2, 2, 0)
    network = tables.networks[0, 1]
    network.first[0, 0] = 40_000
    assert tables.kernel is None
    codes = np.arange(-18, 18, dtype=np.int8).reshape(2, 3, 6)
    assert np.array_equal(decode_codes(encode_codes(codes, tables), codes.shape, tables), codes)


def block_codec(num_channels=3, latent_channels=48, symmetric=True):
    """A codec of 16 x 16 blocks, whose weights are even or odd along both axes where they are symmetric."""
    config = WallocImageConfig(
        num_channels=num_channels,
        latent_channels=latent_channels,
        wavelet="haar",
        boundary="periodization",
        num_levels=4,
    )
    model = WallocImageEncoder(config).requires_grad_(False)
    weight = model.encoder.projection.weight.normal_(0, 0.3)
    if symmetric:
        # Bands are even or odd themselves; an output keeps those of one kind.
        blocks = torch.eye(256).view(256, 1, 16, 16)
        bands = wavelet_packet_analysis(blocks, 4, "haar", "periodization").flatten(1).T.view(256, 16, 16)
        even = [torch.isclose(bands, bands.flip(axis), atol=1e-6).flatten(1).all(1) for axis in (1, 2)]
        kind = 2 * (~even[0]).long() + (~even[1]).long()
        kept = kind == torch.arange(latent_channels)[:, None] % 4
        weight.copy_((weight.view(latent_channels, num_channels, 256) * kept[:, None]).view_as(weight))
    model.encoder.projection.bias.normal_(0, 10)
    return model


@pytest.mark.parametrize("codec", ["rgb-16x", "rgb-4x", "blocks"])
def test_codes_of_pictures(level, codecs, codec):
    """Equal but for one in 100,000, whose latent lies on the edge of a cell; latents within 2e-4. Bytes and floats."""
    torch.manual_seed(0)
    model = codecs.get(codec) or block_codec()
    different, count = 0, 0
    for picture in PICTURES.values():
        sizes = [size // 16 * 16 for size in picture.shape[:2]]
        pixels = torch.from_numpy(picture[: sizes[0], : sizes[1]]).permute(2, 0, 1)[None]
        for x in (pixels, scale_pixels(pixels), scale_pixels(pixels).contiguous()):
            slow, fast = both_ways(lambda x: model.encode(x).latents, x)
            assert fast.dtype == torch.float32 and 0 < (slow - fast).abs().max() < 2e-4
            slow, fast = both_ways(model.encode_to_codes, x)
            different += (slow != fast).sum().item()
            assert (slow.int() - fast.int()).abs().max() <= 1
            assert torch.equal(fast, model.quantize(model.encode(x).latents))
            count += slow.numel()
    assert different <= max(2, 1e-5 * count)


def test_symmetric_weights_use_a_quarter_of_the_products():
    weight = {kind: block_codec(symmetric=kind).encoder.projection.weight.flatten(1).numpy() for kind in (True, False)}
    counts = {}
    for symmetric in (True, False):
        config = block_codec(symmetric=symmetric).config
        kernel = PictureEncoder(config, weight[symmetric], np.zeros(48))
        counts[symmetric] = list(kernel._layouts[np.dtype(np.uint8)]._fields[2])
    assert counts == {True: [12] * 4, False: [48] * 4}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 330),
    width=st.integers(1, 90),
    num_levels=st.integers(0, 4),
    num_channels=st.integers(1, 5),
    margin=st.integers(0, 2),
    planar=st.booleans(),
    step=st.sampled_from([1.0, 1.5]),
)
def test_any_size_and_codec(seed, height, width, num_levels, num_channels, margin, planar, step):
    torch.manual_seed(seed)
    if num_levels:
        block = 2**num_levels
        outputs = min(19, num_channels * block**2)
        config = WallocImageConfig(num_channels=num_channels, num_levels=num_levels, latent_channels=outputs)
        model = WallocImageEncoder(config).requires_grad_(False)
        model.encoder.projection.weight.mul_(200 / block)
        model.encoder.projection.bias.normal_(0, 10)
    else:
        block = 16
        model = block_codec(num_channels, 1 + seed % 70, symmetric=seed % 3 > 0)
    shape = (1, num_channels, height, width) if planar else (1, height, width, num_channels)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    pixels = pixels if planar else pixels.permute(0, 3, 1, 2)
    slow, fast = both_ways(encode_pixels, model.encoder, pixels, None, margin * block)
    assert slow.shape == fast.shape and (slow - fast).abs().max() < 1e-3
    codes = encode_pixels(model.encoder, pixels, step, margin * block)
    assert codes.dtype == torch.int8
    assert (codes - fast / step).abs().max() < 0.5 + 1e-3


@pytest.mark.parametrize("codec", ["rgb-16x", "blocks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_are_not_finite_are_refused(codecs, codec, value):
    model = codecs.get(codec) or block_codec()
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, 1, 40, 33] = value
    for encode in (model.encode, model.encode_to_codes):
        for context in (kernels.switched_off, contextlib.nullcontext):
            with context(), pytest.raises(ValueError, match="pixel_values holds NaN or infinite values"):
                encode(pixels)


def test_what_torch_has_to_see_goes_through_torch(codecs):
    """Gradients of pixels and counting modes; half precision comes back as it went in."""
    from torch.utils.flop_counter import FlopCounterMode

    model = codecs["rgb-16x"]
    pixels = torch.rand(2, 3, 64, 64) - 0.5
    with FlopCounterMode(display=False) as counter:
        expected = model.encode(pixels).latents
    assert counter.get_total_flops() > 0
    assert (model.encode(pixels).latents - expected).abs().max() < 2e-4
    model.encode(pixels.requires_grad_(True)).latents.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    pixels = pixels.detach()
    half = model.encode(pixels.bfloat16()).latents
    assert half.dtype == torch.bfloat16 and (half.float() - expected).abs().max() < 2


def test_blocks_of_bands_of_rows_give_the_same():
    model = block_codec()
    picture = np.random.default_rng(0).integers(0, 256, (103, 150, 3), np.uint8)
    whole = encode_pixels(model.encoder, torch.from_numpy(picture).permute(2, 0, 1)[None], 1.0)[0].numpy()
    projection = model.encoder.projection
    kernel = PictureEncoder(model.config, projection.weight.flatten(1).numpy(), projection.bias.numpy())
    for first, last in ((0, 1), (2, 5), (6, 7)):
        start, stop = band_rows(first, last, len(picture), 16, around=(0, 0))
        assert (start, stop) == (16 * first if last < 7 else 93, min(16 * last, 103))
        part = kernel.encode(picture[start:stop], 1.0, height=103, first_row=start, blocks=(first, last))
        assert np.array_equal(part, whole[:, first:last])


def test_bands_of_rows_and_threads_give_the_same(codecs):
    projection, config = codecs["rgb-16x"].encoder.projection, codecs["rgb-16x"].config
    kernel = PictureEncoder(config, projection.weight.flatten(1).numpy(), projection.bias.numpy())
    picture = np.random.default_rng(0).integers(0, 256, (1003, 1501, 3), np.uint8)
    whole = kernel.encode(picture, 1.0)
    assert np.array_equal(kernel.encode(picture, 1.0, num_threads=3), whole)
    for first, last in ((0, 1), (0, 40), (39, 77), (77, 126)):
        start, stop = band_rows(first, last, len(picture), 8)
        band = picture[start:stop]
        part = kernel.encode(band, 1.0, height=len(picture), first_row=start, blocks=(first, last))
        assert np.array_equal(part, whole[:, first:last])
        with pytest.raises(ValueError, match="need rows"):
            kernel.encode(band[:-1], 1.0, height=len(picture), first_row=start, blocks=(first, last))


def test_processor_and_model_on_8_bits(codecs):
    model = codecs["rgb-16x"]
    processor = WallocImageProcessor()
    images = [PICTURES["coffee"], PICTURES["chelsea"]]
    floats = processor(images, return_tensors="pt")
    bits = processor(images, do_rescale=False, return_tensors="pt")
    assert bits["pixel_values"].dtype == torch.uint8
    assert torch.equal(bits["original_sizes"], floats["original_sizes"])
    assert torch.equal((bits["pixel_values"].float() - 127.5) / 255, floats["pixel_values"])
    slow, fast = (model.encode(inputs["pixel_values"]).latents for inputs in (floats, bits))
    assert (slow - fast).abs().max() < 2e-4
    assert model.decompress_codes(model.compress(**bits))[0].shape == (12, 50, 75)
    with kernels.switched_off():
        assert torch.equal(*(model.encode(inputs["pixel_values"]).latents for inputs in (bits, floats)))


def test_gradients_go_through_torch(codecs):
    torch.manual_seed(0)
    model = WallocImageEncoder(WallocImageConfig(latent_channels=12))
    model.encode(torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)).latents.sum().backward()
    assert model.encoder.projection.weight.grad is not None


def test_command_line_says_what_runs(capsys):
    assert info.run([], kernels=True) == 0
    assert capsys.readouterr().out.strip() == native.describe()


@pytest.mark.parametrize("width", [2, 15, 16, 53])
def test_processor_scales_bytes_as_torch_does(level, monkeypatch, width):
    calls = []
    rescale = kernels.library().walloc_rescale
    monkeypatch.setattr(kernels.library(), "walloc_rescale", lambda *a: calls.append(rescale(*a)))
    rng = np.random.default_rng(width)
    array = rng.permutation(np.arange(41 * width * 3) % 256).astype(np.uint8).reshape(41, width, 3)
    expected = torch.from_numpy(np.pad(array, ((0, 7), (0, -width % 8), (0, 0)), "reflect"))
    expected = (expected.permute(2, 0, 1).float() - 127.5) / 255
    every_other = np.repeat(array, 2, axis=0)[::2]
    for image in (array, every_other, PIL.Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        for batch in ([image], [image, np.zeros((48, 64, 3), np.uint8)]):
            pixels = WallocImageProcessor()(batch, return_tensors="pt")["pixel_values"][0]
            assert pixels.is_contiguous() and torch.equal(pixels[:, :48, : expected.shape[2]], expected)
    assert len(calls) == 12  # each picture, and the second of the batches
