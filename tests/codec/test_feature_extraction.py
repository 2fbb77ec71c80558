"""Clips in, normalised batches out, and back to the clips."""

import json
import logging
import math
import sys
import types

import numpy as np
import pytest
import torch

from transformers_walloc.codec.feature_extraction_walloc import WallocAudioFeatureExtractor, resample

RATE = 44100


@pytest.fixture(scope="module")
def extractor():
    return WallocAudioFeatureExtractor()


def music(length, channels=2, seed=0, level=0.3, dc=0.05):
    """A few decaying partials and some noise, different in each channel, with a DC offset."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / RATE
    tones = sum(
        rng.uniform(0.2, 1, (channels, 1)) * np.sin(2 * np.pi * rng.uniform(50, 5000) * time + rng.uniform(0, 6))
        for _ in range(5)
    )
    wave = tones * np.exp(-2 * time) + 0.1 * rng.standard_normal((channels, length))
    return (level * wave + dc).astype(np.float32)


def restored(extractor, inputs):
    return extractor.post_process(
        inputs["input_values"], padding_mask=inputs["padding_mask"], gain=inputs["gain"], offset=inputs["offset"]
    )


def test_shapes_and_normalisation(extractor):
    clip = music(1000)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    assert list(inputs) == ["input_values", "padding_mask", "gain", "offset"]
    values, mask = inputs["input_values"], inputs["padding_mask"]
    assert values.shape == (1, 2, 1024) and values.dtype == torch.float32
    assert mask.shape == (1, 1024) and mask.dtype == torch.bool and mask.sum() == 1000 and mask[0, :1000].all()
    assert inputs["gain"].shape == inputs["offset"].shape == (1,)
    assert inputs["gain"].dtype == inputs["offset"].dtype == torch.float32
    assert values.abs().max() == 0.5
    assert (values[..., 1000:] == 0).all()
    mean = clip.astype(np.float64).mean()
    assert inputs["offset"].item() == pytest.approx(mean, abs=1e-6)
    assert inputs["gain"].item() == pytest.approx(2 * np.abs(clip - mean).max(), rel=1e-5)
    np.testing.assert_allclose(values[0, :, :1000] * inputs["gain"] + inputs["offset"], clip, atol=1e-6)


@pytest.mark.parametrize("hop_length", [1, 16, 256])
@pytest.mark.parametrize("feature_size", [1, 2, 6])
def test_round_trip_of_a_mixed_batch(feature_size, hop_length):
    extractor = WallocAudioFeatureExtractor(feature_size=feature_size, hop_length=hop_length)
    levels = {1: 0.1, 255: 3, 256: 1e-4, 1001: 0.5}
    clips = [music(length, feature_size, seed=length, level=level) for length, level in levels.items()]
    inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    assert inputs["input_values"].shape == (4, feature_size, -(-1001 // hop_length) * hop_length)
    assert inputs["padding_mask"].sum(1).tolist() == [1, 255, 256, 1001]
    assert inputs["input_values"].abs().max() <= 0.5
    for clip, result in zip(clips, restored(extractor, inputs), strict=True):
        assert result.shape == clip.shape and result.dtype == np.float32
        np.testing.assert_allclose(result, clip, atol=2e-7 * max(1, np.abs(clip).max()))


def test_kinds_of_input_agree(extractor):
    clip = music(600)
    expected = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_values"]
    tensor = torch.from_numpy(clip)
    kinds = [clip.astype(np.float64), clip.astype(">f4"), tensor, tensor.double(), [clip], (tensor,), clip[None]]
    for audio in [*kinds, tensor[None], [clip.tolist()], clip[:, ::-1][:, ::-1], tensor.clone().requires_grad_()]:
        values = extractor(audio, sampling_rate=RATE, return_tensors="pt")["input_values"]
        torch.testing.assert_close(values, expected)
    mono = clip[0]
    expected = extractor(mono, sampling_rate=RATE, return_tensors="pt")["input_values"]
    for audio in (mono[None], mono.tolist(), tuple(mono.tolist()), [mono], [mono.tolist()], tensor[0]):
        torch.testing.assert_close(extractor(audio, sampling_rate=RATE, return_tensors="pt")["input_values"], expected)


@pytest.mark.parametrize(
    ("dtype", "zero", "full_scale"), [("int16", 0, 32768), ("int32", 0, 2**31), ("int8", 0, 128), ("uint8", 128, 128)]
)
def test_integer_pcm(extractor, dtype, zero, full_scale):
    limits = np.iinfo(dtype)
    clip = np.random.default_rng(0).integers(limits.min, limits.max, (2, 300), dtype=dtype, endpoint=True)
    floats = (clip.astype(np.float64) - zero) / full_scale
    for audio in (clip, torch.from_numpy(clip)):
        (result,) = restored(extractor, extractor(audio, sampling_rate=RATE, return_tensors="pt"))
        np.testing.assert_allclose(result, floats, atol=3e-7)


def test_mono_and_stereo(extractor):
    stereo = music(300)
    values = extractor(stereo[0], sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert torch.equal(values[:, 0], values[:, 1])
    mono = WallocAudioFeatureExtractor(feature_size=1)
    inputs = mono(stereo, sampling_rate=RATE, return_tensors="pt")
    np.testing.assert_allclose(restored(mono, inputs)[0][0], stereo.mean(0), atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.7e-3, 1e-30])
def test_silence_is_not_amplified(extractor, level):
    inputs = extractor(np.full((2, 999), level, np.float32), sampling_rate=RATE, return_tensors="pt")
    assert inputs["gain"].item() == 0 and inputs["offset"].item() == pytest.approx(level, rel=1e-6)
    assert inputs["input_values"].abs().max() < 1e-6
    np.testing.assert_allclose(restored(extractor, inputs)[0], level, atol=1e-7)


def test_without_normalisation():
    extractor = WallocAudioFeatureExtractor(do_normalize=False)
    clip = np.clip(music(300), -0.5, 0.5)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    assert inputs["gain"].tolist() == [1] and inputs["offset"].tolist() == [0]
    np.testing.assert_array_equal(inputs["input_values"][0, :, :300].numpy(), clip)
    with pytest.raises(ValueError, match=r"peak of 0\.75"):
        extractor(np.full(300, 0.75), sampling_rate=RATE)
    assert extractor(np.full(300, 0.75), sampling_rate=RATE, do_normalize=True)["offset"] == [0.75]


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 96000])
def test_resampling_keeps_a_tone(extractor, rate):
    tone = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    (result,) = restored(extractor, extractor(tone, sampling_rate=rate, return_tensors="pt"))
    assert result.shape == (2, RATE)
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    middle = slice(2000, -2000)  # away from the ends of the resampling filter
    np.testing.assert_allclose(result[0, middle], expected[middle], atol=2e-3)


def test_resampling_prefers_torchaudio(extractor, monkeypatch):
    calls = []

    def fake(samples, from_rate, to_rate):
        calls.append((tuple(samples.shape), from_rate, to_rate))
        return samples[:, ::2]

    functional = types.ModuleType("torchaudio.functional")
    functional.resample = fake
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    monkeypatch.setitem(sys.modules, "torchaudio.functional", functional)
    inputs = extractor(music(600), sampling_rate=88200, return_tensors="pt")
    assert calls == [((2, 600), 88200, 44100)] and inputs["padding_mask"].sum() == 300


def test_resampling_without_a_library(extractor, monkeypatch):
    for name in ("torchaudio", "torchaudio.functional", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="needs soxr"):
        extractor(music(600), sampling_rate=48000)
    extractor(music(600), sampling_rate=RATE)


def test_resampling_to_nothing():
    with pytest.raises(ValueError, match="empty at 8000 Hz"):
        resample(torch.zeros(2, 1), 96000, 8000)


def test_missing_sampling_rate_warns(extractor, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        extractor(music(300))
    assert "sampling_rate was not given" in caplog.text
    caplog.clear()
    extractor(music(300), sampling_rate=RATE)
    assert not caplog.records


def test_padding_strategies(extractor):
    clips = [music(100), music(600)]
    options = {"sampling_rate": RATE, "return_tensors": "pt"}
    for padding in (True, None, "longest"):
        assert extractor(clips, padding=padding, **options)["input_values"].shape == (2, 2, 768)
    inputs = extractor(clips, padding="max_length", max_length=1000, **options)
    assert inputs["input_values"].shape == (2, 2, 1024)
    inputs = extractor(clips, padding=False, sampling_rate=RATE)
    assert [value.shape for value in inputs["input_values"]] == [(2, 256), (2, 768)]
    with pytest.raises(ValueError, match=r"lengths \[256, 768\] do not stack"):
        extractor(clips, padding=False, **options)
    inputs = extractor(clips, truncation=True, max_length=500, **options)
    assert inputs["padding_mask"].sum(1).tolist() == [100, 500] and inputs["input_values"].shape[2] == 512
    (_, cut) = restored(extractor, inputs)
    np.testing.assert_allclose(cut, clips[1][:, :500], atol=1e-6)


def test_return_types(extractor):
    clips = [music(100), music(600)]
    as_torch = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    as_numpy = extractor(clips, sampling_rate=RATE, return_tensors="np")
    as_list = extractor(clips, sampling_rate=RATE)
    for name in extractor.model_input_names:
        assert isinstance(as_numpy[name], np.ndarray) and isinstance(as_list[name], list)
        np.testing.assert_array_equal(as_numpy[name], as_torch[name].numpy())
        np.testing.assert_array_equal(np.asarray(as_list[name], as_numpy[name].dtype), as_numpy[name])
    for inputs in (as_numpy, as_list):
        for clip, result in zip(clips, restored(extractor, inputs), strict=True):
            np.testing.assert_allclose(result, clip, atol=1e-6)


def test_post_process_takes_what_the_model_gives(extractor):
    (result,) = extractor.post_process(torch.full((2, 8), 0.25), gain=2.0, offset=1.0)
    assert result.shape == (2, 8) and (result == 1.5).all()
    results = extractor.post_process([torch.zeros(2, 5), torch.zeros(2, 7, requires_grad=True)])
    assert [result.shape for result in results] == [(2, 5), (2, 7)]
    (result,) = extractor.post_process(torch.zeros(1, 2, 8, dtype=torch.bfloat16), padding_mask=torch.tensor([[1, 0]]))
    assert result.shape == (2, 1) and result.dtype == np.float32


def test_devices(extractor):
    clip = torch.zeros(2, 10)
    inputs = extractor(clip, sampling_rate=RATE, device="cpu", return_tensors="pt")
    assert inputs["input_values"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu(extractor):
    clips = [music(1000), music(300)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    on_gpu = [torch.from_numpy(clip).cuda() for clip in clips]
    for inputs in (
        extractor(clips, sampling_rate=RATE, device="cuda", return_tensors="pt"),
        extractor(on_gpu, sampling_rate=RATE, return_tensors="pt"),
    ):
        for name, tensor in inputs.items():
            assert tensor.is_cuda
            torch.testing.assert_close(tensor.cpu(), expected[name], atol=1e-6, rtol=1e-5)
        for clip, result in zip(clips, restored(extractor, inputs), strict=True):
            np.testing.assert_allclose(result, clip, atol=1e-6)
    with pytest.raises(ValueError, match="several devices"):
        extractor([on_gpu[0], clips[0]], sampling_rate=RATE)


def test_save_and_load(tmp_path):
    extractor = WallocAudioFeatureExtractor(feature_size=1, sampling_rate=16000, hop_length=64, do_normalize=False)
    extractor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["feature_extractor_type"] == "WallocAudioFeatureExtractor" and stored["hop_length"] == 64
    loaded = WallocAudioFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict() == stored
    assert WallocAudioFeatureExtractor.from_pretrained(tmp_path, hop_length=8).hop_length == 8
    assert WallocAudioFeatureExtractor.from_dict(json.loads(extractor.to_json_string())).to_dict() == stored


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        ([], ValueError, "empty batch"),
        (np.zeros((0, 2, 8)), ValueError, "empty batch"),
        (np.zeros(0), ValueError, r"shape \(0,\) is empty"),
        ([np.zeros((2, 0))], ValueError, r"shape \(2, 0\) is empty"),
        (np.array([0.0, np.nan]), ValueError, "NaN or infinite"),
        (torch.tensor([0.0, torch.inf]), ValueError, "NaN or infinite"),
        (np.zeros((100, 2)), ValueError, r"has 100 channels; valid: 2; this looks like \(T, C\)"),
        (np.zeros((3, 100)), ValueError, "has 3 channels; valid: 2; downmix=True mixes them"),
        (np.zeros((1, 1, 2, 100)), ValueError, r"shape \(1, 1, 2, 100\); valid: \(T,\) and \(C, T\)"),
        (np.float32(1.0), TypeError, "type float32"),
        ("song.flac", ValueError, "no file 'song.flac'"),
        (np.zeros(10, np.int64), TypeError, "int64 has no known full scale; convert it to one of uint8, int8, int16"),
        (np.zeros(10, bool), TypeError, "dtype bool is no audio"),
        (np.zeros(10, complex), TypeError, "complex128"),
        ([["a", "b"]], TypeError, "dtype <U1"),
        ([[[0.0, 1.0], [0.0]]], ValueError, "channels of different lengths"),
    ],
)
def test_bad_audio(extractor, audio, error, message):
    with pytest.raises(error, match=message):
        extractor(audio, sampling_rate=RATE, return_tensors="pt")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sampling_rate": 0}, ValueError, "sampling_rate is 0"),
        ({"sampling_rate": 10**9}, ValueError, "sampling_rate is 1000000000; valid: whole numbers from 1 to 1000000"),
        ({"sampling_rate": 1}, ValueError, r"sampling_rate is 1; for 44100 Hz valid: at least 689\.062"),
        ({"max_samples": 99}, ValueError, "100 samples at 44100 Hz, more than max_samples=99"),
        ({"sampling_rate": 44100.5}, ValueError, "sampling_rate is 44100.5"),
        ({"sampling_rate": float("nan")}, ValueError, "sampling_rate is nan"),
        ({"max_length": 0}, ValueError, "max_length is 0"),
        ({"max_length": 5}, ValueError, "100 samples, more than max_length=5"),
        ({"truncation": True}, ValueError, "needs max_length"),
        ({"padding": "max_length"}, ValueError, "max_length is defined"),
        ({"padding": "left"}, ValueError, "left"),
        ({"return_tensors": "tf"}, ValueError, "'tf'"),
        ({"hop_lenght": 8}, TypeError, "hop_lenght"),
    ],
)
def test_bad_call(extractor, options, error, message):
    with pytest.raises(error, match=message):
        extractor(music(100), **{"sampling_rate": RATE, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hop_lenght": 8}, TypeError, "unknown option 'hop_lenght'.*valid: feature_size, sampling_rate"),
        ({"hop_length": 0}, ValueError, "hop_length is 0"),
        ({"feature_size": 2.0}, ValueError, r"feature_size is 2\.0; valid: whole numbers"),
        ({"padding_value": 3}, ValueError, "padding_value is 3"),
        ({"padding_value": "0"}, ValueError, "padding_value is '0'"),
        ({"padding_side": "left"}, ValueError, "padding_side is 'left'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        WallocAudioFeatureExtractor(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([torch.zeros(1, 3, 8)], ValueError, r"shape \(3, 8\); valid: \(B, 2, L\)"),
        ([torch.zeros(1, 2, 8, dtype=torch.int8)], TypeError, "decode codes first"),
        ([[]], ValueError, "empty batch"),
        ([torch.zeros(2, 2, 8), torch.ones(1, 8)], ValueError, "for 1 clips; there are 2"),
        ([torch.zeros(1, 2, 8), torch.tensor([[0, 1]])], ValueError, "true for the first samples"),
        ([torch.zeros(1, 2, 8), torch.ones(1, 9)], ValueError, "keeps 9 samples of a clip of 8"),
        ([torch.zeros(1, 2, 8), None, [1.0, 2.0]], ValueError, "gain has 2 values for 1 clips"),
        ([torch.zeros(1, 2, 8), None, None, []], ValueError, "offset has 0 values for 1 clips"),
    ],
)
def test_bad_output(extractor, arguments, error, message):
    with pytest.raises(error, match=message):
        extractor.post_process(*arguments)


class Decoder:
    """As torchcodec's, which `datasets` gives for a column of audio."""

    def get_all_samples(self):
        return types.SimpleNamespace(data=torch.from_numpy(music(300)), sample_rate=RATE)


