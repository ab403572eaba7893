"""Winding number and distance of a coarse sketch of a shape, sampled once on a grid.

A sketch is any set of triangles in the working frame: it may be open, non-manifold and self-intersecting. A point is
inside if its winding number is above 0.5 (Jacobson et al., "Robust Inside-Outside Segmentation Using Generalized
Winding Numbers", 2013). libigl computes it with the approximation of Barill et al. (2018).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.core.arrays import Float64Array
from pipeline.core.atomic import atomic_write
from pipeline.core.errors import SettingError
from pipeline.core.hashing import canonical_json, sha256_arrays
from pipeline.core.job import Reporter, no_report
from pipeline.core.json_types import Json
from pipeline.core.plain import is_plain
from pipeline.core.process.child import run_child
from pipeline.mesh.load import load_mesh
from pipeline.mesh.normalise import normalise
from pipeline.mesh.primitives import combine

# A centred sketch's farthest vertex (docs/method.md, section 5).
RADIUS = 0.7
RESOLUTION = 128
TIME_LIMIT = 600.0
# Bump it when the same sketch gives a different grid, to invalidate the cache.
_VERSION = "1"
_CHILD = Path(__file__).with_name("winding_grid_child.py")


@dataclass(frozen=True)
class WindingGrid:
    """A sketch on a grid of R sites along each axis, from -bound to bound, indexed [x, y, z].

    winding   (R, R, R) float32 winding number: above 0.5 inside.
    distance  (R, R, R) float32 distance to the surface, in scene units; exact within three sites of it.
    bound     half the side of the grid's cube.
    box       (2, 3) float64 smallest and largest coordinates of the sketch.
    """

    winding: NDArray[np.float32]
    distance: NDArray[np.float32]
    bound: float
    box: Float64Array


def load_sketch(
    mesh: Path | None,
    shapes: Sequence[Json] | None,
    cache: Path | None,
    *,
    fit: str | None = None,
    up_axis: str = "y",
    front: str | None = None,
    max_faces: int = 2_000_000,
    bound: float = 1.0,
    resolution: int = RESOLUTION,
    time_limit: float = TIME_LIMIT,
    report: Reporter = no_report,
) -> WindingGrid:
    """Loads a row's sketch from a ``mesh`` file or from ``shapes`` (see ``primitives.combine``).

    ``fit``, ``up_axis`` and ``front`` as in ``place_in_working_frame``. fit None is "centre" for a mesh and "keep" for
    shapes. The axes apply to a mesh only; shapes are in the working frame already. ``cache`` is a folder of cached
    grids. Raises MeshError as ``load_mesh``, SettingError as ``combine`` and ``build_winding_grid``.
    """
    if mesh is not None:
        source = load_mesh(mesh, max_faces=max_faces)
        vertices, faces = (
            place_in_working_frame(source.vertices, fit or "centre", up_axis=up_axis, front=front),
            source.faces,
        )
    else:
        vertices, faces = combine(shapes or [])
        vertices = place_in_working_frame(vertices, fit or "keep")
    return build_winding_grid(
        vertices, faces, cache=cache, bound=bound, resolution=resolution, time_limit=time_limit, report=report
    )


def place_in_working_frame(
    vertices: NDArray[np.floating], fit: str, *, up_axis: str = "y", front: str | None = None
) -> Float64Array:
    """Transforms ``vertices`` (V, 3) of a sketch to the working frame, upright and facing the viewer.

    fit  "centre" moves the bounding box's centre to the origin and the farthest vertex to ``RADIUS``. "keep" keeps
         position and size, so that moving or scaling a sketch moves or scales the asset.
    ``up_axis`` and ``front`` as in ``normalise``.
    """
    if fit not in ("centre", "keep"):
        raise SettingError(f"sketch_fit {fit!r} is unknown; allowed: centre or keep")
    frame = normalise(vertices, radius=RADIUS, up_axis=up_axis, front=front or "+z")
    return frame.apply(vertices) if fit == "centre" else frame.apply_direction(vertices)


def build_winding_grid(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    *,
    cache: Path | None = None,
    bound: float = 1.0,
    resolution: int = RESOLUTION,
    time_limit: float = TIME_LIMIT,
    report: Reporter = no_report,
) -> WindingGrid:
    """Samples (V, 3) ``vertices`` and (F, 3) ``faces``, in the working frame, on ``resolution`` sites per side.

    Reads the grid from ``cache`` if it is there; rebuilds a damaged entry. ``report`` is called as ("sketch", elapsed
    seconds, time_limit). Raises SettingError if the sketch encloses no site of the grid, or if ``time_limit`` seconds
    pass.
    """
    points: Float64Array = np.ascontiguousarray(vertices, np.float64)
    corners: NDArray[np.int64] = np.ascontiguousarray(faces, np.int64)
    box = np.stack([points[corners].min(axis=(0, 1)), points[corners].max(axis=(0, 1))])
    entry = cache / f"{_key(points, corners, bound, resolution)}.safetensors" if cache else None
    measured = _read(entry, resolution) if entry else None
    if measured is None:
        report("sketch", 0, max(1, math.ceil(time_limit)))
        outputs, failure = run_child(
            _CHILD,
            "libigl",
            {"vertices": points, "faces": corners, "sites": np.linspace(-bound, bound, resolution)},
            ("winding", "distance"),
            time_limit=time_limit,
            stage="sketch",
            report=report,
        )
        if outputs is None:
            raise SettingError(f"the sketch ({len(faces)} faces) could not be measured: {failure}; simplify it")
        measured = {name: np.asarray(values, np.float32) for name, values in outputs.items()}
        if not all(np.isfinite(values).all() for values in measured.values()):
            raise SettingError("the sketch could not be measured: libigl gave numbers that are not finite; repair it")
        if entry:
            with atomic_write(entry) as temporary:
                save_file(measured, temporary, metadata={"sha256": sha256_arrays(_VERSION, measured)})
    if not (measured["winding"] > 0.5).any():
        raise SettingError(
            "the sketch encloses nothing: it is too thin, too open, or outside the scene "
            f"(-{bound:g} to {bound:g}); close it, thicken it or set sketch_fit to centre"
        )
    return WindingGrid(measured["winding"], measured["distance"], bound, box)


def _key(vertices: Float64Array, faces: NDArray[np.int64], bound: float, resolution: int) -> str:
    head = canonical_json([_VERSION, bound, resolution, list(vertices.shape), list(faces.shape)])
    return hashlib.sha256(head + vertices.tobytes() + faces.tobytes()).hexdigest()


def _read(entry: Path, resolution: int) -> dict[str, NDArray[np.float32]] | None:
    if not is_plain(entry):
        return None
    try:
        with safe_open(entry, framework="numpy") as stream:
            stored_hash = (stream.metadata() or {}).get("sha256")
            arrays = {name: stream.get_tensor(name).copy() for name in ("winding", "distance")}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    sound = all(
        v.shape == (resolution,) * 3 and v.dtype == np.float32 and np.isfinite(v).all() for v in arrays.values()
    )
    return arrays if sound and stored_hash == sha256_arrays(_VERSION, arrays) else None
