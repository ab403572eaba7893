"""The working frame: meshes are centred, scaled to one size, upright and facing the viewer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import SettingError

_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class SimilarityTransform:
    """A similarity (rotation, uniform scale, translation; no reflection) from the input to the working frame.

    matrix  (4, 4) float64, acting on column vectors.
    """

    matrix: NDArray[np.float64]

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Transforms (..., 3) points of the input to the working frame."""
        # Subtracting the centre first keeps precision where coordinates are large.
        linear = self.matrix[:3, :3]
        centre = np.linalg.solve(linear, -self.matrix[:3, 3])
        return (np.asarray(points, np.float64) - centre) @ linear.T

    def apply_direction(self, directions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rotates (..., 3) directions (normals) of the input to the working frame. Keeps lengths."""
        return np.asarray(directions, np.float64) @ (self.matrix[:3, :3] / self.scale).T

    @property
    def scale(self) -> float:
        """Working units per input unit."""
        return float(np.cbrt(np.linalg.det(self.matrix[:3, :3])))

    @property
    def inverse(self) -> SimilarityTransform:
        """The inverse transform."""
        linear = self.matrix[:3, :3].T / self.scale**2
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = -linear @ self.matrix[:3, 3]
        return SimilarityTransform(matrix)


def normalise(
    vertices: NDArray[np.floating], *, radius: float = 0.6, up_axis: str = "y", front: str = "+z"
) -> SimilarityTransform:
    """Returns the transform that centres the bounding box of ``vertices`` (V, 3) and moves the farthest to ``radius``.

    ``up_axis`` ("y" or "z") is the input's up axis, ``front`` ("+x", "-x", ...) the direction that the object faces.
    They become +Y and +Z. For a z-up input the default front "+z" means "-y", the usual front of such objects. Raises
    SettingError if front is the up axis or the vertices have no extent.
    """
    if up_axis not in ("y", "z"):
        raise SettingError(f"up_axis {up_axis!r} is unknown; allowed: y or z")
    if len(front) != 2 or front[0] not in "+-" or front[1] not in _AXES:
        raise SettingError(f"front {front!r} is unknown; allowed: +x -x +y -y +z -z")
    if up_axis == "z" and front == "+z":
        front = "-y"
    if front[1] == up_axis:
        raise SettingError(f"front {front} and up_axis {up_axis} are the same axis; choose another front")
    points = np.asarray(vertices, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = low + (high - low) / 2
    farthest = float(np.sqrt(((points - centre) ** 2).sum(axis=1).max()))
    if not np.isfinite(farthest) or farthest <= 0 or not np.isfinite(radius / farthest):
        raise SettingError("the mesh has no extent: all its vertices are at one point")
    up = np.array(_AXES[up_axis])
    forward = np.array(_AXES[front[1]]) * (1.0 if front[0] == "+" else -1.0)
    rotation = np.stack([np.cross(up, forward), up, forward])  # rows: right-handed, determinant +1
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * (radius / farthest)
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return SimilarityTransform(matrix)
