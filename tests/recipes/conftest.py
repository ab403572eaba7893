"""Fixtures of the recipes' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real.validator import validate_glbs


@pytest.fixture
def every_asset_is_valid(tmp_path: Path) -> Iterator[None]:
    """Whatever a test leaves below its folder must pass the Khronos validator."""
    yield
    if assets := sorted(tmp_path.rglob("*.glb")):
        validate_glbs(assets)
