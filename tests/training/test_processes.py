"""Training in two processes."""

import os
import subprocess
import sys

import pytest
import torch
from training_runs import SCRIPT, script_arguments
from transformers.trainer_pt_utils import safe_globals

from transformers_walloc import WallocImageModel
from transformers_walloc.training.trainer import last_checkpoint


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
import os
import training_runs as t
from transformers import TrainerCallback

root, output = map(Path, sys.argv[1:])
rank = int(os.environ["RANK"])
evaluations = []
model = t.small_codec(root)
with torch.no_grad():
    for p in model.parameters():
        p.mul_(1 + rank)  # the first process's weights must win

class Slow(TrainerCallback):
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
