"""Fixtures of the tests of storage."""

from __future__ import annotations

import pytest
from s3_server import connect

from pipeline.core.location import RemotePath


@pytest.fixture(params=["s3", "memory"])
def root(request):
    """An empty folder on each kind of store."""
    if request.param == "memory":
        connect()
        return RemotePath("memory://bucket/place")
    return RemotePath(request.getfixturevalue("s3"))
