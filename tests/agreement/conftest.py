"""The CUDA libraries' stand-ins, on the make-believe device: what they were called with is what a fixture gives."""

from __future__ import annotations

import fake_nvdiffrast
import fake_tinycudann
import pytest
from fake_cuda import fake_cuda

from pipeline.scene import grid_tcnn, network_tcnn


@pytest.fixture
def nvdiffrast(monkeypatch):
    fake_nvdiffrast.install(monkeypatch)
    with fake_cuda():
        yield fake_nvdiffrast.calls


@pytest.fixture
def tinycudann(monkeypatch):
    fake_tinycudann.install(monkeypatch)
    with fake_cuda():
        yield fake_tinycudann.calls
    grid_tcnn._encoding.cache_clear()
    network_tcnn._network.cache_clear()
