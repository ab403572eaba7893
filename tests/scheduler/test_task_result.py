"""One type of result from the recipe to the summary: the scheduler adds what the recipe does not know."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from stub_recipe import item, make_toolbox

from pipeline.core.outcome import TaskResult
from pipeline.scheduler.batch import BatchContext, build_batch
from pipeline.scheduler.output_root import LocalOutputRoot
from pipeline.scheduler.tasks import Hooks, Task


def build_one(result: TaskResult, out: Path) -> TaskResult:
    """Build a row whose recipe returns ``result``, at its second attempt."""
    hooks = dataclasses.replace(make_toolbox(), recipe=lambda name: lambda jobs, prior, root, **options: [result])
    planned = item("a")
    row = Task(planned.job, planned.fingerprint, "latentkiln run m.csv --only a", attempt=2)
    (built,) = build_batch([row], context(out, hooks), lambda *stage: None, lambda: False)
    return built


def context(out: Path, hooks: Hooks) -> BatchContext:
    return BatchContext(LocalOutputRoot(out), None, 1, hooks)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "reproduce"),
    [
        (TaskResult("a", "done", seconds=1.5, warnings=["thin"]), ""),
        (TaskResult("a", "interrupted", "distill", seconds=2.0), ""),
        (TaskResult("a", "failed", "bake", "BakeError", "a: no"), "latentkiln run m.csv --only a"),
    ],
)
def test_a_recipes_result_is_kept_and_gets_command_and_attempts(
    result: TaskResult, reproduce: str, tmp_path: Path
) -> None:
    built = build_one(result, tmp_path)
    assert built == dataclasses.replace(result, reproduce=reproduce, attempts=2)
    assert built.warnings is not result.warnings
