"""Kill every writer of the package at random moments, 200 times each, and count what it leaves behind.

    python -m research.kill_writers [--kills 200] [--writers compress model ...] [--seed 0]

Each writer runs in a forked process, over and over, and gets SIGKILL after a random time. Then everything that has a
final name must be whole (opened with the reader that a user would use), what was there before must still be there, and
after one undisturbed run no leftover may remain. Prints a table; the exit status is 1 if anything was broken.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, disable_progress_bars
from huggingface_hub import constants
from safetensors.torch import load_file
from tqdm import tqdm

from transformers_walloc import WallocImageConfig, WallocImageModel, bundled, write_latent_dataset
from transformers_walloc.cli.main import main as walloc
from transformers_walloc.codec.bitstream import unpack
from transformers_walloc.latents import writing
from transformers_walloc.training.conversion import save_model_folder

FILES = 8


@dataclass(frozen=True)
class Writer:
    """`run(folder)` writes, again if it has been written before; `check(folder)` raises if something is not whole and
    says how many things are there; `seconds` is the longest time until it is killed."""

    run: Callable[[Path], None]
    check: Callable[[Path], int]
    seconds: float = 0.3


def prepare(folder: Path) -> None:
    """What the writers start from: a small codec, pictures and their .walloc files."""
    torch.manual_seed(0)
    model = WallocImageModel(WallocImageConfig(num_levels=2, latent_channels=4, decoder_type="linear")).eval()
    save_model_folder(model, folder / "codec")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for index in range(FILES):
        PIL.Image.fromarray(rng.integers(256, size=(64, 64, 3)).astype(np.uint8)).save(folder / f"pictures/{index}.png")
    _command("compress", folder / "pictures", folder / "files", folder)


def _command(name: str, source: Path, target: Path, folder: Path) -> None:
    if walloc([name, str(source), "-o", f"{target}/", "--force", "--model", str(folder / "codec")]):
        raise RuntimeError(f"walloc {name} failed")


def run_compress(folder: Path) -> None:
    _command("compress", folder / "pictures", folder / "out", folder)


def check_compress(folder: Path) -> int:
    return sum(unpack(path.read_bytes())[0].sizes == (64, 64) for path in (folder / "out").glob("*.walloc"))


def run_decompress(folder: Path) -> None:
    _command("decompress", folder / "files", folder / "out", folder)


def check_decompress(folder: Path) -> int:
    count = 0
    for path in (folder / "out").glob("*.png"):
        with PIL.Image.open(path) as image:
            image.load()
        count += 1
    return count


def run_model(folder: Path) -> None:
    """Two models in turn in the same place."""
    model = WallocImageModel.from_pretrained(folder / "codec")
    target = folder / "out" / "model"
    value = 0.0 if not target.exists() else 1.0 - load_file(target / "model.safetensors")["encoder.projection.bias"][0]
    torch.nn.init.constant_(model.encoder.projection.bias, float(value))
    model.config.latents_mean = [float(value)] * 4
    save_model_folder(model, target, overwrite=True)


def check_model(folder: Path) -> int:
    """Weights and configuration are of one model, and once there was one there always is."""
    target, seen = folder / "out" / "model", folder / "seen"
    if not target.exists():
        if seen.exists():
            raise AssertionError("the model that was there is gone")
        return 0
    seen.touch()
    stated = json.loads((target / "config.json").read_text())["latents_mean"]
    found = load_file(target / "model.safetensors")["encoder.projection.bias"].tolist()
    if stated != found or not (target / "preprocessor_config.json").is_file():
        raise AssertionError(f"half of one model and half of another: {stated}, {found}")
    return 1


def run_latents(folder: Path, num_proc: int = 1) -> None:
    images = [PIL.Image.open(folder / f"pictures/{index}.png") for index in range(FILES)]
    data = Dataset.from_dict({"image": images, "number": list(range(FILES))})
    target = folder / "out" / "latents"
    if len(list((target / "data").glob("*.parquet"))) == FILES:
        shutil.rmtree(target)
    write_latent_dataset(data, target, str(folder / "codec"), shard_rows=1, num_proc=num_proc, progress=False)


def check_latents(folder: Path) -> int:
    count = 0
    for path in (folder / "out" / "latents" / "data").glob("*.parquet"):
        (row,) = Dataset.from_parquet(str(path), cache_dir=str(folder / "cache"), keep_in_memory=True)
        count += row["latents"]["shape"] == [4, 16, 16] and path.name.startswith(f"train-{row['number']:05d}")
    return count


def run_latents_in_processes(folder: Path) -> None:
    """Workers are forked here: spawned ones import for so long that nearly all kills would fall into imports."""
    with mock.patch.object(writing, "get_context", lambda _: multiprocessing.get_context("fork")):
        run_latents(folder, num_proc=2)


def run_checkpoints(folder: Path) -> None:
    """Training that saves after each step and goes on where it was killed."""
    from transformers import TrainingArguments

    from transformers_walloc.training.trainer import CodecTrainer, last_checkpoint

    model = WallocImageModel.from_pretrained(folder / "codec").train()
    arguments = TrainingArguments(
        output_dir=str(folder / "out" / "run"), use_cpu=True, max_steps=1000, save_steps=1, save_total_limit=2,
        per_device_train_batch_size=1, disable_tqdm=True, report_to=[], remove_unused_columns=False,
    )  # fmt: skip
    crops = [{"pixel_values": torch.rand(3, 32, 32) - 0.5} for _ in range(4)]
    trainer = CodecTrainer(model=model, args=arguments, train_dataset=crops)
    trainer.train(resume_from_checkpoint=last_checkpoint(str(folder / "out" / "run")) or None)


def check_checkpoints(folder: Path) -> int:
    """The newest whole checkpoint loads, and is never older than the one that was found before."""
    from transformers_walloc.training.trainer import last_checkpoint

    newest, seen = last_checkpoint(folder / "out" / "run"), folder / "seen"
    before = int(seen.read_text()) if seen.exists() else 0
    step = int(newest.rpartition("-")[2]) if newest else 0
    if step < before:
        raise AssertionError(f"checkpoint {before} was there, and now {step} is the newest")
    if newest:
        WallocImageModel.from_pretrained(newest)
        torch.load(f"{newest}/optimizer.pt", weights_only=True)
        seen.write_text(str(step))
    return step


def run_links(folder: Path) -> None:
    constants.HF_HUB_CACHE = str(folder / "out" / "hub")
    bundled.link_bundled_checkpoints()
    bundled.unlink_bundled_checkpoints()


def check_links(folder: Path) -> int:
    """A repository that is there is whole."""
    count = 0
    for repository in (folder / "out" / "hub").glob("models--*"):
        name = repository.name.rpartition("walloc--")[2]
        reference = repository / "refs" / "main"
        if not reference.exists():  # half removed: the next import completes it or leaves it alone
            continue
        snapshot = repository / "snapshots" / reference.read_text()
        if snapshot.exists() and (snapshot / "model.safetensors").exists():
            whole = bundled.bundled_path(name) / "model.safetensors"
            linked = snapshot / "model.safetensors"
            if not linked.samefile(whole) and linked.read_bytes() != whole.read_bytes():
                raise AssertionError(f"{linked} holds other weights than {whole}")
            count += 1
    return count


WRITERS = {
    "compress": Writer(run_compress, check_compress, 1.5),
    "decompress": Writer(run_decompress, check_decompress, 1.5),
    "model": Writer(run_model, check_model),
    "latents": Writer(run_latents, check_latents, 1.0),
    "latents2": Writer(run_latents_in_processes, check_latents, 3.0),
    "checkpoints": Writer(run_checkpoints, check_checkpoints, 3.0),
    "links": Writer(run_links, check_links),
}


def kill_once(writer: Writer, folder: Path, seconds: float) -> str:
    """Fork, let the writer run for so long, kill it with its children. Returns its own last words, if it failed."""
    errors = folder / "errors"
    child = os.fork()
    if not child:
        os.setsid()
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            while True:
                writer.run(folder)
        except BaseException as error:
            errors.write_text(repr(error))
        os._exit(1)
    time.sleep(seconds)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # before it had a group of its own
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    words = errors.read_text() if errors.exists() else ""
    errors.unlink(missing_ok=True)
    return words


def leftovers(folder: Path) -> list[str]:
    """Partial files and folders that the atomic writes did not sweep."""
    return [str(path) for path in (folder / "out").rglob(".*") if path.name.endswith((".part", ".old"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each writer (%(default)s)")
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bars()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and one that is killed may keep it
    random.seed(options.seed)
    broken = 0
    print(f"{'writer':12}{'kills':>7}{'broken':>8}{'found':>8}{'left':>6}", flush=True)
    for name in options.writers:
        writer = WRITERS[name]
        with tempfile.TemporaryDirectory(prefix="walloc-kills-") as temporary:
            folder, found, failures = Path(temporary), 0, []
            prepare(folder)
            (folder / "out").mkdir()
            for _ in range(options.kills):
                words = kill_once(writer, folder, random.uniform(0, writer.seconds))
                try:
                    found += bool(writer.check(folder))
                except Exception as error:
                    words = words or repr(error)
                if words:
                    failures.append(words)
            if name != "checkpoints":  # which would train to its end
                writer.run(folder)
            left = leftovers(folder)
            print(f"{name:12}{options.kills:7}{len(failures):8}{found:8}{len(left):6}", flush=True)
            for words in failures[:3]:
                print(f"  {words}")
            broken += len(failures) + len(left)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
