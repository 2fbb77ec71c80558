"""`walloc fit --symmetric` and `walloc train --symmetric` on a few photographs."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from transformers_walloc import WallocImageModel, transform_latents
from transformers_walloc.cli.fit import main as fit_main
from transformers_walloc.cli.train import parse_recipe
from transformers_walloc.training.fit import fit_codec
from transformers_walloc.training.growing import transfer_network
from transformers_walloc.training.recipe import train_codec

BLOCKS = ["--wavelet", "haar", "--boundary", "periodization", "--num_levels", "3", "--symmetric"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for folder, names in {"train": ("astronaut", "coffee"), "held": ("chelsea",)}.items():
        (root / folder).mkdir()
        for name in names:
            Image.fromarray(getattr(skimage.data, name)()[:400, :512]).save(root / folder / f"{name}.png")
    return root


def assert_moves(model, channels: int = 3):
    pixels = torch.rand(1, channels, 64, 96, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        moved, latents = model.encode(pixels.flip(-1)).latents, model.encode(pixels).latents
        turned = model.encode(torch.rot90(pixels, dims=(-2, -1)).contiguous()).latents
    torch.testing.assert_close(transform_latents(latents, model.config, "hflip"), moved, atol=1e-3, rtol=0)
    torch.testing.assert_close(transform_latents(latents, model.config, "rot90"), turned, atol=1e-3, rtol=0)


def test_fit_makes_a_codec_that_can_be_moved(photos, tmp_path):
    options = ["--symmetric", "--latent-channels", "20", "--table-steps", "2", "--validation", str(photos / "held")]
    assert fit_main([str(photos / "train"), "--output", str(tmp_path / "mine"), *options]) == 0
    model = AutoModel.from_pretrained(tmp_path / "mine")
    assert (model.config.wavelet, model.config.num_levels, model.config.patch_size) == ("haar", 4, 16)
    assert_moves(model)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "mine")
    inputs = processor(skimage.data.chelsea(), return_tensors="pt")
    (restored,) = model.decompress(model.compress(**inputs))
    assert restored.shape == (3, 300, 451)
    # Odd channels have no mean in a world without sides, and both rows of a pair the same deviation.
    symmetry, std = model.config.latent_symmetry, np.array(model.config.latents_std)
    odd = np.array(symmetry["hflip"]) < 0
    assert np.abs(np.array(model.config.latents_mean))[odd].max() < 1e-4
    np.testing.assert_allclose(std, std[np.abs(symmetry["transpose"]) - 1])


def test_fit_of_any_bands_is_no_worse_for_the_symmetry():
    scenes = [np.dstack([image, image[::-1].mean(-1)]).astype(np.uint8) for image in (skimage.data.astronaut(),) * 2]
    options = {"latent_channels": 24, "table_steps": 0, "progress": False, "num_levels": 3, "step": 0.05}
    symmetric = fit_codec(scenes, symmetric=True, **options)
    free = fit_codec(scenes, wavelet="haar", **options)
    assert_moves(symmetric.model, 4)
    assert free.model.config.boundary == "periodization" and free.model.config.latent_symmetry is None
    assert symmetric.facts["psnr"] > free.facts["psnr"] - 0.5  # measured on what the free one was fitted to


def test_fit_refuses_other_signals_and_wavelets():
    with pytest.raises(ValueError, match="symmetric is for images; the first signal is audio"):
        fit_codec(
            [np.random.default_rng(0).normal(size=(2, 40000)) * 0.1], kind="audio", symmetric=True, progress=False
        )
    with pytest.raises(ValueError, match="symmetric needs wavelet 'haar'"):
        fit_codec([], symmetric=True, wavelet="bior4.4", progress=False)


def test_train_keeps_it_through_a_stop(photos, tmp_path):
    arguments = ["--kind", "image", "--train", str(photos / "train"), "--validation", str(photos / "held")]
    arguments += ["--output", str(tmp_path / "run"), "--latent_channels", "10", "--step", "0.1", *BLOCKS]
    arguments += ["--decoder_type", "restoration", "--decoder_hidden_size", "8", "--decoder_num_layers", "1"]
    arguments += ["--train_encoder", "--rate_weight", "0.01", "--log_floor", "7e-4", "--encoder_learning_rate", "0.03"]
    arguments += ["--piece_size", "32", "--batch_size", "2", "--klt_draws", "24", "--cpu", "--no_bf16"]
    arguments += ["--eval_steps", "100", "--workers", "0"]
    train_codec(parse_recipe([*arguments, "--max_steps", "3", "--save_steps", "3"]))
    first = WallocImageModel.from_pretrained(tmp_path / "run" / "model")
    train_codec(parse_recipe([*arguments, "--max_steps", "6", "--save_steps", "3"]))
    model = WallocImageModel.from_pretrained(tmp_path / "run" / "model")
    assert model.config.latent_symmetry == first.config.latent_symmetry is not None
    assert not torch.equal(model.encoder.projection.weight, first.encoder.projection.weight)
    assert_moves(model)


def test_a_network_is_taken_over_from_a_codec_of_another_grid():
    old, new = (
        WallocImageModel(model_config)
        for model_config in (
            _config(12, 3, "bior4.4", "symmetric"),
            _config(20, 4, "haar", "periodization"),
        )
    )
    torch.nn.init.normal_(old.decoder.network.head.weight, std=0.1)
    for latents in old.decoder.network.latent_stem.parameters():
        torch.nn.init.zeros_(latents)
    transfer_network(new.decoder, old.decoder)
    picture = torch.rand(1, 3, 32, 32) - 0.5
    expected = old.decoder.network(picture, torch.randn(1, 12, 4, 4))
    torch.testing.assert_close(new.decoder.network(picture, torch.randn(1, 20, 2, 2)), expected)
    assert (expected - picture).abs().max() > 1e-3


def _config(latent_channels: int, num_levels: int, wavelet: str, boundary: str):
    from transformers_walloc import WallocImageConfig

    return WallocImageConfig(
        latent_channels=latent_channels,
        num_levels=num_levels,
        wavelet=wavelet,
        boundary=boundary,
        decoder_type="restoration",
        decoder_hidden_size=16 if num_levels == 4 else 8,
        decoder_num_layers=2 if num_levels == 4 else 1,
    )
