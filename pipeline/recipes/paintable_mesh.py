"""The mesh with texture coordinates that both recipes paint, and baking of sampled views onto it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
from pipeline.recipes.asset_build import Json
from pipeline.recipes.document_paint import DocumentInput
from pipeline.recipes.shared_settings import SharedSettings

# Of painted meshes in the working frame: their farthest vertex lies here.
MESH_RADIUS = 0.6
# Least weight of a patch on the texels it shows: it decides only where no other patch does.
_LEAST_SHARE = 1e-4
# Share of a patch's side over which its weight rises from outlines inwards.
_FEATHER = 0.02
# Share of the surface without a view above which the record gets a warning.
_UNREACHED = 0.1


@dataclass(frozen=True)
class PaintableMesh:
    """A mesh to paint on; ``frame`` takes its vertices to the working frame, which is where previews show it.
    ``document``: the document that it came in, and goes out in; None: it is a mesh alone."""

    uvmesh: UVMesh
    frame: SimilarityTransform
    document: DocumentInput | None = None

    @functools.cached_property
    def vertices(self) -> NDArray[np.float64]:
        """(V, 3) float64 in the working frame, with parts that lie far apart moved next to each other.

        Views are framed by the object's size: in views of an object that is mostly empty space, parts would be tiny.
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
    """The settings of the patches."""
    return SampledViewSettings(settings.patch_views, settings.patch_size, settings.patch_height)


def bake_sampled_views(
    views: SampledViews, mesh: PaintableMesh, texture_size: int, prior: Prior, report: Reporter
) -> BakedMaps:
    """Decode each of ``views`` and project the images onto the texture. Raises as ``bake_projected``."""
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
        # The background of close-ups has the object's colours, too.
        otherwise=images.mean(axis=(0, 2, 3)),
    )


def unreached_warning(notes: Json) -> str:
    """One line where a baked asset's ``notes`` say that no view shows much of the surface, else ""."""
    share = notes.get("unreached_share", 0.0)
    if not isinstance(share, float | int) or share <= _UNREACHED:
        return ""
    return f"no view shows {share:.0%} of the surface (hidden, thin or small parts): it has the colours of what is near"
