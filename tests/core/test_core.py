"""The small services everything rests on: canonical JSON, keyed randomness, atomic files, backends."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import atomic, backends
from pipeline.core.errors import BackendError, MeshError
from pipeline.core.hashing import canonical_json, sha256_file
from pipeline.core.process.liveness import is_alive
from pipeline.core.rng import derive_seed, numpy_generator, torch_generator


def test_canonical_json_is_one_string_per_value() -> None:
    assert canonical_json({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'.encode()
    assert canonical_json((1, 2.5)) == b"[1,2.5]"
    with pytest.raises(ValueError, match="canonical"):
        canonical_json({"x": [float("nan")]})


def test_streams_are_keyed_and_the_same_everywhere() -> None:
    # Literal values: a change here would change every asset's bytes.
    assert derive_seed(0, "sds", 0) == 8148272144572216930
    assert derive_seed(1, "sds", 0) != derive_seed(0, "sds", 1) != derive_seed(0, "cameras", 1)
    assert np.array_equal(numpy_generator(3, "x", 4).random(5), numpy_generator(3, "x", 4).random(5))
    assert torch_generator(3, "x").initial_seed() == derive_seed(3, "x")


def test_files_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    atomic.write_json(target, {"n": 1})
    with pytest.raises(RuntimeError), atomic.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"n": 1}
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_sweep_takes_the_files_of_the_dead_and_no_others(tmp_path: Path) -> None:
    dead, mine, old, other = (
        tmp_path / name
        for name in (".tmp-4194999-a.json", f".tmp-{os.getpid()}-b.json", f".tmp-{os.getpid()}-c.json", "run.json")
    )
    for path in (dead, mine, old, other):
        path.write_text("x")
    os.utime(old, (0, 0))
    assert atomic.remove_stale_temporaries(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, other.name])
    assert atomic.remove_stale_temporaries(tmp_path / "nowhere") == 0


def test_sha256_reads_files_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"ab" * (1 << 20))
    assert sha256_file(path) == "9437fffe24658f67662446bc9c0d6aaa6afc7bf866ba2b64ae396fc7d3a140e4"


def test_errors_keep_their_stage_across_processes() -> None:
    error = pickle.loads(pickle.dumps(MeshError("no faces", stage="unwrap")))
    assert (type(error), error.message, error.stage) == (MeshError, "no faces", "unwrap")


def test_backends_are_chosen_by_order_name_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_problem", lambda: "no CUDA device")
    assert backends.select_backend("rasterise").name == "numba"
    assert backends.select_backend("rasterise", "torch").name == "torch"
    assert backends.select_backend("rasterise", "warp").name == "warp"
    monkeypatch.setenv("LATENTKILN_RASTERISE", "torch")
    assert backends.select_backend("rasterise").name == "torch"
    with pytest.raises(BackendError, match="allowed: nvdiffrast, warp, numba, torch"):
        backends.select_backend("rasterise", "opengl")


def test_a_backend_that_cannot_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = backends.Backend("test", "ghost", "no_such_module", "MIT", install="pip install ghost")
    monkeypatch.setattr(backends, "BACKENDS", (missing,))
    with pytest.raises(BackendError, match="no_such_module is not installed \\(pip install ghost\\)"):
        backends.select_backend("test")


def test_a_gpu_backend_that_is_missing_tells_every_cause_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_problem", lambda: "no CUDA device (torch sees none)")
    monkeypatch.setattr(backends, "missing_module_reason", lambda module: f"{module.split('.')[0]} is not installed")
    backends.unavailable_reason.cache_clear()
    try:
        with pytest.raises(BackendError) as caught:
            backends.select_backend("rasterise", "nvdiffrast")
    finally:
        backends.unavailable_reason.cache_clear()
    message = str(caught.value)
    assert "nvdiffrast is not installed and no CUDA device (torch sees none) (pip install " in message
    assert "\n" not in message


def test_on_cuda_warp_is_taken_where_nvdiffrast_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "cuda_problem", lambda: "")
    reasons = {"nvdiffrast": "nvdiffrast is not installed"}
    monkeypatch.setattr(backends, "unavailable_reason", lambda backend: reasons.get(backend.name, ""))
    assert backends.select_backend("rasterise").name == "warp"
    assert backends.select_backend("grid").name == "tinycudann"
    reasons.clear()
    assert backends.select_backend("rasterise").name == "nvdiffrast"
    assert backends.select_backend("texture").name == "torch"  # its additions have no fixed order: only when asked for
    assert backends.select_backend("network").name == "torch"  # nor is half precision taken unasked


def test_a_killed_writer_is_gone_though_nobody_asked_for_its_end(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    left = tmp_path / f"{atomic.TEMPORARY_PREFIX}{writer.pid}-0123456789ab.json"
    left.write_text("{")
    assert is_alive(writer.pid)
    assert atomic.remove_stale_temporaries(tmp_path) == 0
    writer.kill()
    end = time.monotonic() + 60
    while is_alive(writer.pid) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(writer.pid, 0)  # its number is still taken: it is a zombie until somebody waits for it
    assert atomic.remove_stale_temporaries(tmp_path) == 1
    assert not left.exists()
    writer.wait()
