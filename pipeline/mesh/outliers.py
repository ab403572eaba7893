"""Small parts that lie far from the rest: the box around a mesh is theirs, and the object a dot in every view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.mesh import face_areas

# Of the area, what may lie beyond on either side of each axis ...
_TAIL = 1e-3
# ... and how many times larger the box with it is than the box without, before it is told.
_RATIO = 4.0
_BINS = 4096
FAR = "far from the rest"


def outlier_warning(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> str:
    """One line where a thousandth of the surface makes the box around (V, 3) vertices four times as large; else "".

    faces (F, 3) into ``vertices``.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = high - low
    area = face_areas(vertices, faces)
    if not size.max() > 0 or not area.sum() > 0:
        return ""
    centre = vertices[faces].mean(axis=1)
    near = np.ones(len(faces), bool)
    for axis in range(3):
        if size[axis] <= 0:
            continue
        bin_index = np.minimum((_BINS * ((centre[:, axis] - low[axis]) / size[axis])).astype(np.int64), _BINS - 1)
        below = np.cumsum(np.bincount(bin_index, weights=area, minlength=_BINS)) / area.sum()
        first, last = np.searchsorted(below, _TAIL, side="right"), np.searchsorted(below, 1 - _TAIL)
        near &= (bin_index >= first) & (bin_index <= last)
    if near.all() or not near.any():
        return ""
    inner = vertices[np.unique(faces[near])]
    middle, reach = (inner.min(axis=0) + inner.max(axis=0)) / 2, float(np.linalg.norm(np.ptp(inner, axis=0)))
    # What was cut off by a hair's breadth is no outlier: only what does not touch the box of the rest, twice as large.
    far = ~near & (np.abs(centre - middle).max(axis=1) > reach)
    if not far.any():
        return ""
    ratio = float(np.linalg.norm(size)) / reach if reach > 0 else np.inf
    if ratio < _RATIO:
        return ""
    share = 100 * area[far].sum() / area.sum()
    count = int(far.sum())
    return (
        f"{count} of {len(faces)} faces ({share:.1g}% of the surface) {'lies' if count == 1 else 'lie'} {FAR}, "
        f"which is only 1/{min(ratio, 1e9):.0f} of the whole in size: delete what is not meant"
    )
