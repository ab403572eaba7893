"""Linear blend skinning of a glTF mesh, with the joints' transforms of the node tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Skinned:
    """positions (V, 3) float64; normals (V, 3) of unit length, or None; mirrored (V,) bool: moved by a reflection."""

    positions: NDArray[np.float64]
    normals: NDArray[np.float64] | None
    mirrored: NDArray[np.bool_]


def skin(
    positions: NDArray[np.float64],
    normals: NDArray[np.float64] | None,
    joints: NDArray[np.int64],
    weights: NDArray[np.float64],
    matrices: NDArray[np.float64],
) -> Skinned:
    """Linear blend skinning.

    positions, normals (V, 3) in the bind pose; joints (V, K) into ``matrices`` (J, 4, 4), each a joint's world matrix
    times its inverse bind matrix; weights (V, K) of any sum. A vertex without weight follows its first joint.
    """
    weights = weights.copy()
    weights[~(weights.sum(axis=1) > 0), 0] = 1.0
    weights /= weights.sum(axis=1, keepdims=True)
    placed = np.empty((len(positions), 3))
    turned = None if normals is None else np.empty((len(positions), 3))
    mirrored = np.empty(len(positions), bool)
    for first in range(0, len(positions), _CHUNK):
        rows = slice(first, first + _CHUNK)
        blended = np.zeros((len(joints[rows]), 3, 4))
        for column in range(joints.shape[1]):
            blended += weights[rows, column, None, None] * matrices[joints[rows, column], :3]
        linear = blended[:, :, :3]
        placed[rows] = np.einsum("vij,vj->vi", linear, positions[rows]) + blended[:, :, 3]
        mirrored[rows] = np.linalg.det(linear) < 0
        if turned is not None and normals is not None:
            turned[rows] = _turned(linear, normals[rows], mirrored[rows])
    return Skinned(placed, turned, mirrored)


def _turned(
    linear: NDArray[np.float64], normals: NDArray[np.float64], mirrored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(V, 3) unit normals under (V, 3, 3) linear maps, by cofactors, which also exist for singular maps."""
    cofactor = np.stack([np.cross(linear[:, 1], linear[:, 2]), np.cross(linear[:, 2], linear[:, 0]),
                         np.cross(linear[:, 0], linear[:, 1])], axis=1)  # fmt: skip
    turned = np.einsum("vij,vj->vi", cofactor, normals) * np.where(mirrored, -1.0, 1.0)[:, None]
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    return np.where(length > 0, turned / length, 0.0)
