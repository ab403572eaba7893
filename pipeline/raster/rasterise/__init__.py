"""Rasterises meshes: the face that each pixel or texel sees, and the barycentrics of the point on it.

N cameras, H x W pixels, V vertices, F faces, T texture coordinates. Row 0 is the top; pixel (x, y) has its
centre at (x + 0.5, y + 0.5). Rules, the same for every backend:

* Corners are snapped to 1/4096 pixel, so edge tests are exact and a shared edge is covered exactly once
  (top-left rule): no gaps, no double coverage.
* Faces are clipped at the near plane; nothing is clipped at the far plane.
* The nearest face wins a pixel; at equal float32 depth the lowest face id does.
* Barycentrics are perspective-correct, in the order of the face's corners.

``numba_backend`` is the fast backend, ``torch_backend`` its plain twin; both give the same bits. On CUDA
``nvdiffrast_backend`` (if installed) or ``warp_backend`` draws the views. Their faces are the same, except at pixels
whose centre is closer to an edge than their precision. Geometry needs no gradient here.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.core import backends
from pipeline.core.errors import SettingError
from pipeline.raster.camera import Cameras
from pipeline.raster.rasterise.layout import LARGEST_IMAGE, Fragments

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, Int32

FloatT = TypeVar("FloatT", np.float32, np.float64)


def rasterise(
    vertices: ArrayLike,
    faces: ArrayLike,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    cull_backfaces: bool = False,
    backend: str = "auto",
) -> Fragments:
    """Rasterises faces (F, 3) over world vertices (V, 3) from every camera.

    ``cull_backfaces`` drops faces whose corners are clockwise in the image. Raises BackendError for a backend that is
    unknown or does not work here, SettingError for an image over 32768 pixels a side.
    """
    if not (0 < height <= LARGEST_IMAGE and 0 < width <= LARGEST_IMAGE):
        raise SettingError(f"rasterise: an image must have 1 to {LARGEST_IMAGE} pixels a side, not {width} x {height}")
    arrays = _backend(backend).rasterise(
        np.ascontiguousarray(vertices, np.float64),
        _indices(faces),
        np.ascontiguousarray(cameras.clip_from_world, np.float64),
        int(height),
        int(width),
        bool(cull_backfaces),
    )
    return Fragments(*arrays)


def rasterise_uv(
    uv: ArrayLike,
    uv_faces: ArrayLike,
    height: int,
    width: int,
    *,
    conservative: float = 0.0,
    backend: str = "auto",
) -> tuple[Int32[NDArray[np.int32], "height width"], Float32[NDArray[np.float32], "height width 3"]]:
    """Rasterises faces in texture space: face (H, W) int32 and bary (H, W, 3) float32 of each texel.

    ``uv`` (T, 2) has its origin at the top left, ``uv_faces`` (F, 3) index it. A texel belongs to the face that covers
    its centre (the lowest id if faces overlap). With ``conservative`` above 0, an uncovered texel whose centre lies
    within that many texels of a face gets the nearest face and the barycentrics of the nearest point on it, so that
    charts thinner than a texel keep texels.
    """
    face, bary = _backend(backend).rasterise_uv(
        np.ascontiguousarray(uv, np.float64), _indices(uv_faces), int(height), int(width), float(conservative)
    )
    return face, bary


def interpolate(
    face: Int32[NDArray[np.int32], "*pixels"],
    bary: Float32[NDArray[np.float32], "*pixels 3"],
    values: Float[NDArray[FloatT], "corners channels"],
    value_faces: Int[NDArray[np.integer], "faces 3"],
    *,
    backend: str = "auto",
) -> Float[NDArray[FloatT], "covered channels"]:
    """Interpolates values (T, D), given at the corners ``value_faces`` (F, 3), at every covered pixel: (M, D).

    ``face`` (...) and ``bary`` (..., 3) as in Fragments. The M pixels are those with ``face >= 0``, in row-major order.
    The result has the dtype of ``values``, float32 or float64.
    """
    result: NDArray[FloatT] = _backend(backend).interpolate(
        np.ascontiguousarray(face).reshape(-1),
        np.ascontiguousarray(bary).reshape(-1, 3),
        np.ascontiguousarray(values),
        _indices(value_faces),
    )
    return result


def _indices(faces: ArrayLike) -> NDArray[np.integer]:
    """Faces as a contiguous int32 or int64 array, whichever needs no copy."""
    array = np.asarray(faces)
    if array.dtype not in (np.int32, np.int64):
        array = array.astype(np.int64)
    return np.ascontiguousarray(array).reshape(-1, 3)


def _backend(name: str) -> ModuleType:
    """The module of the selected backend, imported on first use."""
    return backends.load(__name__, backends.select_backend("rasterise", name).name)
