"""The codec models as transformers models: forward, decode, save, load, train, and refuse bad input."""

import copy
import json
import logging
import math
import os

import numpy as np
import pytest
import pywt
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioEncoder,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageEncoder,
    WallocImageModel,
)

SMALL = {"decoder_hidden_size": 8, "decoder_num_layers": 2}
ORIGINAL = {"boundary": "periodization"}
CONFIGS = {
    "rgb": WallocImageConfig(**SMALL),
    "gray": WallocImageConfig(num_channels=1, num_levels=2, latent_channels=4, boundary="periodization", **SMALL),
    "multispectral": WallocImageConfig(num_channels=5, num_levels=1, latent_channels=7, latent_bits=10, **SMALL),
    "restoration": WallocImageConfig(decoder_type="restoration", **SMALL),
    "linear": WallocImageConfig(decoder_type="linear", wavelet="bior2.2"),
    "kl": WallocImageConfig(decoder_type="kl", decoder_hidden_size=32, **ORIGINAL),
    "stereo": WallocAudioConfig(num_levels=5, latent_channels=9, **SMALL),
    "mono": WallocAudioConfig(num_channels=1, num_levels=4, latent_channels=3, boundary="periodization", **SMALL),
    "oobleck": WallocAudioConfig(
        num_levels=5,
        latent_channels=9,
        decoder_type="oobleck",
        decoder_hidden_size=18,
        encoder_padding=1,
        post_filter_size=129,
        **ORIGINAL,
    ),
}
IMAGE_CONFIGS = [name for name, config in CONFIGS.items() if config.num_dims == 2]


def make_model(name: str):
    """A model in evaluation mode whose decoder's network takes part (its last layer starts at zero)."""
    config = copy.deepcopy(CONFIGS[name])
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        # Rows of length 60 spread the latents over the range of codes.
        model.encoder.projection.weight.mul_(60)
        if config.decoder_type in ("residual", "restoration", "linear"):
            model.decoder.linear.weight.div_(60)
        if config.decoder_type == "residual":
            model.decoder.head.weight.normal_(std=0.01)
            model.decoder.latent_std.fill_(20)
        if config.decoder_type == "restoration":
            model.decoder.network.head.weight.normal_(std=0.3)
    return model.eval()


