"""The checkpoints that travel with the package, and their place in the Hub cache.

Linking the bundled folders into the Hub cache makes `from_pretrained("walloc/rgb-16x")` work on a machine that never
had a network. As long as `main` of such a repository is ours, transformers asks no Hub for it
(`ask_no_hub_for_bundled`): networks that refuse or hang change nothing, and loading takes as long as reading the files.
Who wants what is on the Hub now downloads it (`hf download walloc/rgb-16x`), and from then on the id is one like any
other. A linked repository looks like a downloaded one:

  models--walloc--rgb-16x/
      refs/main                               the commit that "main" stands for, here a hash of the whole content
      snapshots/<commit>/config.json          a copy: small files outlive the package
      snapshots/<commit>/model.safetensors    the same file as the package's (a hard link), else
                                              -> ../../blobs/<commit>-model.safetensors -> <package>/model_cards/...
      blobs/<commit>-.linked                  what was linked, so that the content is hashed only when it has changed
      .no_exist/<commit>/adapter_config.json  files known to be missing, so that nobody asks the network for them
      snapshots/<commit>/adapter_config.json  an empty folder, see `_EMPTY_FOLDERS`

Two hops of links keep the package safe: deleting a cached revision deletes what its snapshot points to, a mere link.
Such links, of a cache on another file system, point nowhere once the package is removed: `walloc unlink` before that.

Where the cache cannot be written, this process gets one of its own, in the folder of temporary files, with links to
all repositories of the other; huggingface_hub and transformers read `constants.HF_HUB_CACHE` with every call.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .atomic import atomic_file, scratch_folder, write_atomically

BUNDLED_NAMES = (
    "rgb-4x",
    "rgb-4x-klt",
    "rgb-16x",
    "rgb-16x-klt",
    "gray-16x",
    "sentinel2-16x",
    "stereo-5x",
    "stereo-20x",
    "mono-20x",
)
NAMESPACE = "walloc"

# A commit hash is 40 hexadecimal digits. These leading zeros tell ours from those of the Hub.
_COMMIT_PREFIX = "0" * 12
_COMMIT = re.compile("[0-9a-f]{40}")

# Larger files are linked, not copied.
_COPIED_BYTES = 2**18

# What the Auto classes look for beside the files that we ship. Unless the cache knows that a file does not exist,
# loading without a network retries for half a minute before it goes on without it.
_OPTIONAL_FILES = (
    "adapter_config.json",
    "added_tokens.json",
    "audio_tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "processor_config.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)

# Where the Hub answers that it knows no such repository, the cache's note of what is missing is not read: an error, if
# there is nothing of that name in the snapshot. So these are there as empty folders, which is no file to anybody, and
# are noted as missing as well.
_EMPTY_FOLDERS = ("adapter_config.json", "processor_config.json", "tokenizer_config.json")


def bundled_path(name: str) -> Path:
    """The folder of a bundled checkpoint: a complete model folder for `from_pretrained`, with its model card.

    Args:
        name: one of `BUNDLED_NAMES`, with or without the leading "walloc/".

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

    Called by `import transformers_walloc`. What the Hub client downloaded is never touched; links of ours that a moved
    or upgraded package left behind are renewed. The environment variable `WALLOC_NO_BUNDLED=1` switches it off.

    Warns:
        UserWarning: the cache can neither be written nor has the ids. This process uses a temporary one then; where
            there is none either, the ids do not work without a network.
    """
    if os.environ.get("WALLOC_NO_BUNDLED", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return
    root, unlinked = _bundled_root(), []
    for name in BUNDLED_NAMES:
        if not (root / name / "config.json").is_file():  # an installation without this checkpoint
            continue
        repository = _repository(name)
        try:
            _link_repository(root / name, repository)
        except OSError:
            if _reference(repository) is None:
                unlinked.append(name)
    if unlinked:
        _use_private_cache(unlinked)


def ask_no_hub_for_bundled() -> None:
    """Let transformers take the bundled checkpoints from the Hub cache without asking the Hub for newer ones.

    Every `from_pretrained` first asks for the commit that a revision stands for, through one object, and reads the
    cache alone once it knows it. This answers that one question from the cache, where it is about `main` of a
    repository that is linked and not downloaded; every other question is passed on. Calling it again does no harm.
    """
    from transformers.utils.hub import hf_api

    api = hf_api()
    ask = api.resolve_revision
    if getattr(ask, "__name__", "") == "resolve_bundled":
        return

    @functools.wraps(ask)
    def resolve_bundled(repo_id: str, *, revision: str | None = None, local_files_only: bool = False, **options: Any):
        known = revision in (None, "main") and not options.get("repo_type") and not options.get("cache_dir")
        local_files_only = local_files_only or (known and is_linked(repo_id))
        return ask(repo_id, revision=revision, local_files_only=local_files_only, **options)

    resolve_bundled.__name__ = "resolve_bundled"
    api.resolve_revision = resolve_bundled  # type: ignore[method-assign]


def is_linked(repo_id: str) -> bool:
    """Whether `main` of a repository in the Hub cache is a bundled checkpoint, and not one that was downloaded."""
    namespace, _, name = repo_id.partition("/")
    if namespace != NAMESPACE or name not in BUNDLED_NAMES:
        return False
    return (_reference(_repository(name)) or "").startswith(_COMMIT_PREFIX)


def unlink_bundled_checkpoints() -> list[Path]:
    """Take the bundled checkpoints out of the Hub cache again; what the Hub client downloaded stays.

    Returns:
        The folders that were removed: repositories, or revisions of repositories that hold downloaded ones too.
    """
    removed = []
    for name in BUNDLED_NAMES:
        repository = _repository(name)
        if not _is_plain(repository):
            continue
        main, snapshots = _reference(repository), repository / "snapshots"
        others = [path for path in snapshots.glob("*") if not path.name.startswith(_COMMIT_PREFIX)]
        if not others and main and main.startswith(_COMMIT_PREFIX):
            shutil.rmtree(repository)
            removed.append(repository)
            continue
        removed += [snapshots / commit for commit in _remove_snapshots(repository, None)]
        if main and main.startswith(_COMMIT_PREFIX):
            (repository / "refs" / "main").unlink()
    return removed


def _use_private_cache(names: list[str]) -> None:
    """Link the named checkpoints into a cache for this process alone, with what the one that cannot be written has."""
    cache = os.path.abspath(constants.HF_HUB_CACHE)
    said = f"the Hub cache {cache} cannot be written"
    try:
        private = tempfile.mkdtemp(prefix="walloc-hub-")
        atexit.register(_remove_private_cache, private, os.getpid())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for entry in os.scandir(cache):
                if not entry.name.startswith("."):  # .locks is written
                    os.symlink(entry.path, os.path.join(private, entry.name))
        for name in names:
            repository = Path(private) / _repository(name).name
            repository.unlink(missing_ok=True)  # a broken one
            _link_repository(_bundled_root() / name, repository)
    except OSError:
        unknown = ", ".join(f"{NAMESPACE}/{name}" for name in names)
        warnings.warn(
            f"{said}, so from_pretrained does not find {unknown} without a network: set HF_HOME to a folder that can "
            f"be written, or load from transformers_walloc.bundled_path({names[0]!r})",
            stacklevel=3,
        )
        return
    constants.HF_HUB_CACHE = private
    warnings.warn(
        f"{said}: what this process downloads is kept in {private} until it ends; set HF_HOME to a folder that can be "
        "written",
        stacklevel=3,
    )


def _remove_private_cache(folder: str, process: int) -> None:
    if os.getpid() == process:  # and not one that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


def _repository(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{NAMESPACE}--{name}"


def _bundled_root() -> Path:
    packaged = Path(__file__).parent / "model_cards"  # in a wheel; a checkout keeps them two levels above
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_cards"


def _link_repository(folder: Path, repository: Path) -> None:
    if not os.path.lexists(repository):
        # Complete before it is visible. The folder of locks is the one that tools listing the cache skip.
        with scratch_folder(repository.parent / ".locks") as scratch:
            _write_revision(scratch / "repository", folder, _commit_hash(folder))
            with contextlib.suppress(FileExistsError):  # another process was faster
                _rename_new(scratch / "repository", repository)
        return
    if not _is_plain(repository):  # whoever made links of these folders wants them to be left alone
        return
    main = _reference(repository)
    if main is None and not os.path.lexists(repository / "refs" / "main"):  # of a single revision that was asked for
        return
    if main is not None and not main.startswith(_COMMIT_PREFIX):  # a newer commit from the Hub took over
        _remove_snapshots(repository, None)
        return
    if main is None or not _is_current(repository, folder, main):
        commit = _commit_hash(folder)
        _write_revision(repository, folder, commit)
        _remove_snapshots(repository, commit)


def _rename_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that nobody has. `os.rename` alone would do, but for an empty folder on POSIX."""
    try:
        os.rename(source, target)
    except OSError as error:
        if os.path.lexists(target):
            raise FileExistsError(str(target)) from error
        raise


