"""Outputs as transformers, Trainer, pipelines and accelerate take them apart."""

import pickle

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageModel,
    WallocVolumeConfig,
    WallocVolumeModel,
)

SMALL = {"decoder_type": "linear"}
MODELS = {
    "image": lambda: WallocImageModel(WallocImageConfig(num_levels=1, latent_channels=4, **SMALL)),
    "audio": lambda: WallocAudioModel(WallocAudioConfig(num_levels=2, latent_channels=3, **SMALL)),
    "volume": lambda: WallocVolumeModel(WallocVolumeConfig(num_levels=1, **SMALL)),
}
SHAPES = {"image": (2, 3, 16, 16), "audio": (2, 2, 64), "volume": (2, 1, 8, 8, 8)}


@pytest.fixture(params=MODELS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def make_input(kind, batch=2):
    x = torch.rand(batch, *SHAPES[kind][1:], generator=torch.Generator().manual_seed(1)) - 0.5
    return {"input_values" if kind == "audio" else "pixel_values": x}


@torch.no_grad()
def test_the_loss_is_first_and_values_have_one_name_in_and_out(kind):
    model, inputs = MODELS[kind]().eval(), make_input(kind)
    output = model(**inputs)
    values = output.audio_values if kind == "audio" else output.pixel_values
    assert values is output.reconstruction and values.shape == SHAPES[kind]
    assert output[0] is output.loss and output.loss.ndim == 0
    assert output[1] is output.latents and output[2] is values
    assert output["loss"] is output.loss
    as_tuple = model(**inputs, return_dict=False)
    for found, expected in zip(as_tuple, (output.loss, output.latents, values), strict=True):
        assert torch.equal(found, expected)
    without = model(**inputs, return_loss=False)
    assert without.loss is None and torch.equal(without[0], output.latents)
    decoded = model.decode(model.quantize(output.latents))
    assert list(decoded.keys()) == ["audio_values" if kind == "audio" else "pixel_values"]
    again = pickle.loads(pickle.dumps(output))
    assert type(again) is type(output) and torch.equal(again[0], output[0])
    assert torch.equal(type(output)(**dict(output))[0], output.loss)


def test_rows_can_be_taken_apart_and_gradients_kept():
    model, inputs = MODELS["image"](), make_input("image")
    with torch.no_grad():
        rows = dict(model.eval()(**inputs).items())
    assert next(iter(rows)) == "latents" and {len(value) for value in rows.values()} == {2}
    output = model.train()(**inputs)
    assert dict(output.items())["loss"] is output.loss
    output.loss.backward()
    assert model.encoder.projection.weight.grad.any()


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_trains_and_evaluates(kind, return_dict, bf16, tmp_path):
    model = MODELS[kind]()
    model.config.return_dict = return_dict
    name = model.main_input_name
    rows = [{name: row} for row in make_input(kind, 4)[name]]
    options = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=bf16, report_to=[],
        prediction_loss_only=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    with torch.no_grad():
        expected = model.eval()(**{name: torch.stack([row[name] for row in rows])}, return_dict=True).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-2 if bf16 else 1e-5)


def test_audio_models_are_audio_tokenizers_of_transformers():
    assert isinstance(MODELS["audio"](), PreTrainedAudioTokenizerBase)
