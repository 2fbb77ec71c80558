"""The trainer, in runs of a few steps: what it learns, and what it does after a stop."""

import copy
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import crops, first_batches, make_trainer, small_codec
from transformers import TrainerCallback

from transformers_walloc.training.trainer import CodecTrainer, last_checkpoint


class StopAt(TrainerCallback):
    """Ends a run as Ctrl-C would, after a step and its checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


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
