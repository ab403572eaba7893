"""Signals that stop a run: counted, and obeyed at once where nothing counts them."""

from __future__ import annotations

import signal
from collections import Counter
from types import SimpleNamespace

import pytest

from pipeline.scheduler import runner
from pipeline.scheduler.cluster import ClusterLost
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


def test_servers_that_the_signal_ended_too_make_no_failure(monkeypatch):
    def end(*args):
        signal.raise_signal(signal.SIGTERM)
        raise ClusterLost("they died")

    monkeypatch.setattr(runner, "_run_cluster", end)
    book = SimpleNamespace(summary=SimpleNamespace(counts=Counter()))
    silent = SimpleNamespace(note=lambda text: None, warn=lambda text: None, run_id="r")
    with StopSignals() as interrupts:
        stopped = runner._run_ray(book, None, "", runner.RunSettings(), None, interrupts, silent, silent)  # type: ignore[arg-type]
    assert stopped
