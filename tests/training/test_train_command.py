"""`walloc train`, in runs of a few steps."""

import json
import logging

import pytest
import skimage.data
import torch
from codec_fixtures import same
from safetensors.torch import load_file
from training_runs import script_arguments

from transformers_walloc import WallocImageModel, bundled_path
from transformers_walloc.cli.train import main, parse_recipe
from transformers_walloc.codec.image_processing_walloc import WallocImageProcessor
from transformers_walloc.training.recipe import train_codec, training_arguments
from transformers_walloc.training.trainer import last_checkpoint


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


def test_training_with_the_pictures_on_the_device_and_orthogonalised_updates(photos, tmp_path):
    options = ["--decoder_type", "restoration", "--train_encoder", "--latent_channels", "4", "--step", "0.1"]
    options += ["--on_device", "--muon", "--max_steps", "3", "--learning_rate", "1e-3"]
    metrics = train_codec(parse_recipe(script_arguments(photos, tmp_path / "run", *options)))
    model = WallocImageModel.from_pretrained(tmp_path / "run" / "model")
    assert model.decoder.network.head.weight.abs().max() > 0
    assert metrics["psnr"] > 15
    recipe = json.loads((tmp_path / "run" / "model" / "recipe.json").read_text())
    assert recipe["on_device"] and recipe["muon"]


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
