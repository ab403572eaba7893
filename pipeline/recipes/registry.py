"""Recipes by name. Nothing heavy is imported before a recipe is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.errors import UsageError
from pipeline.core.job import Job, Reporter
from pipeline.core.outcome import BuildResult
from pipeline.recipes import RECIPE_VERSIONS


class BuildFunction(Protocol):
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
    ) -> list[BuildResult]: ...


def get_recipe(name: str) -> BuildFunction:
    """The recipe called ``name``. Raises UsageError when there is none."""
    if name == "paint":
        from pipeline.recipes.paint import paint

        return paint
    if name == "generate":
        try:
            from pipeline.recipes.generate import generate
        except ModuleNotFoundError as error:
            if error.name != "pipeline.recipes.generate":
                raise
            raise UsageError("this installation lacks the recipe 'generate'; install latentkiln anew") from None
        return generate
    raise UsageError(f"no recipe is called {name!r}; there are: {', '.join(RECIPE_VERSIONS)}")
