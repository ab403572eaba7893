"""Renders the preview of a tileable texture: repeated two by two, which shows its borders, and on a ball."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.export.gltf import BASE_COLOUR, MATT, MaterialFactors, encode_image
from pipeline.export.preview import Look, render_views
from pipeline.mesh.mesh import UVMesh
from pipeline.mesh.normalise import SimilarityTransform

# Side of either half of the sheet, in pixels.
SIDE = 512


def material_preview(
    ball: UVMesh,
    maps: Mapping[str, NDArray[np.uint8]],
    frame: SimilarityTransform,
    tiling: tuple[float, float],
    factors: MaterialFactors = MATT,
) -> bytes:
    """A PNG of 1024 x 512 pixels: ``maps``' base colour repeated two by two, and ``ball`` with it in soft light.

    ``frame`` and ``tiling`` as for ``render_views``, ``factors`` as for ``write_glb``. The same arguments give the
    same bytes.
    """
    image = maps[BASE_COLOUR]
    half = SIDE // 2
    # Integer factors keep hard edges hard.
    resampling = Image.Resampling.NEAREST if half % len(image) == 0 else Image.Resampling.BOX
    cell = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((half, half), resampling))
    flat = np.tile(cell, (2, 2, 1))
    (view,) = render_views(ball, image, frame, look=Look(maps, factors), views=1, size=SIDE, tiling=tiling)
    return encode_image(np.concatenate([flat, view], axis=1), "png")
