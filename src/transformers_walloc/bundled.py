"""The checkpoints that travel with the package, and their place in the Hub cache.

`from_pretrained("walloc/rgb-16x")` asks the Hub and falls back on the Hub cache when there is no network. Linking the
bundled folders into that cache makes the ids work on a machine that never had a network, while a commit on the Hub
still wins where there is one; transformers itself is not patched. A linked repository looks like a downloaded one:

    models--walloc--rgb-16x/
      refs/main                              the commit that "main" stands for
      snapshots/<commit>/config.json         -> ../../blobs/<commit>-config.json
      blobs/<commit>-config.json             -> <package>/model_cards/rgb-16x/config.json
      .no_exist/<commit>/adapter_config.json files known to be missing, so that nobody asks the network for them

The second hop keeps the package safe: deleting a cached revision deletes what its snapshot points to, a mere link.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import constants

BUNDLED_NAMES = ("rgb-4x", "rgb-16x", "rgb-16x-klt", "stereo-5x", "stereo-20x")
NAMESPACE = "walloc"

# A commit hash is 40 hexadecimal digits. These leading zeros tell ours from those of the Hub.
_COMMIT_PREFIX = "0" * 12

# What the Auto classes look for beside the files that we ship. Unless the cache knows that a file does not exist,
# loading without a network retries for half a minute before it goes on without it.
_OPTIONAL_FILES = (
    "adapter_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)

# Image processors and feature extractors look here first. Where the Hub answers that it knows no such repository, only
# files that exist are taken from the cache, so this one has to; without entries it leads to preprocessor_config.json.
_PROCESSOR_FILE, _EMPTY_PROCESSOR = "processor_config.json", "{}"


def bundled_path(name: str) -> Path:
    """The folder of a bundled checkpoint: a complete model folder for `from_pretrained`, with its model card.

    Args:
        name: "rgb-4x", "rgb-16x", "rgb-16x-klt", "stereo-5x" or "stereo-20x", with or without the leading "walloc/".

    Raises:
        ValueError: no bundled checkpoint has this name.
        FileNotFoundError: this installation came without the checkpoints.
    """
    short = name.removeprefix(f"{NAMESPACE}/") if isinstance(name, str) else name
    if short not in BUNDLED_NAMES:
        raise ValueError(f"no bundled checkpoint is named {name!r}; choose from {', '.join(BUNDLED_NAMES)}")
    folder = _bundled_root() / short
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"this installation has no bundled checkpoint {short!r}: {folder} has no config.json")
    return folder


def bundled_reader(codec: str, fingerprint: str) -> str | None:
    """Name of the bundled checkpoint that reads a file, None if there is none.

    A codec that was trained further keeps its name, and what the name stood for before moves on to another folder: the
    fingerprint of the latents decides.

    Args:
        codec: name of the codec that the file states.
        fingerprint: of its latents, as the file states it.
    """
    if codec not in BUNDLED_NAMES:
        return None
    for name in (codec, *BUNDLED_NAMES):
        try:
            config = json.loads((_bundled_root() / name / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if config.get("latent_fingerprint") == fingerprint:
            return name
    return codec


def link_bundled_checkpoints() -> None:
    """Link the bundled checkpoints into the Hub cache where it has no repository of the same id yet.

    Called by `import transformers_walloc`. A repository downloaded by the Hub client is never touched; links of ours
    that a moved or upgraded package left behind are renewed. Without a writable cache nothing happens. The environment
    variable `WALLOC_NO_BUNDLED=1` switches it off.
    """
    if os.environ.get("WALLOC_NO_BUNDLED", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return
    cache, root = Path(constants.HF_HUB_CACHE), _bundled_root()
    for name in BUNDLED_NAMES:
        try:
            _link_repository(root / name, cache / f"models--{NAMESPACE}--{name}")
        except OSError:  # a missing folder, a read-only or full cache: the package works without the links
            continue


def _bundled_root() -> Path:
    packaged = Path(__file__).parent / "model_cards"  # in a wheel; a checkout keeps them two levels above
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_cards"


def _link_repository(folder: Path, repository: Path) -> None:
    files = _files(folder)
    commit = _commit_hash(folder, files)
    try:
        main = (repository / "refs" / "main").read_text(errors="replace").strip()
    except FileNotFoundError:
        main = None
    if main is None:
        if repository.exists():  # the Hub client's, for example of a single pinned revision
            return
        # Complete before it is visible. The folder of locks is the one that tools listing the cache skip.
        scratch = repository.parent / ".locks"
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="walloc-", dir=scratch, ignore_cleanup_errors=True) as temporary:
            _write_repository(Path(temporary) / "repository", folder, files, commit)
            os.rename(Path(temporary) / "repository", repository)  # fails where another process was faster
        return
    if not main.startswith(_COMMIT_PREFIX):  # a newer commit from the Hub took over
        _remove_snapshots(repository, folder, keep=None)
        return
    if main != commit or not all((repository / "snapshots" / commit / name).exists() for name in files):
        _write_repository(repository, folder, files, commit)
        _remove_snapshots(repository, folder, keep=commit)


def _files(folder: Path) -> list[str]:
    """Relative names of the files of a bundled folder, hidden ones left out; OSError where there is no checkpoint."""
    names = []
    for base, subfolders, found in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        relative = os.path.relpath(base, folder)
        names += [os.path.normpath(os.path.join(relative, name)) for name in found if not name.startswith(".")]
    if "config.json" not in names:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    return sorted(names)


def _commit_hash(folder: Path, files: list[str]) -> str:
    """40 hexadecimal digits that differ between checkpoints, from the first and last 4 KiB of every file.

    Reading the weights in full would slow every import down, and the links always show the current content anyway.
    """
    digest = hashlib.sha256()
    for name in files:
        with open(folder / name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            tail = file.read(4096)
            file.seek(0)
            digest.update(f"{name}\0{size}\0".encode() + file.read(4096) + tail)
    return _COMMIT_PREFIX + digest.hexdigest()[: 40 - len(_COMMIT_PREFIX)]


def _write_repository(repository: Path, folder: Path, files: list[str], commit: str) -> None:
    """Write one revision, every entry in one step, and let `main` point to it at the very end."""
    snapshot, missing = repository / "snapshots" / commit, repository / ".no_exist" / commit
    for name in files:
        blob = repository / "blobs" / f"{commit}-{name.replace(os.sep, '--')}"
        try:
            if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):  # not in huggingface_hub before 1.10
                raise OSError("symbolic links are switched off")
            _create(blob, lambda path: os.symlink(folder / name, path))  # noqa: B023 (called at once)
            relative = os.path.relpath(blob, (snapshot / name).parent)
            _create(snapshot / name, lambda path: os.symlink(relative, path))  # noqa: B023
        except OSError:  # Windows without the privilege: as the Hub client does, the file itself
            _create(snapshot / name, lambda path: _link_or_copy(folder / name, path))  # noqa: B023
    if _PROCESSOR_FILE not in files:
        _create(snapshot / _PROCESSOR_FILE, lambda path: Path(path).write_text(_EMPTY_PROCESSOR))
    for name in set(_OPTIONAL_FILES) - set(files):
        missing.mkdir(parents=True, exist_ok=True)
        (missing / name).touch()
    _create(repository / "refs" / "main", lambda path: Path(path).write_text(commit))


def _create(path: Path, write) -> None:
    """Let `write` make a temporary entry beside `path`, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def _link_or_copy(source: Path, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove_snapshots(repository: Path, folder: Path, keep: str | None) -> None:
    """Remove our own revisions but `keep`. Those linked by another, living installation stay while `keep` is given."""
    for snapshot in (repository / "snapshots").glob(_COMMIT_PREFIX + "*"):
        blobs = list((repository / "blobs").glob(f"{snapshot.name}-*"))
        foreign = blobs and all(blob.exists() and folder not in Path(os.readlink(blob)).parents for blob in blobs)
        if snapshot.name == keep or (keep and foreign):
            continue
        for path in (snapshot, repository / ".no_exist" / snapshot.name):
            shutil.rmtree(path, ignore_errors=True)
        for blob in blobs:
            blob.unlink(missing_ok=True)
