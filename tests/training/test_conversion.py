"""Checkpoints of the original package, saved as it saves them, against models that are converted from them."""

import copy
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pywt
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

from transformers_walloc import WallocAudioModel, WallocImageModel
from transformers_walloc.codec.bottleneck import latent_limit
from transformers_walloc.training.conversion import convert_original_checkpoint

# The original builds with a function that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_original_checkpoint.py"
# The four main ones of the published configurations, with narrow decoders; a linear encoder has no width `Ne`.
IMAGE = {"channels": 3, "J": 3, "Ne": None, "latent_bits": 8, "lightweight_encode": True}
AUDIO = {"channels": 2, "J": 8, "Ne": None, "latent_bits": 8, "lightweight_encode": True, "post_filter": True}
CONFIGS = {
    "RGB_16x": {**IMAGE, "latent_dim": 12, "Nd": 64},
    "RGB_4x": {**IMAGE, "latent_dim": 48, "Nd": 32},
    "stereo_5x": {**AUDIO, "latent_dim": 108, "Nd": 216},
    "stereo_20x": {**AUDIO, "latent_dim": 27, "Nd": 64},
}


@pytest.fixture(scope="session", params=CONFIGS)
def codec(request, original):
    """(name, configuration, codec of the original with random weights)."""
    return request.param, CONFIGS[request.param], make_codec(original, CONFIGS[request.param])


@pytest.fixture
def audio_codec(original):
    return make_codec(original, CONFIGS["stereo_20x"])


def make_codec(original, config: dict):
    torch.manual_seed(20241209)
    codec = (original.Codec1D if "post_filter" in config else original.Codec2D)(**config)
    generator = torch.Generator().manual_seed(7)
    scale = 40.0 if "post_filter" in config else 25.0  # spreads the latents over the range of codes
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "encoder.0.weight":
                parameter.copy_(noise * scale)
            elif name == "encoder.0.bias":
                parameter.copy_(noise * 20)
            elif name.endswith("weight_g"):
                parameter.mul_(1 + 0.3 * noise.abs())
            elif name.startswith("decoder.1.conv_in") or name == "decoder.1.conv1.weight_v":
                parameter.add_(noise * 0.01)
            elif name.endswith(("bias", "alpha", "beta")):
                parameter.copy_(noise * 0.1)
            elif "norm" in name:
                parameter.add_(noise * 0.1)
        codec.eval()
        # The last layer of the decoder sets the level, so that reconstructions are not all clamped.
        codes = codec.encoder(codec.wavelet_analysis(signal(config), codec.J))
        gain = 0.15 / unclamped_reconstruction(codec, codes).std()
        for name, parameter in codec.named_parameters():
            if name.startswith(("decoder.1.conv_out", "decoder.1.conv2.weight_g")):
                parameter.mul_(gain)
    return codec


def unclamped_reconstruction(codec, codes: torch.Tensor) -> torch.Tensor:
    x = codec.wavelet_synthesis(codec.decoder(codes), codec.J)
    return codec.post(x) if getattr(codec, "post_filter", False) else x


def save(folder: Path, codec, config: dict, **extra) -> tuple[str, str]:
    checkpoint, config_file = folder / "codec.pth", folder / "codec.json"
    torch.save({"model_state_dict": codec.state_dict(), "config": SimpleNamespace(**config), **extra}, checkpoint)
    config_file.write_text(json.dumps(config, indent=4))
    return str(checkpoint), str(config_file)


def convert(*arguments) -> int:
    return runpy.run_path(str(SCRIPT))["main"]([str(argument) for argument in arguments])


def signal(config: dict) -> torch.Tensor:
    """Smooth random signals, in [-0.5, 0.5]."""
    generator = torch.Generator().manual_seed(3)
    sizes = (256 * 24,) if "post_filter" in config else (64, 96)
    noise = torch.randn(2, config["channels"], *sizes, generator=generator)
    spectrum = torch.fft.rfftn(noise, dim=list(range(2, noise.ndim)))
    frequency = sum(
        f.reshape([-1 if a == axis else 1 for a in range(len(sizes))]) ** 2
        for axis, f in enumerate(
            torch.fft.rfftfreq(size) if axis == len(sizes) - 1 else torch.fft.fftfreq(size)
            for axis, size in enumerate(sizes)
        )
    ).sqrt()
    x = torch.fft.irfftn(spectrum / (frequency + 0.02), s=sizes, dim=list(range(2, noise.ndim)))
    return 0.5 * x / x.abs().amax()


