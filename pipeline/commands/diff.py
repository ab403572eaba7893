"""``latentkiln diff``: prints what differs between two glTF files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED, EXIT_USAGE, MeshError
from pipeline.core.location import Location, RemotePath
from pipeline.core.terminal import complain, say, say_json
from pipeline.document.diff import Difference, differences
from pipeline.document.kept import GltfDocument, document_errors, load_document
from pipeline.storage.errors import StorageError
from pipeline.storage.inputs import fetch_mesh


def diff_assets(first: Location, second: Location, *, json: bool = False) -> int:
    """Prints each difference from ``first`` to ``second`` on a line, or one JSON object.

    Returns 0 if at most materials differ, 1 if anything else does, 2 if a file cannot be read.
    """
    try:
        with document_errors(f"{first} or {second}"):
            found = differences(_load(first), _load(second))
    except (MeshError, StorageError) as error:
        complain(f"latentkiln: error: {error.message}")
        return EXIT_USAGE
    content = [each for each in found if each.kind == "content"]
    if json:
        entries = [dataclasses.asdict(each) for each in found]
        say_json({"same_but_for_materials": not content, "differences": entries}, indent=1)
    else:
        for each in found:
            say(_line(each))
        say(_summary(len(content), len(found) - len(content)))
    return EXIT_ROWS_FAILED if content else EXIT_OK


def _load(location: Location) -> GltfDocument:
    path: Path = fetch_mesh(location)[0] if isinstance(location, RemotePath) else location
    if path.is_dir():
        path = path / "asset.glb"
    return load_document(path)


def _line(difference: Difference) -> str:
    return f"{difference.kind}: {difference.where}: {difference.what}"


def _summary(content: int, material: int) -> str:
    if not content and not material:
        return "the same"
    if not content:
        return "the same but for materials"
    return f"{content} difference{'s' * (content != 1)} besides materials"
