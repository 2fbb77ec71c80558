"""Many files: which is written where, and every one done whatever happens to the others."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from ..media.messages import MediaError
from ..media.paths import MEDIA_SUFFIXES, STANDARD_STREAM, WALLOC_SUFFIX
from .console import complain, say
from .progress import duration, signs_of_life, size


@dataclass
class Plan:
    """(input, output) pairs to be done, and how many inputs were left out or cannot be done."""

    jobs: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    failed: int = 0


def plan_outputs(
    inputs: list[tuple[str, str]],
    output: str | None,
    suffix: Callable[[str], str],
    force: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """Where the result of every input goes.

    Beside the input, or into the folder `output` with the folders that `find_files` found it in. Inputs that differ
    only in their suffix keep it: a.png and a.jpg become a.png.walloc and a.jpg.walloc.

    Args:
        inputs: of `find_files`.
        output: a file, a folder, "-" or None, as on the command line.
        suffix: of the result of an input.
        force: overwrite what exists.
        skip_existing: leave out inputs whose output exists.

    Returns:
        The plan; what is wrong with single files has been said on the standard error.

    Raises:
        ValueError: one file for several inputs, a file in the place of a folder.
    """
    if output is not None and output != STANDARD_STREAM:
        _check_folders(output)
    is_folder = _is_folder(output, len(inputs))
    targets = [_target(source, relative, output, is_folder, suffix, keep=False) for source, relative in inputs]
    counts = Counter(targets)
    plan, taken = Plan(), dict[str, str]()
    for (source, relative), target in zip(inputs, targets, strict=True):
        if counts[target] > 1:
            target = _target(source, relative, output, is_folder, suffix, keep=True)
        if target in taken:
            complain(f"{source}: {taken[target]} is written to {target} already")
            plan.failed += 1
        elif target == STANDARD_STREAM and sys.stdout.isatty():
            raise ValueError("binary data is not written to a terminal: redirect the output or use -o")
        elif os.path.isdir(target):
            complain(f"{target}: is a folder, and no file can be written there")
            plan.failed += 1
        elif os.path.isfile(target) and skip_existing:
            plan.skipped += 1
        elif os.path.isfile(target) and not force:
            complain(f"{target}: exists already; --force overwrites it, --skip-existing leaves it")
            plan.failed += 1
        else:
            taken[target] = source
            plan.jobs.append((source, target))
    return plan


def run_jobs(plan: Plan, run: Callable[[str, str], None], workers: int, what: str) -> int:
    """Do every job, `workers` at a time; a failure is one line, and the last one says what was done and in what time.

    Args:
        workers: torch's threads are divided between them.
        what: is done to the files, "compress".

    Returns:
        The exit status, 1 if anything failed.
    """
    summary = _Summary(plan)
    if not plan.jobs:
        summary.show()
        return 1 if plan.failed else 0
    import torch

    from ..codec.runtime import torch_threads

    pool = ThreadPoolExecutor(workers)
    threads = max(1, torch.get_num_threads() // workers)
    try:
        with torch_threads(threads), signs_of_life(len(plan.jobs), what) as advance:
            futures = {pool.submit(run, *job): job for job in plan.jobs}
            for future in as_completed(futures):
                try:
                    future.result()
                    summary.add(*futures[future])
                except Exception as error:  # whatever a decoder raises, it is about one file
                    source = futures[future][0]
                    named = isinstance(error, ValueError | OSError) or str(error).startswith(source)
                    complain(error if named else f"{source}: {str(error) or type(error).__name__}")
                    plan.failed += 1
                advance()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        summary.show()
        raise
    pool.shutdown()
    summary.show()
    return 1 if plan.failed else 0


class _Summary:
    """What became of the files of a plan, as one line on the standard error."""

    def __init__(self, plan: Plan):
        self.plan, self.total = plan, len(plan.jobs) + plan.skipped + plan.failed
        self.targets: list[str] = []
        self.sizes = [0, 0]  # bytes read and written
        self.started = time.monotonic()

    def add(self, source: str, target: str) -> None:
        self.targets.append(target)
        for i, path in enumerate((source, target)):
            if path != STANDARD_STREAM:
                self.sizes[i] += os.path.getsize(path)

    def show(self) -> None:
        count = len(self.targets)
        left = self.total - count - self.plan.skipped - self.plan.failed
        parts = [f"{count} written", f"{self.plan.skipped} skipped", f"{self.plan.failed} failed", f"{left} not done"]
        said = [f"{self.total} files: " + ", ".join(part for part in parts if not part.startswith("0 "))]
        if self.total == 1:
            if not count or self.targets == [STANDARD_STREAM]:
                return
            said = [self.targets[0]]
        read, written = self.sizes
        if read and written:
            ratio = f"{read / written:.3g}:1" if read >= written else f"1:{written / read:.3g}"
            said.append(f"{size(written)} from {size(read)} ({ratio})")
        if count:
            said.append(duration(time.monotonic() - self.started))
        say(", ".join(said))


def _is_folder(output: str | None, inputs: int) -> bool:
    if output is None or output == STANDARD_STREAM:
        if output is not None and inputs > 1:
            raise ValueError(f"{inputs} input files need a folder for -o, not {output!r}")
        return False
    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        return True
    if inputs > 1 and (os.path.exists(output) or Path(output).suffix):
        raise ValueError(f"{inputs} input files need a folder for -o, not {output!r}")
    return inputs > 1


def _target(
    source: str, relative: str, output: str | None, is_folder: bool, suffix: Callable[[str], str], keep: bool
) -> str:
    if output is not None and not is_folder:
        return output
    if source == STANDARD_STREAM:
        if is_folder:
            raise ValueError("the standard input has no name: -o must be a file or '-'")
        return STANDARD_STREAM
    base, new = os.path.join(output, relative) if is_folder and output else source, suffix(source)
    stem, old = os.path.splitext(base)
    if old.lower() == WALLOC_SUFFIX or (old.lower() in MEDIA_SUFFIXES and not keep):
        base = stem
    # a.png.walloc, which kept its suffix, becomes a.png again.
    return base if os.path.splitext(base)[1].lower() == new else base + new


def _check_folders(output: str) -> None:
    """No part of the path that has to be a folder may be a file."""
    folder = Path(output) if output.endswith(("/", os.sep)) else Path(output).parent
    for part in (folder, *folder.parents):
        if os.path.lexists(part):
            if not part.is_dir():
                raise MediaError(f"{part}: is not a folder, so {output} cannot be written")
            return
