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

Nothing less was found that works offline by name. The Hub client knows one cache and no second one to read from.
Answering for it means to replace each of its functions that find files, in each process. Links that are made when a
checkpoint is first loaded are missing to `hf_hub_download`, to code of repositories and to processes without this
package.

Where the cache cannot be written, this process gets one of its own, in the folder of temporary files, with links to
all repositories of the other; huggingface_hub and transformers read `constants.HF_HUB_CACHE` with every call.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .cache_links import COMMIT_PREFIX, is_plain, link_repository, reference, remove_snapshots

BUNDLED_NAMES = (
    "rgb-4x",
    "rgb-4x-klt",
    "rgb-16x",
    "rgb-16x-klt",
    "rgb-f16c12",
    "rgb-f16c48",
    "rgb-f16c192",
    "gray-16x",
    "sentinel2-16x",
    "stereo-5x",
    "stereo-20x",
    "mono-20x",
)
NAMESPACE = "walloc"


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
            link_repository(root / name, repository)
        except OSError:
            if reference(repository) is None:
                unlinked.append(name)
    if unlinked:
        _use_private_cache(unlinked)


def ask_no_hub_for_bundled() -> None:
    """Let transformers take the bundled checkpoints from the Hub cache without asking the Hub for newer ones.

    Every `from_pretrained` first asks for the commit that a revision stands for, through one object, and reads the
    cache alone once it knows it. This answers that one question from the cache, where it is about `main` of a
    repository that is linked and not downloaded; every other question is passed on. The Hub has no such commit, so
    files of it that a user forces to be downloaded are asked for by the revision that the user named. Calling it again
    does no harm.
    """
    from transformers.utils import hub

    api = hub.hf_api()
    ask, find = api.resolve_revision, hub.cached_files
    if getattr(ask, "__name__", "") == "resolve_bundled":
        return

    @functools.wraps(ask)
    def resolve_bundled(
        repo_id: str, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> Any:
        known = revision in (None, "main") and not options.get("repo_type") and not options.get("cache_dir")
        local_files_only = local_files_only or (known and is_linked(repo_id))
        return ask(repo_id, revision=revision, local_files_only=local_files_only, **options)

    @functools.wraps(find)
    def cached_files(*args: Any, **options: Any) -> Any:
        revision = options.get("revision")
        if options.get("force_download") and getattr(revision, "resolved", "").startswith(COMMIT_PREFIX):
            options["revision"] = str(revision)
        return find(*args, **options)

    resolve_bundled.__name__ = "resolve_bundled"
    api.resolve_revision = resolve_bundled  # type: ignore[method-assign]
    hub.cached_files = cached_files


class _Once(logging.Filter):
    """Lets the Hub client say once, and not in every `from_pretrained`, that there is no network."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Could not reach the Hub"):
            return True
        first, _Once.said = not _Once.said, True
        record.msg = f"{record.getMessage()} This is said once; HF_HUB_OFFLINE=1 asks no Hub and says nothing."
        record.args = ()
        return first


def say_once_that_the_hub_is_away() -> None:
    """Calling it again does no harm."""
    client = logging.getLogger("huggingface_hub.hf_api")
    if not any(isinstance(known, _Once) for known in client.filters):
        client.addFilter(_Once())


def is_linked(repo_id: str) -> bool:
    """Whether `main` of a repository in the Hub cache is a bundled checkpoint, and not one that was downloaded."""
    namespace, _, name = repo_id.partition("/")
    if namespace != NAMESPACE or name not in BUNDLED_NAMES:
        return False
    return (reference(_repository(name)) or "").startswith(COMMIT_PREFIX)


def unlink_bundled_checkpoints() -> list[Path]:
    """Take the bundled checkpoints out of the Hub cache again; what the Hub client downloaded stays.

    Returns:
        The folders that were removed: repositories, or revisions of repositories that hold downloaded ones too.
    """
    removed = []
    for name in BUNDLED_NAMES:
        repository = _repository(name)
        if not is_plain(repository):
            continue
        main, snapshots = reference(repository), repository / "snapshots"
        others = [path for path in snapshots.glob("*") if not path.name.startswith(COMMIT_PREFIX)]
        if not others and main and main.startswith(COMMIT_PREFIX):
            shutil.rmtree(repository)
            removed.append(repository)
            continue
        removed += [snapshots / commit for commit in remove_snapshots(repository, None)]
        if main and main.startswith(COMMIT_PREFIX):
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
            link_repository(_bundled_root() / name, repository)
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
