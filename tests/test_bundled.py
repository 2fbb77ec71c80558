"""The bundled checkpoints in the Hub cache, judged by the Hub client's own look-up and clean-up functions."""

import inspect
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub.hf_api
import pytest
from huggingface_hub import _CACHED_NO_EXIST, constants, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError

from transformers_walloc import bundled, cache_links

HUB_COMMIT = "5" * 40


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the installed folder of checkpoints, and an empty Hub cache of its own."""
    root = write_checkpoints(tmp_path / "installed", "first")
    monkeypatch.setattr(bundled, "_bundled_root", lambda: root)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("WALLOC_NO_BUNDLED", raising=False)
    return root


def write_checkpoints(root: Path, text: str) -> Path:
    for name in bundled.BUNDLED_NAMES:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"text": text, "name": name}))
        (root / name / "model.safetensors").write_bytes(text.encode() * 100_000)
        (root / name / ".hidden").write_text("not part of the checkpoint")
    return root


def cached(filename: str = "config.json", name: str = "rgb-16x", revision: str | None = None):
    return try_to_load_from_cache(f"walloc/{name}", filename, cache_dir=constants.HF_HUB_CACHE, revision=revision)


def repository(name: str = "rgb-16x") -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--walloc--{name}"


def snapshots() -> list[str]:
    return sorted(path.name for path in (repository() / "snapshots").iterdir())


def add_hub_commit(text: str = "from the Hub") -> None:
    """What the Hub client leaves behind after it downloaded a newer commit of main."""
    for folder in (f"snapshots/{HUB_COMMIT}", "refs", "blobs"):
        (repository() / folder).mkdir(parents=True, exist_ok=True)
    (repository() / "blobs" / "etag").write_text(text)
    (repository() / "snapshots" / HUB_COMMIT / "config.json").symlink_to("../../blobs/etag")
    (repository() / "refs" / "main").write_text(HUB_COMMIT)


@pytest.mark.parametrize("name", bundled.BUNDLED_NAMES)
def test_path_by_name_and_by_hub_id(package, name):
    assert bundled.bundled_path(name) == bundled.bundled_path(f"walloc/{name}") == package / name


@pytest.mark.parametrize("name", ["rgb-8x", "", "walloc/", "../rgb-16x", "other/rgb-16x", None])
def test_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"rgb-4x, rgb-4x-klt, rgb-16x, rgb-16x-klt, .*mono-20x"):
        bundled.bundled_path(name)


def test_missing_folder_is_named(package):
    (package / "rgb-4x" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="rgb-4x"):
        bundled.bundled_path("rgb-4x")


@pytest.mark.parametrize("hard_links", [True, False])
def test_weights_are_those_of_the_package_and_small_files_are_copied(package, monkeypatch, hard_links):
    if not hard_links:  # another file system
        monkeypatch.setattr(os, "link", no_links)
    bundled.link_bundled_checkpoints()
    for name in bundled.BUNDLED_NAMES:
        assert os.path.samefile(cached("model.safetensors", name), package / name / "model.safetensors")
        assert Path(cached("config.json", name)).read_text() == (package / name / "config.json").read_text()
        assert not os.path.samefile(cached("config.json", name), package / name / "config.json")
        assert cached(".hidden", name) is None
        assert cached("adapter_config.json", name) is _CACHED_NO_EXIST
        assert Path(cached("model.safetensors", name)).is_symlink() is not hard_links


def no_links(*_, **__):
    raise OSError("links are not possible here")


def test_second_call_changes_nothing(package):
    bundled.link_bundled_checkpoints()
    before = {path: path.lstat().st_mtime_ns for path in repository().rglob("*")}
    bundled.link_bundled_checkpoints()
    assert {path: path.lstat().st_mtime_ns for path in repository().rglob("*")} == before


@pytest.mark.parametrize("refs", [True, False])
def test_downloaded_repository_is_left_alone(package, refs):
    add_hub_commit()
    if not refs:  # the client was asked for one pinned commit
        (repository() / "refs" / "main").unlink()
    before = sorted(repository().rglob("*"))
    bundled.link_bundled_checkpoints()
    assert sorted(repository().rglob("*")) == before
    assert Path(cached(revision=HUB_COMMIT)).read_text() == "from the Hub"
    assert cached(name="rgb-4x") is not None


def test_newer_hub_commit_takes_over_for_good(package):
    bundled.link_bundled_checkpoints()
    add_hub_commit()
    bundled.link_bundled_checkpoints()
    assert Path(cached()).read_text() == "from the Hub"
    assert snapshots() == [HUB_COMMIT]
    assert os.listdir(repository() / "blobs") == ["etag"]
    assert bundled.unlink_bundled_checkpoints() == [
        repository(name) for name in bundled.BUNDLED_NAMES if name != "rgb-16x"
    ]
    assert Path(cached()).read_text() == "from the Hub"


def test_pinned_hub_commit_survives_an_upgrade_of_ours(package):
    bundled.link_bundled_checkpoints()
    ours = (repository() / "refs" / "main").read_text()
    add_hub_commit()
    (repository() / "refs" / "main").write_text(ours)
    (package / "rgb-16x" / "config.json").write_text("upgraded")
    bundled.link_bundled_checkpoints()
    assert Path(cached()).read_text() == "upgraded"
    assert Path(cached(revision=HUB_COMMIT)).read_text() == "from the Hub"


def test_moved_package_is_linked_again(package, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    bundled.link_bundled_checkpoints()
    moved = package.rename(package.with_name("moved"))
    monkeypatch.setattr(bundled, "_bundled_root", lambda: moved)
    assert cached("model.safetensors") is None
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached("model.safetensors"), moved / "rgb-16x" / "model.safetensors")


def test_upgrade_replaces_the_old_revision(package):
    bundled.link_bundled_checkpoints()
    before = snapshots()
    (package / "rgb-16x" / "model.safetensors").write_bytes(b"retrained")
    bundled.link_bundled_checkpoints()
    assert Path(cached("model.safetensors")).read_bytes() == b"retrained"
    assert len(snapshots()) == 1 and snapshots() != before


@pytest.mark.parametrize("hard_links", [True, False])
def test_two_installations_share_a_cache(package, tmp_path, monkeypatch, hard_links):
    """Of equal size and time, and different only in the middle of the weights."""
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    other = write_checkpoints(tmp_path / "other", "first")
    weights = (package / "rgb-16x" / "model.safetensors").read_bytes()
    half = len(weights) // 2
    (other / "rgb-16x" / "model.safetensors").write_bytes(weights[:half] + b"?" + weights[half + 1 :])
    for path in (package, other):
        os.utime(path / "rgb-16x" / "model.safetensors", (10**9, 10**9))
    bundled.link_bundled_checkpoints()
    first = (repository() / "refs" / "main").read_text()
    monkeypatch.setattr(bundled, "_bundled_root", lambda: other)
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached("model.safetensors"), other / "rgb-16x" / "model.safetensors")
    # A process of the first installation may be loading this very moment.
    pinned = cached("model.safetensors", revision=first)
    assert os.path.samefile(pinned, package / "rgb-16x" / "model.safetensors")
    monkeypatch.setattr(bundled, "_bundled_root", lambda: package)
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached("model.safetensors"), package / "rgb-16x" / "model.safetensors")


def test_switched_off(package, monkeypatch):
    monkeypatch.setenv("WALLOC_NO_BUNDLED", "1")
    bundled.link_bundled_checkpoints()
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.fixture
def unusable(package, tmp_path, monkeypatch):
    """A Hub cache that is none, and temporary files of its own."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def test_a_process_with_an_unusable_cache_gets_its_own(unusable, package):
    with pytest.warns(UserWarning, match="cannot be written: what this process downloads"):
        bundled.link_bundled_checkpoints()
    assert Path(constants.HF_HUB_CACHE).parent == unusable / "temporary"
    assert os.path.samefile(cached("model.safetensors"), package / "rgb-16x" / "model.safetensors")
    bundled.link_bundled_checkpoints()  # another import changes nothing
    bundled._remove_private_cache(constants.HF_HUB_CACHE, 0)
    assert cached("model.safetensors")
    bundled._remove_private_cache(constants.HF_HUB_CACHE, os.getpid())
    assert not any((unusable / "temporary").iterdir()) and (package / "rgb-16x" / "model.safetensors").is_file()


