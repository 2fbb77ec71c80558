"""Random pieces of pictures and of sound."""

import math

import numpy as np
import pytest
import skimage.data
import soundfile
import torch
from codec_fixtures import sound
from PIL import Image
from torch.utils.data import DataLoader
from training_runs import crops, first_batches, open_folder

from transformers_walloc.media.paths import list_files
from transformers_walloc.training.data import AudioSegments, DeviceCrops, ImageCrops, MediaCache


def test_cache_holds_the_decoded_images_and_is_reused(photos, monkeypatch):
    cache = open_folder(photos, "train")
    for i, file in enumerate(list_files(photos / "train", [".png"])):
        np.testing.assert_array_equal(cache[i], np.asarray(Image.open(file)))
    monkeypatch.setattr(MediaCache, "_build", lambda *arguments: pytest.fail("decoded again"))
    assert open_folder(photos, "train").shapes == cache.shapes


def test_cache_is_built_anew_when_a_file_changes(tmp_path):
    (tmp_path / "train").mkdir()
    file = tmp_path / "train" / "picture.png"
    for size in (8, 16):
        Image.new("RGB", (size, 8), (size, 0, 0)).save(file)
        assert open_folder(tmp_path, "train")[0].shape == (8, size, 3)


def test_cache_of_audio_resamples_and_makes_mono_stereo(tmp_path):
    stereo, mono = sound(0.5), sound(0.5, channels=1, rate=22050)
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", stereo.T, 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "music" / "b.wav", mono.T, 22050, subtype="FLOAT")
    cache = MediaCache(list_files(tmp_path / "music", [".wav"]), "audio", tmp_path)
    np.testing.assert_allclose(cache[0].T / 32767, stereo, atol=1e-4)
    assert abs(len(cache[1]) - 22050) <= 1
    np.testing.assert_array_equal(cache[1][:, 0], cache[1][:, 1])
    np.testing.assert_allclose(cache[1][2:-2:2, 0][:10000] / 32767, mono[0, 1:10001], atol=0.02)


def test_a_folder_without_media_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the folder has no file of type \.png"):
        list_files(tmp_path, [".png"])


def test_a_crop_as_large_as_its_image_is_the_image_turned_or_mirrored(tmp_path):
    (tmp_path / "train").mkdir()
    picture = skimage.data.astronaut()[:32, 100:132]
    Image.fromarray(picture).save(tmp_path / "train" / "a.png")
    turned = [np.rot90(image, k) for k in range(4) for image in (picture, picture[:, ::-1])]
    found = set()
    for crop in torch.cat(first_batches(crops(tmp_path), 16, 4)):
        pixels = ((crop + 0.5) * 255).round().byte().numpy().transpose(1, 2, 0)
        found |= {i for i, image in enumerate(turned) if np.array_equal(image, pixels)}
    assert found == set(range(8))


def test_crops_are_reproducible_and_differ_between_seeds_workers_and_processes(photos, monkeypatch):
    (one,), (again,), (other,) = (first_batches(crops(photos, seed=seed), 8, 1) for seed in "001")
    assert one.shape == (8, 3, 32, 32)
    assert one.min() >= -0.5
    assert one.max() <= 0.5
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    stream = iter(DataLoader(crops(photos), batch_size=8, num_workers=2))
    first, second = (next(stream)["pixel_values"] for _ in range(2))
    assert torch.equal(first, one)
    assert not torch.equal(second, one)
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(first_batches(crops(photos), 8, 1)[0], one)