def make_signal(config, grid=(4, 6), batch=2, seed=1):
    sizes = [n * config.patch_size for n in grid[-config.num_dims :]]
    return torch.rand(batch, config.num_channels, *sizes, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.fixture(params=CONFIGS)
def model(request):
    if CONFIGS[request.param].decoder_type in ("kl", "oobleck"):
        pytest.importorskip("diffusers")
    return make_model(request.param)


def same_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def test_shapes_dtypes_and_ranges(model):
    config = model.config
    x = make_signal(config)
    grid = [size // config.patch_size for size in x.shape[2:]]
    latents = model.encode(x).latents
    assert latents.shape == (2, config.latent_channels, *(n + 2 * config.encoder_padding for n in grid))
    assert latents.abs().max() < 2 ** (config.latent_bits - 1) - 0.5
    codes = model.quantize(latents)
    assert codes.dtype == (torch.int8 if config.latent_bits <= 8 else torch.int16)
    assert (codes.float() - latents).abs().max() <= 0.5001
    decoded = model.decode(codes)[0]
    assert decoded.shape == x.shape and decoded.dtype == torch.float32
    assert decoded.abs().max() <= 0.5
    output = model(x)
    assert torch.equal(output.latents, latents)
    torch.testing.assert_close(output.reconstruction, decoded, atol=1e-5, rtol=0)
    assert torch.equal(model.decode(codes.float())[0], decoded)
    assert torch.equal(model(x, return_dict=False)[2], output.reconstruction)
    assert model(x, return_loss=False).loss is None
    assert config.dimensionality_reduction == pytest.approx(
        config.num_channels * config.patch_size**config.num_dims / config.latent_channels
    )


@pytest.mark.parametrize("name", ["gray", "mono"])
def test_latents_against_pywavelets(name):
    """Wavelet packets of PyWavelets, projected and companded in NumPy."""
    model = make_model(name)
    config = model.config
    x = make_signal(config, batch=1)
    bands = [x[0, 0].double().numpy()]
    for _ in range(config.num_levels):
        if config.num_dims == 1:
            bands = [half for band in bands for half in pywt.dwt(band, config.wavelet, "periodization")]
        else:
            split = (pywt.dwt2(band, config.wavelet, "periodization") for band in bands)
            bands = [part for low, high in split for part in (low, *high)]
    z = np.tensordot(model.encoder.projection.weight.detach().flatten(1).double().numpy(), np.stack(bands), 1)
    normal = torch.distributions.Normal(0.0, 127 / 1.85)
    expected = 2 * 127.499 * (normal.cdf(torch.from_numpy(z)) - 0.5)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).latents[0].double(), expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    assert same_weights(model, loaded)
    x = make_signal(model.config)
    for a, b in zip(model(x).values(), loaded(x).values(), strict=True):
        assert torch.equal(a, b)
    assert loaded.fingerprint() == model.fingerprint() == loaded.config.latent_fingerprint


def test_config_round_trip(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    own = [name for name in type(config).__dataclass_fields__ if not name.startswith("_")]
    assert {name: getattr(config, name) for name in own if name != "transformers_version"} == {
        name: getattr(model.config, name) for name in own if name != "transformers_version"
    }


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {dtype}
    x = make_signal(model.config)
    latents = half.encode(x).latents
    assert latents.dtype == torch.float32  # follows the signal
    # Only the weights are rounded: the transform and companding run in float32.
    scale = 2 ** (model.config.latent_bits - 8)
    assert (latents - model.encode(x).latents).abs().mean() < 0.5 * scale
    low = half(x.to(dtype))
    assert low.latents.dtype == low.reconstruction.dtype == dtype
    assert (low.reconstruction.float() - model(x).reconstruction).abs().mean() < 0.05
    assert half.fingerprint() == model.fingerprint()


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_map(model, tmp_path, device_map):
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    x = make_signal(model.config)
    torch.testing.assert_close(loaded(x.to(loaded.device)).latents.cpu(), model(x).latents)
    assert same_weights(model, loaded.cpu())


@torch.no_grad()
def test_sharded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same_weights(model, AutoModel.from_pretrained(tmp_path))


@torch.no_grad()
def test_half_precision_files_load_as_the_configuration_says(tmp_path):
    """A checkpoint can store float16 and say float32: half the size, and full precision in memory by default."""
    model = make_model("rgb")
    half = {name: t.half() if name.startswith("decoder.") else t for name, t in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(half))
    assert load_file(tmp_path / "model.safetensors")["decoder.head.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.decoder.head.weight, half["decoder.head.weight"].float())
    assert loaded.fingerprint() == model.fingerprint()


@torch.no_grad()
def test_encoder_alone(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    encoder_class = WallocImageEncoder if model.config.num_dims == 2 else WallocAudioEncoder
    with caplog.at_level(logging.WARNING):
        encoder = encoder_class.from_pretrained(tmp_path)
    assert not any(name.startswith(("decoder", "post_filter")) for name, _ in encoder.named_parameters())
    assert "decoder" not in caplog.text
    x = make_signal(model.config)
    latents = model.encode(x).latents
    for output in (encoder(x), encoder.encode(x)):
        assert torch.equal(output.latents, latents)
    assert torch.equal(encoder.quantize(latents), model.quantize(latents))
    assert encoder.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("encoder", [WallocImageEncoder(WallocImageConfig()), WallocAudioEncoder(WallocAudioConfig())])
def test_encoders_are_tiny(encoder):
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 100_000


def test_missing_weights_are_initialised(model, tmp_path):
    """Loading builds on the meta device: whatever the file lacks must not stay uninitialised memory."""
    torch.save({"encoder.projection.weight": model.encoder.projection.weight.data}, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.projection.weight, model.encoder.projection.weight)
    assert all(tensor.isfinite().all() and tensor.abs().max() < 100 for tensor in loaded.state_dict().values())
    if model.config.decoder_type == "residual":
        assert not loaded.decoder.head.weight.any() and (loaded.decoder.latent_std == 1).all()
    if model.config.post_filter_size:  # starts as the identity
        x = make_signal(model.config)
        torch.testing.assert_close(loaded.post_filter(x), x)


def test_network_starts_at_the_linear_codec():
    x = make_signal(CONFIGS["rgb"])
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS["rgb"])
    linear = AutoModel.from_config(WallocImageConfig(decoder_type="linear"))
    linear.load_state_dict({name: model.state_dict()[name] for name in linear.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x).reconstruction, linear.eval()(x).reconstruction)


@torch.no_grad()
def test_step_coarsens_codes():
    model = make_model("rgb")
    x = make_signal(model.config)
    latents = model.encode(x).latents
    codes = model.quantize(latents, step=4.0)
    assert codes.abs().max() <= 32
    torch.testing.assert_close(model.decode(codes, step=4.0)[0], model.decode(codes.float() * 4)[0])


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["symmetric", "periodization"])
@pytest.mark.parametrize(
    ("signal", "grid"), [("image", (13, 22)), ("image", (40, 3)), ("restoration", (13, 22)), ("audio", (61,))]
)
@pytest.mark.parametrize("tile_size", [1, 5, 16])
def test_tiles_equal_the_whole(boundary, signal, grid, tile_size):
    config_class = WallocAudioConfig if signal == "audio" else WallocImageConfig
    decoder_type = "restoration" if signal == "restoration" else "residual"
    config = config_class(num_levels=2, latent_channels=5, boundary=boundary, decoder_type=decoder_type, **SMALL)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    getattr(model.decoder, "network", model.decoder).head.weight.normal_(std=0.1)
    codes = torch.randint(-127, 128, (2, 5, *grid), dtype=torch.int8, generator=torch.Generator().manual_seed(2))
    latents = codes.float()
    whole, tiles = model.decode_subbands(latents, max(grid)), model.decode_subbands(latents, tile_size)
    torch.testing.assert_close(tiles, whole, atol=1e-4 * whole.abs().max().item(), rtol=0)
    torch.testing.assert_close(model.decode(codes, tile_size=tile_size)[0], model.decode(codes)[0], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("downsampling", "kernel"), [(1, 3), (2, 3), (2, 5), (4, 3)])
def test_receptive_field_of_restoration_is_what_it_says(downsampling, kernel):
    changes = {"decoder_downsampling": downsampling, "decoder_kernel_size": kernel, "boundary": "periodization"}
    config = WallocImageConfig(num_levels=2, latent_channels=5, decoder_type="restoration", **SMALL | changes)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval().double()
    network = model.decoder.network
    for parameter in network.parameters():
        parameter.abs_().add_(0.01)  # nothing cancels, no unit is silent
    picture, latents = torch.zeros(1, 3, 64, 64).double(), torch.zeros(1, 5, 16, 16).double()
    latents[..., 8, 8] = 10.0
    picture[..., 32:36, 32:36] = 0.1
    changed = (network(picture, latents) - network(torch.zeros_like(picture), torch.zeros_like(latents))).abs() > 1e-12
    rows = changed.any(dim=3).flatten(0, 1).any(dim=0).nonzero() // 4
    # As far as it says, or nearly: the pixels' way and the latents' are added up as if both ended at a block's edge.
    assert network.receptive_field - 1 <= 8 - rows.min() <= network.receptive_field
    assert network.receptive_field - 1 <= rows.max() - 8 <= network.receptive_field


@torch.no_grad()
def test_large_images_decode_in_tiles_by_themselves(monkeypatch):
    model = make_model("rgb")
    codes = torch.randint(-100, 100, (1, 12, 30, 50), dtype=torch.int8)
    whole = model.decode(codes)[0]
    sizes = []
    model.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].shape[2:].numel()))
    monkeypatch.setattr("transformers_walloc.codec.modeling_walloc.MAX_TILE_POSITIONS", 16**2)
    torch.testing.assert_close(model.decode(codes)[0], whole, atol=1e-4, rtol=0)
    assert len(sizes) == 8 and max(sizes) <= (16 + 2 * model.decoder.receptive_field) ** 2


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGE_CONFIGS)
def test_memory_format_does_not_matter(name):
    if name == "kl":
        pytest.importorskip("diffusers")
    model = make_model(name)
    x = make_signal(model.config)
    expected = model(x)
    output = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output.latents, expected.latents, atol=1e-3, rtol=0)
    rows = make_signal(model.config, grid=(8, 6))[:, :, ::2]  # a view with gaps
    torch.testing.assert_close(model.encode(rows).latents, model.encode(rows.contiguous()).latents, atol=1e-3, rtol=0)


