"""Tests that need a CUDA device. ``make test-gpu`` runs them; every other run leaves them out."""

from __future__ import annotations

import pytest

from pipeline.core import backends
from pipeline.prior.cache import CACHE_VARIABLE


@pytest.fixture(autouse=True)
def device() -> None:
    """Asked for without a device, these tests fail: nobody should take a skipped suite for a passed one."""
    problem = backends.cuda_problem()
    assert not problem, problem


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was found out before, and nothing for later: a width, compiled code."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
