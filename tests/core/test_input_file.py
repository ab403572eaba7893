"""Files that a job reads: their location, their hash, and where a node finds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.location import InputFile, RemotePath


def test_a_file_at_a_path_is_local() -> None:
    path = Path("/meshes/a.obj")
    file = InputFile(path, "77")
    assert file.is_local and not file.is_remote
    assert file.local() == path and file.name == "a.obj"


def test_a_file_at_a_url_is_local_once_it_was_fetched() -> None:
    file = InputFile(RemotePath("s3://bucket/a.obj"))
    assert file.is_remote and not file.is_local and file.name == "a.obj"
    with pytest.raises(ValueError, match=r"s3://bucket/a\.obj was not fetched"):
        file.local()
    fetched = replace(file, sha256="77", copy=Path("/cache/77/a.obj"))
    assert fetched.is_remote and fetched.is_local and fetched.local() == Path("/cache/77/a.obj")


def test_the_location_alone_counts_in_comparisons() -> None:
    file = InputFile(RemotePath("s3://bucket/a.obj"))
    assert file == replace(file, sha256="77", copy=Path("/cache/77/a.obj"))
    assert file != InputFile(RemotePath("s3://bucket/b.obj"))
