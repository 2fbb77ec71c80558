"""Compile the kernels: `python build.py` beside their sources, or `python -m transformers_walloc.native`.

Standard library alone, so that the build of a wheel and `scripts/setup.sh` can run it before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
KERNELS = ("encoder.cpp", "entropy.cpp")
SUPPORT, HEADERS = "support.cpp", ("kernels.h", "context_network.h", "range_coder.h")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread", "-Wall", "-Wno-psabi")


class BuildError(RuntimeError):
    """No compiler, or one that cannot compile the kernels."""


def target_flags(machine: str | None = None) -> tuple[str, ...]:
    """AVX2, FMA and BMI2 on x86; NEON is part of every 64-bit ARM."""
    return ("-march=x86-64-v3",) if (machine or platform.machine()).lower() in ("x86_64", "amd64") else ()


def library_name() -> str:
    """File name of the library of these very sources: one of other sources is never loaded."""
    digest = hashlib.sha256("\0".join((*FLAGS, *target_flags())).encode())
    for name in (*KERNELS, SUPPORT, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    return f"walloc-kernels-{digest.hexdigest()[:12]}{'.dylib' if sys.platform == 'darwin' else '.so'}"


def find_compiler() -> str:
    """`$CXX`, else the first of c++, g++ and clang++ that there is."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler: neither $CXX nor c++, g++ or clang++ is there")


def compile_library(folder: Path = FOLDER) -> Path:
    """Make the library in `folder`, whole or not at all, unless it is there.

    Raises:
        BuildError: no compiler (GCC 12 or later, or Clang), or one that fails; the message ends with its words.
    """
    path = folder / library_name()
    if path.is_file():
        return path
    if sys.platform == "win32":
        raise BuildError("the kernels are not built on Windows: they need GCC's or Clang's vectors")
    compiler = find_compiler().split()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        objects = []
        for name in (*KERNELS, SUPPORT):
            target = target_flags() if name in KERNELS else ()
            objects.append(f"{scratch}/{name}.o")
            _run([*compiler, *FLAGS, *target, "-c", str(FOLDER / name), "-o", objects[-1]])
        _run([*compiler, "-shared", "-pthread", *objects, "-o", f"{scratch}/{path.name}"])
        os.replace(f"{scratch}/{path.name}", path)
    for old in folder.glob("walloc-kernels-*"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        print(compile_library())
    except (BuildError, OSError) as failure:
        raise SystemExit(f"The kernels are not compiled; numpy and torch stand in for them. {failure}") from failure