def test_shares_are_kept(tmp_path):
    for name, value in (("dark", 0), ("bright", 255)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / name / "a.png")
    pieces = ImageCrops([open_folder(tmp_path, "dark"), open_folder(tmp_path, "bright")], [3.0, 1.0], 8)
    values = first_batches(pieces, 400, 1)[0].mean(dim=(1, 2, 3)) + 0.5
    assert set(values.tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_sources_that_cannot_be_drawn_from_are_refused(photos):
    cache = open_folder(photos, "train")
    with pytest.raises(ValueError, match=r"no file of a source is large enough .* \(256, 320, 3\)"):
        ImageCrops([cache], [1.0], 512)
    for shares in ([0.0], [1.0, 1.0], []):
        with pytest.raises(ValueError, match="positive share"):
            ImageCrops([cache], shares, 32)


def test_crops_of_a_device_are_windows_of_the_pictures_turned_or_mirrored(tmp_path, monkeypatch):
    monkeypatch.setattr(DeviceCrops, "factors", (1.0,))
    (tmp_path / "train").mkdir()
    rows, columns = np.mgrid[:60, :50]
    for third in (0, 200):  # every pixel tells where it is, and in which picture
        picture = np.stack([rows, columns, np.full_like(rows, third)], axis=-1).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "train" / f"{third}.png")
    batches = iter(DeviceCrops(crops(tmp_path, size=16), 800, "cpu"))
    crop = ((next(batches)["pixel_values"] + 0.5) * 255).round().long()
    assert crop.shape == (800, 3, 16, 16)
    first, second, third = crop.unbind(1)
    transposed = (first[:, 0, 0] == first[:, 1, 0]) & (first[:, 0, 0] != first[:, 0, 1])
    down = torch.where(transposed[:, None, None], first.mT, first)
    right = torch.where(transposed[:, None, None], second.mT, second)
    assert set((down[:, 1:] - down[:, :-1]).flatten(1).unique(dim=1).flatten().tolist()) == {-1, 1}
    assert torch.equal(down, down[:, :, :1].expand_as(down))
    assert torch.equal(right, right[:, :1].expand_as(right))
    flips = {
        (bool(t), int(d), int(r))
        for t, d, r in zip(transposed, down.diff(dim=1)[:, 0, 0], right.diff()[:, 0, 0], strict=True)
    }
    assert len(flips) == 8
    assert down.amin(dim=(1, 2)).unique().tolist() == list(range(45))  # all of 60 - 16 + 1
    assert set(third.flatten(1).unique(dim=1).flatten().tolist()) == {0, 200}


def test_crops_of_a_device_are_reproducible_and_come_at_four_sizes(photos):
    one, again, other = (
        next(iter(DeviceCrops(crops(photos, seed=seed), 8, "cpu")))["pixel_values"] for seed in ("0", "0", "1")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    sizes = DeviceCrops(crops(photos, size=150), 8, "cpu")
    assert sorted(set(sizes.heights.tolist())) == [161, 203, 256]  # half of it is too small for such a crop


def test_shares_are_kept_on_a_device(tmp_path):
    for name, value in (("dark", 0), ("bright", 255)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / name / "a.png")
    pictures = [open_folder(tmp_path, name) for name in ("dark", "bright")]
    pieces = DeviceCrops(ImageCrops(pictures, [3.0, 1.0], 8), 400, "cpu")
    values = next(iter(pieces))["pixel_values"].mean(dim=(1, 2, 3)) + 0.5
    assert abs(values.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_audio_segments_are_normalised_and_never_silent(tmp_path):
    (tmp_path / "music").mkdir()
    clip = np.concatenate([np.zeros((2, 2000)), sound(0.5)], axis=1)
    soundfile.write(tmp_path / "music" / "a.flac", clip.T, 44100)
    cache = MediaCache(list_files(tmp_path / "music", [".flac"]), "audio", tmp_path)
    segments = next(iter(DataLoader(AudioSegments([cache], [1.0], 1024), batch_size=32)))["input_values"]
    assert segments.shape == (32, 2, 1024)
    assert segments.mean(dim=(1, 2)).abs().max() < 1e-5
    peaks = segments.abs().amax(dim=(1, 2))
    assert peaks.min() > 0.124
    assert peaks.max() < 0.501
