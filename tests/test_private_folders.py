"""Private temporary folders and caches: what others made is never accepted, what killed processes left goes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import home, private
from pipeline.core.home import cache_root, code_cache, settle
from pipeline.core.private import is_own, lasting_folder, make_own, private_folder, sweep


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory that everybody may write, and that private folders are made in."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(private.tempfile, "gettempdir", lambda: str(folder))
    yield folder
    for path in folder.iterdir():
        path.chmod(0o700)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_folder_is_new_private_and_gone_at_the_end(root: Path) -> None:
    with private_folder() as one, private_folder() as other:
        assert one != other and one.parent == other.parent == root
        assert mode(one) == 0o700 and one.lstat().st_uid == os.geteuid()
        assert sweep(root) == 0 and one.is_dir() and other.is_dir()
    assert not list(root.iterdir())


def test_its_path_can_be_kept_short(root: Path) -> None:
    with private_folder(longest_root=20) as folder:
        assert folder.parent != root and len(str(folder.parent)) <= 20


def test_a_directory_in_which_others_could_rename_it_is_not_used(root: Path) -> None:
    root.chmod(0o777)
    with private_folder() as folder:
        assert folder.parent != root


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.core import private
private.tempfile.gettempdir = lambda: sys.argv[1]
with private.private_folder() as folder:
    (folder / "inside").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_swept_and_nothing_else(root: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert sweep(root) == 0 and left.is_dir()  # its process lives
        mark = (left / ".owner").read_bytes()
        process.send_signal(signal.SIGKILL)
    # Others: no mark, a mark of another kind, a mark that is a link, a link to a folder of the right kind, a pipe.
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (precious / ".owner").write_bytes(mark)
    (root / "lk-aaaaaaaa").mkdir()
    (root / "lk-bbbbbbbb").mkdir()
    (root / "lk-bbbbbbbb" / ".owner").write_text("mine")
    (root / "lk-cccccccc").mkdir()
    (root / "lk-cccccccc" / ".owner").symlink_to(precious / ".owner")
    (root / "lk-dddddddd").symlink_to(precious)
    (root / "lk-eeeeeeee").mkdir()
    os.mkfifo(root / "lk-eeeeeeee" / ".owner")
    (root / "lk-notes").mkdir()
    strange = set(root.iterdir()) - {left}
    assert sweep(root) == 1
    assert set(root.iterdir()) == strange and (precious / "file").read_text() == "kept"


def test_a_new_folder_sweeps_first(root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        process.kill()
    assert left.is_dir()
    code = HOLDER.replace("time.sleep(60)", "pass")
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, stdout=subprocess.PIPE)
    assert not list(root.iterdir())


def test_what_belongs_to_others_is_not_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert make_own(mine) and mode(mine) == 0o700 and is_own(mine) and make_own(mine)
    (tmp_path / "link").symlink_to(mine)
    assert not is_own(tmp_path / "link") and not make_own(tmp_path / "link")
    mine.chmod(0o777)
    assert not is_own(mine) and not make_own(mine)
    inside = mine / "inside"
    inside.mkdir(mode=0o700)
    assert not is_own(inside)  # others can put another in its place
    (tmp_path / "file").write_text("")
    assert not is_own(tmp_path / "file") and not make_own(tmp_path / "file") and not is_own(tmp_path / "none")


@pytest.fixture
def homeless(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable names a cache, the package's folder cannot be written, and a new process's state."""
    for name in ("LATENTKILN_CACHE", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "WARP_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(private, "lasting_folders", {})
    monkeypatch.setattr(home, "PACKAGE", root / "none")
    monkeypatch.setattr(home.os, "access", lambda path, flags: not str(path).startswith(("/nonexistent", str(root))))
    monkeypatch.setenv("HOME", "/nonexistent")


def test_without_a_home_a_private_folder_is_one(homeless: None, root: Path) -> None:
    settle()
    temporary = lasting_folder()
    assert temporary.parent == root and os.environ["HOME"] == str(temporary) and mode(temporary) == 0o700
    for variable in ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(os.environ[variable]).is_relative_to(temporary)
    assert cache_root().is_relative_to(temporary) and code_cache("x").is_relative_to(temporary)


@pytest.mark.parametrize("named", ["", ".", "relative"])
def test_a_home_that_is_no_path_is_none(homeless: None, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", named)
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    settle()
    assert os.environ["HOME"] == str(lasting_folder()) and "XDG_CACHE_HOME" not in os.environ


def test_a_cache_that_others_can_write_holds_no_code(homeless: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(home.os, "access", lambda path, flags: True)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(shared))
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    settle()
    assert os.environ["HOME"] == str(tmp_path)
    for variable in ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "WARP_CACHE_PATH"):
        assert Path(os.environ[variable]).is_relative_to(lasting_folder()), variable
    # One that is this user's alone is used, and stays.
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    settle()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "mine")
    assert cache_root() == tmp_path / "caches" / "latentkiln"


def test_the_lasting_folder_goes_with_its_process(root: Path) -> None:
    code = HOLDER.split("with private")[0] + "print(private.lasting_folder() == private.lasting_folder())\n"
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True" and not list(root.iterdir())
