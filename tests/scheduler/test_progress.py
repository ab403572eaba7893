"""Rates, times left, and what each display shows."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest
from rich.console import Console

from pipeline.scheduler.progress import (
    JsonProgress,
    LiveProgress,
    PlainProgress,
    Progress,
    RowClock,
    RunClock,
    duration,
    make_progress,
)
from pipeline.scheduler.tasks import TaskResult


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rate_and_time_left_are_of_the_present_stage(clock):
    row = RowClock(clock)
    row.at("unwrap", 1, 1)
    for step in range(11):
        row.at("distill", step * 5, 100)
        clock.now += 1.0
    assert row.rate == pytest.approx(50 / 11)
    assert row.seconds_left == pytest.approx(50 / (50 / 11))
    row.at("bake", 0, 1)
    assert row.rate is None and row.seconds_left is None


def test_rate_follows_the_last_seconds(clock):
    row = RowClock(clock)
    for step in range(200):
        row.at("distill", step, 1000)
        clock.now += 1.0 if step < 100 else 0.1
    # The window of 15 s still holds a few slow steps.
    assert 5 < row.rate <= 10.5


def test_a_row_that_reports_often_holds_a_bounded_number_of_marks(clock):
    row = RowClock(clock)
    tracemalloc.start()
    for step in range(20_000):
        clock.now += 0.001
        row.at("distill", step, 1_000_000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000  # 15,000 steps lie within the window
    assert row.rate == pytest.approx(1000, rel=0.05)


def test_time_left_of_the_run_does_not_count_what_a_checkpoint_had(clock):
    run = RunClock(clock)
    run.build = 2
    run.row_began("a").at("distill", 50, 100)
    assert run.seconds_left is None
    half = run.rows["a"].fraction
    clock.now += 10
    run.rows["a"].at("distill", 75, 100)
    gained = run.rows["a"].fraction - half
    assert run.seconds_left == pytest.approx(10 / gained * (2 - half - gained))
    run.row_ended(TaskResult("a", "done"))
    assert run.finished == 1


def test_plain_lines_are_few(clock):
    stream = io.StringIO()
    progress = PlainProgress(stream, clock)
    progress.begin(build=1, kept=2)
    progress.row_began("a", 1)
    for step in range(1, 201):
        progress.row_stage("a", "distill", step, 200)
        clock.now += 0.125
    progress.row_stage("a", "bake", 1, 1)
    progress.row_ended(TaskResult("a", "done", seconds=21.0, warnings=["w"]))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["run: 1 to build, 2 up to date", "a: started"]
    assert lines[2] == "a: distill 1/200"
    assert lines[3] == "a: distill 81/200 (8.0/s, 0:15 left)"
    assert lines[-2:] == ["a: bake", "a: done in 21.0 s (1 warning) [1/1]"]
    assert len(lines) == 7


def test_json_lines(clock):
    stream = io.StringIO()
    progress = JsonProgress(stream)
    progress.run_id = "20260101T000000-1"
    progress.begin(build=1, kept=0)
    progress.row_began("a", 2)
    progress.row_stage("a", "distill", 1, 2)
    progress.row_ended(TaskResult("a", "failed", "bake", "E", "why", reproduce="cmd", attempts=2))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["begin", "row", "stage", "row"]
    assert {event["run"] for event in events} == {"20260101T000000-1"}
    assert events[2]["done"] == 1 and events[3]["reproduce"] == "cmd" and events[3]["attempts"] == 2


def test_live_table_shows_a_line_per_row_and_one_for_the_run(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    progress = LiveProgress(console, clock)
    progress.begin(build=3, kept=4)
    progress.row_began("wall[1]", 1)
    progress.row_stage("wall[1]", "distill", 0, 300)
    clock.now += 10
    progress.row_stage("wall[1]", "distill", 40, 300)
    plain = Console(file=io.StringIO(), width=120)
    plain.print(progress.table())
    first, last = plain.file.getvalue().splitlines()
    assert "wall[1]" in first and "distill" in first and "40/300" in first and "4.0/s" in first
    assert "1:05 left" in first
    assert last.startswith("run") and "0/3" in last and "4 up to date" in last
    progress.row_ended(TaskResult("wall[1]", "failed", "bake", message="no [bold] way"))
    progress.close()
    assert "FAILED in bake: no [bold] way" in console.file.getvalue()


def test_many_running_rows_are_cut(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=10)
    progress = LiveProgress(console, clock)
    for number in range(20):
        progress.row_began(f"r{number}", 1)
    plain = Console(file=io.StringIO(), width=100)
    plain.print(progress.table())
    assert "and 14 more" in plain.file.getvalue()


def test_choice_of_display(capsys):
    assert type(make_progress(quiet=True, as_json=True)) is Progress
    assert isinstance(make_progress(as_json=True), JsonProgress)
    assert isinstance(make_progress(), PlainProgress)  # no terminal in tests


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (723, "12:03"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text