def _is_plain(repository: Path) -> bool:
    """Whether the folders of a repository are folders where they exist, and not links to somewhere else."""
    paths = [repository, *(repository / name for name in ("refs", "snapshots", "blobs", ".no_exist"))]
    return os.path.isdir(repository) and all(p.is_dir() and not p.is_symlink() for p in paths if os.path.lexists(p))


def _reference(repository: Path) -> str | None:
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
    return _COMMIT_PREFIX + digest.hexdigest()[: 40 - len(_COMMIT_PREFIX)]


def _state(folder: Path) -> dict:
    """What changes whenever a file of the folder is written anew or replaced."""
    states = {name: os.stat(folder / name) for name in _files(folder)}
    return {
        "folder": str(folder),
        "files": {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in states.items()},
    }


def _record_path(repository: Path, commit: str) -> Path:
    return repository / "blobs" / f"{commit}-.linked"


def _record(repository: Path, commit: str) -> dict:
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


def _make(path: Path, link) -> bool:
    """Put a link there in one step; False where the system does not allow it."""
    try:
        with atomic_file(path, follow_links=False) as partial:
            partial.unlink()
            link(partial)
    except OSError:
        return False
    return True


def _remove_snapshots(repository: Path, keep: str | None) -> list[str]:
    """Remove our own revisions but `keep`; with that, those of another installation that is still there stay, too.

    Returns:
        The commits that were removed.
    """
    removed = []
    for snapshot in (repository / "snapshots").glob(_COMMIT_PREFIX + "*"):
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
