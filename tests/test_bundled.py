"""The bundled checkpoints in the Hub cache, judged by the Hub client's own look-up and clean-up functions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import _CACHED_NO_EXIST, constants, scan_cache_dir, try_to_load_from_cache

from transformers_walloc import bundled

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
        (root / name / "model.safetensors").write_bytes(text.encode() * 10_000)
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
    with pytest.raises(ValueError, match="rgb-4x, rgb-16x, rgb-16x-klt, stereo-5x, stereo-20x"):
        bundled.bundled_path(name)


def test_missing_folder_is_named(package):
    (package / "rgb-4x" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="rgb-4x"):
        bundled.bundled_path("rgb-4x")


def test_linked_files_are_the_package_files(package):
    bundled.link_bundled_checkpoints()
    for name in bundled.BUNDLED_NAMES:
        for filename in ("config.json", "model.safetensors"):
            assert os.path.samefile(cached(filename, name), package / name / filename)
        assert cached(".hidden", name) is None
        assert cached("adapter_config.json", name) is _CACHED_NO_EXIST
    copied = [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in copied) < 1000


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
    bundled.link_bundled_checkpoints()
    moved = package.rename(package.with_name("moved"))
    monkeypatch.setattr(bundled, "_bundled_root", lambda: moved)
    assert cached() is None
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached(), moved / "rgb-16x" / "config.json")


def test_upgrade_replaces_the_old_revision(package):
    bundled.link_bundled_checkpoints()
    before = snapshots()
    (package / "rgb-16x" / "model.safetensors").write_bytes(b"retrained")
    bundled.link_bundled_checkpoints()
    assert Path(cached("model.safetensors")).read_bytes() == b"retrained"
    assert len(snapshots()) == 1 and snapshots() != before


def test_two_installations_share_a_cache(package, tmp_path, monkeypatch):
    bundled.link_bundled_checkpoints()
    first = (repository() / "refs" / "main").read_text()
    other = write_checkpoints(tmp_path / "other", "second")
    monkeypatch.setattr(bundled, "_bundled_root", lambda: other)
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached(), other / "rgb-16x" / "config.json")
    # A process of the first installation may be loading this very moment.
    assert os.path.samefile(cached(revision=first), package / "rgb-16x" / "config.json")


def test_switched_off(package, monkeypatch):
    monkeypatch.setenv("WALLOC_NO_BUNDLED", "1")
    bundled.link_bundled_checkpoints()
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_unusable_cache_is_no_error(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    bundled.link_bundled_checkpoints()


def test_damaged_reference_is_no_error(package):
    add_hub_commit()
    (repository() / "refs" / "main").write_bytes(b"\xff\xfe")
    bundled.link_bundled_checkpoints()
    assert (repository() / "refs" / "main").read_bytes() == b"\xff\xfe"


def test_missing_checkpoint_leaves_no_trace(package):
    (package / "rgb-16x" / "config.json").unlink()
    bundled.link_bundled_checkpoints()
    assert not repository().exists() and repository("rgb-4x").exists()


def test_without_symbolic_links(package, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    bundled.link_bundled_checkpoints()
    assert not any(path.is_symlink() for path in repository().rglob("*"))
    assert Path(cached()).read_bytes() == (package / "rgb-16x" / "config.json").read_bytes()
    (package / "rgb-16x" / "config.json").unlink()
    (package / "rgb-16x" / "config.json").write_text("upgraded")
    bundled.link_bundled_checkpoints()
    assert Path(cached()).read_text() == "upgraded" and len(snapshots()) == 1


def test_killed_half_way_leaves_no_repository(package, monkeypatch):
    create = bundled._create

    def die(path, write):
        if path.name == "main":
            raise KeyboardInterrupt
        create(path, write)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bundled, "_create", die)
        bundled.link_bundled_checkpoints()
    assert not repository("rgb-4x").exists()
    bundled.link_bundled_checkpoints()
    assert os.path.samefile(cached(), package / "rgb-16x" / "config.json")


def test_many_processes_at_once(package):
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('bundled', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module._bundled_root = lambda: pathlib.Path(sys.argv[2])\n"
        "module.link_bundled_checkpoints()\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    command = [sys.executable, "-c", code, bundled.__file__, str(package)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(snapshots()) == 1
    for name in bundled.BUNDLED_NAMES:
        assert os.path.samefile(cached("model.safetensors", name), package / name / "model.safetensors")
    assert os.listdir(Path(constants.HF_HUB_CACHE) / ".locks") == []


def test_cache_tools_accept_it_and_deleting_spares_the_package(package, tmp_path, monkeypatch):
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
