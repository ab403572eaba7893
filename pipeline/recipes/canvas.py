"""What both recipes paint on by patches: a mesh with texture coordinates; and what finished patches make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.bake.bake import BakedMaps
from pipeline.bake.decode import decode_views
from pipeline.bake.project import ProjectSettings, bake_projected
from pipeline.core.content import sha256_bytes
from pipeline.core.job import Reporter
from pipeline.geometry.mesh import UVMesh
from pipeline.geometry.normalise import Frame
from pipeline.prior.load import Prior
from pipeline.recipes.shared_settings import SharedSettings
from pipeline.scene.painted_mesh import PatchSettings
from pipeline.scene.patchwork import Patches

# Of painted meshes in the working frame: their farthest vertex lies here.
MESH_RADIUS = 0.6
# What a patch shows of a place that others made, or shows badly, counts where nothing else is known.
_LEAST_SHARE = 1e-4
# Share of a patch's side over which it fades in from outlines. There is no background that could bleed in.
_FEATHER = 0.02


@dataclass(frozen=True)
class Canvas:
    """A mesh to paint on; ``frame`` takes its vertices to the working frame."""

    uvmesh: UVMesh
    frame: Frame

    @property
    def vertices(self) -> np.ndarray:
        """(V, 3) float64, working frame."""
        return self.frame.apply(self.uvmesh.mesh.vertices)

    @property
    def layout(self) -> str:
        """Hash of the texture coordinates: a checkpoint belongs to one layout."""
        return sha256_bytes(self.uvmesh.uv.tobytes() + self.uvmesh.uv_faces.tobytes())


def patch_settings(settings: SharedSettings) -> PatchSettings:
    """The patches' part of a row's resolved settings."""
    return PatchSettings(settings.patch_views, settings.patch_size, float(settings.patch_height or 0))


def baked_patches(patches: Patches, canvas: Canvas, texture_size: int, prior: Prior, report: Reporter) -> BakedMaps:
    """The base colour that ``patches`` decode to, each by itself. Raises as ``bake_projected``."""
    return bake_projected(
        canvas.uvmesh,
        canvas.vertices,
        patches.cameras,
        decode_views(patches.latents, prior),
        texture_size,
        report,
        shares=np.maximum(patches.shares, _LEAST_SHARE),
        settings=ProjectSettings(feather=_FEATHER),
    )
