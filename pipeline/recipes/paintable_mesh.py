"""What both recipes paint on by patches: a mesh with texture coordinates; and what finished patches make of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bake.bake import BakedMaps
from pipeline.bake.decode import decode_views
from pipeline.bake.projection import ProjectionSettings, bake_projected
from pipeline.core.hashing import sha256_bytes
from pipeline.core.job import Reporter
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform
from pipeline.mesh.outliers import FAR
from pipeline.mesh.parts import gathered
from pipeline.painting.multiview_sampling import SampledViews
from pipeline.painting.painted_mesh import SampledViewSettings
from pipeline.prior.load import Prior
from pipeline.recipes.shared_settings import SharedSettings

# Of painted meshes in the working frame: their farthest vertex lies here.
MESH_RADIUS = 0.6
# What a patch shows of a place that others made, or shows badly, counts where nothing else is known.
_LEAST_SHARE = 1e-4
# Share of a patch's side over which it fades in from outlines. There is no background that could bleed in.
_FEATHER = 0.02
# More of the surface than this without a view is worth a warning.
_UNREACHED = 0.1


@dataclass(frozen=True)
class PaintableMesh:
    """A mesh to paint on; ``frame`` takes its vertices to the working frame, which is where previews show it."""

    uvmesh: UVMesh
    frame: SimilarityTransform

    @functools.cached_property
    def vertices(self) -> np.ndarray:
        """(V, 3) float64 where painting sees them: in the working frame, parts that lie far apart next to each other.

        Views are framed by the object's size: of an object that is mostly empty space they would show next to nothing.
        """
        upright = self.frame.apply(self.uvmesh.mesh.vertices)
        together = gathered(upright, self.uvmesh.mesh.faces, MESH_RADIUS)
        return upright if together is None else together

    @property
    def warnings(self) -> list[str]:
        """One line where the mesh's parts lie far apart, and reading it did not say so."""
        if any(FAR in said for said in self.uvmesh.mesh.warnings):
            return []
        first, second = self.uvmesh.mesh.faces[0, :2]
        upright = self.frame.apply(self.uvmesh.mesh.vertices[[first, second]])
        larger = np.linalg.norm(self.vertices[first] - self.vertices[second]) / np.linalg.norm(upright[0] - upright[1])
        if larger < 1.5:
            return []
        return [
            f"its parts lie far apart: they were painted side by side, {larger:.0f} times larger than the preview "
            "shows them"
        ]

    @property
    def layout(self) -> str:
        """Hash of the texture coordinates: a checkpoint belongs to one layout."""
        return sha256_bytes(self.uvmesh.uv.tobytes() + self.uvmesh.uv_faces.tobytes())


def sampled_view_settings(settings: SharedSettings) -> SampledViewSettings:
    """The patches' part of a row's resolved settings."""
    return SampledViewSettings(settings.patch_views, settings.patch_size, float(settings.patch_height or 0))


def bake_sampled_views(
    views: SampledViews, mesh: PaintableMesh, texture_size: int, prior: Prior, report: Reporter
) -> BakedMaps:
    """The base colour that ``views`` decode to, each by itself. Raises as ``bake_projected``."""
    images = decode_views(views.latents, prior)
    return bake_projected(
        mesh.uvmesh,
        mesh.vertices,
        views.cameras,
        images,
        texture_size,
        report,
        shares=np.maximum(views.shares, _LEAST_SHARE),
        settings=ProjectionSettings(feather=_FEATHER),
        # Close-ups show the object's colours behind it, too.
        otherwise=images.mean(axis=(0, 2, 3)),
    )


def unreached_warning(notes: Mapping[str, Any]) -> str:
    """One line where a baked asset's ``notes`` say that views left out much of the surface, else empty."""
    share = float(notes.get("unreached_share", 0.0))
    if share <= _UNREACHED:
        return ""
    return f"no view shows {share:.0%} of the surface (hidden, thin or small parts): it has the colours of what is near"
