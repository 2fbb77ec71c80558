"""Random pieces, the trainer and `train_codec.py`, on photographs of scikit-image and runs of a few steps."""

import copy
import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import soundfile
import torch
from codec_fixtures import same, sound
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from transformers_walloc import WallocImageConfig, WallocImageModel, bundled_path
from transformers_walloc.cli.train import main, parse_recipe
from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.decoders import LinearDecoder
from transformers_walloc.codec.image_processing_walloc import WallocImageProcessor
from transformers_walloc.media.paths import list_files
from transformers_walloc.training.data import AudioSegments, DeviceCrops, ImageCrops, MediaCache
from transformers_walloc.training.growing import grow_from, revive
from transformers_walloc.training.klt import SubbandStatistics, fit_klt
from transformers_walloc.training.recipe import train_codec, training_arguments
from transformers_walloc.training.start import make_model
from transformers_walloc.training.trainer import CodecTrainer, estimated_bits, last_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_codec.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Folders `train` and `held`, and a cache of decoded images."""
    root = tmp_path_factory.mktemp("photos")
    for folder, names in {"train": ("astronaut", "coffee", "rocket"), "held": ("chelsea",)}.items():
        (root / folder).mkdir()
        for name in names:
            Image.fromarray(getattr(skimage.data, name)()[:256, :320]).save(root / folder / f"{name}.png")
    return root


def open_folder(root: Path, name: str) -> MediaCache:
    return MediaCache(list_files(root / name, [".png"]), "image", root / "cache")


def crops(root: Path, name: str = "train", seed: str = "0", size: int = 32) -> ImageCrops:
    return ImageCrops([open_folder(root, name)], [1.0], size, seed)


def first_batches(pieces, batch_size: int, count: int) -> list[torch.Tensor]:
    stream = iter(DataLoader(pieces, batch_size=batch_size))
    return [next(stream)["pixel_values"] for _ in range(count)]


def small_codec(root: Path, hidden_size: int = 16, **changes) -> WallocImageModel:
    """The closed form of the training photographs, with a small network that starts at zero."""
    torch.manual_seed(0)
    config = WallocImageConfig(decoder_hidden_size=hidden_size, decoder_num_layers=1, **changes)
    model, statistics = WallocImageModel(config), SubbandStatistics(config)
    for batch in first_batches(crops(root, size=64), 16, 2):
        statistics.update(batch)
    fit_klt(model, statistics, 0.1)
    model.encoder.requires_grad_(False)
    return model


def make_trainer(
    root: Path, output: Path, model=None, callbacks=(), options=None, piece_size: int = 32, **settings
) -> CodecTrainer:
    defaults = dict(max_steps=8, save_steps=4, warmup_steps=1, learning_rate=2e-3, report_to=[], eval_strategy="no")
    defaults["per_device_train_batch_size"] = 4
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        ignore_data_skip=True,
        **{**defaults, **settings},
    )
    model = small_codec(root) if model is None else model
    return CodecTrainer(
        model=model,
        args=arguments,
        train_dataset=crops(root, size=piece_size),
        eval_dataset=[],
        callbacks=list(callbacks),
        **options or {},
    )


class StopAt(TrainerCallback):
    """Ends a run as Ctrl-C would, after a step and its checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


# Data


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


# Rate


def test_estimated_bits_are_those_of_laplace_cells():
    torch.manual_seed(0)
    laplace = torch.distributions.Laplace(torch.tensor([3.0, -1.0]), torch.tensor([6.0, 0.7], dtype=torch.float64))
    latents = laplace.sample((200, 200)).permute(2, 0, 1)[None]
    torch.manual_seed(1)
    bits = estimated_bits(latents)
    torch.manual_seed(1)
    noisy = latents + torch.rand_like(latents) - 0.5
    centre = noisy.mean(dim=(2, 3), keepdim=True)
    fitted = torch.distributions.Laplace(centre, (noisy - centre).abs().mean(dim=(2, 3), keepdim=True))
    direct = -torch.log2(fitted.cdf(noisy + 0.5) - fitted.cdf(noisy - 0.5)).mean()
    assert abs(bits - direct) < 1e-4
    entropies = []
    for channel in torch.round(latents[0]).flatten(1):
        shares = torch.unique(channel, return_counts=True)[1] / channel.numel()
        entropies.append(-(shares * shares.log2()).sum())
    assert abs(bits - sum(entropies) / 2) < 0.1


