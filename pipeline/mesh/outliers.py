"""Detects small parts far from the main object: they enlarge the bounding box, so the object is tiny in all views."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.mesh import face_areas

# The share of the area that may lie beyond the core on each side of each axis.
_TAIL = 1e-3
# Warn if outliers enlarge the bounding box by this factor.
_RATIO = 4.0
_BINS = 4096
FAR = "far from the rest"


def outlier_warning(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> str:
    """Returns a warning if about a thousandth of the surface makes the bounding box four times as large; else "".

    vertices (V, 3), faces (F, 3) into them.
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
    # Faces just outside the core are no outliers: an outlier lies outside twice the core's box.
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
        f"which is only 1/{min(ratio, 1e9):.0f} of the whole in size: delete them if they are not intended"
    )