def test_what_a_read_only_cache_holds_is_found(unusable, package, monkeypatch):
    cache = unusable / "read-only"
    foreign = cache / "models--someone--model"
    (foreign / "refs").mkdir(parents=True)
    (foreign / "snapshots" / HUB_COMMIT).mkdir(parents=True)
    (foreign / "refs" / "main").write_text(HUB_COMMIT)
    (foreign / "snapshots" / HUB_COMMIT / "config.json").write_text("theirs")
    (cache / "models--walloc--rgb-16x").mkdir()  # without a revision
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def refuse(folder, repository):
        if repository.parent == cache:
            raise PermissionError(str(repository))
        return link(folder, repository)

    link = bundled.link_repository
    monkeypatch.setattr(bundled, "link_repository", refuse)  # root may write everywhere
    with pytest.warns(UserWarning, match="cannot be written"):
        bundled.link_bundled_checkpoints()
    found = try_to_load_from_cache("someone/model", "config.json", cache_dir=constants.HF_HUB_CACHE)
    assert Path(found).read_text() == "theirs" and cached("config.json")
    bundled._remove_private_cache(constants.HF_HUB_CACHE, os.getpid())
    assert (foreign / "refs" / "main").read_text() == HUB_COMMIT


def test_where_nothing_can_be_written_it_is_said(unusable, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(unusable / "file"))
    with pytest.warns(UserWarning, match=r"walloc/rgb-16x.*bundled_path\('rgb-4x'\)"):
        bundled.link_bundled_checkpoints()
    assert Path(constants.HF_HUB_CACHE).parent == unusable / "file"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"main", "pipe"])
@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reference_that_cannot_be_read_is_repaired(package, content):
    add_hub_commit()
    path = repository() / "refs" / "main"
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached("model.safetensors"), package / "rgb-16x" / "model.safetensors")
    assert Path(cached(revision=HUB_COMMIT)).read_text() == "from the Hub"