def test_estimated_bits_have_finite_gradients_everywhere():
    latents = torch.stack([torch.full((4, 4), 5.0), torch.linspace(-127, 127, 16).view(4, 4), torch.zeros(4, 4)])[None]
    latents.requires_grad_(True)
    (gradient,) = torch.autograd.grad(estimated_bits(latents), latents)
    assert gradient.isfinite().all()


def order0_bits(model, batches) -> float:
    with torch.no_grad():
        codes = torch.cat([model.quantize(model.encode(batch).latents) for batch in batches])
    bits = 0.0
    for channel in codes.transpose(0, 1).flatten(1):
        shares = torch.unique(channel, return_counts=True)[1] / channel.numel()
        bits -= float((shares * shares.log2()).sum())
    return bits


@pytest.mark.parametrize("signal_fraction", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_rate_term_lowers_the_rate_of_held_pictures(photos, tmp_path, signal_fraction):
    held, rates = first_batches(crops(photos, "held", size=64), 16, 1), {}
    for weight in (0.0, 0.1):
        model = small_codec(photos)
        model.encoder.requires_grad_(True)
        options = dict(rate_weight=weight, signal_fraction=signal_fraction, linear_learning_rate=1e-2)
        make_trainer(photos, tmp_path, model, options=options, max_steps=30, save_strategy="no").train()
        rates[weight] = order0_bits(model.eval(), held)
    assert rates[0.1] < 0.995 * rates[0.0]


def test_rate_term_needs_a_trained_encoder(photos, tmp_path):
    with pytest.raises(ValueError, match=r"rate_weight is 0\.1, but the encoder"):
        make_trainer(photos, tmp_path, options={"rate_weight": 0.1})
    with pytest.raises(ValueError, match=r"rate_weight is -1"):
        make_trainer(photos, tmp_path, options={"rate_weight": -1.0})


# Training


def test_decoder_learns_what_the_closed_form_leaves(photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = small_codec(photos, hidden_size=32)
    held = torch.cat(first_batches(crops(photos, "held"), 32, 1))
    encoder = model.fingerprint()

    @torch.no_grad()
    def loss() -> float:
        return model.eval()(held).loss.item()

    closed_form = loss()
    trainer = make_trainer(
        photos,
        tmp_path,
        model,
        options={"evaluate_codec": lambda averaged: {"psnr": 30.0 + averaged.training}},
        piece_size=64,
        max_steps=80,
        per_device_train_batch_size=8,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=40,
        report_to=["tensorboard"],
    )
    trainer.train()
    assert loss() < 0.985 * closed_form  # where a decoder that learns nothing has 1
    assert model.fingerprint() == encoder
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    assert [(e.step, e.value) for e in log.Scalars("eval/psnr")] == [(40, 30.0), (80, 30.0)]


def test_stopped_and_resumed_run_continues_everything(photos, tmp_path):
    options = {"time_budget": 1000.0}
    stopped = make_trainer(photos, tmp_path, callbacks=[StopAt(4)], options=options)
    stopped.train()
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint == str(tmp_path / "checkpoint-4")

    resumed = make_trainer(photos, tmp_path, options=options)
    seen = {}

    class AtStart(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen["weights"] = {name: value.clone() for name, value in resumed.model.state_dict().items()}
            seen["average"] = {name: v.clone() for name, v in resumed.average.averaged.module.state_dict().items()}
            seen["updates"] = int(resumed.average.averaged.n_averaged)
            seen["optimizer"] = copy.deepcopy(resumed.optimizer.state_dict()["state"])
            seen["schedule"] = resumed.lr_scheduler.last_epoch
            seen["used"] = resumed.clock.used

    resumed.add_callback(AtStart())
    resumed.train(resume_from_checkpoint=True)
    for name, value in stopped.model.state_dict().items():
        assert torch.equal(seen["weights"][name], value), name
    saved = load_file(Path(checkpoint) / "average.safetensors")
    for name, value in stopped.average.averaged.module.state_dict().items():
        assert torch.equal(seen["average"][name], value), name
        assert torch.equal(saved[name], value), name
    assert seen["updates"] == 4
    assert seen["schedule"] == 4
    assert seen["used"] == stopped.clock.used > 0
    before = stopped.optimizer.state_dict()["state"]
    assert before.keys() == seen["optimizer"].keys()
    for index, states in before.items():
        for name, value in states.items():
            assert torch.equal(torch.as_tensor(seen["optimizer"][index][name]), torch.as_tensor(value)), name
    assert resumed.state.global_step == 8
    assert resumed.average.averaged.n_averaged == 8
    assert resumed.clock.used > stopped.clock.used


def test_time_budget_ends_the_run_and_counts_the_time_before_a_resume(photos, tmp_path, monkeypatch):
    now = [0.0]

    class EveryStepTakesASecond(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            now[0] += 1.0

    def run(budget: float, **settings) -> CodecTrainer:
        trainer = make_trainer(
            photos, tmp_path, callbacks=[EveryStepTakesASecond()], options={"time_budget": budget}, **settings
        )
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        trainer.train(resume_from_checkpoint=True if last_checkpoint(tmp_path) else None)
        monkeypatch.undo()
        now[0] += 1000.0  # between runs
        return trainer

    first = run(3.0, max_steps=100)
    assert (first.state.global_step, first.clock.used, first.progress) == (3, 3.0, 1.0)
    again = run(3.0, max_steps=100)  # nothing is left to do
    assert again.state.global_step == 3
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    longer = run(5.0, max_steps=100)
    assert (longer.state.global_step, longer.clock.used) == (5, 5.0)
    assert run(100.0, max_steps=7).state.global_step == 7
    assert run(100.0, max_steps=7).state.global_step == 7


def test_checkpoints_that_were_not_written_to_their_end_are_passed_over(photos, tmp_path):
    assert last_checkpoint(tmp_path / "missing") is None
    make_trainer(photos, tmp_path).train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    files = sorted((tmp_path / "checkpoint-8").iterdir())
    needed = {file.name for file in files} - {"config.json", "training_args.bin"}
    assert needed == {
        "average.safetensors",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    for file in files:
        if file.name in needed:
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) * 9 // 10])
            assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4"), file.name
            file.write_bytes(whole)
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()
    resumed = make_trainer(photos, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


def test_resuming_without_a_checkpoint_is_an_error(photos, tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint in"):
        make_trainer(photos, tmp_path).train(resume_from_checkpoint=True)


# The script


def script_arguments(photos: Path, output: Path, *more: str) -> list[str]:
    fixed = "--kind image --piece_size 32 --batch_size 2 --workers 0 --cpu --no_bf16 --klt_draws 40"
    small = "--decoder_hidden_size 8 --decoder_num_layers 1 --save_steps 2 --eval_steps 100"
    folders = ["--train", f"{photos / 'train'}:1", "--validation", str(photos / "held"), "--output", str(output)]
    return [*fixed.split(), *small.split(), *folders, *more]


def test_new_decoder_for_a_published_codec_reads_and_writes_its_files(photos, tmp_path, capsys):
    published = bundled_path("rgb-16x-klt")
    arguments = ["--encoder_from", str(published), "--max_steps", "2", "--statistics", str(tmp_path / "statistics")]
    main(script_arguments(photos, tmp_path, *arguments))
    assert "trained: {'psnr': " in capsys.readouterr().out
    old, new = (WallocImageModel.from_pretrained(folder).eval() for folder in (published, tmp_path / "model"))
    assert new.config.decoder_type == "residual"
    assert new.fingerprint() == new.config.latent_fingerprint == old.fingerprint()
    assert new.config.entropy_tables_size == old.config.entropy_tables_size > 0
    assert torch.equal(new.entropy_tables, old.entropy_tables)
    assert torch.equal(new.encoder.projection.weight, old.encoder.projection.weight)

    inputs = WallocImageProcessor()(skimage.data.chelsea()[:64, :80], return_tensors="pt")
    files = old.compress(**inputs), new.compress(**inputs)
    for reader in (old, new):
        assert same(reader.decompress(files[1]), reader.decompress(files[0]))
    assert not same(old.decompress(files[0]), new.decompress(files[0]))

    stored = load_file(tmp_path / "model" / "model.safetensors")
    half = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert half == {name for name in stored if name.startswith(("decoder.stem", "decoder.blocks", "decoder.head"))}
    recipe = json.loads((tmp_path / "model" / "recipe.json").read_text())
    assert recipe["encoder_from"] == "rgb-16x-klt"
    assert str(tmp_path) not in json.dumps(recipe)


def test_network_of_a_new_decoder_starts_at_the_published_codec(photos, tmp_path):
    published = WallocImageModel.from_pretrained(bundled_path("rgb-16x-klt")).eval()
    published.decoder = LinearDecoder(published.config)  # what a network of another shape can start from
    source = load_file(bundled_path("rgb-16x-klt") / "model.safetensors")
    published.decoder.linear.load_state_dict({n: source[f"decoder.linear.{n}"] for n in ("weight", "bias")})
    args = parse_recipe(script_arguments(photos, tmp_path, "--encoder_from", str(bundled_path("rgb-16x-klt"))))
    model = make_model(args, crops(photos)).eval()
    x = first_batches(crops(photos, "held"), 4, 1)[0]
    codes = published.quantize(published.encode(x).latents)
    assert torch.equal(model.quantize(model.encode(x).latents), codes)
    torch.testing.assert_close(model.decode(codes).pixel_values, published.decode(codes).pixel_values)
    assert (model.decoder.latent_std > 0.1).all()
    assert 1e-4 < model.decoder.subband_scale.min() < model.decoder.subband_scale.max() < 1.0


def test_decoder_of_the_same_shape_is_trained_on(photos, tmp_path):
    main(script_arguments(photos, tmp_path / "a", "--latent_channels", "4", "--step", "0.1", "--max_steps", "2"))
    first = tmp_path / "a" / "model"
    args = parse_recipe(script_arguments(photos, tmp_path / "b", "--continue_from", str(first)))
    model = make_model(args, crops(photos))
    trained = WallocImageModel.from_pretrained(first)
    assert all(same(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    main(script_arguments(photos, tmp_path / "b", "--continue_from", str(first), "--max_steps", "1"))
    recipe = json.loads((tmp_path / "b" / "model" / "recipe.json").read_text())
    assert recipe["earlier"] == json.loads((first / "recipe.json").read_text())


def test_a_codec_is_trained_on_as_the_help_shows_it(photos, tmp_path, capsys, monkeypatch):
    """By its bundled name, with the kind of decoder that it has, on the device that there is, for some time."""
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.ERROR)  # as other commands leave it
    options = "--kind image --continue_from rgb-16x --train_encoder --muon --minutes 0.01"
    small = "--piece_size 32 --batch_size 1 --workers 0"  # and no --cpu, no --decoder_type
    folders = ["--train", str(photos / "train"), "--validation", str(photos / "held"), "--output", str(tmp_path)]
    main([*options.split(), *small.split(), *folders])
    said = capsys.readouterr()
    assert "closed form" not in said.out and "start, rgb-16x: {'psnr': 3" in said.out and "trained: " in said.out
    bar = [line for line in said.err.replace("\r", "\n").splitlines() if "step " in line]
    assert bar and "1000000" not in said.err and "%|" in bar[0]
    trained = WallocImageModel.from_pretrained(tmp_path / "model")
    assert trained.config.decoder_type == "restoration"
    assert json.loads((tmp_path / "model" / "recipe.json").read_text())["decoder_type"] == "restoration"


def test_what_the_machine_can_do_decides_where_and_in_which_precision(photos, tmp_path, monkeypatch):
    recipe = parse_recipe(script_arguments(photos, tmp_path, "--continue_from", "rgb-16x"))
    recipe.cpu = recipe.no_bf16 = False
    chosen = set()
    for has_bf16 in (True, False):
        monkeypatch.setattr("transformers_walloc.training.recipe._has_bf16", lambda on_cpu, has=has_bf16: has)
        arguments = training_arguments(recipe)
        assert arguments.use_cpu is not torch.accelerator.is_available()
        chosen.add(arguments.bf16)
    assert chosen == {True, False}


def test_muon_is_refused_for_a_codec_whose_network_it_is_not_for(photos, tmp_path):
    shape = ["--decoder_hidden_size", "64", "--decoder_num_layers", "8"]
    arguments = ["--continue_from", "rgb-16x-klt", "--muon", "--max_steps", "1", *shape]
    with pytest.raises(ValueError, match="muon is for restoration networks"):
        main(script_arguments(photos, tmp_path, *arguments))


def test_a_wider_and_deeper_decoder_starts_as_the_one_that_the_codec_has(photos, tmp_path):
    published = WallocImageModel.from_pretrained(bundled_path("rgb-16x-klt")).eval()
    shape = ["--decoder_hidden_size", "80", "--decoder_num_layers", "10"]
    args = script_arguments(photos, tmp_path, "--continue_from", str(bundled_path("rgb-16x-klt")), *shape)
    torch.manual_seed(0)
    model = make_model(parse_recipe(args), crops(photos)).eval()
    assert (model.config.decoder_hidden_size, model.config.decoder_num_layers) == (80, 10)
    codes = torch.randint(-3, 4, (1, 12, 9, 7)).float()
    expected = published.decode(codes).pixel_values
    torch.testing.assert_close(model.decode(codes).pixel_values, expected, atol=1e-5, rtol=0)

    # The new parts are reached by gradients, at once or as soon as the first zeros have moved.
    def step():
        model.zero_grad()
        model.decode(codes).pixel_values.square().mean().backward()
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter -= parameter.grad
        return {name: value.grad.abs().amax().item() for name, value in model.decoder.named_parameters()}

    step()
    gradients = step()
    assert all(value > 0 for value in gradients.values()), gradients
    assert model.decoder.stem.weight.grad[64:].abs().amax() > 0
    assert model.decoder.blocks[3].conv1.weight.grad[:, 64:].abs().amax() > 0

    with pytest.raises(ValueError, match="a decoder of width 80 with 10 blocks does not fit into one of width 64"):
        grow_from(published.decoder, model.decoder)


def test_projection_and_restoration_learn_together_then_the_decoder_alone(photos, tmp_path):
    restoration = ["--decoder_type", "restoration", "--log_floor", "7e-4", "--learning_rate", "1e-3"]
    joint = ["--train_encoder", "--encoder_learning_rate", "0.01", "--rate_weight", "1e-5", "--latent_channels", "4"]
    main(script_arguments(photos, tmp_path / "a", *restoration, *joint, "--step", "0.1", "--max_steps", "3"))
    first = WallocImageModel.from_pretrained(tmp_path / "a" / "model")
    assert first.decoder.network.head.weight.abs().max() > 0
    gram = first.encoder.projection.weight[:, :, 0, 0] @ first.encoder.projection.weight[:, :, 0, 0].T
    assert (gram - gram.diag().diag()).abs().max() > 3e-4  # the closed form has orthogonal rows

    shape = ["--decoder_num_layers", "2", "--decoder_hidden_size", "12"]
    following = [*restoration, "--continue_from", str(tmp_path / "a" / "model"), *shape]
    args = parse_recipe(script_arguments(photos, tmp_path / "b", *following))
    grown = make_model(args, crops(photos)).eval()
    codes = torch.randint(-3, 4, (1, 4, 9, 7)).float()
    expected = first.eval().decode(codes).pixel_values
    torch.testing.assert_close(grown.decode(codes).pixel_values, expected, atol=1e-5, rtol=0)
    main(script_arguments(photos, tmp_path / "b", *following, "--refit_linear", "--max_steps", "1"))
    second = WallocImageModel.from_pretrained(tmp_path / "b" / "model")
    assert second.fingerprint() == first.fingerprint()
    assert not torch.equal(second.decoder.linear.weight, first.decoder.linear.weight)
    with pytest.raises(ValueError, match="a decoder of width 12 with 2 blocks does not fit into one of width 8 with 1"):
        grow_from(first.decoder, grown.decoder)


def test_training_with_the_pictures_on_the_device_and_orthogonalised_updates(photos, tmp_path):
    options = ["--decoder_type", "restoration", "--train_encoder", "--latent_channels", "4", "--step", "0.1"]
    options += ["--on_device", "--muon", "--max_steps", "3", "--learning_rate", "1e-3"]
    metrics = train_codec(parse_recipe(script_arguments(photos, tmp_path / "run", *options)))
    model = WallocImageModel.from_pretrained(tmp_path / "run" / "model")
    assert model.decoder.network.head.weight.abs().max() > 0
    assert metrics["psnr"] > 15
    recipe = json.loads((tmp_path / "run" / "model" / "recipe.json").read_text())
    assert recipe["on_device"] and recipe["muon"]


def test_the_hidden_layers_of_a_restoration_network_are_orthogonalised_if_asked_for(photos, tmp_path):
    names = {}
    for muon in (False, True):
        model = small_codec(photos, decoder_type="restoration")
        options = {"muon_network": muon}
        optimizer = make_trainer(photos, tmp_path, model=model, options=options).create_optimizer()
        chosen = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
        names[muon] = [name for name, p in model.named_parameters() if id(p) in chosen]
    assert names[False] == []
    assert names[True] == [f"decoder.network.blocks.0.conv{i}.weight" for i in (1, 2)]


def test_silent_units_start_anew_without_a_change_of_the_decoder(photos):
    model = small_codec(photos, hidden_size=16)
    decoder, x = model.decoder, first_batches(crops(photos, size=64), 8, 1)[0]
    first, second = decoder.blocks[0].conv1, decoder.blocks[0].conv2
    with torch.no_grad():
        decoder.head.weight.normal_(std=0.02)
        first.bias[[2, 7, 11]] = -100.0
        z = decompand(model.quantize(model.encode(x).latents), model.config.latent_bits)
        before, kept = decoder(z), first.weight[3].clone()
        assert revive(decoder, z) == 3
        assert not second.weight[:, [2, 7, 11]].any()
        torch.testing.assert_close(decoder(z), before)
        assert same(first.weight[3], kept)
        assert revive(decoder, z) == 0
    decoder(z).square().mean().backward()
    assert (second.weight.grad[:, [2, 7, 11]].abs().amax(dim=(0, 2, 3)) > 0).all()


def test_a_run_of_the_script_continues_when_the_command_is_given_again(photos, tmp_path, capsys):
    common = ["--latent_channels", "12", "--step", "0.1"]
    main(script_arguments(photos, tmp_path, *common, "--max_steps", "2"))
    assert capsys.readouterr().out.count("closed form:") == 1
    main(script_arguments(photos, tmp_path, *common, "--max_steps", "4"))
    assert "closed form:" not in capsys.readouterr().out
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert json.loads((tmp_path / "model" / "recipe.json").read_text())["max_steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0.1"], "latent_channels is needed without encoder_from or continue_from"),
        (["--latent_channels", "12"], "step is needed without encoder_from or continue_from"),
        (["--latent_channels", "12", "--step", "0.1", "--refit_linear"], "refit_linear needs encoder_from"),
        (["--encoder_from", "x", "--continue_from", "y"], "choose encoder_from (a new network) or continue_from"),
        (["--encoder_from", "x", "--rate_weight", "1"], "rate_weight needs train_encoder"),
        (["--encoder_from", "x", "--on_device", "--kind", "audio"], "on_device is for images"),
        (["--encoder_from", "x", "--muon"], "muon is for restoration networks"),
    ],
)
def test_contradicting_options_are_refused(photos, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        parse_recipe(script_arguments(photos, tmp_path, *arguments))
    assert message in capsys.readouterr().err


def test_another_number_of_channels_than_the_kept_encoder_has_is_refused(photos, tmp_path):
    arguments = ["--encoder_from", str(bundled_path("rgb-16x-klt")), "--latent_channels", "48"]
    with pytest.raises(ValueError, match=r"latent_channels is 48; .* has 12"):
        make_model(parse_recipe(script_arguments(photos, tmp_path, *arguments)), crops(photos))


# Several processes


def torchrun(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.slow
def test_two_processes_train_one_codec_and_resume(photos, tmp_path):
    common = ["--latent_channels", "12", "--step", "0.1", "--eval_steps", "2"]
    arguments = script_arguments(photos, tmp_path, *common)
    output = torchrun(str(SCRIPT), *arguments, "--max_steps", "4")
    assert output.count("closed form:") == output.count("trained:") == 1
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    with safe_globals():  # of the states of numpy's generator
        states = [torch.load(tmp_path / "checkpoint-4" / f"rng_state_{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    output = torchrun(str(SCRIPT), *arguments, "--max_steps", "6")
    assert (output.count("closed form:"), output.count("trained:")) == (0, 1)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert WallocImageModel.from_pretrained(tmp_path / "model").config.decoder_hidden_size == 8


WORKER = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
import test_trainer as t

root, output = map(Path, sys.argv[1:])
rank = int(t.os.environ["RANK"])
evaluations = []
model = t.small_codec(root)
with torch.no_grad():
    for p in model.parameters():
        p.mul_(1 + rank)  # the first process's weights must win

class Slow(t.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.05 + 0.1 * rank)

def evaluate(model):
    evaluations.append(rank)
    time.sleep(1.0)
    return {"psnr": 20.0}

trainer = t.make_trainer(root, output, model, callbacks=[Slow()], max_steps=10_000, save_strategy="no",
                         eval_strategy="steps", eval_steps=3, ddp_backend="gloo",
                         options={"time_budget": 4.0, "evaluate_codec": evaluate})
pieces = next(iter(trainer.get_train_dataloader()))["pixel_values"]
trainer.train()
values = torch.cat([p.detach().flatten() for p in model.parameters()])
report = (trainer.state.global_step, trainer.clock.used, values, pieces, len(evaluations),
          [row["eval_psnr"] for row in trainer.state.log_history if "eval_psnr" in row])
reports = [None, None]
dist.all_gather_object(reports, report)
if rank == 0:
    (step0, used0, w0, x0, n0, psnr0), (step1, used1, w1, x1, n1, psnr1) = reports
    assert step0 == step1 >= 3 and used0 == used1 >= 4.0, (step0, step1, used0, used1)
    assert torch.equal(w0, w1)
    assert not torch.equal(x0, x1)
    assert n0 > 0 and n1 == 0
    assert psnr0 == psnr1 == [20.0] * n0
    print("agreed after", step0, "steps")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_agree_on_time_and_weights_and_draw_different_pieces(photos, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    assert "agreed after" in torchrun(str(worker), str(photos), str(tmp_path / "run"))