@torch.no_grad()
def test_same_latents_codes_and_reconstruction(codec, tmp_path):
    name, config, original_codec = codec
    assert convert(*save(tmp_path, original_codec, config), tmp_path / name) == 0
    model = AutoModel.from_pretrained(tmp_path / name)
    x = signal(config)

    latents = original_codec.encoder[:2](original_codec.wavelet_analysis(x, J=original_codec.J))
    codes = original_codec.encoder[2](latents)
    reconstruction = original_codec(x)[0]
    assert latents.std() > 30 and codes.unique().numel() > 200 and reconstruction.std() > 0.1

    ours = model.encode(x).latents
    assert ours.shape == latents.shape
    # Latents span +-127.5, where float32 itself is no finer than 1e-5: relative to the range here, absolute below.
    assert (ours - latents).abs().max() <= 1e-5 * latent_limit(8)
    # Two float32 sums may fall on either side of a half; everywhere else the codes are equal.
    decided = ((latents - latents.floor()) - 0.5).abs() > 1e-5 * latent_limit(8)
    assert decided.float().mean() > 0.99 and torch.equal(model.quantize(ours).float()[decided], codes[decided])
    assert (model.decode(codes.to(torch.int8))[0] - reconstruction).abs().max() <= 1e-4
    assert torch.equal(model(x).reconstruction, model.decode(model.quantize(ours))[0])
    # Clamping could hide differences.
    unclamped = model._synthesise(model.decode_subbands(codes))
    assert (unclamped - unclamped_reconstruction(original_codec, codes)).abs().max() <= 1e-4


@torch.no_grad()
def test_same_latents_in_double_precision(codec):
    _, config, original_codec = codec
    original_codec = copy.deepcopy(original_codec).double()
    taps = dict(zip(("h0", "h1", "g0", "g1"), pywt.Wavelet("bior4.4").filter_bank, strict=True))
    for name, buffer in original_codec.named_buffers():  # were rounded to float32
        exact = torch.tensor(taps[name.split(".")[1][:2]], dtype=torch.float64)
        buffer.copy_((exact if name.startswith("iwt.") else exact.flip(0)).view_as(buffer))
    model = convert_original_checkpoint(codec[2].state_dict(), config).double()
    x = signal(config).double()
    latents = original_codec.encoder[:2](original_codec.wavelet_analysis(x, J=original_codec.J))
    assert (model.encode(x).latents - latents).abs().max() <= 1e-9


def test_model_folder(codec, tmp_path):
    _, config, original_codec = codec
    folder = tmp_path / "out"
    assert convert(*save(tmp_path, original_codec, config), folder) == 0
    written = json.loads((folder / "config.json").read_text())
    model = AutoModel.from_pretrained(folder)
    is_audio = "post_filter" in config
    assert isinstance(model, WallocAudioModel if is_audio else WallocImageModel)
    assert written["decoder_type"] == ("oobleck" if is_audio else "kl")
    assert written["boundary"] == "periodization"
    assert written["encoder_padding"] == int(is_audio)
    assert written["post_filter_size"] == (129 if is_audio else 0)
    assert written["dtype"] == "float32"
    assert not any("weight_g" in key or "wt." in key for key in model.state_dict())
    assert sum(p.numel() for p in model.encoder.parameters()) < 100_000
    if is_audio:
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        clip = torch.rand(2, 5000).numpy() - 0.5
        inputs = extractor(clip, sampling_rate=44100, return_tensors="pt")
        # 20 frames and the original's two extra latents
        assert model.encode(inputs["input_values"]).latents.shape == (1, config["latent_dim"], 22)
    else:
        processor = AutoImageProcessor.from_pretrained(folder)
        inputs = processor(torch.rand(3, 21, 34), return_tensors="pt")
        assert model.encode(inputs["pixel_values"]).latents.shape == (1, config["latent_dim"], 3, 5)


