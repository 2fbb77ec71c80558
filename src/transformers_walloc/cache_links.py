"""One repository of the Hub cache that is linked to a folder of this machine, in the layout that `bundled` shows."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .atomic import atomic_file, scratch_folder, write_atomically

# A commit hash is 40 hexadecimal digits. These leading zeros tell ours from those of the Hub.
COMMIT_PREFIX = "0" * 12
_COMMIT = re.compile("[0-9a-f]{40}")
# Larger files are linked, not copied.
_COPIED_BYTES = 2**18
# What the Auto classes look for beside the files that we ship. Unless the cache knows that a file does not exist,
# loading without a network retries for half a minute before it goes on without it.
_OPTIONAL_FILES = (
    "adapter_config.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "processor_config.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
# Where the Hub answers that it knows no such repository, the cache's note of what is missing is not read: an error, if
# there is nothing of that name in the snapshot. So these are there as empty folders, which is no file to anybody, and
# are noted as missing as well.
_EMPTY_FOLDERS = ("adapter_config.json", "processor_config.json", "tokenizer_config.json")


def link_repository(folder: Path, repository: Path) -> None:
    """Make a repository of the Hub cache whose `main` is a bundled folder; one that was downloaded stays as it is.

    Raises:
        OSError: the cache cannot be written.
    """
    if not os.path.lexists(repository):
        # Complete before it is visible. The folder of locks is the one that tools listing the cache skip.
        with scratch_folder(repository.parent / ".locks") as scratch:
            _write_revision(scratch / "repository", folder, _commit_hash(folder))
            with contextlib.suppress(FileExistsError):  # another process was faster
                _rename_new(scratch / "repository", repository)
        return
    if not is_plain(repository):  # whoever made links of these folders wants them to be left alone
        return
    main = reference(repository)
    if main is None and not os.path.lexists(repository / "refs" / "main"):  # of a single revision that was asked for
        return
    if main is not None and not main.startswith(COMMIT_PREFIX):  # a newer commit from the Hub took over
        remove_snapshots(repository, None)
        return
    if main is None or not _is_current(repository, folder, main):
        commit = _commit_hash(folder)
        _write_revision(repository, folder, commit)
        remove_snapshots(repository, commit)


def _rename_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that nobody has. `os.rename` alone would do, but for an empty folder on POSIX."""
    try:
        os.rename(source, target)
    except OSError as error:
        if os.path.lexists(target):
            raise FileExistsError(str(target)) from error
        raise


def is_plain(repository: Path) -> bool:
    """Whether the folders of a repository are folders where they exist, and not links to somewhere else."""
    paths = [repository, *(repository / name for name in ("refs", "snapshots", "blobs", ".no_exist"))]
    return os.path.isdir(repository) and all(p.is_dir() and not p.is_symlink() for p in paths if os.path.lexists(p))


def reference(repository: Path) -> str | None:
    """The commit of `main`; None where there is none that can be read. A pipe in its place is not waited for."""
    path = repository / "refs" / "main"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        text = path.read_bytes()[:100].decode(errors="replace").strip()
    except OSError:
        return None
    return text if _COMMIT.fullmatch(text) else None


def _files(folder: Path) -> list[str]:
    """Relative names of the files of a bundled folder, hidden ones left out."""
    names = []
    for base, subfolders, found in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        relative = os.path.relpath(base, folder)
        names += [os.path.normpath(os.path.join(relative, name)) for name in found if not name.startswith(".")]
    return sorted(names)


def _commit_hash(folder: Path) -> str:
    """40 hexadecimal digits over names and content of all files."""
    digest = hashlib.sha256()
    for name in _files(folder):
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return COMMIT_PREFIX + digest.hexdigest()[: 40 - len(COMMIT_PREFIX)]


def _state(folder: Path) -> dict[str, Any]:
    """What changes whenever a file of the folder is written anew or replaced."""
    states = {name: os.stat(folder / name) for name in _files(folder)}
    return {
        "folder": str(folder),
        "files": {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in states.items()},
    }


def _record_path(repository: Path, commit: str) -> Path:
    return repository / "blobs" / f"{commit}-.linked"


def _record(repository: Path, commit: str) -> dict[str, Any]:
    try:
        record = json.loads(_record_path(repository, commit).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_current(repository: Path, folder: Path, commit: str) -> bool:
    """Whether a revision is that of the folder as it is now, and complete."""
    snapshot = repository / "snapshots" / commit
    state = _state(folder)
    return _record(repository, commit) == state and all((snapshot / name).exists() for name in state["files"])


def _write_revision(repository: Path, folder: Path, commit: str) -> None:
    """Write one revision, every entry in one step, and let `main` point to it at the very end."""
    snapshot, missing = repository / "snapshots" / commit, repository / ".no_exist" / commit
    files = _files(folder)
    for name in files:
        if os.path.getsize(folder / name) <= _COPIED_BYTES:
            write_atomically(snapshot / name, (folder / name).read_bytes())
        else:
            _link(folder / name, snapshot / name, repository / "blobs" / f"{commit}-{name.replace(os.sep, '--')}")
    for name in set(_OPTIONAL_FILES) - set(files):
        missing.mkdir(parents=True, exist_ok=True)
        (missing / name).touch()
        if name in _EMPTY_FOLDERS:
            with contextlib.suppress(FileExistsError):
                (snapshot / name).mkdir()
    write_atomically(_record_path(repository, commit), json.dumps(_state(folder)))  # a hard link changes the ctime
    with atomic_file(repository / "refs" / "main", follow_links=False) as partial:
        partial.write_text(commit)


def _link(source: Path, target: Path, blob: Path) -> None:
    """Make `target` the same file as `source`: a hard link, two symbolic ones, or a copy where neither can be."""
    if os.path.lexists(target) and target.exists() and os.path.samefile(source, target):
        return
    symbolic = not getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False)  # not in huggingface_hub before 1.10
    relative = os.path.relpath(blob, target.parent)
    if _make(target, lambda path: os.link(source, path)):
        return
    if symbolic and _make(blob, lambda path: os.symlink(source, path)):
        if _make(target, lambda path: os.symlink(relative, path)):
            return
        blob.unlink()
    with atomic_file(target, follow_links=False) as partial:
        shutil.copyfile(source, partial)


def _make(path: Path, link: Callable[[Path], None]) -> bool:
    """Put a link there in one step; False where the system does not allow it."""
    try:
        with atomic_file(path, follow_links=False) as partial:
            partial.unlink()
            link(partial)
    except OSError:
        return False
    return True


def remove_snapshots(repository: Path, keep: str | None) -> list[str]:
    """Remove our own revisions but `keep`; with that, those of another installation that is still there stay, too.

    Returns:
        The commits that were removed.
    """
    removed = []
    for snapshot in (repository / "snapshots").glob(COMMIT_PREFIX + "*"):
        commit = snapshot.name
        owner = _record(repository, commit).get("folder")
        mine = _record(repository, keep).get("folder") if keep else None
        if commit == keep or (keep and owner != mine and owner and os.path.isdir(owner)):
            continue
        for path in (snapshot, repository / ".no_exist" / commit):
            shutil.rmtree(path, ignore_errors=True)
        for blob in (repository / "blobs").glob(f"{commit}-*"):
            blob.unlink(missing_ok=True)
        removed.append(commit)
    return removed
