"""The fingerprint of a codec: one for all precisions that it is stored and loaded in, another one once it changed."""

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from transformers_walloc import (
    WallocAudioConfig,
    WallocAudioModel,
    WallocImageConfig,
    WallocImageEncoder,
    WallocImageModel,
    latent_transform,
)
from transformers_walloc.codec.bitstream import WallocCodecMismatchError
from transformers_walloc.codec.identity import latent_fingerprint
from transformers_walloc.latents.datasets import encode_rows

SMALL = {"decoder_hidden_size": 8, "decoder_num_layers": 1}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def codec():
    torch.manual_seed(0)
    model = WallocImageModel(WallocImageConfig(**SMALL)).eval()
    with torch.no_grad():
        model.encoder.projection.weight.mul_(40)
    return model


def make_pixels(channels=3):
    return torch.rand(1, channels, 16, 24, generator=torch.Generator().manual_seed(1)) - 0.5


def assert_reads(reader, blob):
    assert len(reader.decompress(blob)) == 1 and len(reader.decompress_codes(blob)) == 1


def as_saved_by_earlier_versions(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rounded_fingerprints"]
    path.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("stored", DTYPES)
def test_a_folder_reads_its_own_files_in_every_precision(codec, tmp_path, stored):
    codec.save_pretrained(tmp_path / "first")
    AutoModel.from_pretrained(tmp_path / "first", dtype=stored).save_pretrained(tmp_path / "again")
    loaded = [AutoModel.from_pretrained(tmp_path / "again", dtype=dtype) for dtype in DTYPES]
    loaded += [AutoModel.from_pretrained(tmp_path / "again").to(dtype) for dtype in DTYPES]
    assert {model.fingerprint() for model in (codec, *loaded)} == {codec.fingerprint()}
    for writer, reader in itertools.product(loaded[:4], (codec, *loaded[4:])):
        assert_reads(reader, writer.compress(make_pixels())[0])
    assert (
        WallocImageEncoder.from_pretrained(tmp_path / "again", dtype=torch.float16).fingerprint() == codec.fingerprint()
    )


def test_audio_and_rows_of_datasets(codec, tmp_path):
    audio = WallocAudioModel(WallocAudioConfig(num_levels=4, latent_channels=5, **SMALL)).eval()
    audio.save_pretrained(tmp_path / "audio")
    half = AutoModel.from_pretrained(tmp_path / "audio", dtype=torch.bfloat16)
    assert half.fingerprint() == audio.fingerprint()
    codec.save_pretrained(tmp_path / "image")
    half = AutoModel.from_pretrained(tmp_path / "image", dtype=torch.float16)
    rows = encode_rows([(255 * (make_pixels()[0] + 0.5)).byte()], half)
    for reader in (str(tmp_path / "image"), codec, half):
        assert latent_transform(reader)({"latents": rows})
    changed = copy.deepcopy(codec)
    with torch.no_grad():
        changed.encoder.projection.weight.mul_(1.5)
    with pytest.raises(ValueError, match="were written by codec"):
        latent_transform(changed)({"latents": rows})


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_changed_encoder_is_another_codec(codec, tmp_path, dtype):
    codec.save_pretrained(tmp_path / "first")
    changed = AutoModel.from_pretrained(tmp_path / "first", dtype=dtype)
    with torch.no_grad():
        weight = changed.encoder.projection.weight
        # The smallest change that the precision can show; fingerprints are of float32.
        narrow = weight[0, 0].to(torch.float32 if dtype == torch.float64 else dtype)
        weight[0, 0] = torch.nextafter(narrow, torch.full_like(narrow, 1e3))
    assert changed.fingerprint() != codec.fingerprint()
    changed.save_pretrained(tmp_path / "changed")
    for precision in DTYPES:
        loaded = AutoModel.from_pretrained(tmp_path / "changed", dtype=precision)
        assert loaded.fingerprint() == changed.fingerprint() != codec.fingerprint()
        with pytest.raises(WallocCodecMismatchError):
            codec.decompress(loaded.compress(make_pixels()))
    # Nor does the first one pass for it, in the folder of the other.
    assert AutoModel.from_pretrained(tmp_path / "first", dtype=dtype).fingerprint() == codec.fingerprint()


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_exchanged_in_a_folder_are_another_codec(codec, tmp_path, dtype):
    codec.to(dtype).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights["encoder.projection.weight"][0] *= 2
    save_file(weights, path, metadata={"format": "pt"})
    assert AutoModel.from_pretrained(tmp_path).fingerprint() != codec.fingerprint()


def test_layers_of_other_classes_are_another_codec(codec):
    class Negated(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return -self.layer(x)

    changed = copy.deepcopy(codec)
    changed.encoder.projection = Negated(changed.encoder.projection)
    assert changed.fingerprint() != codec.fingerprint()
    compiled = copy.deepcopy(codec)
    compiled.encoder = torch.compile(compiled.encoder)
    assert compiled.fingerprint() == codec.fingerprint()


@pytest.mark.parametrize("dtype", HALVES)
def test_checkpoints_of_earlier_versions_in_full_precision_keep_their_name(codec, tmp_path, dtype):
    codec.save_pretrained(tmp_path)
    as_saved_by_earlier_versions(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.fingerprint() == AutoModel.from_pretrained(tmp_path).to(dtype).fingerprint() == codec.fingerprint()
    with torch.no_grad():
        half.encoder.projection.weight.mul_(2)
    assert half.fingerprint() != codec.fingerprint()


@pytest.mark.parametrize("dtype", HALVES)
def test_checkpoints_of_earlier_versions_in_half_precision_read_what_they_wrote(codec, tmp_path, dtype):
    """They may have been trained since: they read files with either name and write none with a name not theirs."""
    published, own = copy.deepcopy(codec), copy.deepcopy(codec)
    with torch.no_grad():
        own.encoder.projection.weight.mul_(1.5)
    own.to(dtype).save_pretrained(tmp_path)
    as_saved_by_earlier_versions(tmp_path, latent_fingerprint=published.fingerprint())
    in_half, in_float = published.compress(make_pixels())[0], own.float().compress(make_pixels())[0]
    for precision in DTYPES[:3]:
        if precision in HALVES and precision != dtype:
            continue
        loaded = AutoModel.from_pretrained(tmp_path, dtype=precision)
        assert loaded.fingerprint() == own.fingerprint() != published.fingerprint()
        assert_reads(loaded, in_half)
        assert_reads(loaded, in_float)
        assert_reads(copy.deepcopy(loaded), in_half)
        with torch.no_grad():
            loaded.encoder.projection.weight.mul_(2)
        with pytest.raises(WallocCodecMismatchError):
            loaded.decompress(in_half)


def test_offloaded_weights_have_their_fingerprint(codec, tmp_path):
    pytest.importorskip("accelerate")
    codec.save_pretrained(tmp_path / "codec")
    options = {"device_map": {"encoder": "disk", "decoder": "cpu", "entropy_tables": "cpu"}}
    loaded = AutoModel.from_pretrained(tmp_path / "codec", offload_folder=tmp_path / "disk", **options)
    assert next(loaded.encoder.parameters()).is_meta
    assert loaded.fingerprint() == codec.fingerprint()
    assert_reads(codec, loaded.compress(make_pixels())[0])


def test_the_hash_is_as_documented():
    """docs/format.md: SHA-256 over the fields as JSON and the weights as little-endian float32."""
    import hashlib

    config = WallocImageConfig(num_channels=1, num_levels=1, latent_channels=2)
    weights = [torch.arange(8.0).reshape(2, 4, 1, 1), torch.tensor([0.5, -1.0])]
    fields = '[2, 1, 1, 2, 8, "bior4.4", "symmetric", 0]'
    data = fields.encode() + b"".join(w.numpy().astype("<f4").tobytes() for w in weights)
    assert latent_fingerprint(config, weights) == hashlib.sha256(data).hexdigest()[:16]
