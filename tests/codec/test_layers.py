"""Weights are modules: what is put in a layer's place, around it or into it takes effect at every door."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.codec.layers import from_weights, is_plain, is_pointwise, pointwise
from transformers_walloc.media.bands import compress_rows, decompress_rows

LAYERS = ("encoder.projection", "decoder.linear")
DECODERS = ("linear", "residual", "restoration")


def make_codec(decoder_type="linear", **options):
    torch.manual_seed(0)
    small = {"decoder_type": decoder_type, "decoder_hidden_size": 8, "decoder_num_layers": 1}
    audio = options.pop("audio", False)
    if audio:
        model = WallocAudioModel(WallocAudioConfig(num_levels=4, latent_channels=5, **small, **options))
    else:
        model = WallocImageModel(WallocImageConfig(**small, **options))
    with torch.no_grad():
        model.encoder.projection.weight.mul_(40)
        model.decoder.linear.weight.div_(40)
    return model.eval().requires_grad_(False)


def changed(model, layer, scale=0.5):
    """The expectation: a codec with the changed weights themselves."""
    model = copy.deepcopy(model)
    module = model.get_submodule(layer)
    with torch.no_grad():
        module.weight.mul_(scale)
        module.bias.mul_(scale)
    return model


class Scaled(nn.Module):
    def __init__(self, layer, scale=0.5):
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, x):
        return self.scale * self.layer(x)


class Halved(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


def replace(model, layer):
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, Scaled(model.get_submodule(layer)))


def subclass(model, layer):
    module = model.get_submodule(layer)

    class Own(type(module)):
        def forward(self, x):
            return 0.5 * super().forward(x)

    module.__class__ = Own


def hook(model, layer):
    model.get_submodule(layer).register_forward_hook(lambda module, args, output: 0.5 * output)


def hook_before(model, layer):
    module = model.get_submodule(layer)
    with torch.no_grad():
        module.bias.mul_(0.5)  # the hook halves what the weight sees
    module.register_forward_pre_hook(lambda module, args: (0.5 * args[0],))


def patch_forward(model, layer):
    module = model.get_submodule(layer)
    forward = module.forward
    module.forward = lambda x: 0.5 * forward(x)


def parametrise(model, layer):
    for name in ("weight", "bias"):
        parametrize.register_parametrization(model.get_submodule(layer), name, Halved())


def in_place(model, layer):
    """After the caches have seen the first weights, past everything that counts versions."""
    use_all(model)
    module = model.get_submodule(layer)
    for tensor in (module.weight, module.bias):
        tensor.data.numpy()[...] *= 0.5


def reassign(model, layer):
    use_all(model)
    module = model.get_submodule(layer)
    module.weight, module.bias = (nn.Parameter(0.5 * t.detach(), False) for t in (module.weight, module.bias))


WAYS = (replace, subclass, hook, hook_before, patch_forward, parametrise, in_place, reassign)


def pixels(dtype=torch.uint8):
    image = torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return image if dtype == torch.uint8 else image.float() / 255 - 0.5


def rows_of(model):
    image = pixels()[0].permute(1, 2, 0).numpy()
    blob = compress_rows(model, 64, 80, lambda start, stop: image[start:stop])
    return model.decompress_codes(blob)[0]


CODES = torch.randint(-60, 60, (1, 12, 8, 10), dtype=torch.int8, generator=torch.Generator().manual_seed(2))
ENCODING = {
    "encode floats": lambda model: model.encode(pixels(torch.float32)).latents,
    "encode pictures": lambda model: model.encode(pixels()).latents,
    "codes of pictures": lambda model: model.encode_to_codes(pixels()),
    "codes of floats": lambda model: model.encode_to_codes(pixels(torch.float32)),
    "forward": lambda model: model(pixels(torch.float32)).latents,
    "files": lambda model: model.decompress_codes(model.compress(pixels()))[0],
    "files at a rate": lambda model: model.decompress_codes(model.compress(pixels(torch.float32), bpp=40.0))[0],
    "bands of rows": rows_of,
}


def file_of(model):
    return model.compress(pixels())[0]


DECODING = {
    "codes": lambda model: model.decode(CODES).pixel_values,
    "latents": lambda model: model.decode(CODES.float()).pixel_values,
    "tiles": lambda model: model.decode(CODES, tile_size=4).pixel_values,
    "forward": lambda model: model(pixels(torch.float32)).reconstruction,
    "files": lambda model: model.decompress(file_of(model))[0],
    "bands of rows": lambda model: torch.from_numpy(np.concatenate(list(decompress_rows(model, file_of(model))))),
}


def use_all(model):
    for door in (*ENCODING.values(), *DECODING.values()):
        door(model)


def assert_same(found, expected, base):
    atol = 1 if not expected.is_floating_point() else 1e-3 if expected.abs().max() > 1 else 1e-5
    torch.testing.assert_close(found.float(), expected.float(), atol=atol, rtol=0)
    assert not torch.allclose(expected.float(), base.float(), atol=4 * atol)  # the change can be seen


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_changes_of_the_projection_take_effect_at_every_door(way):
    base = make_codec()
    expected, model = changed(base, "encoder.projection"), copy.deepcopy(base)
    way(model, "encoder.projection")
    for door in ENCODING.values():
        assert_same(door(model), door(expected), door(base))


@torch.no_grad()
@pytest.mark.parametrize("decoder_type", DECODERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_changes_of_the_synthesis_take_effect_at_every_door(way, decoder_type):
    base = make_codec(decoder_type)
    expected, model = changed(base, "decoder.linear"), copy.deepcopy(base)
    way(model, "decoder.linear")
    for door in DECODING.values():
        assert_same(door(model), door(expected), door(base))


@torch.no_grad()
@pytest.mark.parametrize("way", [hook, patch_forward, subclass], ids=lambda way: way.__name__)
def test_changes_of_the_whole_encoder_take_effect_once(way):
    base = make_codec()
    model = copy.deepcopy(base)
    way(model, "encoder")
    for name, door in ENCODING.items():
        found, whole = door(model).float(), door(base).float()
        assert (found - 0.5 * whole).abs().max() <= (0.5 if found.frac().any() else 1.0), name
        assert found.abs().max() > 10


@torch.no_grad()
@pytest.mark.parametrize("decoder_type", DECODERS)
def test_a_hook_that_looks_on_changes_nothing_and_sees_half_precision_in_full(decoder_type):
    model = make_codec(decoder_type).to(torch.bfloat16)
    before = model.encode(pixels(torch.float32)).latents, model.decode(CODES).pixel_values
    seen = []
    for layer in LAYERS:
        model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    torch.testing.assert_close(model.encode(pixels(torch.float32)).latents, before[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(model.decode(CODES).pixel_values, before[1], atol=1e-5, rtol=0)
    assert seen == [torch.float32, torch.float32]


@pytest.mark.parametrize("audio", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_changes_learns_and_merges(audio, dtype):
    peft = pytest.importorskip("peft")
    base = make_codec("residual", audio=audio).to(dtype)
    x = torch.rand(2, 2, 640) - 0.5 if audio else pixels(torch.float32)
    torch.manual_seed(3)
    options = peft.LoraConfig(r=2, target_modules=list(LAYERS), init_lora_weights=False)
    tuned = peft.get_peft_model(copy.deepcopy(base), options).eval()
    with torch.no_grad():
        plain, adapted = base(x), tuned(x)
    assert (plain.latents - adapted.latents).abs().max() > 0.1
    assert (plain.reconstruction - adapted.reconstruction).abs().max() > 1e-3
    tuned.train()(x).loss.backward()  # rounding, in evaluation, lets no gradient through
    learned = {name.split(".lora_")[0] for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.removeprefix("base_model.model.") for name in learned} == set(LAYERS)
    tuned.eval()
    with torch.no_grad(), tuned.disable_adapter():
        torch.testing.assert_close(tuned(x).latents, plain.latents, atol=1e-3, rtol=0)
    with torch.no_grad():
        merged = tuned.merge_and_unload().eval()(x)
    if dtype == torch.float32:  # merged weights of half precision are rounded
        torch.testing.assert_close(merged.latents, adapted.latents, atol=1e-3, rtol=0)
        torch.testing.assert_close(merged.reconstruction, adapted.reconstruction, atol=0.02, rtol=0)


def test_what_is_plain():
    model = make_codec()
    assert is_plain(model.encoder) and is_plain(model.decoder) and is_pointwise(model.encoder.projection)
    handle = model.encoder.projection.register_forward_hook(lambda *_: None)
    assert not is_plain(model.encoder) and is_plain(model.decoder)
    handle.remove()
    assert is_plain(model.encoder)
    assert not is_plain(nn.utils.parametrizations.spectral_norm(model.decoder.linear))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_plain(model.encoder)
    finally:
        handle.remove()
    for other in (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(3, 4, 1, stride=2), nn.Linear(3, 4)):
        assert not is_pointwise(other)


def test_what_is_derived_from_weights_follows_them():
    layer, made = make_codec().encoder.projection, []

    def make():
        made.append(float(layer.weight.sum()))
        return made[-1]

    assert from_weights(layer, "sum", make) == from_weights(layer, "sum", make) == made[0]
    assert from_weights(layer, "other", make) == made[1] and len(made) == 2
    with torch.no_grad():
        layer.weight.add_(1)
    assert from_weights(layer, "sum", make) == made[2] != made[0]
    assert from_weights(copy.deepcopy(layer), "sum", make) == made[3]
    layer.register_forward_hook(lambda *_: None)
    assert from_weights(layer, "sum", make) is None and len(made) == 4


@torch.no_grad()
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pointwise_is_the_convolution(dims):
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1](3, 5, 1)
    x = torch.randn(2, 3, *(4, 5, 6)[:dims])
    torch.testing.assert_close(pointwise(layer, x), layer(x))
    half, wide = copy.deepcopy(layer).bfloat16(), copy.deepcopy(layer).bfloat16().float()
    for module in (half, Scaled(half, 1.0)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pointwise(module, x)
        torch.testing.assert_close(found, wide(x))
