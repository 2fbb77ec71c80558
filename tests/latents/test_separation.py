"""The separator: sums, scales, chunks, saving and training, against what linear algebra says."""

import pytest
import torch
from codec_fixtures import audio_inputs, audio_model, sound
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, Trainer, TrainingArguments

from transformers_walloc import WallocAudioFeatureExtractor, WallocForAudioSourceSeparation, WallocSeparationConfig
from transformers_walloc.latents.separation import LatentSeparator, separation_loss

SIZES = {"hidden_size": 8, "num_layers": 3, "dilation_cycle": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return _randomised(WallocForAudioSourceSeparation.from_codec(audio_model(), ["bells", "rest"], **SIZES))


def _randomised(model):
    with torch.no_grad():  # a fresh network leaves every source an equal share
        model.separator.head.weight.normal_(0, 0.1)
    return model


def _mix(length: int) -> torch.Tensor:
    return torch.from_numpy(sound(1.0))[:, 5000 : 5000 + length]


def test_fresh_network_gives_equal_shares():
    separator = LatentSeparator(5, 4, **SIZES)
    values = torch.randn(2, 5, 9)
    torch.testing.assert_close(separator(values), (values / 4)[:, None].expand(2, 4, 5, 9))


def test_sources_add_up(model):
    """To what the codec makes of the mix, in any level and with any offset."""
    x = _mix(1000)
    for level, offset in ((1.0, 0.0), (0.01, 0.0), (20.0, 3.0)):
        sources = model.separate(level * x + offset)
        assert sources.shape == (2, 2, 1000)
        centred = level * x + offset - (level * x + offset).mean()
        gain = 2 * centred.abs().max()
        padded = torch.nn.functional.pad(centred / gain, (0, -1000 % 32))[None]
        subbands = model.codec.decode_subbands(model.codec.encode(padded).latents)
        decoded = model.codec._synthesise(subbands)[0, :, :1000] * gain
        assert not torch.allclose(sources[0], sources[1], atol=1e-3 * level)
        torch.testing.assert_close(sources.sum(0), decoded, atol=2e-4 * level, rtol=0)


def test_values_are_linear(model):
    x = 0.4 * _mix(640)
    values = model.encode(x)
    assert model.encode(torch.zeros(2, 640)).abs().max() < 1e-6
    torch.testing.assert_close(model.encode(0.25 * x), 0.25 * values, atol=1e-5, rtol=0)
    reconstruction = model.codec.decode(model.codec.encode(x[None]).latents).audio_values[0]
    torch.testing.assert_close(model.decode(values), reconstruction, atol=1e-5, rtol=0)


def test_chunks_and_batches_change_nothing(model):
    x = torch.stack([_mix(2000), _mix(2000).flip(1)])
    whole = model.separate(x)
    torch.testing.assert_close(model.separate(x, chunk_size=7), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.separate(x[1]), whole[1], atol=1e-5, rtol=0)


def test_silence(model):
    assert model.separate(torch.zeros(2, 100)).abs().max() < 1e-3


def test_loss(model):
    stems = torch.stack([_mix(640), _mix(640).flip(1)])[None] * 0.3
    output = model(stems.sum(1), labels=stems, return_waveforms=True)
    values, labels = model.encode(stems.sum(1)), model.encode(stems)
    error = ((output.source_values - labels) ** 2).sum()
    torch.testing.assert_close(output.loss, error / (values**2).sum(), rtol=1e-4, atol=0)
    assert output.audio_values.shape == stems.shape
    again = model(values=values, source_values=labels)
    torch.testing.assert_close(again.loss, output.loss)
    assert again.audio_values is None


def test_saved_and_loaded(model, tmp_path):
    model.set_scale(torch.randn(2, 8, 50) * torch.arange(1, 9)[:, None])
    x = _mix(700)
    expected = model.separate(x)
    model.save_pretrained(tmp_path)
    WallocAudioFeatureExtractor(hop_length=32).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is WallocForAudioSourceSeparation
    assert isinstance(AutoConfig.from_pretrained(tmp_path), WallocSeparationConfig)
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), WallocAudioFeatureExtractor)
    assert again.separate(x).equal(expected)
    assert again.config.source_names == ["bells", "rest"] and again.config.sampling_rate == 44100
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (half.codec.dtype, half.separator.head.weight.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(half.separate(x), expected, atol=0.05, rtol=0)


def test_trainer(model, tmp_path):
    """Outputs of the feature extractor go in as they are; the codec stays as it is; the loss falls."""
    inputs = audio_inputs([sound(0.5, seed=i) for i in range(4)])
    rows = [{"input_values": x, "labels": torch.stack([0.9 * x, 0.1 * x])} for x in inputs["input_values"]]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.set_scale(model.encode(inputs["input_values"]))
    start = model(**inputs, labels=torch.stack([r["labels"] for r in rows])).loss.item()
    args = TrainingArguments(
        str(tmp_path), max_steps=30, per_device_train_batch_size=4, use_cpu=True, report_to=[], learning_rate=1e-2,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * start
    trainer.save_model(str(tmp_path / "final"))
    saved = dict(WallocForAudioSourceSeparation.from_pretrained(tmp_path / "final").named_parameters())
    for name, weight in saved.items():
        assert weight.equal(before[name]) == name.startswith("codec."), name
        assert weight.requires_grad != name.startswith("codec.")


@pytest.mark.parametrize(
    "options",
    [{"source_names": ["one"]}, {"source_names": ["a", "a"]}, {"kernel_size": 4}, {"hidden_size": 0}],
)
def test_bad_configurations(options):
    with pytest.raises(Exception, match=next(iter(options))):
        WallocSeparationConfig(**options)


def test_bad_inputs(model):
    with pytest.raises(ValueError, match="either input_values or values"):
        model()
    with pytest.raises(ValueError, match="length"):
        model.separate(torch.zeros(3, 100))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        model.separate(torch.zeros(2, 100), chunk_size=0)
    with pytest.raises(ValueError, match="labels must be"):
        separation_loss(torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3, 4), torch.zeros(1, 3, 4))
