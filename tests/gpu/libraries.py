"""What a CUDA machine may lack: named, with the command that installs it."""

from __future__ import annotations

import pytest

from pipeline.core import backends


def need(operation: str, name: str) -> None:
    """Leaves the test out where an optional library is not installed; one that is there must work."""
    (backend,) = [b for b in backends.BACKENDS if (b.operation, b.name) == (operation, name)]
    missing = backends.missing_module_reason(backend.module)
    if missing:
        pytest.skip(f"{missing} ({backend.install})")
    assert not backends.unavailable_reason(backend), backends.unavailable_reason(backend)