@torch.no_grad()
def test_autocast_leaves_latents_exact(model):
    x = make_signal(model.config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    assert torch.equal(output.latents, model.encode(x).latents)
    assert (output.reconstruction - model(x).reconstruction).abs().mean() < 0.05


@torch.no_grad()
def test_fused_encoder_follows_the_weights(model):
    """Whatever `encode` keeps between calls must not outlive a change of the weights."""
    x = make_signal(model.config)
    before = model.encode(x).latents
    model.encoder.projection.weight.mul_(0.5)
    changed = model.encode(x).latents
    assert not torch.allclose(before, changed, atol=1e-2)
    model.encoder.load_state_dict({name: 2 * t for name, t in model.encoder.state_dict().items()})
    torch.testing.assert_close(model.encode(x).latents, before, atol=1e-3, rtol=0)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double.encode(x.double()).latents.float(), before, atol=1e-3, rtol=0)


def test_gradients(model):
    """Every weight learns from the loss, except a residual branch behind its zero layer."""
    model.train()
    torch.manual_seed(0)
    x = make_signal(model.config).requires_grad_()
    output = model(x)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Constant along the softmax, so without influence.
        assert parameter.grad.abs().max() > 0 or name.endswith("to_k.bias"), name
    assert x.grad.abs().max() > 0


