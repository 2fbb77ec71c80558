"""Debian packages: downloaded, unpacked, and what their copyright files say."""

import contextlib
import fnmatch
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


class PackageError(RuntimeError):
    """A package cannot be had here; the message says why and what helps."""


def fetch_package(package: str, folder: Path) -> Path:
    """Downloads a .deb into the folder, or finds it there. PackageError if apt does not have it."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if found:
        return found[-1]
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PackageError(
            f"{package}: this needs apt-get and dpkg-deb (Debian, Ubuntu). Elsewhere put {package}_*.deb from "
            f"https://packages.debian.org/bookworm/{package} into {folder}, or train on a folder of your own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder / f".partial-{package}") as partial:
        done = subprocess.run(
            ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package],
            cwd=partial,
            capture_output=True,
            text=True,
        )
        files = list(partial.glob("*.deb"))
        if done.returncode or not files:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise PackageError(
                f"{package}: apt-get says {reason!r}. Run `apt-get update` first; the package is in Debian 12 "
                "(bookworm main), other releases may have it under another name"
            )
        os.replace(files[0], folder / files[0].name)
    return folder / files[0].name


def unpack_package(deb: Path, folder: Path) -> None:
    """Unpacks a .deb; PackageError if it is damaged."""
    if not shutil.which("dpkg-deb"):
        raise PackageError(f"{deb.name}: dpkg-deb is needed to unpack it")
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise PackageError(f"{deb} cannot be unpacked ({done.stderr.strip()}); delete it and run again")


class Copyright:
    """The licences in a Debian copyright file (machine-readable format 1.0): which applies to a path."""

    def __init__(self, text: str):
        self.rules: list[tuple[str, str]] = []
        if not text.startswith("Format:"):
            return
        for paragraph in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^(Files|License):[ \t]*((?:.*)(?:\n[ \t]+.*)*)", paragraph, re.MULTILINE))
            licence = fields.get("License", "").split("\n")[0].strip()
            if licence:
                self.rules += [(pattern, licence) for pattern in fields.get("Files", "").split()]

    def licence(self, path: str) -> str | None:
        """The licence of the last pattern that names the path or an end of it, as the format prescribes; `*` aside."""
        found = None
        for pattern, licence in self.rules:
            if pattern != "*" and (fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")):
                found = licence
        return found


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder that starts empty, whatever a killed run left in it, and is removed in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
