"""A job: one valid row of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.core.location import RemotePath


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

    ``path`` is a local file. For a file at a URL, ``origin`` is the URL, with the file's hash once known, and ``path``
    is this node's copy, or only its name before it was fetched.
    """

    kind: Literal["lora", "concept"]
    path: Path
    weight: float = 1.0
    origin: RemotePath | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Job:
    """One asset to build. All fields but ``id``, ``row_location`` and the *paths* of files decide the asset's bytes.

    ``mesh`` is the absolute path of the input mesh; ``mesh_sha256`` is the hash with which it was planned. For a mesh
    at a URL, ``origin`` is the URL, with the hash once known, and ``mesh`` is this node's copy, None before it was
    fetched. ``settings`` holds every setting of the recipe by name, validated, with defaults filled in; the values are
    JSON values.
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


# Long stages call report(stage, done, total) at every step; it is cheap.
Reporter = Callable[[str, int, int], None]


def no_report(stage: str, done: int, total: int) -> None:
    """A reporter that does nothing."""