def test_training_after_inference_mode():
    """Operators that are cached in inference mode must not break training afterwards."""
    model = make_model("mono")
    x = make_signal(model.config)
    with torch.inference_mode():
        model(x)
    model.train()(x).loss.backward()
    assert model.encoder.projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["rgb", "stereo", "kl"])
def test_gradient_checkpointing(name):
    if name == "kl":
        pytest.importorskip("diffusers")
    gradients = []
    for checkpointing in (False, True):
        model = make_model(name).train()
        if checkpointing:
            # Renamed within transformers 5; the old name warns.
            prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{prefix}_checkpointing_enable")()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(3)
        model(make_signal(model.config)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_noise_in_training_rounding_in_evaluation(model):
    x = make_signal(model.config)
    with torch.no_grad():
        assert torch.equal(model(x).reconstruction, model(x).reconstruction)
        model.train()
        assert not torch.equal(model(x).reconstruction, model(x).reconstruction)
        assert torch.equal(model(x).latents, model.encode(x).latents)


@torch.no_grad()
def test_loss_is_the_error_inside_of_the_original_sizes():
    model = make_model("rgb")
    x = make_signal(model.config)
    output = model(x)
    error = (output.reconstruction - x) ** 2
    assert output.reconstruction.abs().max() < 0.5  # nothing was clamped, so this is what the loss saw
    torch.testing.assert_close(output.loss, error.mean())
    sizes = torch.tensor([[20, 33], [32, 48]])
    expected = torch.cat([error[0, :, :20, :33].flatten(), error[1].flatten()]).mean()
    torch.testing.assert_close(model(x, original_sizes=sizes).loss, expected)


@torch.no_grad()
def test_loss_leaves_padded_samples_out():
    model = make_model("stereo")
    x = make_signal(model.config)
    mask = torch.ones(2, x.shape[2], dtype=torch.long)
    mask[0, 50:] = 0
    output = model(x, padding_mask=mask, gain=torch.ones(2), offset=torch.zeros(2))
    error = (output.reconstruction - x) ** 2
    assert output.reconstruction.abs().max() < 0.5
    expected = torch.cat([error[0, :, :50].flatten(), error[1].flatten()]).mean()
    torch.testing.assert_close(output.loss, expected)


class Smooth(torch.utils.data.Dataset):
    """Random planes, which have few strong subbands to learn."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        a, b, c = torch.rand(3, generator=torch.Generator().manual_seed(index)) - 0.5
        rows, columns = torch.linspace(-1, 1, 32)[:, None], torch.linspace(-1, 1, 32)
        return {"pixel_values": (0.3 * (a * rows + b * columns + c)).expand(3, 32, 32).contiguous()}


def training_arguments(folder, **changes) -> TrainingArguments:
    options = {
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_steps": 3,
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 1,
    }
    return TrainingArguments(output_dir=str(folder), **{**options, **changes})


def make_trainer(folder, **changes) -> Trainer:
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(CONFIGS["rgb"]))
    data = Smooth()
    return Trainer(model=model, args=training_arguments(folder, **changes), train_dataset=data, eval_dataset=data)


def losses(trainer, key="loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_trainer_lowers_the_loss_and_resumes(tmp_path):
    pytest.importorskip("accelerate")
    trainer = make_trainer(tmp_path)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = losses(trainer, "eval_loss")[-1]
    assert 0 < after < before
    assert len(losses(trainer)) == 5 and np.isfinite(losses(trainer)).all()

    resumed = make_trainer(tmp_path, max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 5
    torch.testing.assert_close(losses(resumed), losses(trainer), rtol=1e-3, atol=0)
    trainer.save_model(str(tmp_path / "final"))
    assert same_weights(AutoModel.from_pretrained(tmp_path / "final"), trainer.model)


def test_trainer_gradient_accumulation_is_one_large_batch(tmp_path):
    pytest.importorskip("accelerate")
    whole = make_trainer(tmp_path / "a", max_steps=1, per_device_train_batch_size=8)
    parts = make_trainer(tmp_path / "b", max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    # The noise differs between the two; a loss that is scaled by the number of steps would be four times as large.
    assert losses(parts)[0] == pytest.approx(losses(whole)[0], rel=0.2)
    assert losses(parts, "grad_norm")[0] == pytest.approx(losses(whole, "grad_norm")[0], rel=0.2)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["rgb", "stereo"])
def test_compile(name):
    model = make_model(name)
    x = make_signal(model.config)
    expected = model(x)
    output = torch.compile(model, dynamic=False)(x)
    torch.testing.assert_close(output.latents, expected.latents, atol=1e-3, rtol=0)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction, atol=1e-3, rtol=0)
    decode = torch.compile(model.decode, dynamic=False)
    codes = model.quantize(expected.latents)
    torch.testing.assert_close(decode(codes)[0], model.decode(codes)[0], atol=1e-4, rtol=0)


# Bad input


@pytest.mark.parametrize("encode", ["encode", "__call__"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[..., :-1], ValueError, "multiples of"),
        (lambda x: x[:0], ValueError, r"got \(0, "),
        (lambda x: x[..., :0], ValueError, "got"),
        (lambda x: x[:, :-1], ValueError, "must be"),
        (lambda x: x[0], ValueError, "must be"),
        (lambda x: x.where(x < x.max(), torch.nan), ValueError, "NaN"),
        (lambda x: x.where(x < x.max(), torch.inf), ValueError, "infinite"),
        (lambda x: x.where(x > x.min(), -torch.inf), ValueError, "infinite"),
        (lambda x: (255 * (x + 0.5)).to(torch.int32), TypeError, r"torch\.int32"),
        (lambda x: x.to(torch.complex64), TypeError, r"torch\.complex64"),
        (lambda x: x.numpy(), TypeError, "ndarray"),
    ],
)
@torch.no_grad()
def test_bad_signals(model, encode, change, error, message):
    x = change(make_signal(model.config))
    name = "pixel_values" if model.config.num_dims == 2 else "input_values"
    with pytest.raises(error, match=rf"(?s){name}.*{message}|{message}.*{name}"):
        getattr(model, encode)(x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda z: z[:, :-1], ValueError, "must be"),
        (lambda z: z[:0], ValueError, "must be"),
        (lambda z: z[0], ValueError, "must be"),
        (lambda z: z[None], ValueError, "must be"),
        (lambda z: z.fill_(torch.nan), ValueError, "NaN"),
        (lambda z: z.to(torch.uint8), TypeError, r"torch\.uint8"),
        (lambda z: z.bool(), TypeError, r"torch\.bool"),
        (lambda z: z.to(torch.int32).fill_(512), ValueError, r"512\.\.512; valid: -"),
        (lambda z: z.tolist(), TypeError, "list"),
    ],
)
@torch.no_grad()
def test_bad_codes(model, change, error, message):
    codes = change(model.encode(make_signal(model.config)).latents.abs())
    with pytest.raises(error, match=message):
        model.decode(codes)


@torch.no_grad()
def test_bad_latents_and_steps():
    model = make_model("rgb")
    latents = model.encode(make_signal(model.config)).latents
    codes = model.quantize(latents)
    with pytest.raises(TypeError, match="are they codes already"):
        model.quantize(codes)
    with pytest.raises(ValueError, match="NaN"):
        model.quantize(latents * torch.nan)
    with pytest.raises(ValueError, match="must be"):
        model.quantize(latents[:, :3])
    for step in (0.5, 0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"step is {step}"):
            model.quantize(latents, step=step)
        with pytest.raises(ValueError, match=f"step is {step}"):
            model.decode(codes, step=step)
    with pytest.raises(ValueError, match="tile_size is 0"):
        model.decode(codes, tile_size=0)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [torch.tensor([32, 48]), torch.tensor([[32, 48]]), torch.tensor([[32], [48]])])
def test_bad_original_sizes(sizes):
    model = make_model("rgb")
    with pytest.raises(ValueError, match=r"original_sizes must be \(2, 2\)"):
        model(make_signal(model.config), original_sizes=sizes)


@torch.no_grad()
def test_bad_padding_mask():
    model = make_model("stereo")
    x = make_signal(model.config)
    with pytest.raises(ValueError, match="padding_mask must be"):
        model(x, padding_mask=torch.ones(2, 7))


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (WallocImageConfig, {"num_channels": 0}, "num_channels is 0"),
        (WallocImageConfig, {"num_levels": 13}, "num_levels is 13"),
        (WallocImageConfig, {"latent_bits": 1}, "latent_bits is 1"),
        (WallocImageConfig, {"latent_bits": 17}, "latent_bits is 17"),
        (WallocImageConfig, {"latent_channels": 193}, "latent_channels is 193, more than the 192"),
        (WallocImageConfig, {"decoder_num_layers": -1}, "decoder_num_layers is -1"),
        (WallocImageConfig, {"decoder_kernel_size": 4}, "decoder_kernel_size is 4"),
        (WallocImageConfig, {"decoder_type": "vae"}, "'vae'; valid: residual, restoration, linear, kl, oobleck"),
        (WallocImageConfig, {"decoder_type": "oobleck"}, "'oobleck' is not for image"),
        (WallocAudioConfig, {"decoder_type": "kl"}, "'kl' is not for audio"),
        (WallocAudioConfig, {"decoder_type": "restoration"}, "'restoration' is not for audio"),
        (WallocImageConfig, {"decoder_downsampling": 3}, "decoder_downsampling is 3; it must divide"),
        (WallocImageConfig, {"decoder_type": "kl", "decoder_hidden_size": 40}, "decoder_hidden_size is 40"),
        (WallocAudioConfig, {"decoder_type": "oobleck", "decoder_hidden_size": 20}, "decoder_hidden_size is 20"),
        (WallocAudioConfig, {"decoder_type": "oobleck"}, "encoder_padding is 0"),
        (WallocAudioConfig, {"encoder_padding": 1}, "encoder_padding is 1"),
        (WallocAudioConfig, {"post_filter_size": 128}, "post_filter_size is 128"),
        (WallocImageConfig, {"post_filter_size": 129}, "post_filter_size is 129"),
        (WallocAudioConfig, {"sampling_rate": 0}, "sampling_rate is 0"),
        (WallocImageConfig, {"wavelet": "bior4.5"}, "'bior4.5'"),
        (WallocImageConfig, {"wavelet": "db4"}, "periodization"),
        (WallocImageConfig, {"boundary": "zero"}, "'zero'; valid: periodization, symmetric"),
        (WallocImageConfig, {"num_level": 3}, "did you mean 'num_levels'"),
        (WallocImageConfig, {"latents_mean": [0.0] * 12}, "belong together"),
        (WallocImageConfig, {"latents_mean": [0.0] * 12, "latents_std": [1.0] * 11}, "latents_std has 11 values"),
        (WallocImageConfig, {"latents_mean": [math.nan] * 12, "latents_std": [1.0] * 12}, "latents_mean holds nan"),
        (WallocImageConfig, {"latents_mean": [0.0] * 12, "latents_std": [0.0] * 12}, r"latents_std holds 0\.0"),
    ],
)
def test_bad_configurations(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)


def test_statistics_of_the_latents_travel_and_leave_the_fingerprint_alone(tmp_path):
    plain = make_model("rgb")
    model = make_model("rgb")
    model.config.latents_mean = [0.5 * channel for channel in range(12)]
    model.config.latents_std = [20.0 + channel for channel in range(12)]
    assert model.fingerprint() == plain.fingerprint()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.latents_mean == model.config.latents_mean
    assert loaded.config.latents_std == model.config.latents_std
    assert loaded.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("content", [b"", b"x" * 200, "half", "header"])
def test_damaged_weights(tmp_path, content):
    make_model("rgb").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    if content == "half":
        content = data[: len(data) // 2]
    elif content == "header":
        content = b"\xff" * 8 + data[8:]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corrupted"):
        AutoModel.from_pretrained(tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_hostile_pickle_runs_no_code(tmp_path):
    model = make_model("rgb")
    model.config.save_pretrained(tmp_path)
    torch.save({**model.state_dict(), "trap": Hostile(tmp_path / "trap")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="corrupted"):
        AutoModel.from_pretrained(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_weights_of_another_configuration(tmp_path):
    make_model("rgb").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_channels": 13}))
    with pytest.raises(ValueError, match="mismatched"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [WallocImageModel, WallocAudioModel])
def test_configuration_of_the_other_kind(model_class):
    other = WallocAudioConfig(**SMALL) if model_class is WallocImageModel else WallocImageConfig(**SMALL)
    with pytest.raises(TypeError, match=type(other).__name__):
        model_class(other)
