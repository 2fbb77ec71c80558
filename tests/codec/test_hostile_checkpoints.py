"""Checkpoints that are wrong, damaged or hostile end in a ValueError that names the value and what is valid."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioEncoder,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageEncoder,
    WallocImageModel,
    WallocImageProcessor,
)
from transformers_walloc.codec.entropy_tables import EntropyTables


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)
    model = WallocImageModel(WallocImageConfig(decoder_hidden_size=8, decoder_num_layers=1))
    model.set_entropy_tables(EntropyTables.default(12))
    model.save_pretrained(folder)
    WallocImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """Copies the checkpoint with other fields in its configuration, or other tensors."""

    def copy(fields: dict | None = None, tensors: dict | None = None, name: str = "config.json"):
        for path in checkpoint.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        content = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**content, **(fields or {})}))
        weights = {**load_file(checkpoint / "model.safetensors"), **(tensors or {})}
        weights = {key: value for key, value in weights.items() if value is not None}
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_levels": "3"}, "num_levels is '3'; valid: whole numbers from 1 to 12"),
        ({"num_levels": 3.0}, r"num_levels is 3\.0"),
        ({"num_levels": None}, "num_levels is None"),
        ({"latent_channels": True}, "latent_channels is True"),
        ({"latent_channels": [12]}, r"latent_channels is \[12\]"),
        ({"decoder_num_layers": 1_000_000}, "decoder_num_layers is 1000000; valid: whole numbers from 0 to 256"),
        ({"decoder_hidden_size": 10**9}, "decoder_hidden_size is 1000000000"),
        ({"decoder_hidden_size": 8192, "decoder_kernel_size": 31}, "weights; valid: up to"),
        ({"decoder_kernel_size": 10**9 + 1}, "decoder_kernel_size is 1000000001"),
        ({"num_channels": 65536, "num_levels": 12}, "weights; valid: up to"),
        ({"entropy_tables_size": 10**15}, "entropy_tables_size is 1000000000000000"),
        ({"decoder_type": ["linear"]}, "unknown decoder_type"),
        ({"wavelet": 3}, "wavelet is 3"),
        ({"wavelet": "../evil"}, "unknown wavelet '../evil'; valid: "),
        ({"boundary": {}}, "boundary is {}"),
        ({"dtype": "evil"}, "dtype is 'evil'; valid: float32"),
        ({"dtype": 5}, "dtype is 5"),
        ({"torch_dtype": "system"}, "dtype is 'system'"),
        ({"latent_fingerprint": "../../x"}, "latent_fingerprint is '../../x'; valid: 16 hexadecimal digits"),
        ({"latents_mean": "evil", "latents_std": [1.0] * 12}, "latents_mean is 'evil'; valid: a list of numbers"),
        ({"id2label": "x"}, "the configuration cannot be read"),
    ],
)
def test_configurations(damaged, fields, message):
    folder = damaged(fields)
    for load in (AutoConfig, AutoModel):
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(folder)


def test_fields_that_are_assigned_later():
    config = WallocImageConfig()
    config.num_levels = "3"
    with pytest.raises(ValueError, match="num_levels is '3'"):
        WallocImageModel(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder.head.weight", math.nan, "NaN or infinite"),
        ("decoder.subband_scale", math.inf, "NaN or infinite"),
        ("encoder.projection.bias", -math.inf, "NaN or infinite"),
        ("decoder.latent_std", 0.0, r"holds 0; valid: above 1e-06"),
        ("decoder.latent_std", -1.0, r"holds -1; valid: above"),
    ],
)
def test_weights_that_give_no_finite_values(damaged, checkpoint, name, value, message):
    tensor = load_file(checkpoint / "model.safetensors")[name]
    tensor.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{name} .*{message}|{name} {message}"):
        AutoModel.from_pretrained(damaged(tensors={name: tensor}))


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({"latent_channels": 13}, {}, r"mismatched weights: .* is \("),
        ({"entropy_tables_size": 7}, {}, "mismatched weights: entropy_tables is"),
        ({"entropy_tables_size": 0}, {}, "entropy_tables are not expected in"),
        ({}, {"entropy_tables": None}, "entropy_tables are missing from"),
    ],
)
def test_weights_and_tables_of_another_configuration(damaged, fields, tensors, message):
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(damaged(fields, tensors))


def test_tables_of_a_type_that_numpy_does_not_have():
    header = b'{"header":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(6)
    model = WallocImageModel(WallocImageConfig(decoder_type="linear", entropy_tables_size=len(data)))
    model.entropy_tables.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    with pytest.raises(ValueError, match="entropy tables of the checkpoint are damaged"):
        model.get_entropy_tables()


@pytest.mark.parametrize("model_class", [WallocAudioModel, WallocAudioEncoder, WallocAudioConfig])
def test_a_class_for_another_kind_of_checkpoint(checkpoint, model_class):
    with pytest.raises(ValueError, match=r"'walloc_image', which WallocAudioConfig .* load it with WallocImageModel"):
        model_class.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 1_000_000}, "patch_size is 1000000; valid: whole numbers from 1 to 4096"),
        ({"patch_size": []}, r"patch_size is \[\]"),
        ({"num_channels": "3"}, "num_channels is '3'"),
        ({"num_channels": 10**9}, "num_channels is 1000000000"),
    ],
)
def test_processors(damaged, fields, message):
    with pytest.raises(ValueError, match=message):
        AutoImageProcessor.from_pretrained(damaged(fields, name="preprocessor_config.json"))


@pytest.mark.parametrize("model_class", [WallocImageModel, WallocImageEncoder])
def test_weights_on_the_meta_device(checkpoint, model_class):
    model = model_class.from_pretrained(checkpoint).to("meta")
    with pytest.raises(ValueError, match="the weights are on the device 'meta', which holds no values"):
        model.encode(torch.zeros(1, 3, 16, 16))
    if model_class is WallocImageModel:
        with pytest.raises(ValueError, match="on the device 'meta'"):
            model.decode(torch.zeros(1, 12, 2, 2))
