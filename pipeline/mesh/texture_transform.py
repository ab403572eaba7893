"""KHR_texture_transform of glTF."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

TRANSFORM = "KHR_texture_transform"
"""The name of the extension."""


def transformed(uv: NDArray[np.number], transform: Mapping[str, object]) -> NDArray[np.float64]:
    """(n, 2) coordinates under the extension's object: scaled, turned, moved. Values that are no numbers count as none
    given."""
    turn = transform.get("rotation")
    turn = float(turn) if isinstance(turn, int | float) else 0.0
    scale, offset = _pair(transform, "scale", 1.0), _pair(transform, "offset", 0.0)
    cosine, sine = math.cos(turn), math.sin(turn)
    with np.errstate(all="ignore"):
        u, v = (uv.astype(np.float64) * scale).T
        return np.stack([cosine * u + sine * v, cosine * v - sine * u], axis=1) + offset


def _pair(transform: Mapping[str, object], key: str, default: float) -> NDArray[np.float64]:
    value = transform.get(key)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, int | float) for each in value):
        return np.array(value, np.float64)
    return np.array([default, default])
