"""Runs into a URL: everything a local output folder promises, on a real S3 server and on fsspec's memory."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from counting_recipe import counting
from meshes import cube, write_obj
from s3_server import connect
from stub_recipe import item, make_toolbox

from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.job import no_report
from pipeline.core.location import InputFile, RemotePath
from pipeline.export.record import load_record, read_failure
from pipeline.recipes.asset_build import RowContext
from pipeline.recipes.paint import Paint
from pipeline.scheduler import runner
from pipeline.scheduler.runner import RunSettings
from pipeline.storage import input_cache, lease, publish
from pipeline.storage.shared_cache import SharedCache
from pipeline.storage.snapshot import take_snapshot
from pipeline.storage.store import store_of

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(params=["s3", "memory"])
def out(request, tmp_path, monkeypatch):
    """An empty output root on each kind of store."""
    if request.param == "s3":
        return RemotePath(request.getfixturevalue("s3"))
    monkeypatch.setenv("LATENTKILN_CACHE", str(tmp_path / "cache"))
    connect()
    return RemotePath("memory://bucket/out")


def build(out, *rows, toolbox=None, **settings):
    settings = {"serial": True, "lockstep": 2, "threads": 1} | settings
    return runner.run(
        list(rows), out, prior_spec="stub", settings=RunSettings(**settings), hooks=toolbox or make_toolbox(),
        reproduce=lambda job: f"latentkiln run m.csv --only {job.id}",
    )  # fmt: skip


def names(out, job_id):
    return sorted(store_of(out).files(out / job_id))


def leftovers(out):
    """What no run may leave: leases, checkpoints, pieces of publishing, and assets in the scratch folder."""
    there = [n for n in store_of(out).files(out) if any(mark in n for mark in (".lease", ".work", ".next", ".tmp-"))]
    scratch = input_cache.scratch_folder(out)
    files = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
    return there + [str(path) for path in files if not path.parts[0].startswith(("run.", "."))]


def test_rows_are_published_and_kept(out):
    summary = build(out, *(item(f"r{n}") for n in range(3)), item("bad", "fail"))
    assert (summary.built, summary.exit_code) == (3, 1)
    assert names(out, "r0") == ["asset.glb", "log.jsonl", "record.json"]
    data, record = publish.read_output(out / "r1", "asset.glb")
    assert data == b"fine 1" and record["fingerprint"] == "fingerprint-r1-fine"
    failure = read_failure(take_snapshot(out / "bad"))
    assert failure["stage"] == "unwrap" and failure["reproduce"] == "latentkiln run m.csv --only bad"
    assert names(out, "bad") == ["failure.json", "log.jsonl"]
    log = [json.loads(line) for line in store_of(out).read(out / "r0" / "log.jsonl")[0].splitlines()]
    assert [line["event"] for line in log] == ["began", "stage", "ended"]
    run = json.loads(store_of(out).read(out / "run.json")[0])
    assert run["state"] == "failed" and run["counts"] == {"done": 3, "failed": 1}
    assert b'"r2"' in store_of(out).read(out / "run.events.jsonl")[0]
    assert not leftovers(out)
    # Again: what is there is found, on any node.
    assert build(out, item("r0"), item("r1")).counts == {"kept": 2, "waiting": 0}


def test_a_rebuilt_row_replaces_the_asset_and_its_failure(out):
    build(out, item("a"))
    build(out, item("a", "fail"))
    assert names(out, "a") == ["asset.glb", "failure.json", "log.jsonl", "record.json"]
    assert publish.read_output(out / "a", "asset.glb")[0] == b"fine 1"
    build(out, item("a", "fine too"))
    assert names(out, "a") == ["asset.glb", "log.jsonl", "record.json"]
    assert publish.read_output(out / "a", "asset.glb")[0] == b"fine too 1"
    assert not leftovers(out)


def test_a_row_that_another_node_builds_is_left_to_it(out):
    theirs = lease.acquire(out / "shared", lease.Owner("another run", 1, "another machine", 7))
    summary = build(out, item("shared"), item("mine"))
    assert summary.counts["elsewhere"] == 1 and summary.built == 1 and summary.exit_code == 3
    theirs.release()
    assert build(out, item("shared")).built == 1
    assert not leftovers(out)


def test_what_could_not_be_published_is_published_by_the_next_run_not_built_again(proxy, s3, monkeypatch):
    out = RemotePath(s3)
    monkeypatch.setenv("LATENTKILN_STORAGE_SECONDS", "1")
    proxy.rule = lambda method, path: 500 if method == "PUT" and "asset.glb" in path else None
    summary = build(out, item("a"))
    (failed,) = summary.failed
    assert (failed.stage, failed.error) == ("storage", "StorageError") and "InternalError 500" in failed.message
    assert "\n" not in failed.message and load_record(take_snapshot(out / "a"))[0] is None
    failure = read_failure(take_snapshot(out / "a"))
    assert failure["stage"] == "storage" and failure["reproduce"]
    proxy.rule = lambda method, path: None

    def no_recipe(name):
        raise AssertionError("built again")

    again = build(out, item("a"), toolbox=dataclasses.replace(make_toolbox(), recipe=no_recipe))
    assert again.counts["kept"] == 1 and not again.failed
    assert publish.read_output(out / "a", "asset.glb")[0] == b"fine 1"
    assert names(out, "a") == ["asset.glb", "log.jsonl", "record.json"] and not leftovers(out)


def test_scratch_folders_of_long_ago_go(out):
    old, new = (input_cache.scratch_folder(out) / name / "asset.glb" for name in ("old", "new"))
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.touch()
    for path in (old, old.parent):
        os.utime(path, (1e9, 1e9))
    build(out, item("a"))
    assert new.exists() and not old.parent.exists()


def test_texture_coordinates_found_by_one_node_are_used_by_all(out, tmp_path):
    here, there = tmp_path / "a" / "x.bin", tmp_path / "b" / "x.bin"
    caches = []
    for path in (here, there):
        path.parent.mkdir()
        caches.append(SharedCache(path.parent, out / ".cache" / "unwrap"))
    here.write_bytes(b"first")
    assert not caches[0].publish(here)
    caches[1].fetch(there)
    assert there.read_bytes() == b"first"
    there.write_bytes(b"second, made at the same time")
    assert caches[1].publish(there) and there.read_bytes() == b"first"


def test_a_recipe_gets_the_unwrap_cache_of_a_url_and_none_for_a_folder(out, tmp_path):
    seen = []
    hooks = make_toolbox()

    def recipe(jobs, prior, root, *, unwrap_cache, **options):
        seen.append((root, unwrap_cache))
        return hooks.recipe("paint")(jobs, prior, root, unwrap_cache=unwrap_cache, **options)

    watched = dataclasses.replace(hooks, recipe=lambda name: recipe)
    settings = RunSettings(serial=True, lockstep=1)
    for target in (out, tmp_path):
        assert runner.run([item("a")], target, prior_spec="x", settings=settings, hooks=watched).built == 1
    (root, cache), (_, no_cache) = seen
    assert isinstance(cache, SharedCache) and cache.folder == root / UNWRAP_CACHE
    assert no_cache is None


def test_paint_shares_texture_coordinates_through_the_cache_that_it_gets(out, tmp_path):
    mesh = write_obj(tmp_path / "cube.obj", cube())
    published = out / UNWRAP_CACHE.as_posix()
    for node in ("a", "b"):
        root = tmp_path / node
        job = dataclasses.replace(item("one").job, mesh=InputFile(mesh), settings={})
        row = RowContext(job, "print", root / "one", no_report, SharedCache(root / UNWRAP_CACHE, published))
        settings = SimpleNamespace(
            texture_size=64, unwrap="auto", unwrap_seconds=60.0, max_faces=1000, up_axis="y", front="+z"
        )
        Paint().prepare(row, settings, None, root)
    (entry,) = (tmp_path / "a" / UNWRAP_CACHE).iterdir()
    assert store_of(published).read(published / entry.name, 1 << 20)[0] == entry.read_bytes()
    assert (tmp_path / "b" / UNWRAP_CACHE / entry.name).read_bytes() == entry.read_bytes()


def test_throttled_and_slow_all_the_time_everything_is_built(proxy, s3):
    out, chance = RemotePath(s3), random.Random(3)
    proxy.slow_seconds = 0.2
    faults = [500, 503, "slow", "lose", "drop", "half", None, None, None, None, None, None]
    proxy.rule = lambda method, path: chance.choice(faults)
    summary = build(out, *(item(f"r{n}") for n in range(6)))
    assert summary.built == 6, summary.failed
    proxy.rule = lambda method, path: None
    for n in range(6):
        assert publish.read_output(out / f"r{n}", "asset.glb")[0] == b"fine 1"
    assert build(out, *(item(f"r{n}") for n in range(6))).counts["kept"] == 6
    assert not leftovers(out)


def test_a_store_that_refuses_from_the_start_fails_rows_and_says_why(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret")
    connect()
    summary = build(RemotePath(s3), item("a"), item("b"))
    assert summary.failures == 2
    for result in summary.failed:
        assert "check the credentials" in result.message and "not-the-right-secret" not in result.message


NODE = f"""
import sys; sys.path.insert(0, {str(FAKES)!r})
from counting_recipe import counting
from stub_recipe import item
from pipeline.core.asset_layout import UNWRAP_CACHE
from pipeline.core.location import InputFile, RemotePath
from pipeline.scheduler import output_root, runner
output_root.SYNC_SECONDS = 0.2
settings = runner.RunSettings(lockstep=1, threads=1, serial=True)
runner.run([item("a")], RemotePath(sys.argv[1]), prior_spec="stub", settings=settings, hooks=counting(2000, 0.02))
"""


def start_node(out, tmp_path):
    """A node of its own: a process with a cache of its own, that builds row ``a`` slowly."""
    environment = os.environ | {"LATENTKILN_CACHE": str(tmp_path / "node")}
    return subprocess.Popen([sys.executable, "-c", NODE, str(out)], env=environment)


def shipped(out, at_least):
    """The count in the checkpoint that other nodes can read, once it is that far."""
    place = out / "a" / ".work" / "0" / "latent.safetensors"
    deadline = time.monotonic() + 60
    while True:
        try:
            if (count := int(store_of(out).read(place)[0])) >= at_least:
                return count
        except FileNotFoundError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_nodes_row_goes_on_elsewhere_from_the_shipped_checkpoint(s3, tmp_path):
    out, log = RemotePath(s3), []
    node = start_node(out, tmp_path)
    shipped(out, 10)
    node.send_signal(signal.SIGKILL)
    node.wait()
    count = shipped(out, 10)
    summary = build(out, item("a"), toolbox=counting(count + 5, 0.0, log), lockstep=1)
    assert summary.built == 1 and log == [count]
    assert publish.read_output(out / "a", "asset.glb")[0] == f"fine after {count + 5}".encode()
    assert not leftovers(out)


def test_an_interrupted_node_hands_back_its_last_step(s3, tmp_path):
    out, log = RemotePath(s3), []
    node = start_node(out, tmp_path)
    shipped(out, 10)
    node.send_signal(signal.SIGTERM)
    node.wait()
    last = int((tmp_path / "node").rglob("latent.safetensors").__next__().read_text())
    assert shipped(out, last) == last and not [n for n in names(out, "a") if "lease" in n]
    assert json.loads(store_of(out).read(out / "run.json")[0])["state"] == "interrupted"
    assert build(out, item("a"), toolbox=counting(last + 1, 0.0, log), lockstep=1).built == 1
    assert log == [last]


def test_a_server_killed_in_the_middle_of_publishing_and_started_again(proxy, s3, s3_server):
    out, deaths = RemotePath(s3), []

    def rule(method, path):
        """Kills the server once before the outputs of a row are there, and once between outputs and record."""
        name = ("asset.glb", "record.json")[len(deaths) % 2]
        if len(deaths) < 2 and method == "PUT" and path.endswith(name) and s3_server.process is not None:
            s3_server.kill()
            deaths.append(threading.Thread(target=s3_server.start))
            deaths[-1].start()

    proxy.rule = rule
    try:
        summary = build(out, *(item(f"r{n}") for n in range(4)))
    finally:
        for thread in deaths:
            thread.join()
    assert len(deaths) == 2 and summary.built == 4, summary.failed
    for n in range(4):
        assert publish.read_output(out / f"r{n}", "asset.glb")[0] == b"fine 1"
        assert names(out, f"r{n}")[0] == "asset.glb" and "record.json" in names(out, f"r{n}")
    assert build(out, *(item(f"r{n}") for n in range(4))).counts["kept"] == 4
    assert not leftovers(out)


@pytest.mark.xdist_group("cluster")
def test_workers_on_ray_publish_too(s3):
    out = RemotePath(s3)
    summary = build(out, *(item(f"r{n}") for n in range(3)), item("unlucky", "die once"), serial=False)
    assert summary.built == 4, summary.failed
    assert publish.read_output(out / "unlucky", "asset.glb")[0] == b"die once 1"
    assert not leftovers(out)
