"""Recipes by name. Only ``get_recipe`` imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.core.errors import UsageError
from pipeline.core.job import Job, Reporter
from pipeline.core.outcome import TaskResult
from pipeline.recipes import RECIPE_VERSIONS

if TYPE_CHECKING:
    from pipeline.prior.load import Prior
    from pipeline.storage.shared_cache import SharedCache


class BuildFunction(Protocol):
    """Builds up to ``lockstep`` jobs into ``out/<id>/``. Returns one result per job, in order; never raises for a row.

    When ``stop`` turns true, unfinished rows leave checkpoints and end as ``interrupted``. ``unwrap_cache`` shares
    texture coordinates with other nodes; None where ``out`` is the output root itself.
    """

    def __call__(
        self,
        jobs: Sequence[Job],
        prior: Prior,
        out: Path,
        *,
        fingerprints: Sequence[str],
        lockstep: int,
        report_for: Callable[[int], Reporter],
        checkpoint_seconds: float,
        stop: Callable[[], bool],
        unwrap_cache: SharedCache | None,
    ) -> list[TaskResult]: ...


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
            raise UsageError("this installation lacks the recipe 'generate'; reinstall latentkiln") from None
        return generate
    if name == "material":
        from pipeline.recipes.material import material

        return material
    raise UsageError(f"unknown recipe {name!r}; allowed: {', '.join(RECIPE_VERSIONS)}")
