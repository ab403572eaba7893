"""Finds the faces that turn their front to a camera, before anything is drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front_faces(
    vertices: NDArray[np.float64], faces: NDArray[np.integer], clip_from_world: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Ids, ascending, of the faces whose corners are counter-clockwise in the image.

    ``vertices`` (V, 3) world, ``faces`` (F, 3), ``clip_from_world`` (4, 4). The sign of the determinant of the corners'
    (x, y, w) in clip space gives the winding of the visible part of a face, even if the face reaches behind the eye
    (Olano and Greer, Triangle Scan Conversion using 2D Homogeneous Coordinates, 1997). So it agrees with rasterisers
    that clip first.
    """
    rows = clip_from_world[[0, 1, 3]]
    corners = (vertices @ rows[:, :3].T + rows[:, 3])[faces]  # (F, 3 corners, 3)
    return np.flatnonzero(np.linalg.det(corners) > 0)
