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
KERNELS = ("encoder.cpp", "block_encoder.cpp", "convolution.cpp", "entropy.cpp", "pixels.cpp")
SUPPORT, HEADERS = "support.cpp", ("kernels.h", "vectors.h", "context_network.h", "range_coder.h")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread", "-Wall", "-Wno-psabi")

# Vectors of 512 bits with 8-bit and 16-bit products (Intel since 2019, AMD since 2022); of 256 bits, with FMA and BMI2
# (since 2013). NEON is part of every 64-bit ARM.
TARGETS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512", "-DWALLOC_AVX512"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": (),
}
X86_LEVELS = ("avx512", "avx2")


class BuildError(RuntimeError):
    """No compiler, or one that cannot compile the kernels."""


def levels(machine: str | None = None) -> tuple[str, ...]:
    """What libraries are compiled for, the widest vectors first: one of them is loaded."""
    return X86_LEVELS if (machine or platform.machine()).lower() in ("x86_64", "amd64") else ("baseline",)


def library_name(level: str) -> str:
    """File name of the library of these very sources: one of other sources is never loaded."""
    digest = hashlib.sha256("\0".join((*FLAGS, *TARGETS[level])).encode())
    for name in (*KERNELS, SUPPORT, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return f"walloc-kernels-{level}-{digest.hexdigest()[:12]}{suffix}"


def find_compiler() -> str:
    """`$CXX`, else the first of c++, g++ and clang++ that there is."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler: neither $CXX nor c++, g++ or clang++ is there")


def compile_libraries(folder: Path = FOLDER) -> list[Path]:
    """Make the library of each level in `folder`, whole or not at all, unless it is there.

    Raises:
        BuildError: no compiler (GCC 12 or later, or Clang), or one that fails; the message ends with its words.
    """
    paths = [folder / library_name(level) for level in levels()]
    for level, path in zip(levels(), paths, strict=True):
        if not path.is_file():
            _compile(level, path)
    if folder == FOLDER:  # any other one may serve other versions of the package, in environments of their own
        for old in folder.glob("walloc-kernels-*"):
            if old not in paths:
                old.unlink(missing_ok=True)
    return paths


def _compile(level: str, path: Path) -> None:
    if sys.platform == "win32":
        raise BuildError("the kernels are not built on Windows: they need GCC's or Clang's vectors")
    compiler = find_compiler().split()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as scratch:
        objects = []
        for name in (*KERNELS, SUPPORT):
            # What asks the processor must run on any: it gets the definitions alone.
            target = [flag for flag in TARGETS[level] if name in KERNELS or flag.startswith("-D")]
            objects.append(f"{scratch}/{name}.o")
            _run([*compiler, *FLAGS, *target, "-c", str(FOLDER / name), "-o", objects[-1]])
        _run([*compiler, "-shared", "-pthread", *objects, "-o", f"{scratch}/{path.name}"])
        os.replace(f"{scratch}/{path.name}", path)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        print(*compile_libraries(), sep="\n")
    except (BuildError, OSError) as failure:
        raise SystemExit(f"The kernels are not compiled; numpy and torch stand in for them. {failure}") from failure
