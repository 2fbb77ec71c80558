"""Damaged payloads, random codes and random pictures through the compiled kernels, under AddressSanitizer and UBSan.

    python -m research.fuzz_kernels 1000000 [SEED] [--skip DONE]

Starts from files of the bundled codecs and from random tables of every form. Whatever is read or written beyond an
array, overflows, or does not come back as it went in ends the run with the sanitizer's report and a non-zero exit.
Every 10,000 inputs are a process with a seed of its own; `--skip` goes on where an interrupted run has stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from transformers_walloc import WallocAudioEncoder, WallocImageEncoder, bundled_path
from transformers_walloc.codec.entropy_coding import EntropyTables, encode_codes
from transformers_walloc.codec.entropy_kernel import EntropyKernel
from transformers_walloc.codec.entropy_tables import CLASS_SHIFT, NUM_PHASES, GenericHeader
from transformers_walloc.native.build import FOLDER, KERNELS, find_compiler

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
PAYLOADS = 6  # of each table
CHUNK = 10_000  # inputs of a process


def random_codes(rng: np.random.Generator, channels: int, ndim: int) -> np.ndarray:
    shape = (channels, *rng.integers(1, 10, ndim)) if ndim == 2 else (channels, int(rng.integers(1, 60)))
    scale = 10 ** rng.uniform(-1, 1.5) * 0.8 ** np.arange(channels).reshape(-1, *[1] * ndim)
    return np.clip(np.rint(rng.laplace(size=shape) * scale), -127, 127).astype(np.int8)


def dump_tables(tables: EntropyTables, kernel: EntropyKernel) -> bytes:
    """The kernel's structures, field by field, each array behind its structure."""
    from transformers_walloc.codec import entropy_kernel as layout

    def numbers(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}i", *values)

    def array(address: int, size: int) -> bytes:
        return ctypes.string_at(address, size) if size else b""

    whole = kernel._tables
    groups = (layout._Group * whole.num_groups).from_address(whole.groups)
    out = [numbers(whole.num_dims, whole.num_groups)]
    for group in groups:
        out.append(numbers(group.first, group.size, group.num_passes))
        for step in (layout._Pass * group.num_passes).from_address(group.passes):
            counts = (group.first + step.num_neighbours * group.size, group.first, 8 * (group.first > 0))
            pairs = sum(-(-count // 8) * 8 for count in counts)
            fields = [getattr(step, field[0]) for field in layout._Pass._fields_[:9]]
            out += [
                numbers(*fields, pairs),
                array(step.neighbours, 8 * step.num_neighbours),
                array(step.levels, 2 * group.size * step.sums),
                array(step.first, 4 * pairs * step.sums),
                array(step.first_bias, 4 * step.sums),
                array(step.second, 2 * step.hidden * step.outputs),
                array(step.second_bias, 4 * step.outputs),
            ]
    out += [
        array(whole.cumulative, 4 * 256 * 32),
        array(whole.coarse, 2 * 256 * 32),
        array(whole.magnitude, 256),
        array(whole.shift, 256),
    ]
    return b"".join(out)


def dump_case(rng: np.random.Generator, tables: EntropyTables) -> bytes:
    kernel = EntropyKernel(tables, np.repeat(CLASS_SHIFT, NUM_PHASES))
    out = [dump_tables(tables, kernel), struct.pack("<i", PAYLOADS)]
    for _ in range(PAYLOADS):
        codes = random_codes(rng, int(rng.integers(1, tables.num_channels + 1)), tables.ndim)
        data = encode_codes(codes, tables)
        levels, words = data[: len(codes)], data[len(codes) :]
        height = codes.shape[1] if codes.ndim == 3 else 1
        out += [struct.pack("<4i", len(codes), height, codes.shape[-1], len(words)), levels, words]
    return b"".join(out)


def all_tables(rng: np.random.Generator) -> list[EntropyTables]:
    tables = [
        model_class.from_pretrained(bundled_path(name)).get_entropy_tables()
        for model_class, name in (
            (WallocImageEncoder, "rgb-16x"),
            (WallocImageEncoder, "rgb-4x"),
            (WallocAudioEncoder, "stereo-20x"),
        )
    ]
    for channels, ndim in ((1, 2), (5, 2), (27, 1), (40, 2)):
        tables.append(GenericHeader.measure(random_codes(rng, channels, ndim)).tables(ndim))
    return tables


def compile_harness(path: str) -> None:
    sources = [Path(__file__).with_suffix(".cpp"), *(FOLDER / name for name in KERNELS)]
    machine = ("-march=native",) if os.uname().machine == "x86_64" else ()
    command = [*find_compiler().split(), "-std=c++17", "-O1", "-g", "-pthread", "-Wno-psabi", *SANITIZERS, *machine]
    subprocess.run([*command, f"-I{FOLDER}", *map(str, sources), "-o", path], check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="inputs")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--skip", type=int, default=0, help="inputs that were done before")
    arguments = parser.parse_args(argv)
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=0"}
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(arguments.seed)
        cases = [dump_case(rng, tables) for tables in all_tables(rng)]
        Path(folder, "cases").write_bytes(struct.pack("<i", len(cases)) + b"".join(cases))
        compile_harness(f"{folder}/harness")
        done = arguments.skip
        while done < arguments.count:
            count = min(CHUNK, arguments.count - done)
            seed = (arguments.seed << 32) + done
            command = [f"{folder}/harness", f"{folder}/cases", str(count), str(seed)]
            status = subprocess.run(command, env=environment, check=False).returncode
            if status:  # negative: a signal
                print(f"the harness ended with status {status} among {count} inputs after {done}, seed {seed}")
                return 1
            done += count
            print(
                f"{done} inputs, peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:.0f} MB", flush=True
            )
    print(f"{arguments.count} inputs, nothing found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
