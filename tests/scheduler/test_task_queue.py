"""The queue and the book without Ray: order, bounded windows, deaths, limits; errors as Ray raises them."""

from __future__ import annotations

import itertools
import socket

import pytest
import ray.exceptions
from stub_recipe import item

from pipeline.core.job import Job
from pipeline.core.redact import redact
from pipeline.export.record import read_failure, write_record
from pipeline.scheduler import cluster
from pipeline.scheduler.batch import record_failure
from pipeline.scheduler.cluster import SchedulerError, ray_cluster
from pipeline.scheduler.file_lock import asset_lock
from pipeline.scheduler.output_root import LocalOutputRoot
from pipeline.scheduler.progress import Progress
from pipeline.scheduler.run_log import RunLog
from pipeline.scheduler.task_log import TaskLog
from pipeline.scheduler.task_queue import TaskQueue
from pipeline.scheduler.task_tracker import MAX_SETBACKS, TaskTracker
from pipeline.scheduler.tasks import Task, TaskResult
from pipeline.scheduler.worker_failure import classify


def row(job_id, recipe="paint", alone=False, **settings):
    return Task(Job(job_id, recipe, "p", "", 0, None, settings), "f", alone=alone)


def taken(waiting, **options):
    options = {"lockstep": 4, "workers": 1, "all_known": True} | options
    groups = []
    while group := waiting.take(**options):
        groups.append([one.job.id for one in group])
    return groups


