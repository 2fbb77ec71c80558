"""The one way in which anything is written: complete or not at all.

```python
write_atomically("results.json", text)             # bytes or text
with atomic_file("figure.png") as partial:         # whatever writes to a path
    figure.savefig(partial, format="png")
with atomic_folder("checkpoint", overwrite=True) as partial:
    model.save_pretrained(partial)
```

Each appears under its name complete or not at all, also when the process is killed in the middle. What a killed process
leaves is a hidden `.NAME.HOST-PID-RANDOM.part` beside the target; the next write into the same folder removes it.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, in one step; folders on the way are made.

    A link is followed, and a file that exists keeps its permissions.

    Raises:
        OSError: the file cannot be written; nothing has changed.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], follow_links: bool = True) -> Iterator[Path]:
    """A path in the same folder that becomes `path` when the block ends without an exception.

    The file behind it exists, empty. Its name has no telling suffix: tell the writer the format. Where `path` is a
    link, what it points to is written, or with `follow_links` false the link is replaced.
    """
    target = Path(os.path.realpath(path) if follow_links else os.path.abspath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    partial = _partial(target)
    # As `open` would; not all writers do (safetensors makes files that only their owner reads).
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    try:
        yield partial
        if follow_links:
            with contextlib.suppress(FileNotFoundError):
                mode = target.stat().st_mode
        if not partial.is_symlink() and partial.stat().st_nlink == 1:  # it is not ours alone otherwise
            os.chmod(partial, stat.S_IMODE(mode))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
        _partials.discard(partial)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` that becomes `path` when the block ends without an exception.

    With `overwrite` a folder of that name is replaced as a whole: on Linux and macOS both change places in one step, so
    that at any moment one of them is there. Elsewhere there is a moment between two renames at which neither is.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or it is no folder.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not (overwrite and target.is_dir()):
        message = "exists already" if target.is_dir() else "exists and is no folder"
        raise FileExistsError(errno.EEXIST, message, str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    partial = _partial(target)
    partial.mkdir()
    try:
        yield partial
        _open_to_readers(partial)
        if target.exists():
            if not overwrite:
                raise FileExistsError(errno.EEXIST, "another process made it meanwhile", str(path))
            _exchange(partial, target)
        else:
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _partials.discard(partial)


def _open_to_readers(folder: Path) -> None:
    """Files that only their owner reads, as safetensors makes them, get what the folder's own permissions say."""
    usual = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:  # it is not ours alone otherwise
            path.chmod(stat.S_IMODE(found.st_mode) | usual)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside of another, for what is renamed from there. It goes at the end, or with the next one that is
    made there if this process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial = _partial(folder / "scratch")
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _partials.discard(partial)


def remove_partial_files() -> None:
    """Remove what is being written by this process, for one that ends without unwinding."""
    for partial in list(_partials):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


_partials: set[Path] = set()
_PARTIAL = re.compile(r"\..*\.([0-9a-f]{6})-(\d+)-[0-9a-f]{8}\.part", re.DOTALL)


def _partial(target: Path) -> Path:
    """A name beside the target, short enough for any file system."""
    partial = target.with_name(f".{target.name[:40]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    _partials.add(partial)
    return partial


@functools.cache
def _host() -> str:
    """Tells machines apart, and containers on one machine: process numbers mean something on their own only."""
    space = os.readlink("/proc/self/ns/pid") if os.path.islink("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:6]


@functools.lru_cache(maxsize=1024)  # a folder once in each process: many files are often written into one
def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _PARTIAL.fullmatch(entry.name)
            if match is None or match[1] != _host() or _is_alive(int(match[2])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change places, in one step where the system can."""
    pair = os.fsencode(new), os.fsencode(old)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*pair, 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD
            failed = library.renameat2(here, pair[0], here, pair[1], 2)  # RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # another libc, Windows
        failed = True
    if not failed:
        return
    aside = _partial(old)
    _partials.discard(aside)  # until the new one is in place, it is all that there is
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    shutil.rmtree(aside, ignore_errors=True)