@pytest.mark.parametrize("part", ["", "snapshots", "refs", "blobs", ".no_exist"])
@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_links_to_foreign_folders_are_not_followed(package, tmp_path, part):
    bundled.link_bundled_checkpoints()
    foreign = tmp_path / "foreign"
    (repository() / part).rename(foreign)
    (repository() / part).symlink_to(foreign)
    (package / "rgb-16x" / "config.json").write_text("upgraded")
    before = sorted(foreign.rglob("*"))
    bundled.link_bundled_checkpoints()
    bundled.unlink_bundled_checkpoints()
    assert sorted(foreign.rglob("*")) == before


def test_the_package_is_removed(package, monkeypatch):
    """Hard links outlive it; `unlink` leaves nothing behind, not even a repository that looks complete."""
    bundled.link_bundled_checkpoints()
    weights = (package / "rgb-16x" / "model.safetensors").read_bytes()
    for path in sorted(package.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert Path(cached("model.safetensors")).read_bytes() == weights
    assert bundled.unlink_bundled_checkpoints() == [repository(name) for name in bundled.BUNDLED_NAMES]
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("walloc/rgb-16x", cache_dir=constants.HF_HUB_CACHE, local_files_only=True)


def test_missing_checkpoint_leaves_no_trace(package):
    (package / "rgb-16x" / "config.json").unlink()
    bundled.link_bundled_checkpoints()
    assert not repository().exists() and repository("rgb-4x").exists()


def test_without_links_of_any_kind(package, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "symlink", no_links)
    bundled.link_bundled_checkpoints()
    assert not any(path.is_symlink() for path in repository().rglob("*"))
    weights = package / "rgb-16x" / "model.safetensors"
    assert Path(cached("model.safetensors")).read_bytes() == weights.read_bytes()
    size = weights.stat().st_size
    weights.unlink()
    weights.write_bytes(b"n" * size)
    bundled.link_bundled_checkpoints()
    assert Path(cached("model.safetensors")).read_bytes() == weights.read_bytes() and len(snapshots()) == 1


def test_killed_half_way_leaves_no_repository(package, monkeypatch):
    write = cache_links.write_atomically

    def die(path, data):
        if path.name.endswith(".linked"):
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache_links, "write_atomically", die)
        bundled.link_bundled_checkpoints()
    assert not repository("rgb-4x").exists()
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached("model.safetensors"), package / "rgb-16x" / "model.safetensors")


def test_many_processes_at_once(package):
    code = (
        "import pathlib, sys\n"
        "from transformers_walloc import bundled\n"
        "bundled._bundled_root = lambda: pathlib.Path(sys.argv[1])\n"
        "del bundled.os.environ['WALLOC_NO_BUNDLED']\n"
        "bundled.link_bundled_checkpoints()\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "WALLOC_NO_BUNDLED": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(package)], env=environment) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(snapshots()) == 1
    for name in bundled.BUNDLED_NAMES:
        assert os.path.samefile(cached("model.safetensors", name), package / name / "model.safetensors")
    assert os.listdir(Path(constants.HF_HUB_CACHE) / ".locks") == []


@pytest.mark.parametrize("hard_links", [True, False])
def test_cache_tools_accept_it_and_deleting_spares_the_package(package, tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    bundled.link_bundled_checkpoints()
    other = write_checkpoints(tmp_path / "other", "second")
    first = (repository() / "refs" / "main").read_text()
    monkeypatch.setattr(bundled, "_bundled_root", lambda: other)
    bundled.link_bundled_checkpoints()
    report = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not report.warnings and {repo.repo_id for repo in report.repos} == {
        f"walloc/{name}" for name in bundled.BUNDLED_NAMES
    }
    report.delete_revisions(first).execute()  # one of two revisions: this path deletes what the links point to
    assert snapshots() != [] and first not in snapshots()
    assert (package / "rgb-16x" / "model.safetensors").exists()
    remaining = [revision.commit_hash for repo in report.repos for revision in repo.revisions]
    scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*set(remaining) - {first}).execute()
    assert (other / "rgb-16x" / "model.safetensors").exists() and not repository().exists()


def test_an_absent_hub_is_said_once(monkeypatch):
    """The client's own words, with how to be quiet; all else that it says passes."""
    bundled.say_once_that_the_hub_is_away()
    bundled.say_once_that_the_hub_is_away()
    monkeypatch.setattr(bundled._Once, "said", False)
    source = inspect.getsource(huggingface_hub.hf_api)
    assert 'f"Could not reach the Hub (' in source  # or the filter waits for other words than the client's
    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    client = logging.getLogger("huggingface_hub.hf_api")
    client.addHandler(handler)
    try:
        for repository in ("a/b", "a/b", "c/d"):
            client.warning(f"Could not reach the Hub (100% lost). Using cached commit hash for '{repository}'.")
        client.warning("another %s", "thing")
    finally:
        client.removeHandler(handler)
    assert len(said) == 2 and said[1] == "another thing"
    assert "'a/b'. This is said once; HF_HUB_OFFLINE=1 asks no Hub" in said[0]
