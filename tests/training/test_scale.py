"""The scale of latents over a corpus, against numpy over all of it."""

import json

import numpy as np
import PIL.Image
import torch
from codec_fixtures import audio_model, image_model, pictures, sound

from transformers_walloc import LatentView, WallocImageModel
from transformers_walloc.training.scale import main, measure_scale, read_signals


def test_images(tmp_path, capsys):
    """By the command, written into the config, where views find it."""
    codec, folder = image_model(12), tmp_path / "photos"
    codec.save_pretrained(tmp_path / "codec")
    folder.mkdir()
    for i, picture in enumerate(pictures()):
        PIL.Image.fromarray(picture).save(folder / f"{i}.png")
    main([str(tmp_path / "codec"), "--data", str(folder), "--write"])
    printed = json.loads(capsys.readouterr().out)
    columns = []
    for x in pictures():
        x = np.pad(x, ((0, -x.shape[0] % 8), (0, -x.shape[1] % 8), (0, 0)), mode="reflect")
        with torch.no_grad():
            latents = codec.encode(torch.from_numpy(x).permute(2, 0, 1)[None] / 255 - 0.5).latents
        columns.append(latents[0].flatten(1).numpy())
    values = np.concatenate(columns, axis=1)
    np.testing.assert_allclose(printed["latents_mean"], values.mean(1), atol=1e-3)
    np.testing.assert_allclose(printed["latents_std"], values.std(1), atol=2e-3)
    config = WallocImageModel.from_pretrained(tmp_path / "codec").config
    assert config.latents_std == printed["latents_std"] and LatentView.scaled(config).std is not None


def test_audio(tmp_path):
    """Against the samples of the file, normalised by hand: what `walloc scale` reads has no part in the reference."""
    import soundfile

    codec = audio_model(8)
    soundfile.write(tmp_path / "clip.wav", sound(0.5).T, 44100)
    samples = soundfile.read(tmp_path / "clip.wav", dtype="float64")[0].T
    samples = samples - samples.mean()
    samples = samples / (2 * np.abs(samples).max())
    padding = -samples.shape[1] % codec.config.patch_size
    with torch.no_grad():
        x = torch.from_numpy(np.pad(samples, ((0, 0), (0, padding)))).float()
        latents = codec.encode(x[None]).latents[0]
    mean, std = measure_scale(codec, read_signals(codec.config, [str(tmp_path)]))
    torch.testing.assert_close(torch.tensor(mean), latents.mean(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(std), latents.std(1, unbiased=False), atol=1e-3, rtol=1e-3)
