"""Adapters of models on latents: what is saved names a base that it goes with."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from transformers_walloc import WallocImageConfig, WallocImageModel, load_on_latents

peft = pytest.importorskip("peft")


def test_the_base_of_an_adapter_is_the_folded_model(tmp_path):
    torch.manual_seed(0)
    codec = WallocImageModel(WallocImageConfig(decoder_type="linear")).eval()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **shape)).save_pretrained(tmp_path / "pixels")
    numbers = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    folded = load_on_latents(str(tmp_path / "pixels"), codec, AutoModelForImageClassification, **numbers)

    options = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "query", "value"], init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(folded), copy.deepcopy(options)).save_pretrained(tmp_path / "unnamed")
    assert not json.loads((tmp_path / "unnamed" / "adapter_config.json").read_text())["base_model_name_or_path"]

    folded.save_pretrained(tmp_path / "folded")
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "folded")
    tuned = peft.get_peft_model(base, options).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    name = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == str(tmp_path / "folded")
    again = peft.PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(name), tmp_path / "adapter")
    config, side = folded.config, folded.config.image_size
    x = torch.randn(1, config.num_channels, side, side)
    with torch.no_grad():
        expected = tuned(x).logits
        torch.testing.assert_close(again.eval()(x).logits, expected)
        with tuned.disable_adapter():
            assert not torch.allclose(tuned(x).logits, expected)
