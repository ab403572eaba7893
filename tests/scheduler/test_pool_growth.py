"""How many workers a joined cluster is asked for, as it grows and shrinks. No Ray server is started."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from fake_ray import FakeRay

from pipeline.scheduler import actor_pool, cluster
from pipeline.scheduler.actor_pool import ActorPool, ActorSettings
from pipeline.scheduler.worker import BatchResult, LoadReport


class Turn(Exception):
    """One turn of the pool's loop is over."""


class Cluster:
    """An ActorPool on a stand-in for Ray, whose loop goes one turn at a time.

    ``rows_left`` and ``exhausted`` are what its tracker says, ``groups`` the rows that it hands out; ``room`` is how
    many workers the cluster holds; ``now`` the time, in seconds.
    """

    def __init__(self, ray: FakeRay, *, width: int | None = 1, growing: bool = True, **settings):
        self.ray, self.rows_left, self.exhausted, self.room, self.now = ray, 0, True, 1, 1000.0
        self.groups, self.told, self.turns = [], [], 0
        worker, options = SimpleNamespace(lockstep=width), {"num_cpus": 8, "num_gpus": 0}
        self.pool = ActorPool(
            self,
            self.told.append,
            SimpleNamespace(stopping=False, stop_at_once=False),
            ActorSettings(worker, options, workers=lambda per_gpu: self.room, growing=growing, **settings),
        )

    has_more, halting = True, False

    def load_more(self, seconds: float) -> None:
        self.turns += 1
        if self.turns % 2 == 0:
            raise Turn

    def next_batch(self, workers: int, lockstep: int | None) -> list:
        return self.groups.pop() if self.groups else []

    def mark_started(self, group: list, worker: str, node: str) -> None: ...

    def complete(self, row: object, result: object) -> None: ...

    def deadline(self, rows: list) -> None: ...

    def look(self, rows: int, room: int | None = None) -> list[str]:
        """The workers there are after one more turn, some seconds later."""
        self.rows_left, self.room = rows, self.room if room is None else room
        self.now += 3
        with pytest.raises(Turn):
            self.pool.run()
        return self.ray.names

    def load(self, name: str) -> None:
        """Lets the worker ``name`` have loaded its prior."""
        self.ray.answer(name, "load", LoadReport(pid=1, seconds=0.1, node="10.0.0.2", node_id="id"))


@pytest.fixture
def make(monkeypatch):
    """Makes a Cluster."""
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    made = []
    clock = SimpleNamespace(monotonic=lambda: made[-1].now if made else 1000.0, sleep=lambda seconds: None)
    monkeypatch.setattr(actor_pool, "time", clock)

    def start(**settings):
        made.append(Cluster(ray, **settings))
        return made[-1]

    return start


def test_as_many_again_wait_for_machines_while_there_are_rows_for_them(make):
    # The one that finds no room is what makes the cluster grow.
    fleet = make()
    assert len(fleet.look(100)) == 2
    assert len(fleet.look(100, room=2)) == 4
    assert len(fleet.look(100, room=8)) == 16


def test_a_cluster_without_a_machine_is_asked_for_one(make):
    assert len(make().look(100, room=0)) == 2


@pytest.mark.parametrize(("rows", "width", "workers"), [(8, 8, 1), (9, 8, 2), (3, None, 1), (1, 1, 1)])
def test_no_more_machines_than_groups_of_rows(make, rows, width, workers):
    assert len(make(width=width).look(rows)) == workers


def test_a_number_that_was_asked_for_is_what_there_is(make):
    fleet = make(growing=False)
    assert len(fleet.look(100)) == 1 and len(fleet.look(100, room=3)) == 3


def test_at_the_end_no_machine_is_waited_for_and_idle_ones_go(make):
    fleet = make()
    assert len(fleet.look(100, room=2)) == 4
    for name in ("worker 1", "worker 2"):
        fleet.load(name)
        fleet.look(100)
    fleet.exhausted, fleet.groups = False, [[SimpleNamespace(job=SimpleNamespace(id="a"))]]
    assert len(fleet.look(0)) == 4  # more rows may be read
    assert [actor.called("build") for actor in fleet.ray.actors] == [1, 0, 0, 0]
    fleet.exhausted = True
    assert fleet.look(0) == ["worker 1", "worker 2"] and fleet.ray.killed == ["worker 4", "worker 3"]
    fleet.now += actor_pool.SPARE_SECONDS + 1
    assert fleet.look(0) == ["worker 1"] and fleet.ray.killed[-1] == "worker 2"


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


def test_where_no_machine_comes_a_smaller_one_is_asked_for_until_it_is_there(make):
    """An autoscaler whose nodes have two CPUs starts none for workers that ask for eight, as the driver has."""
    nodes = []
    fleet = make(cpus=lambda early: max(1, min(8, *nodes)) if nodes else 8 if early else 1)

    def asked():
        names = fleet.look(100)
        return {actor.asked["num_cpus"] for actor in fleet.ray.alive}, names

    assert asked() == ({8}, ["worker 1", "worker 2"])
    fleet.now += actor_pool.DEADLINE_SECONDS + 1
    asked()
    assert any("is there room in the cluster?" in line for line in fleet.told)
    assert asked() == ({1}, ["worker 3", "worker 4"]) and fleet.ray.killed == ["worker 1", "worker 2"]
    nodes += [2, 2]
    assert asked() == ({2}, ["worker 5", "worker 6"])
    assert {name: count for name, count in fleet.ray.alive[0].asked.items() if name.startswith("num")} == {
        "num_cpus": 2, "num_gpus": 0,
    }  # fmt: skip
    fleet.load("worker 5")
    asked()
    nodes += [16]
    # Workers of one kind from then on: nothing that is being loaded is thrown away.
    assert asked() == ({2}, ["worker 5", "worker 6"])


@pytest.mark.parametrize(("state", "then"), [("building", "its work is being saved"), ("idle", "it gets no more rows")])
def test_a_machine_that_goes_away_is_told_of_once_whatever_its_worker_does(make, state, then):
    """A worker may be between two groups of rows when the notice comes."""
    draining = []
    fleet = make(growing=False, draining=lambda: frozenset(draining))
    fleet.look(2)
    fleet.load("worker 1")
    fleet.look(2)
    if state == "building":
        fleet.groups = [[SimpleNamespace(job=SimpleNamespace(id="a"))]]
        fleet.look(2)
    draining.append("id")
    for _ in range(3):
        fleet.look(2)
    assert fleet.told == [f"worker 1: its machine 10.0.0.2 is going away; {then}"]
    if state == "building":
        assert fleet.ray.actors[0].called("stop") == 1
        fleet.ray.answer("worker 1", "build", BatchResult(["done"]))
        fleet.look(2)  # it has let go of its rows
        fleet.look(2)
    assert "worker 1" in fleet.ray.killed and "worker 1" not in fleet.ray.names
