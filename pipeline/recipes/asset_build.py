"""The state of one row while its recipe builds it: settings, inputs, phases, variants, warnings and timings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import ExportError, LatentkilnError, describe_os_error
from pipeline.core.job import Job, Reporter
from pipeline.core.json_types import Json as Json
from pipeline.core.scene import Scene
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.optimize.loop import Optimization
from pipeline.prior.load import Prior
from pipeline.recipes import PHASE_STAGES
from pipeline.recipes.shared_settings import CommonSettings
from pipeline.storage.shared_cache import SharedCache

# Types that each recipe defines: its resolved settings; the inputs that all variants of a row share; and the scenes of
# one variant.
SettingsT = TypeVar("SettingsT", bound=CommonSettings)
InputsT = TypeVar("InputsT")
ScenesT = TypeVar("ScenesT")


@dataclass
class Asset:
    """A finished variant: a mesh with its maps, ready to be written.

    maps: (H, W, 3) uint8 sRGB by name (``export.gltf.BASE_COLOUR``). ``notes`` go to the record. ``frame`` takes the
    mesh to the working frame. ``tiling``: how often the maps repeat along u and v of the unit square, for tileable
    maps, which are written as files of their own, too; None for maps that belong to this mesh alone. ``height``:
    (H, W) uint16, a further map that has no place in glTF. ``document``: writes the asset back into the document that
    its mesh came in; None: the asset is a document of its own.
    """

    uvmesh: UVMesh
    maps: Mapping[str, NDArray[np.uint8]]
    notes: Json
    frame: SimilarityTransform
    tiling: tuple[int, int] | None = None
    height: NDArray[np.uint16] | None = None
    document: DocumentWriter | None = None


@dataclass
class DocumentWriter:
    """``write(provenance, stem)`` returns the files of the repainted document by name, ``<stem>.glb`` first, and sets
    ``notes`` for the record."""

    write: Callable[[Json, str], dict[str, bytes]]
    notes: Json = field(default_factory=dict)


@dataclass
class RowContext:
    """The job of one row, and what its record or failure reports whether or not the row succeeds.

    ``folder`` is the asset's folder. ``started`` is in seconds since the epoch, ``timings`` in seconds by stage.
    ``input_sha256`` is the hash of the mesh that the row names (paint: the mesh, generate: the sketch).
    ``unwrap_cache`` shares texture coordinates with other nodes; None: they stay on this node.
    """

    job: Job
    fingerprint: str
    folder: Path
    report: Reporter
    unwrap_cache: SharedCache | None = None
    started: float = field(default_factory=time.time)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    input_sha256: str | None = None

    @property
    def seconds(self) -> float:
        """Wall time since the row was started."""
        return time.time() - self.started

    def warn(self, warning: str) -> None:
        """Add ``warning`` to the record, once; an empty one is ignored."""
        if warning and warning not in self.warnings:
            self.warnings.append(warning)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add ``seconds`` to the time of ``stage``."""
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and name it in the errors that are raised in it. Raises LatentkilnError for all of them."""
        self.report(name, 0, 1)
        start_time = time.perf_counter()
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
            self.add_seconds(name, time.perf_counter() - start_time)
        self.report(name, 1, 1)


@dataclass
class Variant(Generic[ScenesT]):
    """One seed of a row. ``optimizations`` holds one entry for each phase that was begun, in order.

    ``asset`` or ``error`` is set at the end. ``score`` ranks the variants of a row.
    """

    index: int
    seed: int
    folder: Path
    scenes: ScenesT
    optimizations: list[Optimization] = field(default_factory=list)
    asset: Asset | None = None
    score: float | None = None
    error: LatentkilnError | None = None

    @property
    def failed(self) -> bool:
        """Whether one of its phases failed."""
        return any(optimization.error is not None for optimization in self.optimizations)


@dataclass(frozen=True)
class PhaseScene:
    """The scene that a phase optimises. ``key`` is its part of the checkpoint key: a checkpoint fits only scenes of the
    same key. ``steps``: number of steps that the scene takes; None: the phase's."""

    scene: Scene
    key: tuple[str, ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Phase(Generic[SettingsT, InputsT, ScenesT]):
    """One optimisation of a recipe, and how it asks the prior.

    Attributes:
        name: key of ``PHASE_STAGES``; names the checkpoint's file and is part of the checkpoint's key.
        preparation: the stage in which the scene is made.
        steps: number of optimisation steps.
        guidance_scale: of classifier-free guidance.
        t_max: largest timestep, as a share of T.
        close_up: whether close views ask for a close-up of the surface.
        stream: RNG stream of timesteps and noise; no two phases of a recipe may share one.
        make_scene: makes a variant's scene from the row's inputs and the variant's earlier scenes, and stores it in
            ``Variant.scenes``. Raises LatentkilnError.
    """

    name: str
    preparation: str
    steps: int
    guidance_scale: float
    t_max: float
    close_up: bool
    stream: str
    make_scene: Callable[[AssetBuild[SettingsT, InputsT, ScenesT], Variant[ScenesT], Prior], PhaseScene]

    @property
    def stage(self) -> str:
        """The phase in progress reports and timings."""
        return PHASE_STAGES[self.name]


@dataclass
class AssetBuild(Generic[SettingsT, InputsT, ScenesT]):
    """One row whose inputs are read. A recipe without optimisation has no ``phases``."""

    row: RowContext
    settings: SettingsT
    inputs: InputsT
    phases: list[Phase[SettingsT, InputsT, ScenesT]]
    variants: list[Variant[ScenesT]]
