"""What is written appears complete or not at all."""

import os
import random
import stat
import subprocess
import sys

import pytest

from transformers_walloc import atomic
from transformers_walloc.atomic import atomic_file, atomic_folder, write_atomically
from transformers_walloc.media.messages import MediaError
from transformers_walloc.media.paths import write_bytes

# In a process of its own: (re)writes forever and says when it has begun. The file alone, so that it starts at once.
WRITER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
for i in range(10**9):
    if sys.argv[2] == "file":
        files.write_atomically(sys.argv[3], f"{i % 10}" * 100_000)
    else:
        with files.atomic_folder(sys.argv[3], overwrite=True) as partial:
            for name in "abc":
                (partial / name).write_text(f"{i % 10}" * 10_000)
    if i == 0:
        print("begun", flush=True)
"""


@pytest.fixture(autouse=True)
def forget_swept_folders():
    atomic._sweep.cache_clear()


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_bytes_and_text(tmp_path):
    path = tmp_path / "new" / "folders" / "a.txt"
    write_atomically(path, "schön")
    assert path.read_bytes() == "schön".encode()
    write_atomically(str(path), b"\0")
    assert path.read_bytes() == b"\0" and names(path.parent) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_usual_or_kept(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a") as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        with atomic_folder(tmp_path / "b") as partial:
            os.close(os.open(partial / "c", os.O_CREAT | os.O_WRONLY, 0o600))
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o750
        assert stat.S_IMODE((tmp_path / "b" / "c").stat().st_mode) == 0o640
        (tmp_path / "a").chmod(0o604)
        write_atomically(tmp_path / "a", b"x")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_an_exception_changes_nothing(tmp_path):
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with atomic_folder(tmp_path / "b") as partial:
        (partial / "c").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "b", overwrite=True) as partial:
        (partial / "c").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "c").read_text() == "old"


def test_folders_are_replaced_only_when_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="no folder"), atomic_folder(tmp_path / "file", overwrite=True):
        pass
    for i in range(2):
        with atomic_folder(tmp_path / "a", overwrite=bool(i)) as partial:
            (partial / str(i)).write_text("x")
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path / "a"):
        pass
    assert names(tmp_path / "a") == ["1"] and names(tmp_path) == ["a", "file"]


@pytest.mark.parametrize("exchange", ["renameat2", "two renames"])
def test_folders_change_places(tmp_path, monkeypatch, exchange):
    if exchange == "two renames":
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *args, **options: object())
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "a", overwrite=True) as partial:
            (partial / "b").write_text(text)
    assert (tmp_path / "a" / "b").read_text() == "new" and names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_links_and_devices_stay(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/a")
    write_atomically(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a").read_text() == "x"
    write_bytes(os.devnull, b"gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_an_error_names_the_file(tmp_path):
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(MediaError, match=r"a.b: cannot be written"):
        write_bytes(str(tmp_path / "a" / "b"), b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match="folder: cannot be written"):
        write_bytes(str(tmp_path / "folder"), b"")
    assert names(tmp_path) == ["a", "folder"]


def test_what_the_dead_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, here = process.pid, os.getpid()
    for owner in (f"{atomic._host()}-{dead}", f"{atomic._host()}-{here}", f"ffffff-{dead}"):
        (tmp_path / f".a.{owner}-00000000.part").write_text("x")
    (tmp_path / f".b.{atomic._host()}-{dead}-00000000.part").mkdir()
    (tmp_path / ".mine.part").write_text("x")
    write_atomically(tmp_path / "c", "x")
    assert names(tmp_path) == sorted(
        [".mine.part", f".a.{atomic._host()}-{here}-00000000.part", f".a.ffffff-{dead}-00000000.part", "c"]
    )


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_killed_at_any_moment(tmp_path, what):
    moments = random.Random(0)
    target = tmp_path / "out" / "a"
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, atomic.__file__, what, str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"begun\n"
        try:
            process.wait(moments.uniform(0, 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        if what == "file":
            text = target.read_text()
            assert text == text[0] * 100_000
        else:
            texts = [(target / name).read_text() for name in "abc"]
            assert texts == [texts[0][0] * 10_000] * 3
    write_atomically(tmp_path / "out" / "b", "x")
    assert names(tmp_path / "out") == ["a", "b"]
