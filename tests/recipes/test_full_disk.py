"""A disk that is full: the message names the file that could not be written and says what to do; nothing half stays."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import atomic
from pipeline.core.errors import LatentkilnError, describe_os_error
from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.core.process.child import run_child
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions
from pipeline.scheduler.run_log import RunLog

ADVICE = "No space left on device; free some space there, then run again"


def job(mesh: Path, **settings: object) -> Job:
    values = PaintOptions(**{"steps": 4, "preview": True, **settings}).model_dump(mode="json")
    return Job("one", "paint", "a red brick cube", "", 0, InputFile(mesh), values, RowLocation("m.csv", 2))


@pytest.fixture
def full(monkeypatch):
    """From then on no file with this in its name can be written."""

    def fill(part: str) -> None:
        real = atomic.os.fsync

        def fsync(descriptor: int) -> None:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if Path(name).name.startswith(".tmp-") and name.endswith(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(atomic.os, "fsync", fsync)

    return fill


@pytest.mark.parametrize(
    ("ending", "named"),
    [
        (".glb", "out/one/asset.glb"),
        (".png", "out/one/preview.png"),
        (".json", "out/one/record.json"),
        (".safetensors", ".safetensors"),
    ],
)
def test_the_file_that_does_not_fit_is_named(ending, named, full, prior, cube, tmp_path):
    full(ending)
    out = tmp_path / "out"
    (outcome,) = paint([job(cube)], prior, out, fingerprints=["f"], lockstep=1)
    assert outcome.state == "failed"
    assert f"{named}: {ADVICE}" in outcome.message and "None" not in outcome.message and ".tmp-" not in outcome.message
    assert not (out / "one" / "record.json").exists() and not list(out.rglob(".tmp-*"))


def test_a_checkpoint_that_does_not_fit_is_named(full, prior, cube, tmp_path, monkeypatch):
    out = tmp_path / "out"
    calls = iter([False] * 4)

    def stop() -> bool:
        if next(calls, True):
            full(".safetensors")
            return True
        return False

    (outcome,) = paint([job(cube, steps=20)], prior, out, fingerprints=["f"], lockstep=1, stop=stop)
    assert outcome.state == "failed"
    assert "out/one/.work/0/latent.safetensors: " + ADVICE in outcome.message


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from pipeline.core import atomic
from pipeline.core.errors import describe_os_error
from pipeline.optimize import checkpoint
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: atomic.write_bytes(folder / "a.bin", bytes(100_000)),
    lambda: checkpoint.save(folder / "b.safetensors", {"x": torch.zeros(100_000)}, key="k", step=1),
):
    try:
        write()
    except OSError as error:
        print(describe_os_error(error))
"""


def test_what_a_real_limit_refuses_is_named_also_where_a_library_hides_it(tmp_path):
    """safetensors raises an error of its own, with the system's number in its words."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    advice = "File too large; the limit on the size of files (ulimit -f) is too low"
    assert done.stdout.splitlines() == [f"{tmp_path}/a.bin: {advice}", f"{tmp_path}/b.safetensors: {advice}"]
    assert not list(tmp_path.iterdir())


def test_temporary_files_that_do_not_fit_are_told(monkeypatch):
    def save(*_: object, **__: object) -> None:
        raise OSError("100 requested and 3 written")

    monkeypatch.setattr("pipeline.core.process.child.np.save", save)
    with pytest.raises(LatentkilnError, match="set TMPDIR"):
        run_child(["true"], "xatlas", {"x": np.zeros(1)}, ["y"], time_limit=1, stage="unwrap")


def test_a_log_that_does_not_fit_is_told_and_stops_nothing(full, tmp_path):
    full(".json")
    run_log = RunLog(tmp_path, {})
    run_log.open()
    run_log.close("done", 0)
    assert run_log.problem == f"{tmp_path}/run.json: cannot be written ({ADVICE})"


def test_an_error_without_a_name_is_given_one():
    assert describe_os_error(OSError(errno.ENOSPC, "full"), "out") == "out: full; free some space there, then run again"
    assert (
        describe_os_error(PermissionError(errno.EACCES, "Permission denied", b"x\xff")) == "x\\xff: Permission denied"
    )
    assert describe_os_error(OSError("odd")) == "odd"


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "cp1252"])
@pytest.mark.parametrize("name", ["wörfel-木.csv", os.fsdecode(b"m\xff.csv")])
def test_names_of_other_alphabets_end_nothing(encoding, name, tmp_path):
    (tmp_path / name).write_text("id,prompt,mesh\na,x,木.obj\n", encoding="utf-8")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model_index.json").write_text("{}")
    for verb, code in (("check", 2), ("plan", 1), ("run", 1)):
        command = [sys.executable, "-m", "pipeline", verb, name, "--prior", "prior"]
        command += ["--serial"] if verb == "run" else []
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=False
        )
        assert done.returncode == code
        assert b"there is no file '\\u6728.obj'" in done.stdout and b"codec" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "outputs" / "run.json").read_text())["manifest"] == name


def test_a_locale_that_cannot_name_a_file_is_told(tmp_path):
    (tmp_path / "m.csv").write_text("id,prompt,mesh\na,x,w\u00f6rfel.obj\n", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments, words in (
        (["check", "m.csv"], "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"),
        (["plan", "m.csv", "--out", "\u00f6"], "its name is not UTF-8 in this locale"),
    ):
        command = [sys.executable, "-m", "pipeline", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | plain, check=False
        )
        assert done.returncode == 2 and words in done.stdout + done.stderr
