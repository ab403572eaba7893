"""Tests that need a CUDA device. ``make test-gpu`` runs them; every other run leaves them out."""

from __future__ import annotations

import pytest

from pipeline.core import backends


@pytest.fixture(autouse=True)
def device() -> None:
    """Asked for without a device, these tests fail: nobody should take a skipped suite for a passed one."""
    problem = backends.cuda_problem()
    assert not problem, problem
