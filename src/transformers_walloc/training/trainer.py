"""Training codecs: a `Trainer` with a time budget, averaged weights and an optional rate term.

Random pieces of images and audio come from `training_data`. Needs `pip install 'transformers-walloc[train]'`.
"""

import contextlib
import json
import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import SAFE_WEIGHTS_NAME

from ..codec.modeling_walloc import CodecModel
from ..extras import naming_extras
from .data import DeviceCrops, RandomPieces
from .losses import forward_with, subband_error
from .muon import Muon

with naming_extras():
    from accelerate.utils import broadcast_object_list
    from transformers import Trainer
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
    from transformers.trainer_callback import ExportableState, ProgressCallback, TrainerCallback, TrainerState
    from transformers.trainer_utils import TrainOutput


class CodecTrainer(Trainer):
    """Trains codecs: wavelet-packet-domain loss first, signal-domain loss to finish, two learning rates, a time budget.

    Under `torchrun` every process draws pieces of its own, and the first one keeps the time and the average of the
    weights and evaluates.

    Args:
        linear_learning_rate: for the closed-form parts (projection, linear synthesis), which must move slowly.
        signal_fraction: share of the training, at its end, with the loss in the signal domain.
        time_budget: seconds after which training ends; the cosine schedule follows whatever ends first, time or
            `max_steps`.
        evaluate_codec: called with the averaged model, returns metrics to log.
        encoder_learning_rate: of the projection, if it is trained; `linear_learning_rate` if None. Adam moves every
            weight by about this much, and rows of the projection have a norm of about 10.
        log_floor: the loss becomes the mean over pieces of `log(error + log_floor) / 10`, which counts decibels instead
            of letting the roughest pieces decide. None for the mean squared error itself.
        rate_weight: mean squared error that one bit a sample (pixel and channel, or audio sample) is worth: it is
            added to the loss times `estimated_bits`. Needs an encoder that is trained.
        muon_network: orthogonalised updates for the hidden layers of a restoration network too, which for the small
            batches of a CPU learns faster with Adam's.

    Raises:
        ValueError: a negative rate weight, or one for an encoder that is frozen.
    """

    def __init__(
        self,
        *args,
        linear_learning_rate=1e-4,
        encoder_learning_rate=None,
        log_floor=None,
        signal_fraction=0.15,
        time_budget=None,
        evaluate_codec=None,
        rate_weight=0.0,
        muon_network=False,
        **kwargs,
    ):
        self.muon_network = muon_network
        self.linear_learning_rate = linear_learning_rate
        self.encoder_learning_rate = linear_learning_rate if encoder_learning_rate is None else encoder_learning_rate
        self.log_floor = log_floor
        self.signal_fraction = signal_fraction
        self.evaluate_codec = evaluate_codec
        self.rate_weight = rate_weight
        super().__init__(*args, **kwargs)
        if not rate_weight >= 0:
            raise ValueError(f"rate_weight is {rate_weight}; it must not be negative")
        trained = {name for name, parameter in self.unwrapped.named_parameters() if parameter.requires_grad}
        if rate_weight and not any(name.startswith("encoder.") for name in trained):
            raise ValueError(f"rate_weight is {rate_weight}, but the encoder, which sets the rate, is frozen")
        # The processes start from the same weights, but must not draw the same noise.
        torch.manual_seed(self.args.seed + self.args.process_index)
        self.clock = _Clock(time_budget)
        self.average = _WeightAverage(self.unwrapped)
        self.add_callback(self.clock)
        self.add_callback(self.average)
        if time_budget and not self.args.disable_tqdm:
            self.pop_callback(ProgressCallback)
            self.add_callback(_Bar(self))

    @property
    def unwrapped(self) -> CodecModel:
        if not isinstance(self.model, CodecModel):
            raise TypeError(f"model must be a WaLLoC codec, got {type(self.model).__name__}")
        return self.model

    @property
    def progress(self) -> float:
        """0 at the start of the training, 1 at its end, by steps or by time."""
        by_steps = self.state.global_step / max(1, self.state.max_steps)
        return min(1.0, max(by_steps, self.clock.progress))

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, DeviceCrops):
            return DataLoader(self.train_dataset, batch_size=None)
        if not isinstance(self.train_dataset, RandomPieces):
            return super().get_train_dataloader()
        # Trainer's own would have one process draw the pieces of all.
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """As `Trainer.train`; after a resume the time used and the averaged weights continue, too.

        Args:
            resume_from_checkpoint: a folder, or True for the newest one that `last_checkpoint` finds.

        Raises:
            ValueError: True, and there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir}")
        if resume_from_checkpoint:
            folder = Path(resume_from_checkpoint)
            state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
            self.clock.load(state)
            self.average.load(folder)
            if self.clock.progress >= 1.0 or 0 < self.args.max_steps <= state.global_step:
                self.state = state
                self.unwrapped.load_state_dict(load_file(folder / SAFE_WEIGHTS_NAME))
                return TrainOutput(state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Comes before the rest of a checkpoint: when trainer_state.json, its last file, is there, the average is, too.
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.average.save(output_dir or str(self.args.output_dir))

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            linear: list[torch.nn.Parameter] = []
            network: list[torch.nn.Parameter] = []
            hidden: list[torch.nn.Parameter] = []
            others: list[torch.nn.Parameter] = []
            encoder: list[torch.nn.Parameter] = []
            for name, parameter in self.unwrapped.named_parameters():
                if parameter.requires_grad:
                    if name.startswith("encoder."):
                        encoder.append(parameter)
                    elif name.startswith("decoder.linear."):
                        linear.append(parameter)
                    elif name.startswith("decoder.network.") and not (
                        self.muon_network and parameter.ndim > 1 and "blocks." in name
                    ):
                        network.append(parameter)
                    else:  # the head starts at zero, where its updates must stay in proportion to its gradients
                        (hidden if parameter.ndim > 1 and ".head." not in name else others).append(parameter)
            observed = [] if self.muon_network else hidden  # hooks would break up what a compiler makes of a network
            self.optimizer = Muon(
                [
                    {"params": hidden, "lr": self.args.learning_rate, "muon": True},
                    {"params": others, "lr": 0.3 * self.args.learning_rate},
                    {"params": network, "lr": self.args.learning_rate},
                    {"params": linear, "lr": self.linear_learning_rate},
                    {"params": encoder, "lr": self.encoder_learning_rate},
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
                centred=[
                    layer
                    for layer in self.unwrapped.modules()
                    if isinstance(layer, torch.nn.Conv2d) and any(layer.weight is weight for weight in observed)
                ],
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            warmup = max(1, self.args.get_warmup_steps(num_training_steps))

            def factor(step: int) -> float:
                return min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * self.progress))

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        codec = self.unwrapped
        subbands_suffice = self.log_floor is None and not hasattr(codec.decoder, "network")
        if model.training and subbands_suffice and self.progress < 1.0 - self.signal_fraction:
            with self.accelerator.autocast():  # which otherwise comes with the model's own forward
                outputs: Any = forward_with(subband_error, model, codec, inputs[codec.main_input_name])
        else:
            outputs = model(**inputs)
        loss = outputs.loss
        if self.log_floor is not None and model.training:
            error = (outputs.reconstruction - inputs[codec.main_input_name]).float().square().flatten(1).mean(1)
            loss = 0.1 * torch.log(error + self.log_floor).mean()
        if self.rate_weight and model.training:
            bits = estimated_bits(outputs.latents) / self.unwrapped.config.dimensionality_reduction
            loss = loss + self.rate_weight * bits
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        if self.evaluate_codec is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = {}
        if self.is_world_process_zero():
            with self.average.applied_to(self.unwrapped):
                measured = self.evaluate_codec(self.unwrapped)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        metrics = of_first_process(metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def estimated_bits(latents: torch.Tensor) -> torch.Tensor:
    """Bits that a code takes on average when every channel is coded by itself (order 0); differentiable.

    As in Balle, Laparra and Simoncelli (ICLR 2017, section 3), uniform noise stands for rounding, and a code costs the
    negative logarithm of its probability, which is here that of a Laplace distribution with the channel's own mean and
    mean absolute deviation over the batch, integrated over the cell of the code.

    Args:
        latents: (batch, latent_channels, *grid), companded, not rounded.

    Returns:
        A scalar, in bits a latent.
    """
    noisy = (latents + torch.rand_like(latents) - 0.5).float().transpose(0, 1).flatten(1)  # (channels, positions)
    distance = (noisy - noisy.mean(dim=1, keepdim=True)).abs()
    scale = distance.mean(dim=1, keepdim=True).clamp_min(0.05)
    # log sinh(1 / (2 scale)) without overflow; of the cells away from the mean.
    log_sinh = 0.5 / scale + torch.log1p(-torch.exp(-1.0 / scale)) - math.log(2.0)
    outside = log_sinh - distance / scale
    # The cell that holds the mean; clamped, since the branch that is not taken must have a finite gradient.
    inside = torch.log1p(-torch.exp(-0.5 / scale) * torch.cosh(distance.clamp_max(0.5) / scale))
    return -torch.where(distance < 0.5, inside, outside).mean() / math.log(2.0)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a run that was written to its end; None if there is none.

    A run may be killed while it saves. What it leaves is passed over.
    """
    steps = {}
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and _is_complete(path):
            steps[int(number)] = str(path)
    return steps[max(steps)] if steps else None