def test_an_address_where_nothing_listens_is_told_soon(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        cluster.wait_for_answer(address)
        cluster.wait_for_answer(f"ray://{address}")
    cluster.wait_for_answer("auto")  # Ray's to judge
    for nowhere in (address, f"ray://{address}", "127.0.0.1:99999", f"{'x' * 300}:6379", "no-such-host.invalid:6379"):
        with (
            pytest.raises(SchedulerError, match=f"joining Ray at {nowhere} failed: nothing answers there"),
            ray_cluster(nowhere, 1),
        ):
            pass


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    def make(items, **options):
        run_log = RunLog(tmp_path, {})
        run_log.open()
        options = {"lockstep": 2} | options
        return TaskTracker(
            items, LocalOutputRoot(tmp_path), run_log=run_log, progress=Progress(), clock=clock, **options
        )

    return make


def test_the_longest_comes_first_and_equals_keep_their_order():
    waiting = TaskQueue()
    for one in (row("a"), row("long", steps=3000), row("b"), row("short", steps=10), row("c", views=8)):
        waiting.add(one)
    assert taken(waiting, lockstep=1) == [["long"], ["c"], ["a"], ["b"], ["short"]]


def test_groups_hold_one_recipe_and_lose_no_row():
    waiting = TaskQueue()
    for number in range(9):
        waiting.add(row(f"r{number}", recipe=("paint", "generate")[number % 2]))
    groups = taken(waiting)
    assert sorted(itertools.chain(*groups)) == [f"r{number}" for number in range(9)]
    assert all(len({int(name[1:]) % 2 for name in group}) == 1 for group in groups)
    assert len(groups) == 3


def test_suspects_come_last_and_by_themselves():
    waiting = TaskQueue()
    for one in (row("x", alone=True), row("a"), row("b"), row("y", alone=True)):
        waiting.add(one)
    assert taken(waiting) == [["a", "b"], ["x"], ["y"]]


def test_what_waits_for_its_time_is_not_ready(clock):
    waiting = TaskQueue(clock)
    waiting.add(row("a"), delay=5)
    assert not waiting.take(4, 1, all_known=True) and len(waiting) == 1
    clock.now = 5.0
    assert taken(waiting) == [["a"]]


def test_a_book_reads_no_further_than_it_must(book):
    read = []

    def items():
        for number in range(100):
            read.append(number)
            yield item(f"r{number}", action="keep" if number % 2 else "build")

    made = book(items(), window=10, total=100)
    made.load_more()
    assert len(read) < 25 and made.rows_left == 10
    assert made.expected() == {"build": 100 - made.summary.kept, "kept": made.summary.kept}
    built = 0
    while made.has_more:
        made.load_more()
        group = made.next_batch()
        made.mark_started(group, "w")
        for one in group:
            made.finish(one, TaskResult(one.job.id, "done"))
        built += len(group)
    assert built == 50 and made.summary.kept == 50 and made.exhausted


def test_a_worker_that_dies_twice_with_a_row_quarantines_it(book, tmp_path):
    made = book([item("a"), item("b")])
    made.load_more()
    group = made.next_batch()
    made.mark_started(group, "w")
    made.worker_lost(group, "crashed")
    for _ in range(2):
        (one,) = made.next_batch()
        assert one.alone and one.attempt == 2
        made.mark_started([one], "w")
        made.worker_lost([one], "crashed") if one.job.id == "a" else made.finish(one, TaskResult("b", "done"))
    assert made.summary.counts["quarantined"] == 1 and made.summary.exit_code == 1 and not made.has_more
    assert read_failure(tmp_path / "a")["quarantined"] is True


def test_a_quarantined_row_is_tried_alone_by_the_next_run(book):
    import dataclasses

    made = book([dataclasses.replace(item("a"), alone=True), item("b"), item("c")])
    made.load_more()
    assert [[one.job.id for one in made.next_batch()] for _ in range(2)] == [["b", "c"], ["a"]]


def test_no_row_is_blamed_for_a_lost_machine(book, clock, tmp_path):
    made = book([item("a")])
    made.load_more()
    for setback in range(MAX_SETBACKS):
        (one,) = made.next_batch()
        # Whatever takes its machine along, again and again, shall take no neighbours with it.
        assert one.attempt == 1 and one.setbacks == setback and one.alone == (setback >= MAX_SETBACKS // 2)
        made.mark_started([one], "w")
        made.update_stage("a", "distill", 7, 300)
        made.worker_lost([one], "its machine is gone", blame=False)
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    clock.now += 60
    made.update_stage("a", "distill", 7, 300)
    made.worker_lost([one], "its machine is gone", blame=False)
    (given_up,) = made.summary.failed
    assert (given_up.error, given_up.state, given_up.attempts) == ("WorkerLost", "quarantined", 1) and not made.has_more
    assert "requeued 20 times at distill 7/300 without progress" in given_up.message
    assert given_up.seconds == 60 and read_failure(tmp_path / "a")["quarantined"] is True


def test_a_row_that_comes_further_each_time_is_never_given_up(book, clock):
    made = book([item("a", "work")])
    made.load_more()
    for setback in range(10 * MAX_SETBACKS):
        (one,) = made.next_batch()
        assert one.stalled <= 1 and not one.alone
        # Each time it is some steps behind, having lost what it did since its last checkpoint.
        for done in (max(0, setback - 5), setback):
            clock.now += 1
            made.update_stage("a", ("distill", "refine 1/4")[done > 100], done, 3000)
        made.worker_lost([one], "its machine was preempted", blame=False)
    assert not made.summary.failed and made.next_batch()[0].setbacks == 10 * MAX_SETBACKS


def test_time_spent_on_lost_machines_counts(book, clock):
    made = book([item("a", max_seconds=10)])
    made.load_more()
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    clock.now = 7.0
    made.worker_lost([one], "its machine is gone", blame=False)
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    assert made.deadline([one]) == pytest.approx(10.0) and not made.is_overdue(one)
    clock.now = 10.0
    made.complete(one, TaskResult("a", "interrupted", "distill"))
    assert made.summary.failed[0].error == "TimeLimit"


def test_a_lock_that_a_lost_worker_holds_is_waited_for(book, clock, tmp_path):
    made = book([item("a")])
    made.load_more()
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    made.worker_lost([one], "out of reach", blame=False)
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    made.complete(one, TaskResult("a", "elsewhere"))
    assert not made.next_batch() and made.has_more
    clock.now += 6
    (one,) = made.next_batch()
    made.complete(one, TaskResult("a", "kept"))
    assert made.summary.built == 1


def actor_died(text):
    context = ray.core.generated.common_pb2.ActorDiedErrorContext(actor_id=bytes(16), error_message=text)
    return ray.exceptions.ActorDiedError(context)


ERRORS = ray.exceptions
NODE = "The actor died because its node has died. Node Id: 5a"


@pytest.mark.parametrize(
    ("error", "blame", "words"),
    [
        (ERRORS.OutOfMemoryError("Task was killed due to the node running low on memory."), True, "out of memory"),
        (ERRORS.ActorUnavailableError("unreachable", bytes(16)), False, "out of reach"),
        (ERRORS.WorkerCrashedError(), True, "crashed"),
        (ERRORS.ActorDiedError(), True, "crashed"),
        (actor_died("The actor is dead because its worker process has died."), True, "crashed"),
        (actor_died(NODE), False, "machine is gone"),
        (actor_died(NODE + "\n\tthe actor's node was preempted: spot"), False, "machine is gone"),
        (ERRORS.NodeDiedError("gone"), False, "machine is gone"),
        (ERRORS.ObjectReconstructionFailedError("00" * 28, None, ""), False, "lost with a machine"),
        (ERRORS.OwnerDiedError("00" * 28, None, ""), False, "lost with a machine"),
        (ERRORS.OutOfDiskError("full"), False, "disk is full"),
        (ERRORS.ActorUnschedulableError("no room"), False, "no machine"),
    ],
)
def test_who_is_to_blame(error, blame, words):
    death = classify(ERRORS, error)
    assert death.blame is blame and words in death.reason


def test_a_node_that_the_cluster_calls_dead_takes_the_blame():
    assert classify(ERRORS, ERRORS.ActorDiedError(), node_alive=False).blame is False


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://user:hunter2@host/bucket", "s3://***@host/bucket"),
        ("https://h/x?X-Amz-Signature=abc123&X-Amz-Date=5", "https://h/x?X-Amz-Signature=***&X-Amz-Date=5"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+1", "AWS_SECRET_ACCESS_KEY=***"),
        ("Authorization: Bearer eyJhbGciOi.abc", "Authorization: Bearer ***"),
        ("key AKIAIOSFODNN7EXAMPLE refused", "key *** refused"),
        ("m.csv:4: mesh: there is no file 'x.obj'", "m.csv:4: mesh: there is no file 'x.obj'"),
        ("latentkiln run m.csv --set steps=5 --only key-ring", "latentkiln run m.csv --set steps=5 --only key-ring"),
    ],
)
def test_secrets_leave_no_trace(text, clean):
    assert redact(text) == clean


def test_no_secret_of_the_environment_comes_out_of_a_row(book, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5ecret5ecret5ecret")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    made = book([item("a", action="blocked", reason="got 5ecret5ecret5ecret"), item("b")])
    made.load_more()
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    made.worker_lost([one], "it said hf_abcdefgh", blame=False)
    (one,) = made.next_batch()
    made.mark_started([one], "w")
    log = TaskLog(tmp_path / "b", one, "run")
    result = TaskResult("b", "failed", "prior", "E", "with hf_abcdefgh", warnings=["and hf_abcdefgh"])
    log.finished(result)
    record_failure(LocalOutputRoot(tmp_path), one, result)
    made.complete(one, result)
    write_record(tmp_path / "c", {"id": "c", "fingerprint": "", "outputs": {}, "warnings": ["hf_abcdefgh"]})
    told = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    told += str(made.summary.failed)
    assert told.count("***") >= 6 and "5ecret" not in told and "hf_abc" not in told


def test_no_failure_is_written_through_a_link_that_leads_out(book, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(outside)
    run_log = RunLog(out, {})
    made = TaskTracker(
        [item("a", action="blocked", reason="a link")],
        LocalOutputRoot(out),
        lockstep=1,
        run_log=run_log,
        progress=Progress(),
    )
    made.load_more()
    assert made.summary.failures == 1 and not list(outside.iterdir())
    with pytest.raises(OSError, match="leaves the output folder"), asset_lock(out / "a"):
        pass


def test_a_second_run_on_the_same_root_keeps_its_own_record(tmp_path):
    first, second = RunLog(tmp_path, {}), RunLog(tmp_path, {})
    first.open()
    second.open()
    second.planned("b", "planned")
    second.close("done", 0)
    first.planned("a", "planned")
    first.close("done", 0)
    assert (tmp_path / ".runs" / f"{second.run_id}.json").exists()
    assert '"b"' not in (tmp_path / "run.events.jsonl").read_text()
    third = RunLog(tmp_path, {})
    third.open()
    assert (tmp_path / ".runs" / f"{first.run_id}.jsonl").exists()
    third.close("done", 0)