def test_without_post_filter_mono_and_other_depths(original, tmp_path):
    config = {**CONFIGS["stereo_20x"], "channels": 1, "J": 5, "latent_dim": 8, "Nd": 16, "post_filter": False}
    codec = make_codec(original, config)
    assert convert(*save(tmp_path, codec, config), tmp_path / "out", "--sampling-rate", 16000) == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.sampling_rate == 16000 and model.config.post_filter_size == 0
    x = signal(config)
    with torch.no_grad():
        assert (model(x).reconstruction - codec(x)[0]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("depth", "bits", "latents", "width"), [(2, 2, 3, None), (2, 3, 12, 48), (3, 6, 24, None), (4, 8, 147, None)]
)
def test_other_published_shapes(original, tmp_path, depth, bits, latents, width):
    config = {**IMAGE, "J": depth, "latent_bits": bits, "latent_dim": latents, "Ne": width, "Nd": 32}
    codec = make_codec(original, config)
    assert convert(*save(tmp_path, codec, config), tmp_path / "out") == 0
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert (model.config.num_levels, model.config.latent_bits, model.config.latent_channels) == (depth, bits, latents)
    x = signal(config)
    x = torch.cat([x, x.flip(2)], dim=2)  # at the deepest level the original needs sizes of the filter's length
    with torch.no_grad():
        latents = codec.encoder[:2](codec.wavelet_analysis(x, J=depth))
        assert (model.encode(x).latents - latents).abs().max() <= 1e-5 * latent_limit(8)
        codes = codec.encoder[2](latents)
        expected = unclamped_reconstruction(codec, codes)
        assert (model._synthesise(model.decode_subbands(codes)) - expected).abs().max() <= 1e-4


def test_command_line_and_training_leftovers(original, tmp_path, capsys):
    config = {**CONFIGS["RGB_16x"], "max_lr": 1e-3, "batch_size": 5}
    codec = make_codec(original, CONFIGS["RGB_16x"])
    paths = save(tmp_path, codec, config, i_epoch=3, losses=[0.1, 0.2], learning_rates=[1e-3])
    command = [sys.executable, str(SCRIPT), *paths, str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert "left out: batch_size, max_lr" in done.stdout
    assert "WallocImageModel" in done.stdout
    assert convert(*paths, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert message.startswith("walloc: error: ") and "--force" in message and len(message.splitlines()) == 1


def test_plain_state_dict(original, tmp_path):
    codec, config = make_codec(original, CONFIGS["RGB_16x"]), CONFIGS["RGB_16x"]
    checkpoint, config_file = save(tmp_path, codec, config)
    torch.save(codec.state_dict(), checkpoint)
    assert convert(checkpoint, config_file, tmp_path / "out") == 0
    weight = AutoModel.from_pretrained(tmp_path / "out").encoder.projection.weight
    assert torch.equal(weight, codec.encoder[0].weight)


def test_half_precision_storage(audio_codec, tmp_path):
    paths = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    assert convert(*paths, tmp_path / "full") == 0
    assert convert(*paths, tmp_path / "half", "--dtype", "float16") == 0
    full, half = (AutoModel.from_pretrained(tmp_path / name) for name in ("full", "half"))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.dtype == torch.float32
    assert half.fingerprint() == full.fingerprint()
    x = signal(CONFIGS["stereo_20x"])
    with torch.no_grad():
        assert torch.equal(half.encode(x).latents, full.encode(x).latents)
        assert (half(x).reconstruction - full(x).reconstruction).abs().mean() < 0.01
    low = AutoModel.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    with torch.no_grad():
        assert low(x.bfloat16()).reconstruction.isfinite().all()


def test_existing_folders(audio_codec, tmp_path):
    paths = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    out = tmp_path / "out"
    assert convert(*paths, out) == 0
    (out / "stale.txt").write_text("old")
    assert convert(*paths, out) == 1
    assert (out / "stale.txt").exists()
    assert convert(*paths, out, "--force") == 0
    assert not (out / "stale.txt").exists()
    assert AutoModel.from_pretrained(out).config.latent_channels == 27
    other = tmp_path / "documents"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert convert(*paths, other, "--force") == 1
    assert (other / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec.json", "codec.pth", "documents", "out"]


def failure(capsys, *arguments) -> str:
    """The message of a conversion that must fail and leave nothing behind."""
    out = Path(arguments[0]).parent / "out"
    assert convert(*arguments, out) == 1
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.startswith("walloc: error: ")
    return message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("decoder.1.conv1.weight_g"), "missing weights: decoder.1.conv1.weight_g"),
        (lambda w: w.pop("post.bias"), "missing weights: post.bias"),
        (lambda w: w.pop("wt.h0"), "missing weights: wt.h0"),
        (lambda w: w.pop("encoder.0.weight"), "missing weight 'encoder.0.weight'"),
        (lambda w: w.update(surplus=torch.zeros(1)), "unknown weights: surplus"),
        (lambda w: w.update({"wt.h2": torch.zeros(1)}), "unknown weights: wt.h2"),
        (lambda w: w["wt.h0"].mul_(1.001), "wt.h0 does not hold the filter of the wavelet bior4.4"),
        (lambda w: w.update({"iwt.g0": w["iwt.g0"][..., :8]}), "iwt.g0 has shape"),
        (lambda w: w.update({"post.weight": torch.zeros(2, 2, 65)}), "post.weight has shape (2, 2, 65)"),
        (lambda w: w["decoder.1.conv1.bias"].fill_(float("nan")), "NaN or infinite values in decoder.1.conv1.bias"),
        (lambda w: w["decoder.1.conv1.weight_v"].zero_(), "decoder.1.conv1.weight_v has a direction of length zero"),
        (lambda w: w.update({"post.bias": torch.zeros(2, dtype=torch.long)}), "not floating point tensors: post.bias"),
    ],
)
def test_weights_that_do_not_fit(audio_codec, tmp_path, capsys, edit, message):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    weights = {name: tensor.clone() for name, tensor in audio_codec.state_dict().items()}
    edit(weights)
    torch.save({"model_state_dict": weights}, checkpoint)
    assert message in failure(capsys, checkpoint, config_file)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("latent_dim"), "missing in the original's configuration: latent_dim"),
        (lambda c: c.pop("post_filter"), "post_filter"),
        (lambda c: c.update(lightweight_encode=False), "deep encoder is not supported"),
        (lambda c: c.update(lightweight_encode=False, Ne=None), "lightweight_encode is False: the original's deep"),
        (lambda c: c.update(Ne="wide"), "Ne of the original's configuration must be an integer, got 'wide'"),
        (lambda c: c.update(J=None), "J of the original's configuration must be an integer, got None"),
        (lambda c: c.update(J="8"), "J of the original's configuration must be an integer, got '8'"),
        (lambda c: c.update(J=400_000), "num_levels is 400000"),
        (lambda c: c.update(channels=-1), "channels of the original's configuration"),
        (lambda c: c.update(latent_dim=26), "encoder.0.weight has shape (27, 512, 1)"),
        (lambda c: c.update(Nd=20), "decoder_hidden_size is 20"),
    ],
)
def test_configurations_that_do_not_fit(audio_codec, tmp_path, capsys, edit, message):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    config = dict(CONFIGS["stereo_20x"])
    edit(config)
    Path(config_file).write_text(json.dumps(config))
    assert message in failure(capsys, checkpoint, config_file)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "[" * 100_000])