def remove_incomplete_checkpoints(folder: str | Path) -> str | None:
    """Remove what a run left that was stopped while it saved. Returns the newest complete checkpoint, as
    `last_checkpoint` does."""
    for path in Path(folder).glob("checkpoint-*"):
        if path.is_dir() and not _is_complete(path):
            shutil.rmtree(path, ignore_errors=True)
    return last_checkpoint(folder)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
        for name in (SAFE_WEIGHTS_NAME, _WeightAverage.file_name):
            with safe_open(checkpoint / name, "pt"):  # compares the file's length with its header
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    # What torch.save writes is a zip file, whose directory comes last.
    pickles = [checkpoint / OPTIMIZER_NAME, checkpoint / SCHEDULER_NAME, *checkpoint.glob("rng_state*.pth")]
    return all(zipfile.is_zipfile(path) for path in pickles)


def of_first_process(value):
    """The value that the first process has, in all of them."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


class _Clock(TrainerCallback, ExportableState):
    """Ends the training when the time is used up, counting the time before a resume.

    Learning rates and the end follow the time, so all processes go by the first one's, read once a step.
    """

    def __init__(self, budget: float | None):
        self.budget = budget
        self.used = 0.0  # seconds
        self.started = 0.0

    @property
    def progress(self) -> float:
        return self.used / self.budget if self.budget else 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic() - self.used

    def on_step_end(self, args, state, control, **kwargs):
        self.used = of_first_process(time.monotonic() - self.started)
        if self.progress >= 1.0:
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def state(self) -> dict:
        return {"args": {"budget": self.budget}, "attributes": {"used": self.used}}

    def load(self, state: TrainerState):
        callbacks: Any = state.stateful_callbacks  # a dictionary of states, when read from a file
        self.used = callbacks["_Clock"]["attributes"]["used"]


class _Bar(ProgressCallback):
    """A bar of the share that is done, whatever ends first, time or steps: Trainer's own counts steps alone."""

    def __init__(self, trainer: CodecTrainer):
        super().__init__()
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            shown = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self.training_bar = tqdm(total=100, bar_format=shown, dynamic_ncols=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(f"step {state.global_step:,}", refresh=False)
            self.training_bar.update(100 * self.trainer.progress - self.training_bar.n)


class _WeightAverage(TrainerCallback):
    """Exponential moving average of the weights; saved beside every checkpoint, swapped in to evaluate."""

    file_name = "average.safetensors"

    def __init__(self, model: torch.nn.Module, decay: float = 0.998):
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.averaged.update_parameters(getattr(model, "module", model))

    def save(self, folder: str | Path):
        tensors = {name: value.contiguous() for name, value in self.averaged.module.state_dict().items()}
        tensors["__count__"] = self.averaged.n_averaged
        save_file(tensors, Path(folder) / self.file_name)

    def load(self, folder: str | Path):
        tensors = load_file(Path(folder) / self.file_name)
        self.averaged.n_averaged.copy_(tensors.pop("__count__"))
        self.averaged.module.load_state_dict(tensors)

    @contextlib.contextmanager
    def applied_to(self, model: torch.nn.Module):
        """The model with averaged weights inside the context."""
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        training = model.training
        if self.averaged.n_averaged > 0:
            model.load_state_dict(self.averaged.module.state_dict())
        try:
            yield model.eval()
        finally:
            model.load_state_dict(kept)
            model.train(training)