def test_what_datasets_gives_and_files(extractor, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    clip = music(300)
    expected = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip.T, RATE, subtype="FLOAT")
    kinds = [
        {"array": clip, "sampling_rate": RATE, "path": None},
        {"bytes": path.read_bytes(), "path": "clip.wav"},
        {"bytes": None, "path": str(path)},
        path.read_bytes(),
        path,
        str(path),
        Decoder(),
    ]
    for kind in kinds:
        for name, value in extractor(kind, return_tensors="pt").items():
            assert torch.equal(value, expected[name]), kind
    together = extractor(kinds, return_tensors="pt")["input_values"]
    assert all(torch.equal(one, expected["input_values"][0]) for one in together)
    with pytest.raises(ValueError, match=r"states a sampling rate of 44100 Hz and sampling_rate is 8000"):
        extractor(kinds[0], sampling_rate=8000)
    path.write_bytes(b"RIFF....")
    with pytest.raises(ValueError, match=r"cannot read .*clip\.wav"):
        extractor(path)


def test_datasets_column(extractor):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"audio": [{"array": music(300)[0].tolist(), "sampling_rate": RATE}]})
    expected = extractor(music(300)[0], sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert torch.equal(extractor(rows["audio"][0], return_tensors="pt")["input_values"], expected)


def test_downmix(extractor):
    surround = np.stack([music(300)[0] * level for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
    mixed = extractor(surround, sampling_rate=RATE, downmix=True, return_tensors="pt")
    left, right = restored(extractor, mixed)[0]
    front, side = music(300)[0], math.sqrt(0.5)
    np.testing.assert_allclose(left, front * (0.1 + side * (0.3 + 0.5)) / (1 + 2 * side), atol=1e-5)
    np.testing.assert_allclose(right, front * (0.2 + side * (0.3 + 0.6)) / (1 + 2 * side), atol=1e-5)
    mono = WallocAudioFeatureExtractor(feature_size=1, downmix=True)
    np.testing.assert_allclose(
        restored(mono, mono(surround, sampling_rate=RATE, return_tensors="pt"))[0], surround.mean(0)[None], atol=1e-5
    )
