"""The paint recipe on a make-believe CUDA device: no tensor is on the wrong one, from the first view to the texture.

Half precision networks, the nvdiffrast layer for the views and stand-ins for what is not here. What it cannot show
is in tests/gpu.
"""

from __future__ import annotations

import fake_nvdiffrast
import meshes
import pytest
from fake_cuda import CudaTensor, fake_cuda
from fake_prior import make_prior

from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.record import read_record
from pipeline.optimize import loop
from pipeline.prior.load import Prior, load_prior
from pipeline.recipes.paint import paint
from pipeline.recipes.paint_settings import PaintOptions


@pytest.fixture
def prior(tmp_path, monkeypatch):
    """A prior on the device, whose memory nothing is known of yet."""
    monkeypatch.setenv("LATENTKILN_CACHE", str(tmp_path / "cache"))
    fake_nvdiffrast.install(monkeypatch)
    folder = make_prior(tmp_path / "prior")
    with fake_cuda():
        yield load_prior(folder, "cuda")


def test_paint(prior: Prior, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTKILN_RASTERISE", "nvdiffrast")
    mesh = tmp_path / "blob.obj"
    meshes.write_obj(mesh, meshes.blob(60))
    jobs = []
    for n in range(2):
        values = PaintOptions(steps=2, views=1, preview=False, antialias=bool(n)).model_dump(mode="json")
        jobs.append(Job(f"j{n}", "paint", "a red brick cube", "", n, InputFile(mesh), values, RowLocation("m.csv", 2)))
    outcomes = paint(jobs, prior, tmp_path / "out", fingerprints=["a", "b"], lockstep=2)
    assert [o.state for o in outcomes] == ["done", "done"], outcomes
    record = read_record(tmp_path / "out" / "j0")
    assert record is not None
    assert record["backends"]["rasterise"] == "nvdiffrast" and record["backends"]["texture"] == "torch"
    assert record["backends"]["device"].startswith("cuda")
    drawn = [arguments for name, arguments in fake_nvdiffrast.calls if name == "rasterize"]
    assert len(drawn) >= 4 and all(isinstance(arguments["pos"], CudaTensor) for arguments in drawn)
    smoothed = [arguments for name, arguments in fake_nvdiffrast.calls if name == "antialias"]
    assert len(smoothed) >= 2 and all(isinstance(arguments["color"], CudaTensor) for arguments in smoothed)


def jobs_of(tmp_path, **settings) -> list[Job]:
    mesh = tmp_path / "blob.obj"
    meshes.write_obj(mesh, meshes.blob(60))
    values = PaintOptions(**{"steps": 2, "views": 1, "preview": False, **settings}).model_dump(mode="json")
    file = InputFile(mesh)
    return [Job(f"j{n}", "paint", "a red brick cube", "", n, file, values, RowLocation("m.csv", 2)) for n in range(2)]


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation": "patches", "steps": 3},
        {"background": "learned", "seeds": 2},
        {"refine": True, "refine_steps": 1, "antialias": True},
    ],
    ids=["patches", "learned", "refined"],
)
def test_every_kind_of_painting(settings, prior: Prior, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")  # nvdiffrast's stand-in draws slowly
    monkeypatch.setattr("pipeline.recipes.view_surface.CANDIDATES", 8)
    rehearsed: list[loop.Optimization] = []
    dry_run = loop.Optimization.dry_run
    monkeypatch.setattr(loop.Optimization, "dry_run", lambda one: (rehearsed.append(one), dry_run(one))[1])
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        outcomes = paint(jobs_of(tmp_path, **settings), prior, out, fingerprints=["a", "b"], lockstep=2)
        assert [o.state for o in outcomes] == ["done", "done"], outcomes
        made.append([(out / name / "asset.glb").read_bytes() for name in ("j0", "j1")])
    # The first time what the scenes take is measured, the second time it is known: that changes no byte.
    # By a step of one scene and one of two, of each phase.
    assert len(rehearsed) == 3 * (2 if "refine" in settings else 1)
    assert made[0] == made[1]


@pytest.mark.parametrize("distillation", ["score", "patches"])
def test_going_on_from_a_checkpoint(distillation, prior: Prior, tmp_path, monkeypatch):
    """Checkpoints are read into host memory: what it holds goes back to its places."""
    monkeypatch.setenv("LATENTKILN_RASTERISE", "numba")
    monkeypatch.setattr("pipeline.recipes.view_surface.CANDIDATES", 8)
    jobs, asked = jobs_of(tmp_path, distillation=distillation, steps=4)[:1], iter([False, False, False])

    def build(**more):
        (outcome,) = paint(jobs, prior, tmp_path / "out", fingerprints=["a"], lockstep=1, **more)
        return outcome.state

    assert build(stop=lambda: next(asked, True)) == "interrupted"
    assert build() == "done"
    assert (read_record(tmp_path / "out" / "j0") or {})["resumed_from_step"] > 0
