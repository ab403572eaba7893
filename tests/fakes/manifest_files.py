"""Manifests that tests write, and the problems that loading them finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ManifestError
from pipeline.core.job import Job
from pipeline.manifest import ManifestStream, Problem, load_manifest

Write = Callable[[str, str | bytes], Path]
ROWS: list[dict[str, Any]] = [
    {"id": "one", "prompt": "a red brick thing", "mesh": "meshes/a.obj", "seed": 3, "steps": 20, "guidance_scale": 7},
    {"prompt": 'weiße Fliesen, "glänzend"; neu', "mesh": "meshes/b.obj", "turntable": True, "t_min": 0.1},
    {"id": "three", "prompt": "two\nlines", "mesh": "meshes/a.obj", "negative_prompt": "blurry", "front": "-x"},
    {"id": "4", "recipe": "paint", "prompt": "日本の壁", "mesh": "meshes/b.obj", "base_colour": "#a0b0c0", "fov": 45.5},
]


def found(path: Path, **options: Any) -> list[str]:
    """All problems of a manifest as lines, without the file's name."""
    items = ManifestStream(path, **options)
    return [str(item).removeprefix(str(path)) for item in items if isinstance(item, Problem)]


def row_problem(write: Write, **fields: Any) -> str:
    """The only problem of a manifest of one row with these fields."""
    row = {"id": "one", "prompt": "a brick", "mesh": "meshes/a.obj", **fields}
    path = write("row.json", json.dumps([row]))
    loaded = load_manifest(path)
    assert not loaded.jobs
    (problem,) = loaded.problems
    assert problem.row == 1 and problem.file == str(path)
    assert "\n" not in str(problem) and str(problem) == f"{path}:1: {problem.field}: {problem.message}"
    return f"{problem.field}: {problem.message}"


def whole_problem(path: Path) -> str:
    """The message of the ManifestError that a manifest raises, without the file's name."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(str(path))


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    header = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, bool | int | float) else value
        return '"' + text.replace('"', '""') + '"' if re.search(r'[",;\t\n]', text) else text

    lines = [delimiter.join(header)]
    lines += [delimiter.join(cell(row.get(name, "")) for name in header) for row in rows]
    return end.join(lines) + end


def jobs_of(path: Path, **options: Any) -> list[Job]:
    loaded = load_manifest(path, **options)
    assert not loaded.problems, [str(problem) for problem in loaded.problems]
    return loaded.jobs