def test_broken_configuration(audio_codec, tmp_path, capsys, content):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    Path(config_file).write_text(content)
    assert "codec.json" in failure(capsys, checkpoint, config_file)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_hostile_pickle_runs_no_code(audio_codec, tmp_path, capsys, zip_format):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    trap = tmp_path / "trap"
    content = {"model_state_dict": audio_codec.state_dict(), "config": Hostile(trap)}
    torch.save(content, checkpoint, _use_new_zipfile_serialization=zip_format)
    assert "was refused" in failure(capsys, checkpoint, config_file)
    assert not trap.exists()
    # The trap works: the same file springs it when read the way the original tells its users to.
    torch.load(checkpoint, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half", "flipped"])
def test_damaged_files(audio_codec, tmp_path, capsys, content):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    data = Path(checkpoint).read_bytes()
    if content == "half":
        content = data[: len(data) // 2]
    elif content == "flipped":
        content = data[:200] + bytes(byte ^ 0x55 for byte in data[200:400]) + data[400:]
    Path(checkpoint).write_bytes(content)
    assert "codec.pth" in failure(capsys, checkpoint, config_file)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model_state_dict": [1]}, {"a": 1}, torch.zeros(3)])
def test_pickles_without_weights(audio_codec, tmp_path, capsys, content):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    torch.save(content, checkpoint)
    assert "codec.pth holds" in failure(capsys, checkpoint, config_file)


def test_missing_file(audio_codec, tmp_path, capsys):
    checkpoint, config_file = save(tmp_path, audio_codec, CONFIGS["stereo_20x"])
    assert "absent.pth" in failure(capsys, str(tmp_path / "absent.pth"), config_file)
    assert "absent.json" in failure(capsys, checkpoint, str(tmp_path / "absent.json"))
