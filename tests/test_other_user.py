"""Attacks by another user of the same machine, and a user without a home.

Where the suite runs as root the attacker and the user are two others (uids that nobody has, by ``setpriv`` of Python's
own ``subprocess``). Elsewhere both are whoever runs the suite: what holds for everybody is asked all the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import meshes
import pytest
from fake_prior import make_prior

pytestmark = pytest.mark.xdist_group("cluster")
ROOT = Path(__file__).parent.parent
USER, ATTACKER = 61_001, 61_002


def is_open(path: Path) -> bool:
    """Whether other users reach and run the program at ``path``."""
    path = path.resolve()
    return all(os.stat(place).st_mode & stat.S_IXOTH for place in (path, *path.parents))


def interpreter() -> str:
    """A Python of this version that other users may run, where there is one."""
    found = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin:/bin")
    return next((name for name in (sys.executable, found) if name and is_open(Path(name))), sys.executable)


TWO_USERS = os.geteuid() == 0 and is_open(Path(interpreter())) and is_open(ROOT)


def start(uid: int, code: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Python as the user ``uid``, with nothing of this process's environment, and no home unless one is given."""
    path = [str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))]
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path)} | environment
    who = {"user": uid, "group": uid, "extra_groups": []} if TWO_USERS else {}
    words = [interpreter(), "-P", *code]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=cwd, env=clean, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **who)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder below /tmp that every user reaches; pytest's own are the suite's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lkt-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def give(folder: Path, uid: int) -> Path:
    """``folder``, made, with all in it, the user's."""
    folder.mkdir(exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        if TWO_USERS:
            os.chown(path, uid, uid, follow_symlinks=False)
    return folder


HOLD = """
import os, sys
from pathlib import Path
from pipeline.core.home import settle
settle()
from pipeline.scheduler.cluster import ray_cluster
with ray_cluster(None, 1):
    import ray, psutil
    import ray._private.worker as worker
    folder = Path(worker._global_node.get_temp_dir_path()).parent
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    print(ray.get_runtime_context().gcs_address, folder, *(one.pid for one in family), flush=True)
    sys.stdin.read()
"""

ATTACK = """
import json, os, sys
from pathlib import Path
address, folder, *pids = sys.argv[1:]
got = []
def attempt(what, deed):
    try:
        found = deed()
    except (OSError, PermissionError) as error:
        found = None
    if found:
        got.append(what)
attempt("listed the folder", lambda: os.listdir(folder) or True)
attempt("entered it", lambda: os.chdir(folder + "/r") or True)
attempt("wrote into it", lambda: open(folder + "/r/x", "w"))
attempt("renamed it", lambda: os.rename(folder, folder + "x") or True)
for pid in pids:
    attempt("read an environment", lambda: b"RAY_AUTH_TOKEN" in open(f"/proc/{pid}/environ", "rb").read())
    attempt("saw a token", lambda: b"TOKEN" in open(f"/proc/{pid}/cmdline", "rb").read())
print(json.dumps(got))
"""

KNOCK = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
client.internal_kv_put(b"planted", b"a pickle", True, b"fun", 5)
print(client.internal_kv_keys(b"", None, 5))
"""


def test_another_user_gets_into_nothing_of_a_cluster(place: Path) -> None:
    home, lair = give(place / "home", USER), give(place / "lair", ATTACKER)
    # What a user of old names would have fallen for: links where its folder was to be, to a folder of its own.
    precious = give(home / "precious", USER)
    precious.chmod(0o700)
    planted = [Path(f"/tmp/lk-{USER}-{pid}") for pid in range(os.getpid(), os.getpid() + 2000)]
    planted = [link for link in planted if not os.path.lexists(link)]
    for link in planted:
        link.symlink_to(precious)
        if TWO_USERS:
            os.chown(link, ATTACKER, ATTACKER, follow_symlinks=False)
    holder = start(USER, ["-c", HOLD], home, HOME=str(home))
    try:
        assert holder.stdout is not None
        line = holder.stdout.readline().split()
        assert line, holder.communicate()[1]
        address, folder = line[0], Path(line[1])
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700 and not folder.is_symlink()
        assert stat.S_IMODE(precious.lstat().st_mode) == 0o700
        if TWO_USERS:
            code, out, err = finish(start(ATTACKER, ["-c", ATTACK, *line], lair))
            assert code == 0 and json.loads(out) == [], out + err
        # Its key-value table, where pickled classes lie, is closed without the token, and with another.
        for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            code, out, err = finish(start(ATTACKER, ["-c", KNOCK, address], lair, HOME=str(lair), **token))
            assert code != 0 and not out and "auth" in err.lower(), out + err
        # No token in a file, of the home or of the folder.
        assert not (home / ".ray").exists()
    finally:
        holder.communicate(input="")
        for link in planted:
            link.unlink()
    assert holder.returncode == 0 and not folder.exists()
    assert stat.S_IMODE(precious.lstat().st_mode) == 0o700


@pytest.fixture(scope="module")
def shared_prior() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lkt-") as folder:
        os.chmod(folder, 0o755)
        prior = make_prior(Path(folder) / "prior")
        for path in prior.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield prior


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except FileNotFoundError:
        return -1


@pytest.mark.parametrize("home", [None, "/"], ids=["unset", "not writable"])
def test_without_a_home_in_a_strangers_folder(place: Path, shared_prior: Path, home: str | None) -> None:
    """Installed by root and run by a user whom the system does not know, in a folder that another one prepared."""
    lair = place / "lair"
    lair.mkdir()
    (lair / "cube.obj").write_text(meshes.CUBE)
    (lair / "m.csv").write_text("id,prompt,mesh,steps,texture_size,preview\na,a red cube,cube.obj,2,64,false\n")
    for name in ("numpy", "torch", "ray", "numba", "click", "json", "xatlas", "pipeline", "sitecustomize"):
        (lair / f"{name}.py").write_text(f"open({str(place / 'out' / 'ran')!r}, 'w'); raise RuntimeError('attack')\n")
    # Without a home, "~" is a name in the current folder for many a library.
    evil = lair / "~" / ".cache" / "numba"
    evil.mkdir(parents=True)
    (lair / ".numba_config.yaml").write_text(f"cache_dir: {evil}\n")
    give(lair, ATTACKER)
    out = give(place / "out", USER)
    before = set(lair.rglob("*"))
    # Workers inherit what their run has settled.
    spread = ["--workers", "1"] if home is None else ["--serial"]
    run = ["-m", "pipeline", "run", "m.csv", "--out", str(out), "--prior", str(shared_prior), "--json", *spread]
    code, said, err = finish(start(USER, run, lair, **({} if home is None else {"HOME": home})))
    assert code == 0, said + err
    assert all(isinstance(json.loads(line), dict) for line in said.splitlines())
    assert json.loads((out / "a" / "record.json").read_text())["status"] == "done"
    assert not (out / "ran").exists() and set(lair.rglob("*")) == before
    if TWO_USERS:
        # Runs that earlier tests ended may still be removing their folders.
        for _ in range(60):
            left = [path for path in Path("/tmp").iterdir() if _owner(path) == USER]
            if not left:
                break
            time.sleep(0.5)
        assert not left
