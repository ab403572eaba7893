"""Signals that stop a run: counted, and obeyed at once where nothing counts them."""

from __future__ import annotations

import signal

import pytest
from stub_recipe import item, make_toolbox

from pipeline.scheduler import cluster, runner
from pipeline.scheduler.signals import StopSignals


def test_the_second_ctrl_c_stops_what_begins_and_is_counted_elsewhere():
    with StopSignals() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            assert interrupts.stopping and not interrupts.stop_at_once
            signal.raise_signal(signal.SIGINT)
        assert interrupts.stop_at_once
        signal.raise_signal(signal.SIGINT)


def test_one_ctrl_c_lets_what_begins_begin():
    with StopSignals() as interrupts:
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
        assert interrupts.stopping and not interrupts.stop_at_once


def test_servers_that_the_signal_ended_too_make_no_failure(monkeypatch, tmp_path):
    def end(*args):
        signal.raise_signal(signal.SIGTERM)
        raise cluster.ClusterLost("they died")

    monkeypatch.setattr(cluster, "ray_cluster", end)
    settings = runner.RunSettings(lockstep=1, threads=1)
    summary = runner.run([item("a")], tmp_path, prior_spec="stub", settings=settings, hooks=make_toolbox())
    assert summary.interrupted and summary.exit_code == 3 and summary.counts == {"waiting": 1}
