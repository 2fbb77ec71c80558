"""The composite of a codec's encoder and a model: the same as latents computed outside, saved, trained, generating."""

import numpy as np
import pytest
import torch
from pixel_models import (
    AUTO_CLASSES,
    FAMILIES,
    IMAGE_TOKEN,
    LANGUAGE,
    MEAN,
    STD,
    inputs_of,
    latents_with_halo,
    photograph,
)
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from transformers_walloc import WallocLatentConfig, WallocLatentModel
from transformers_walloc.latents.pretrained import load_on_latents
from transformers_walloc.latents.values import latent_values, latent_windows


def _composite(family, codec, folders, **options):
    options = {"image_mean": MEAN, "image_std": STD, "halo": 1, **options}
    return WallocLatentModel.from_pixel_model(folders(family), codec, AUTO_CLASSES[family], **options)


def _kwargs(family: str, width: int) -> dict:
    """What goes with an image of 64 x width pixels, patches of 16."""
    inputs = inputs_of(family, torch.zeros(1, 13, 16, width // 4), 4)
    texts = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: value for name, value in inputs.items() if name in texts}


def _output(output) -> torch.Tensor:
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize(
    "family", ["vit", "clip", "paligemma", "idefics3", "granite_docling", "qwen2_5_vl", "paddleocr_vl", "gemma4"]
)
def test_same_as_latents_from_outside(family, codec, folders, tmp_path):
    x = photograph(64, 96 if FAMILIES[family].any_size else 64)
    composite = _composite(family, codec, folders)
    model = load_on_latents(folders(family), codec, AUTO_CLASSES[family], halo=1, image_mean=MEAN, image_std=STD)
    windows = latent_windows(latent_values(latents_with_halo(codec, x, 1), codec.config), **model.config.walloc_latents)
    pixels = x[:, None] if family in ("idefics3", "granite_docling") else x
    kwargs = _kwargs(family, x.shape[3])
    with torch.no_grad():
        expected = _output(model.eval()(**inputs_of(family, windows, 4)))
        output = _output(composite(pixels, **kwargs))
        torch.testing.assert_close(output, expected)
        if family in LANGUAGE:
            composite.model.generation_config.max_new_tokens = 2
        composite.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path)
        assert type(again) is WallocLatentModel and type(again.model) is type(model)
        assert _output(again(pixels, **kwargs)).equal(output)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), WallocLatentConfig)
    assert again.image_size == (None if FAMILIES[family].any_size else 64)
    if family in LANGUAGE:
        kwargs["min_new_tokens"] = 2
        generated = again.generate(pixels, do_sample=False, **kwargs)
        inputs = {**inputs_of(family, windows, 4), "max_new_tokens": 2, "min_new_tokens": 2}
        assert generated.equal(model.generate(**inputs, do_sample=False))


@pytest.mark.parametrize("freeze", [True, False])
def test_trainer(freeze, codec, folders, tmp_path):
    """Labels reach the model without `remove_unused_columns`, and the encoder learns only if it is meant to."""
    model = _composite("vit", codec, folders, freeze_codec=freeze)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [{"pixel_values": photograph(64, 64)[0] * (1 - 2 * (i % 2)), "labels": i % 2} for i in range(4)]
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=2, use_cpu=True,
        report_to=[], logging_steps=1, learning_rate=1e-3,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    trainer.save_model(str(tmp_path / "final"))
    saved = dict(WallocLatentModel.from_pretrained(tmp_path / "final").named_parameters())
    changed = {name for name, p in saved.items() if not p.equal(before[name])}
    assert any(name.startswith("model.") for name in changed)
    assert ("codec.encoder.projection.weight" in changed) != freeze
    assert saved["codec.encoder.projection.weight"].requires_grad != freeze


def test_half_precision_keeps_the_codec(codec, folders, tmp_path):
    _composite("vit", codec, folders).save_pretrained(tmp_path)
    model = WallocLatentModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (model.codec.dtype, model.model.dtype) == (torch.float32, torch.bfloat16)
    assert model.codec.encoder.projection.weight.equal(codec.encoder.projection.weight)
    assert model(photograph(64, 64)).logits.isfinite().all()


def test_filling_images_and_masks(codec, folders):
    """Idefics3 leaves out images that are zero throughout and attends by patches, here as with pixels."""
    model = _composite("idefics3", codec, folders)
    x = photograph(64, 64)
    batch = torch.stack([torch.cat([x, x.flip(3)]), torch.cat([x, torch.zeros_like(x)])])  # (2, 2, 3, 64, 64)
    ids = torch.tensor([[IMAGE_TOKEN] * 8 + [5], [IMAGE_TOKEN] * 4 + [5] * 5])
    mask = torch.ones(2, 2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        whole = model(batch, input_ids=ids).logits
        assert model(batch, input_ids=ids, pixel_attention_mask=mask).logits.equal(whole)
        mask[0, 0, 32:] = False
        assert not model(batch, input_ids=ids, pixel_attention_mask=mask).logits[0].equal(whole[0])
        alone = model(batch[1:, :1], input_ids=ids[1:]).logits
    torch.testing.assert_close(alone[0], whole[1])


def test_errors(codec, folders):
    with pytest.raises(ValueError, match="model_class is 'AutoModel'; valid: the name of a model's class"):
        WallocLatentModel(WallocLatentConfig(model_class="AutoModel"))
    with pytest.raises(ValueError, match="model_config has no walloc_latents"):
        WallocLatentConfig(model_config={"model_type": "vit"})
    model = _composite("vit", codec, folders)
    with pytest.raises(ValueError, match=r"multiples of 16, got \(64, 72\)"):
        model(torch.zeros(1, 3, 64, 72))
