"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import meshes
import numpy as np
import pytest
import shape_checks
from s3_server import BUCKET, FaultProxy, S3Server, connect, environment

import pipeline  # noqa: F401  (before torch: it makes idle threads sleep)

# Before the modules whose shapes it checks.
shape_checks.install()

# To join a cluster on the loopback, Ray must be told before it is imported that there is no other machine; and it
# sends its token to an address given by name only where this says so.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"

# What earlier runs of this user found out must not decide what a test sees, nor the other way round. The workers of
# pytest-xdist share the folder of the process that started them: what one compiles, the other need not.
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if not PARALLEL:
    os.environ["LATENTKILN_CACHE"] = tempfile.mkdtemp(prefix="latentkiln-test-cache-")
    atexit.register(shutil.rmtree, os.environ["LATENTKILN_CACHE"], ignore_errors=True)

CLUSTER = pytest.mark.xdist_group("cluster")
REAL_MESHES = ("blub.obj", "boot.obj", "spot.obj", "CesiumMan.glb")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` the tests of a file stay together, since they share fixtures, and those marked
    ``xdist_group("cluster")``, which start Ray and look at what it leaves on the machine, run one after the other.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if PARALLEL:
        # The largest group begins first.
        items.sort(key=lambda item: item.get_closest_marker("xdist_group") != CLUSTER.mark)


@pytest.fixture(scope="session")
def shared_meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the meshes named in REAL_MESHES.

    It is $LATENTKILN_SHARED_MESHES or shared/meshes beside the repository, where one of them has all four; else
    a folder with meshes of our own under the same names, so that no test skips: a closed one whose texture
    coordinates are uneven, a bumpy one of many faces without, a small one without, and a GLB of two nodes.
    """
    named = os.environ.get("LATENTKILN_SHARED_MESHES")
    candidates = [Path(named)] if named else []
    candidates.append(Path(__file__).resolve().parents[2] / "shared" / "meshes")
    for folder in candidates:
        if all((folder / name).is_file() for name in REAL_MESHES):
            return folder
    folder = tmp_path_factory.mktemp("meshes")
    ball = meshes.uv_sphere(48, 96)
    assert ball.uv is not None
    meshes.write_obj(folder / "blub.obj", replace(ball, uv=ball.uv ** np.array([1, 5], np.float32)))
    meshes.write_obj(folder / "boot.obj", meshes.blob(40_000, noise=0.3))
    meshes.write_obj(folder / "spot.obj", meshes.blob(1600))
    meshes.write_glb(folder / "CesiumMan.glb", meshes.uv_sphere(24, 48))
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS for the whole session, with one bucket."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty place in the bucket, s3://..., with the environment that reaches it."""
    for name, value in environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LATENTKILN_CACHE", str(tmp_path / "cache"))
    connect(s3_server.endpoint)
    yield f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
    connect()


@pytest.fixture(scope="session")
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    proxy = FaultProxy(s3_server.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(s3_proxy: FaultProxy, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy, which lets all pass until its ``rule`` is set; ``s3`` goes through it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint)
    s3_proxy.reset()
    connect(s3_proxy.endpoint)
    yield s3_proxy
    s3_proxy.reset()


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    """The folder of a prior of a few thousand random weights, for tests of the plumbing."""
    from fake_prior import make_prior

    return make_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture(scope="session")
def prior(prior_folder):
    """That prior, loaded."""
    from pipeline.prior.load import load_prior

    return load_prior(prior_folder)


@pytest.fixture
def cube(tmp_path):
    """The file of a cube without texture coordinates, in a folder of its own."""
    path = tmp_path / "in" / "cube.obj"
    path.parent.mkdir()
    path.write_text(meshes.CUBE)
    return path
