"""How many workers a joined cluster is asked for, as it grows and shrinks. No Ray server is started."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from pipeline.scheduler import actor_pool, cluster
from pipeline.scheduler.actor_pool import ActorPool, ActorSettings, WorkerHandle
from pipeline.scheduler.worker import LoadReport


@pytest.fixture
def fleet(monkeypatch, tmp_path):
    """A Fleet whose workers are names; ``book`` has so many rows left, the cluster so much ``room``."""
    book = SimpleNamespace(rows_left=0, exhausted=True, next_batch=lambda *more: [])
    worker = SimpleNamespace(lockstep=None)
    killed = []
    settings = ActorSettings(worker, {}, workers=lambda per_gpu: made.room, growing=True)
    made = ActorPool(book, print, None, settings)
    made.book, made.killed, made.room = book, killed, 1

    def new_slot():
        made._created += 1
        return WorkerHandle(f"worker {made._created}", None, None)

    monkeypatch.setattr(made, "_new_worker", new_slot)
    monkeypatch.setattr(made, "_kill", lambda slot: killed.append(slot.name))

    def look(rows, *, width=1, room=None, growing=True):
        book.rows_left, made.room = rows, made.room if room is None else room
        worker.lockstep, made._settings = width, settings if growing else ActorSettings(worker, {}, settings.workers)
        made._next_check = 0.0
        made._watch_cluster()
        made._assign_tasks()
        return [slot.state for slot in made._workers]

    made.look = look
    return made


def test_as_many_again_wait_for_machines_while_there_are_rows_for_them(fleet):
    # The one that finds no room is what makes the cluster grow.
    assert len(fleet.look(100)) == 2
    assert len(fleet.look(100, room=2)) == 4
    assert len(fleet.look(100, room=8)) == 16


def test_a_cluster_without_a_machine_is_asked_for_one(fleet):
    assert len(fleet.look(100, room=0)) == 2


@pytest.mark.parametrize(("rows", "width", "workers"), [(8, 8, 1), (9, 8, 2), (3, None, 1), (1, 1, 1)])
def test_no_more_machines_than_groups_of_rows(fleet, rows, width, workers):
    assert len(fleet.look(rows, width=width)) == workers


def test_a_number_that_was_asked_for_is_what_there_is(fleet):
    assert len(fleet.look(100, growing=False)) == 1 and len(fleet.look(100, room=3, growing=False)) == 3


def test_at_the_end_no_machine_is_waited_for_and_idle_ones_go(fleet, monkeypatch):
    fleet.look(100, room=2)
    for slot in fleet._workers[:2]:
        slot.state = "idle"
    now = 1000.0
    monkeypatch.setattr(actor_pool.time, "monotonic", lambda: now)
    fleet._workers[0].state, fleet._workers[1].since = "building", now
    fleet.book.exhausted = False
    assert fleet.look(0) == ["building", "idle", "loading", "loading"]  # more rows may be read
    fleet.book.exhausted = True
    assert fleet.look(0) == ["building", "idle"] and fleet.killed == ["worker 4", "worker 3"]
    now += actor_pool._SPARE_SECONDS + 1
    assert fleet.look(0) == ["building"] and fleet.killed[-1] == "worker 2"


NODES = {
    "head": {"CPU": 2.0, "memory": 1.0},
    "small": {"CPU": 4.0},
    "large": {"CPU": 16.0},
    "gpus": {"CPU": 16.0, "GPU": 4.0},
}


@pytest.mark.parametrize(
    ("nodes", "cpus", "room"),
    [
        ("small", 4, {8: 1, 4: 1}),  # a driver with more cores than the nodes have
        ("small small large", 16, {4: 6}),
        ("head gpus", 4, {}),  # so that all four GPUs find some
        ("", 0, {2: 0}),
    ],
)
def test_cpus_are_asked_for_as_the_nodes_have_them(nodes, cpus, room, monkeypatch):
    there = [NODES[name] for name in nodes.split()]
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in there])
    assert cluster.worker_cpus(64, early=True) == (cpus or 64)
    assert cluster.worker_cpus(64, early=False) == (cpus or 1)
    for threads, workers in room.items():
        assert cluster.worker_capacity(cluster.worker_cpus(threads, early=True), 0) == workers
    assert cluster.worker_capacity(1, 2) == (8 if "gpus" in nodes else 0)


@pytest.mark.parametrize(("nodes", "early", "late"), [("large", 8, 1), ("large gpus", 4, 4), ("", 8, 1)])
def test_machines_without_a_gpu_say_nothing_of_those_to_come(nodes, early, late, monkeypatch):
    """A head that has many CPUs, and machines with a GPU and few that an autoscaler would start."""
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": NODES[name]} for name in nodes.split()])
    assert cluster.worker_cpus(8, early=True, on_gpus=True) == early
    assert cluster.worker_cpus(8, early=False, on_gpus=True) == late


def test_where_no_machine_comes_a_smaller_one_is_asked_for_until_it_is_there(fleet):
    """An autoscaler whose nodes have two CPUs starts none for workers that ask for eight, as the driver has."""
    nodes = []
    fleet._settings = dataclasses.replace(
        fleet._settings, cpus=lambda early: max(1, min(8, *nodes)) if nodes else 8 if early else 1
    )
    fleet._options = {"num_cpus": 8, "num_gpus": 0}

    def look(rows):
        fleet.book.rows_left, fleet._next_check = rows, 0.0
        fleet._watch_cluster()
        fleet._assign_tasks()
        return fleet._options["num_cpus"], [slot.name for slot in fleet._workers]

    assert look(100) == (8, ["worker 1", "worker 2"])
    fleet._begun -= actor_pool._DEADLINE_SECONDS + 1
    fleet._check_patience()
    assert look(100) == (1, ["worker 3", "worker 4"]) and fleet.killed == ["worker 1", "worker 2"]
    nodes += [2, 2]
    assert look(100) == (2, ["worker 5", "worker 6"])
    assert fleet._options == {"num_cpus": 2, "num_gpus": 0}
    fleet._loaded(fleet._workers[0], LoadReport(pid=1, seconds=0.1, node="n", node_id="i"))
    nodes += [16]
    assert look(100)[0] == 2  # workers of one kind from then on: nothing that is being loaded is thrown away


@pytest.mark.parametrize(("state", "then"), [("building", "its work is being saved"), ("idle", "it gets no more rows")])
def test_a_machine_that_goes_away_is_told_of_once_whatever_its_worker_does(fleet, monkeypatch, state, then):
    """A worker may be between two groups of rows when the notice comes."""
    told, asked = [], []
    monkeypatch.setattr(fleet, "_note", told.append)
    monkeypatch.setattr(
        fleet, "_request_stop", lambda slot: asked.append(slot.name) or setattr(slot, "stop_requested", True)
    )
    fleet.look(2, growing=False)
    (slot,) = fleet._workers
    slot.state, slot.node, slot.node_id = state, "10.0.0.2", "id"
    fleet._settings = dataclasses.replace(fleet._settings, draining=lambda: frozenset({"id"}))
    for _ in range(3):
        fleet._next_check = 0.0
        fleet._watch_cluster()
    assert told == [f"worker 1: its machine 10.0.0.2 is going away; {then}"]
    assert asked == (["worker 1"] if state == "building" else [])
    slot.state = "idle"  # a builder that has let go of its rows
    fleet._assign_tasks()
    assert "worker 1" in fleet.killed and "worker 1" not in [slot.name for slot in fleet._workers]
