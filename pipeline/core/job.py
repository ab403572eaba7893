"""What travels through the program: one job per valid manifest row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.core.location import RemotePath


@dataclass(frozen=True)
class RowLocation:
    """Where a row stands: manifest path as the user gave it, and its 1-based number.

    For CSV the number is the line in the file (the header is line 1); for JSON Lines the line; for JSON the
    1-based position in the list of rows.
    """

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True)
class AdapterFile:
    """A file that adapts the prior for one row: a ``lora`` with its weight, or a ``concept`` (textual inversion).

    Where it lies at a URL, ``origin`` names it, with its hash once that is known, and ``path`` is this node's copy (its
    mere name before it was fetched).
    """

    kind: Literal["lora", "concept"]
    path: Path
    weight: float = 1.0
    origin: RemotePath | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Job:
    """One asset to build. Everything in it but ``row_location`` and the files' *paths* changes the asset's bytes.

    ``mesh`` is the absolute path of the input mesh. Where that lies at a URL, ``origin`` names it, with its hash once
    that is known, and ``mesh`` is this node's copy (None before it was fetched); else ``mesh_sha256`` is the hash it
    was planned with. ``settings`` holds every setting of the recipe by name, validated, with defaults filled in; JSON
    values only.
    """

    id: str
    recipe: str
    prompt: str
    negative_prompt: str
    seed: int
    mesh: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    row_location: RowLocation = field(default=RowLocation("", 0), compare=False)
    origin: RemotePath | None = field(default=None, compare=False)
    adapters: tuple[AdapterFile, ...] = ()
    mesh_sha256: str = field(default="", compare=False)


# Called by long stages as report(stage, done, total); cheap enough to call at every step.
Reporter = Callable[[str, int, int], None]


def no_report(stage: str, done: int, total: int) -> None:
    """A reporter that says nothing."""
