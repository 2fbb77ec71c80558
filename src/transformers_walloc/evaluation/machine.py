"""Where and with what something was measured, for the results to say."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .specs import shown_spec

PACKAGES = ("torch", "transformers", "transformers-walloc", "pillow", "numpy", "soundfile", "pytorch-msssim", "piq")


def machine(threads: int) -> dict:
    """Processor, cores, threads of torch, system, and the load of the last minute."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": name, "cores": os.cpu_count(), "threads": threads, "system": platform.system(), "load": load}


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def shown_command(program: str, arguments: Sequence[str] | None = None) -> str:
    """A command line without the folders of this machine.

    Args:
        program: as it is called, such as `walloc evaluate`.
        arguments: default: those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    words = [os.path.basename(word.rstrip(os.sep)) if os.path.isabs(word) else word for word in given]
    return f"{program} " + shlex.join(shown_spec(word) if os.sep in word else word for word in words)
