"""Training codecs: random crops and segments from folders of media files, and a `Trainer` for them.

Needs `pip install 'transformers-walloc[train]'`.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from .conversion import make_processor
from .modeling_walloc import WallocPreTrainedModel

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def list_media(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """Files below a folder by suffix, sorted; ValueError if there are none."""
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not files:
        raise ValueError(f"no files ending in {', '.join(suffixes)} below {folder}")
    return files


class MediaCache:
    """Decoded media in one memory-mapped file, so that a random crop costs a copy and not a decoder run.

    Arrays are (height, width, channels) uint8 images or (length, channels) int16 audio. The file is built once, with a
    progress bar, and reused as long as names, sizes and times of the sources stay the same.
    """

    def __init__(self, files: Sequence[Path], kind: str, cache_dir: str | Path, sampling_rate: int = 44100):
        key = json.dumps([[str(f), f.stat().st_size, int(f.stat().st_mtime)] for f in files] + [kind, sampling_rate])
        stem = Path(cache_dir) / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.path, index = stem.with_suffix(".bin"), stem.with_suffix(".json")
        self.dtype = np.dtype(np.uint8 if kind == "image" else np.int16)
        if not index.exists():
            self._build(files, kind, index, sampling_rate)
        entries = json.loads(index.read_text())
        self.shapes = [tuple(shape) for shape in entries]
        sizes = [math.prod(shape) for shape in self.shapes]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self._data: np.memmap | None = None

    def _build(self, files: Sequence[Path], kind: str, index: Path, sampling_rate: int):
        index.parent.mkdir(parents=True, exist_ok=True)
        shapes = []
        partial = self.path.with_suffix(f".{os.getpid()}.part")
        with open(partial, "wb") as out:
            for file in tqdm(files, desc=f"decoding {kind} files", unit="file"):
                array = _read_image(file) if kind == "image" else _read_audio(file, sampling_rate)
                out.write(np.ascontiguousarray(array, dtype=self.dtype).tobytes())
                shapes.append(array.shape)
        os.replace(partial, self.path)
        partial.write_text(json.dumps(shapes))
        os.replace(partial, index)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        if self._data is None:  # opened in the worker that reads it
            self._data = np.memmap(self.path, dtype=self.dtype, mode="r")
        start = int(self.offsets[i])
        return self._data[start : start + math.prod(self.shapes[i])].reshape(self.shapes[i])


def _read_image(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _read_audio(file: Path, sampling_rate: int) -> np.ndarray:
    import soundfile

    audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
    if rate != sampling_rate:
        import soxr

        audio = soxr.resample(audio, rate, sampling_rate)
    return (audio.clip(-1, 1) * 32767).round().astype(np.int16)


class _RandomPieces(IterableDataset):
    """An endless stream of random pieces, different and reproducible in every worker and process."""

    def __init__(self, caches: Sequence[MediaCache], shares: Sequence[float], seed: str):
        if len(caches) != len(shares) or min(shares) <= 0:
            raise ValueError(f"every source needs a positive share, got {list(shares)} for {len(caches)} sources")
        self.caches, self.shares, self.seed = list(caches), list(shares), seed
        self.rank = int(os.environ.get("RANK", 0))

    def weights(self, cache: MediaCache) -> list[float]:
        """The square root of a file's size: large files count more, but do not drown the small ones' variety."""
        return [math.sqrt(math.prod(shape[:-1])) if self.fits(shape) else 0.0 for shape in cache.shapes]

    def fits(self, shape: tuple[int, ...]) -> bool:
        raise TypeError("use ImageCrops or AudioSegments")

    def draw(self, array: np.ndarray, generator: random.Random) -> dict:
        raise TypeError("use ImageCrops or AudioSegments")

    def __iter__(self):
        worker = get_worker_info()
        generator = random.Random(f"{self.seed}-{self.rank}-{worker.id if worker else 0}")
        weights = [self.weights(cache) for cache in self.caches]
        while True:
            (source,) = generator.choices(range(len(self.caches)), self.shares)
            (i,) = generator.choices(range(len(weights[source])), weights[source])
            yield self.draw(self.caches[source][i], generator)


class ImageCrops(_RandomPieces):
    """Square crops `pixel_values` (3, crop_size, crop_size) in [-0.5, 0.5].

    Crops are taken from images downscaled by a random factor of 0.5 to 1, which removes the traces of an earlier
    compression and adds high frequencies, then flipped and transposed at random.
    """

    def __init__(self, caches, shares, crop_size: int, seed: str = "0"):
        super().__init__(caches, shares, seed)
        self.crop_size = crop_size

    def fits(self, shape):
        return min(shape[:2]) >= self.crop_size

    def draw(self, array, generator):
        largest = min(2.0, min(array.shape[:2]) / self.crop_size)
        factor = generator.uniform(1.0, largest)
        if factor < 1.1:  # so close to 1 resampling would only blur
            factor = 1.0
        size = min(round(self.crop_size * factor), *array.shape[:2])
        top, left = (generator.randint(0, full - size) for full in array.shape[:2])
        crop = array[top : top + size, left : left + size]
        if factor > 1.0:
            image = Image.fromarray(np.ascontiguousarray(crop))
            resample = generator.choice([Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX])
            crop = np.asarray(image.resize((self.crop_size, self.crop_size), resample))
        if generator.random() < 0.5:
            crop = crop[::-1]
        if generator.random() < 0.5:
            crop = crop[:, ::-1]
        if generator.random() < 0.5:
            crop = crop.transpose(1, 0, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
        return {"pixel_values": pixels.float().div_(255.0).sub_(0.5)}


class AudioSegments(_RandomPieces):
    """Segments `input_values` (channels, length), normalised as the feature extractor does (zero mean, peak 0.5).

    Channels are swapped, the sign is flipped and a peak below full scale is drawn at random; near-silence is skipped.
    """

    def __init__(self, caches, shares, length: int, seed: str = "0"):
        super().__init__(caches, shares, seed)
        self.length = length

    def fits(self, shape):
        return shape[0] >= self.length

    def draw(self, array, generator):
        for _ in range(8):
            start = generator.randint(0, len(array) - self.length)
            segment = array[start : start + self.length].astype(np.float32)
            segment -= segment.mean()
            peak = np.abs(segment).max()
            if peak > 300:  # -40 dB of full scale
                break
        # A clip is normalised by its own peak, which lies above the peak of most of its segments.
        segment *= 0.5 * math.exp(generator.uniform(math.log(0.25), 0.0)) / max(peak, 1.0)
        if generator.random() < 0.5:
            segment = segment[:, ::-1]
        if generator.random() < 0.5:
            segment = -segment
        return {"input_values": torch.from_numpy(np.ascontiguousarray(segment.T))}


class CodecTrainer(Trainer):
    """Trains codecs: wavelet-packet-domain loss first, signal-domain loss to finish, two learning rates, a time budget.

    Args:
        linear_learning_rate: for the closed-form parts (projection, linear synthesis), which must move slowly.
        signal_fraction: share of the training, at its end, with the loss in the signal domain.
        time_budget: seconds after which training ends; the cosine schedule follows whatever ends first, time or
            `max_steps`.
        evaluate_codec: called with the averaged model, returns metrics to log.
    """

    def __init__(
        self, *args, linear_learning_rate=1e-4, signal_fraction=0.15, time_budget=None, evaluate_codec=None, **kwargs
    ):
        self.linear_learning_rate = linear_learning_rate
        self.signal_fraction = signal_fraction
        self.evaluate_codec = evaluate_codec
        super().__init__(*args, **kwargs)
        self.clock = _Clock(time_budget)
        self.average = _WeightAverage(self.unwrapped)
        self.add_callback(self.clock)
        self.add_callback(self.average)

    @property
    def unwrapped(self) -> WallocPreTrainedModel:
        if not isinstance(self.model, WallocPreTrainedModel):
            raise TypeError(f"model must be a WaLLoC codec, got {type(self.model).__name__}")
        return self.model

    @property
    def progress(self) -> float:
        """0 at the start of the training, 1 at its end, by steps or by time."""
        by_steps = self.state.global_step / max(1, self.state.max_steps)
        return min(1.0, max(by_steps, self.clock.progress))

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None:
            linear: list[torch.nn.Parameter] = []
            network: list[torch.nn.Parameter] = []
            for name, parameter in self.unwrapped.named_parameters():
                if parameter.requires_grad:
                    (linear if name.startswith(("encoder.", "decoder.linear.")) else network).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": network, "lr": self.args.learning_rate},
                    {"params": linear, "lr": self.linear_learning_rate},
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
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
        late = self.progress >= 1.0 - self.signal_fraction
        outputs = model(**inputs, loss_domain="signal" if late or not model.training else "subbands")
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        if self.evaluate_codec is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = {}
        if self.is_world_process_zero():
            with self.average.applied_to(self.unwrapped):
                measured = self.evaluate_codec(self.unwrapped)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def export_codec(model: WallocPreTrainedModel, folder: str | Path) -> None:
    """Write a checkpoint folder: weights, configuration and processor.

    The decoder's network is stored in half precision and everything linear in float32; `from_pretrained` gives float32
    unless told otherwise.
    """
    linear = ("encoder.", "decoder.linear.", "decoder.latent_std", "decoder.subband_scale")
    weights = {
        name: tensor.half() if tensor.is_floating_point() and not name.startswith(linear) else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in weights.items()})
    make_processor(model.config).save_pretrained(folder)


class _Clock(TrainerCallback, ExportableState):
    """Ends the training when the time is used up, counting the time before a resume."""

    def __init__(self, budget: float | None):
        self.budget = budget
        self.used_before = 0.0
        self.started: float | None = None

    @property
    def used(self) -> float:
        return self.used_before + (time.monotonic() - self.started if self.started is not None else 0.0)

    @property
    def progress(self) -> float:
        return self.used / self.budget if self.budget else 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self.progress >= 1.0:
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def state(self) -> dict:
        return {"args": {"budget": self.budget}, "attributes": {"used_before": self.used}}


class _WeightAverage(TrainerCallback):
    """Exponential moving average of the weights; saved beside every checkpoint, swapped in to evaluate."""

    file_name = "average.safetensors"

    def __init__(self, model: torch.nn.Module, decay: float = 0.998):
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.averaged.update_parameters(getattr(model, "module", model))

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            tensors = {name: value.contiguous() for name, value in self.averaged.module.state_dict().items()}
            tensors["__count__"] = self.averaged.n_averaged
            save_file(tensors, folder / self.file_name)

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
