"""The CUDA libraries' stand-ins, on the make-believe device: what they were called with is what a fixture gives."""

from __future__ import annotations

import fake_nvdiffrast
import fake_tinycudann
import pytest
from fake_cuda import fake_cuda

from pipeline.fields.grid import tinycudann_backend
from pipeline.fields.mlp import tinycudann_backend as mlp_tinycudann


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
    tinycudann_backend.encoding_module.cache_clear()
    mlp_tinycudann.network_module.cache_clear()
