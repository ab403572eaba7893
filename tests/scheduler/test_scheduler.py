"""The fleet: real Ray workers and a recipe that does what its prompt says, deaths included."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from stub_recipe import item, make_toolbox

from pipeline.core.errors import PriorError
from pipeline.export.record import read_failure, read_record
from pipeline.scheduler import actor_pool, run_log, runner
from pipeline.scheduler.cluster import SchedulerError
from pipeline.scheduler.file_lock import asset_lock
from pipeline.scheduler.run_log import read_run
from pipeline.scheduler.runner import RunSettings

pytestmark = pytest.mark.xdist_group("cluster")
FAKES = Path(__file__).parents[1] / "fakes"
# Of the clusters that tests here start and join.
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module", autouse=True)
def token():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster") / "address"


@contextlib.contextmanager
def held_cluster(ready, gpus=0):
    """A process that holds a Ray cluster with so many GPUs declared; it writes its address to ``ready``."""
    code = (
        "import pathlib, ray, sys\n"
        "plain = ray.init\n"
        f"ray.init = lambda **more: plain(**more | {{'num_gpus': {gpus}, 'num_cpus': max(1, 4 * {gpus})}})\n"
        "from pipeline.scheduler import cluster\n"
        "from pipeline.scheduler.cluster import ray_cluster\n"
        f"cluster._token = lambda: {TOKEN!r}\n"
        "with ray_cluster(None, 1):\n"
        "    import ray\n"
        "    address = ray.get_runtime_context().gcs_address\n"
        f"    pathlib.Path({str(ready)!r}).write_text(address)\n"
        "    sys.stdin.read()\n"
    )
    # It asks for a token without being told to; here for one that is known, so that it can be joined.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="module")
def cluster_process(ready):
    """Started once for all tests here that need no GPU."""
    with held_cluster(ready) as process:
        yield process


@pytest.fixture(scope="module")
def cluster(cluster_process, ready):
    """Its address."""
    wait_for(ready, 60)
    return ready.read_text()


@pytest.fixture
def fleet(cluster, tmp_path):
    """Runs rows on the cluster and gives the summary."""

    def run(*rows, toolbox=None, **settings):
        settings = {"address": cluster, "lockstep": 2, "threads": 1} | settings
        if settings.get("serial"):
            settings["address"] = None
        return runner.run(
            list(rows),
            tmp_path,
            prior_spec="stub",
            settings=RunSettings(**settings),
            hooks=toolbox or make_toolbox(),
            reproduce=lambda job: f"latentkiln run m.csv --only {job.id}",
        )

    return run


def state(out, job_id):
    return read_run(out).rows[job_id]["state"]


def leftovers(out):
    return [path for path in out.rglob("*") if path.name == ".lock" or path.name.startswith(".tmp-")]


def log_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_built_in_groups_by_one_worker_that_loads_once(fleet, tmp_path):
    summary = fleet(*(item(f"r{n}") for n in range(5)), item("old", action="keep", reason="up to date"))
    assert (summary.built, summary.kept, summary.failed, summary.exit_code) == (5, 1, [], 0)
    records = [read_record(tmp_path / f"r{n}") for n in range(5)]
    assert {record["prior"] for record in records} == {"prior stub on 1 threads"}
    assert len({record["pid"] for record in records} - {os.getpid()}) == 1
    assert [record["neighbours"] for record in records[::2]] == [["r0", "r1"], ["r2", "r3"], ["r4"]]
    assert not leftovers(tmp_path)
    run = read_run(tmp_path)
    assert run.state == "done" and run.header["counts"] == {"done": 5, "kept": 1}
    assert state(tmp_path, "old") == "kept"


def test_two_workers_share_the_rows(fleet, tmp_path):
    fleet(*(item(f"r{n}") for n in range(2)), workers=2, lockstep=8)
    assert all(read_record(tmp_path / f"r{n}")["neighbours"] == [f"r{n}"] for n in range(2))


@pytest.mark.parametrize("serial", [False, True])
def test_a_failed_row_stops_no_other(fleet, tmp_path, serial):
    rows = [item("a"), item("bad", "fail"), item("bug", "raise"), item("b"), item("c")]
    summary = fleet(*rows, serial=serial, lockstep=3)
    assert summary.built == 3 and summary.exit_code == 1
    told = {result.job_id: (result.stage, result.error, result.message) for result in summary.failed}
    assert told == {
        "bad": ("unwrap", "UnwrapError", "bad: no way"),
        "bug": ("internal", "KeyError", "bug: 'a bug in the recipe'"),
    }
    failure = read_failure(tmp_path / "bad")
    assert failure["reproduce"] == "latentkiln run m.csv --only bad"
    assert failure["stage"] == "unwrap" and failure["source"] == "m.csv:2"
    assert state(tmp_path, "bug") == "failed" and not leftovers(tmp_path)


def test_serial_gives_the_same_bytes_as_ray(fleet, tmp_path):
    rows = [item(f"r{n}") for n in range(3)]
    fleet(*rows)
    first = [(tmp_path / f"r{n}" / "asset.glb").read_bytes() for n in range(3)]
    for n in range(3):
        (tmp_path / f"r{n}" / "record.json").unlink()
        (tmp_path / f"r{n}" / "asset.glb").unlink()
    assert fleet(*rows, serial=True).built == 3
    assert [(tmp_path / f"r{n}" / "asset.glb").read_bytes() for n in range(3)] == first
    assert read_record(tmp_path / "r0")["pid"] == os.getpid()


def test_a_killed_worker_is_replaced_and_only_the_guilty_row_fails(fleet, tmp_path):
    rows = [item("a"), item("killer", "die"), item("b"), item("unlucky", "die once"), item("c")]
    summary = fleet(*rows, lockstep=3)
    assert summary.built == 4 and summary.exit_code == 1
    (failed,) = summary.failed
    assert (failed.job_id, failed.error, failed.attempts) == ("killer", "WorkerDied", 2)
    assert failed.state == "quarantined" and summary.counts["quarantined"] == 1
    assert "died 2 times" in failed.message and failed.reproduce
    failure = read_failure(tmp_path / "killer")
    assert failure["attempts"] == 2 and failure["quarantined"] and "killed or crashed" in failure["message"]
    assert state(tmp_path, "killer") == "quarantined"
    assert not leftovers(tmp_path)


def test_a_row_finished_before_its_worker_died_is_not_built_again(fleet, tmp_path):
    summary = fleet(item("first"), item("second", "die once"))
    assert summary.built == 2
    # The group was (first, second): first was built by the worker that died.
    assert read_record(tmp_path / "first")["neighbours"] == ["first", "second"]
    assert read_record(tmp_path / "second")["neighbours"] == ["second"]


@pytest.mark.parametrize("serial", [False, True])
def test_fail_fast_begins_nothing_new(fleet, tmp_path, serial):
    summary = fleet(item("bad", "fail"), item("late"), serial=serial, lockstep=1, fail_fast=True)
    assert summary.counts["waiting"] == 1 and summary.exit_code == 1
    assert not (tmp_path / "late").exists()


def test_a_blocked_row_is_a_failed_row(fleet, tmp_path):
    summary = fleet(item("gone", action="blocked", reason="its mesh is gone"), item("a"), serial=True)
    assert summary.built == 1
    assert [result.message for result in summary.failed] == ["its mesh is gone"]
    assert read_failure(tmp_path / "gone")["message"] == "its mesh is gone"


def test_a_row_that_another_run_builds_is_left_to_it(fleet, tmp_path):
    with asset_lock(tmp_path / "shared") as held:
        assert held
        summary = fleet(item("shared"), item("mine"))
    assert summary.counts["elsewhere"] == 1 and summary.built == 1 and summary.exit_code == 3
    assert read_record(tmp_path / "shared") is None
    assert fleet(item("shared")).built == 1


def test_a_row_that_another_run_finished_meanwhile_is_kept(fleet, tmp_path):
    fleet(item("a"), serial=True)
    before = (tmp_path / "a" / "record.json").stat().st_mtime_ns
    assert fleet(item("a"), serial=True).counts == {"kept": 1, "waiting": 0}
    assert (tmp_path / "a" / "record.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("serial", [False, True])
def test_a_prior_that_cannot_be_loaded_ends_the_run(fleet, tmp_path, serial):
    with pytest.raises(PriorError, match=r"^no such prior$"):
        fleet(item("a"), toolbox=make_toolbox("no such prior"), serial=serial)
    assert read_run(tmp_path).state == "failed" and read_failure(tmp_path / "a") is None


def test_workers_that_die_while_loading_end_the_run(fleet):
    with pytest.raises(SchedulerError, match="2 workers died while loading the prior"):
        fleet(item("a"), toolbox=make_toolbox("die"))


@pytest.mark.parametrize("serial", [False, True])
def test_ctrl_c_saves_and_says_so(fleet, tmp_path, serial):
    def press():
        wait_for(tmp_path / "slow" / "waiting")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    summary = fleet(item("slow", "wait"), item("next"), serial=serial, lockstep=1)
    assert summary.interrupted and summary.exit_code == 3
    assert summary.counts == {"interrupted": 1, "waiting": 1}
    assert (tmp_path / "slow" / "checkpoint").exists() and not (tmp_path / "next").exists()
    assert read_run(tmp_path).state == "interrupted"


@pytest.mark.parametrize("serial", [False, True])
def test_a_late_row_is_cut_and_its_neighbours_go_on(fleet, tmp_path, serial):
    rows = [item("late", "wait", max_seconds=0.5), item("a", "wait once"), item("b")]
    summary = fleet(*rows, serial=serial, lockstep=2)
    assert summary.built == 2 and summary.exit_code == 1
    (failed,) = summary.failed
    assert (failed.job_id, failed.error, failed.stage) == ("late", "TimeLimit", "distill")
    assert "stopped after 0.5 s" in failed.message and "max_seconds" in failed.message
    assert (tmp_path / "late" / "checkpoint").exists()  # its work is kept
    assert read_failure(tmp_path / "late")["error"] == "TimeLimit" and not leftovers(tmp_path)


@pytest.mark.parametrize(("serial", "prompt"), [(False, "stuck in C"), (True, "stuck")])
def test_a_row_that_hears_nothing_is_cut_all_the_same(fleet, tmp_path, monkeypatch, serial, prompt):
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(actor_pool, "GRACE_SECONDS", 0.5)
    summary = fleet(item("a"), item("stuck", prompt), item("b"), serial=serial, max_seconds=1.0, lockstep=3)
    # In its group all three were late; alone, each shows whose fault it was.
    assert {result.job_id: result.error for result in summary.failed} == {"stuck": "TimeLimit"} and summary.built == 2
    assert read_failure(tmp_path / "stuck")["error"] == "TimeLimit"
    assert not leftovers(tmp_path)


def test_a_row_that_takes_too_much_memory_is_quarantined(fleet, tmp_path):
    summary = fleet(item("a"), item("hog", "hog"), item("b"), max_memory=int(250e6), lockstep=1)
    assert summary.built == 2
    (failed,) = summary.failed
    assert failed.job_id == "hog" and failed.state == "quarantined" and "--max-memory allows 0.25 GB" in failed.message


def test_a_group_is_as_large_as_the_worker_has_measured(fleet, tmp_path):
    rows = [item(f"r{n}") for n in range(4)]
    fleet(*rows, lockstep=None, toolbox=measuring(lockstep=3, per_gpu=1))
    assert [read_record(tmp_path / f"r{n}")["neighbours"] for n in (0, 3)] == [["r0", "r1"], ["r2", "r3"]]


def measuring(lockstep, per_gpu, together=0):
    """The stub recipe behind a measurement that finds this. Each call of the recipe waits until ``together`` workers
    are at work."""
    base = make_toolbox()

    def measure(prior, wanted):
        from pipeline.scheduler.gpu_capacity import Capacity

        return Capacity(wanted or lockstep, per_gpu)

    def recipe_named(name):
        def recipe(jobs, prior, out, **more):
            import os
            import time

            (out / f"worker-{os.getpid()}").touch()
            until = time.monotonic() + 40
            while len(list(out.glob("worker-*"))) < together and time.monotonic() < until:
                time.sleep(0.05)
            return base.recipe(name)(jobs, prior, out, **more)

        return recipe

    return dataclasses.replace(base, measure=measure, recipe=recipe_named)


@pytest.mark.parametrize(
    ("settings", "workers", "noted"),
    [({"lockstep": 1}, 3, True), ({"lockstep": None}, 1, False), ({"lockstep": 1, "gpus_per_worker": 0.5}, 2, False)],
)
def test_workers_share_a_gpu_as_measured(gpu_cluster, tmp_path, settings, workers, noted):
    rows = [item(f"r{n}") for n in range(6)]
    settings = {"address": gpu_cluster, "threads": 1} | settings
    toolbox = measuring(lockstep=2, per_gpu=3, together=workers)
    summary = runner.run(rows, tmp_path, prior_spec="stub", settings=RunSettings(**settings), hooks=toolbox)
    assert summary.built == 6 and not leftovers(tmp_path)
    assert len({read_record(tmp_path / f"r{n}")["pid"] for n in range(6)}) == workers
    notes = [line["text"] for line in log_of(tmp_path / "run.events.jsonl") if line.get("event") == "note"]
    assert ("3 workers share a GPU: as many as fit by the memory measured" in notes) is noted


@pytest.fixture(scope="module")
def gpu_cluster(tmp_path_factory):
    """The address of a cluster that says it has a GPU: to Ray that is a number."""
    ready = tmp_path_factory.mktemp("gpu") / "address"
    with held_cluster(ready, gpus=1):
        wait_for(ready, 60)
        yield ready.read_text()


def test_what_ray_raises_in_the_middle_of_a_row_ends_in_an_asset_or_in_quarantine(fleet, tmp_path, monkeypatch):
    import ray

    errors = ray.exceptions
    injected = {
        "full": [errors.OutOfMemoryError("Task was killed: its node is low on memory")],
        "far": [errors.ActorUnavailableError("no answer", bytes(16))],
        "crashed": [errors.WorkerCrashedError()],
        "lost": [errors.ObjectReconstructionFailedError("00" * 28)],
        "hog": [errors.OutOfMemoryError("its node is low on memory") for _ in range(2)],
    }
    plain, raising = ray.get, {}

    def get(ref, **more):
        if error := raising.pop(ref, None):
            raise error
        return plain(ref, **more)

    waiting, handles = ray.wait, []

    class Handle(actor_pool.WorkerHandle):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            handles.append(self)

    def wait(refs, **more):
        for handle in handles:
            name = handle.rows[0].job.id if handle.state == "building" and handle.ref in refs else ""
            if injected.get(name) and (tmp_path / name / "waiting").exists():
                raising[handle.ref] = injected[name].pop()
                (tmp_path / name / "waiting").unlink()  # the next worker makes it anew,
                (tmp_path / name / "checkpoint").touch()  # and goes on from here
                return [handle.ref], [ref for ref in refs if ref is not handle.ref]
        return waiting(refs, **more)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(actor_pool, "WorkerHandle", Handle)
    rows = [item(name, "wait" if name == "hog" else "wait once") for name in injected]
    summary = fleet(*rows, lockstep=1, workers=2)
    assert not any(injected.values()) and summary.counts["done"] == 4 and not leftovers(tmp_path)
    (failed,) = summary.failed
    assert (failed.job_id, failed.state, failed.attempts) == ("hog", "quarantined", 2)
    assert "ran out of memory" in failed.message and read_failure(tmp_path / "hog")["quarantined"]
    retries = {line["id"]: line["retry"] for line in log_of(tmp_path / "run.events.jsonl") if "retry" in line}
    assert retries == {
        "full": "killed by Ray: its machine ran out of memory",
        "far": "out of reach",
        "crashed": "its process was killed or crashed",
        "lost": "its result was lost with a machine",
        "hog": "killed by Ray: its machine ran out of memory",
    }


def test_a_worker_that_is_told_to_go_saves_its_row_and_another_goes_on(fleet, tmp_path):
    def send():
        wait_for(tmp_path / "slow" / "waiting")
        os.kill(int((tmp_path / "slow" / "waiting").read_text()), signal.SIGTERM)

    threading.Thread(target=send).start()
    summary = fleet(item("slow", "wait once"))
    assert summary.built == 1 and (tmp_path / "slow" / "checkpoint").exists()
    log = log_of(tmp_path / "slow" / "log.jsonl")
    assert [line.get("state") for line in log if line["event"] == "ended"] == ["interrupted", "done"]
    assert len({line["pid"] for line in log if line["event"] == "began"}) == 2


def test_logs_carry_one_id_through_run_and_rows(fleet, tmp_path):
    fleet(item("a"), item("bad", "fail"))
    run = log_of(tmp_path / "run.events.jsonl")
    (identity,) = {line["run"] for line in run}
    assert json.loads((tmp_path / "run.json").read_text())["run"] == identity
    for name, end in (("a", "done"), ("bad", "failed")):
        row = log_of(tmp_path / name / "log.jsonl")
        assert {line["run"] for line in row} == {identity} and {line["id"] for line in row} == {name}
        assert [line["event"] for line in row] == ["began", "stage", "ended"] and row[-1]["state"] == end
    begun = next(line for line in run if line.get("id") == "a" and line["state"] == "running")
    assert begun["node"] and begun["worker"] == "worker 1"
    fleet(item("a"))
    assert (tmp_path / ".runs" / f"{identity}.jsonl").exists()


def wait_for(path, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


DRIVER = f"""
import sys; sys.path.insert(0, {str(FAKES)!r})
from pathlib import Path
from stub_recipe import item, make_toolbox
from pipeline.scheduler import runner
from pipeline.scheduler.cluster import SchedulerError
settings = runner.RunSettings(lockstep=1, threads=1)
rows = [item("slow", sys.argv[2]), item("next")]
summary = runner.run(rows, Path(sys.argv[1]), prior_spec="stub", settings=settings, hooks=make_toolbox())
sys.exit(summary.exit_code)
"""


def start_driver(out, prompt="wait"):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(out), prompt])


def family(process):
    return psutil.Process(process.pid).children(recursive=True)


def test_sigterm_twice_stops_now_and_leaves_no_process(tmp_path):
    process = start_driver(tmp_path)
    wait_for(tmp_path / "slow" / "waiting")
    relatives = family(process)
    # Other runs on this machine have folders of their own.
    commands = " ".join(" ".join(relative.cmdline()) for relative in relatives)
    own_folders = [folder for folder in Path("/tmp").glob("lk-*") if str(folder) in commands]
    assert own_folders
    assert any(p.name().startswith("ray::Worker") for p in relatives)
    worker = psutil.Process(int((tmp_path / "slow" / "waiting").read_text()))
    worker.suspend()  # it hears no request
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 3
    assert not (tmp_path / "slow" / "checkpoint").exists()
    assert not psutil.wait_procs(relatives, timeout=10)[1]
    assert not [folder for folder in own_folders if folder.exists()]


def test_everything_killed_at_once_then_run_again(tmp_path):
    before = set(Path("/tmp").glob("lk-*"))
    process = start_driver(tmp_path)
    wait_for(tmp_path / "slow" / "waiting")
    left = set(Path("/tmp").glob("lk-*")) - before
    for relative in [*family(process), psutil.Process(process.pid)]:
        relative.kill()
    process.wait(10)
    view = read_run(tmp_path)
    assert view.state == "killed" and view.rows["slow"]["state"] == "running"
    assert (tmp_path / "slow" / ".lock").exists()  # the file stays, the lock is gone with its holder
    again = start_driver(tmp_path, "fine")
    assert again.wait(120) == 0
    assert read_record(tmp_path / "slow") and read_record(tmp_path / "next") and not leftovers(tmp_path)
    assert left and not any(folder.exists() for folder in left)  # swept up by the second run


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_ray_is_started_again_when_its_servers_die(tmp_path, server):
    process = start_driver(tmp_path, "sleep once")
    wait_for(tmp_path / "slow" / "waiting")
    (victim,) = [p for p in family(process) if p.name() == server]
    victim.kill()
    assert process.wait(150) == 0
    assert read_record(tmp_path / "slow") and read_record(tmp_path / "next") and not leftovers(tmp_path)
    notes = [line["text"] for line in log_of(tmp_path / "run.events.jsonl") if line.get("event") == "note"]
    assert any("servers on this machine died; they are started again" in note for note in notes)


def test_workers_end_when_only_their_driver_is_killed(tmp_path):
    process = start_driver(tmp_path)
    wait_for(tmp_path / "slow" / "waiting")
    relatives = family(process)
    workers = [p for p in relatives if p.name().startswith("ray::Worker") or p.name() == "raylet"]
    assert len(workers) == 2
    process.kill()
    process.wait(10)
    assert not psutil.wait_procs(workers, timeout=20)[1]
    with asset_lock(tmp_path / "slow") as held:
        assert held


def test_a_stranger_without_the_token_is_refused(cluster):
    # What joining begins with; ray.init itself goes on trying for a while.
    code = (
        "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, 5)"
    )

    def knock(**token):
        command = [sys.executable, "-c", code, cluster]
        return subprocess.run(command, env=os.environ | token, capture_output=True, text=True, check=False)

    assert knock().returncode == 0
    stranger = knock(RAY_AUTH_TOKEN="0" * 64)
    assert stranger.returncode and "auth" in stranger.stderr.lower()


def test_ports_are_bound_to_the_loopback(cluster, cluster_process):
    assert cluster.startswith("127.0.0.1:")
    relatives = family(cluster_process)
    assert {"raylet", "gcs_server"} <= {relative.name() for relative in relatives}
    for relative in [*relatives, psutil.Process(cluster_process.pid)]:
        for connection in relative.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (relative.name(), connection)


def test_many_rows_write_the_record_of_the_run_now_and_then(tmp_path, monkeypatch):
    """Locks, log and queue do little for each row; the run's own record is as long as the list of failures."""
    count = 300
    written = []
    plain = run_log.write_json
    monkeypatch.setattr(run_log, "write_json", lambda *arguments: (written.append(1), plain(*arguments))[1])
    summary = runner.run(
        [item(f"r{n:05d}") for n in range(count)],
        tmp_path,
        prior_spec="stub",
        settings=RunSettings(serial=True, lockstep=8, threads=1),
        hooks=make_toolbox(),
    )
    assert summary.built == count
    assert len(written) < count
    assert json.loads((tmp_path / "run.json").read_text())["counts"] == {"done": count}
