"""Recipes by name. Nothing heavy is imported before a recipe is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import UsageError
from pipeline.core.job import Job, Reporter
from pipeline.core.outcome import Outcome


class Recipe(Protocol):
    """Builds up to ``lockstep`` jobs into ``out/<id>/``: one Outcome each, in order; never raises for a row.

    ``stop`` turning true asks for a checkpoint and ``interrupted`` outcomes.
    """

    def __call__(
        self,
        jobs: Sequence[Job],
        prior: Any,
        out: Path,
        *,
        fingerprints: Sequence[str],
        lockstep: int,
        report_for: Callable[[int], Reporter],
        checkpoint_seconds: float,
        stop: Callable[[], bool],
    ) -> list[Outcome]: ...


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises UsageError when there is none."""
    if name == "paint":
        from pipeline.recipes.paint import paint

        return paint
    raise UsageError(f"no recipe is called {name!r}; there is: paint")
