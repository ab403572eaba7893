"""One row on its way through a recipe: its settings, its variants, what they became, and how long it all took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import ExportError, LatentkilnError, describe_os_error
from pipeline.core.job import Job, Reporter
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.optimize.loop import Optimization


@dataclass
class Asset:
    """What a variant became: a mesh with its maps, ready to be written.

    maps: (H, W, 3) uint8 sRGB by name (``export.gltf.BASE_COLOUR``); notes go to the record; ``frame`` takes the
    mesh to the working frame.
    """

    uvmesh: UVMesh
    maps: Mapping[str, np.ndarray]
    notes: dict[str, Any]
    frame: SimilarityTransform


@dataclass
class Variant:
    """One seed of a row: its scenes (``refined``: in RGB; ``textured``: the surface of the first, being painted) and
    what they became; ``score`` ranks the siblings. ``paintable``: the recipe's own, the surface that is painted."""

    index: int
    seed: int
    folder: Path
    scene: Any = None
    optimization: Optimization | None = None
    refined: Any = None
    refinement: Optimization | None = None
    paintable: Any = None
    textured: Any = None
    texturing: Optimization | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    asset: Asset | None = None
    score: float | None = None
    error: LatentkilnError | None = None

    @property
    def phases(self) -> dict[str, Optimization]:
        """Its phases so far, in order, by the names that timings have."""
        named = {"distill": self.optimization, "refine": self.refinement, "texture": self.texturing}
        return {name: optimization for name, optimization in named.items() if optimization is not None}

    @property
    def optimizations(self) -> list[Optimization]:
        """Its phases so far, in order."""
        return list(self.phases.values())


@dataclass
class AssetBuild:
    """One row. ``settings`` are resolved: nothing in them is left to the prior any more (None before that)."""

    job: Job
    fingerprint: str
    folder: Path
    settings: Any
    report: Reporter
    started: float = field(default_factory=time.time)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    # What all variants share: the recipe's own (paint: the mesh and its texture coordinates).
    shared: Any = None
    # Of the mesh that the row names (paint: the mesh, generate: the sketch).
    input_sha256: str | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, and names it in the errors that leave it."""
        self.report(name, 0, 1)
        begun = time.perf_counter()
        try:
            yield
        except LatentkilnError:
            raise
        except OSError as error:
            raise ExportError(f"{self.job.id}: {describe_os_error(error, self.folder)}", stage=name) from error
        except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise LatentkilnError(f"{self.job.id}: {type(error).__name__} in {name}: {reason}", stage=name) from error
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun
        self.report(name, 1, 1)
