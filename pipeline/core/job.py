"""A job: one valid row of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.location import InputFile


@dataclass(frozen=True)
class RowLocation:
    """The location of a row: the manifest's path as the user wrote it, and the 1-based number of the row.

    For CSV and JSON Lines the number is the line in the file (the header of a CSV is line 1); for JSON it is the
    position in the list of rows.
    """

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True)
class AdapterFile:
    """A file that adapts the prior for one row: a ``lora`` with its weight, or a ``concept`` (textual inversion).

    ``weight`` scales a LoRA; concepts are used as they are.
    """

    kind: Literal["lora", "concept"]
    file: InputFile
    weight: float = 1.0


@dataclass(frozen=True)
class Job:
    """One asset to build. All fields but ``id``, ``row_location`` and the *locations* of files decide its bytes.

    ``mesh`` is the input mesh, with the hash with which it was planned. ``settings`` holds every setting of the recipe
    by name, validated, with defaults filled in; the values are JSON values.
    """

    id: str
    recipe: str
    prompt: str
    negative_prompt: str
    seed: int
    mesh: InputFile | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    row_location: RowLocation = field(default=RowLocation("", 0), compare=False)
    adapters: tuple[AdapterFile, ...] = ()


# Long stages call report(stage, done, total) at every step; it is cheap.
Reporter = Callable[[str, int, int], None]


def no_report(stage: str, done: int, total: int) -> None:
    """A reporter that does nothing."""
