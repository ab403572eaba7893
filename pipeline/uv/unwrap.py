"""Finds texture coordinates for a mesh: its own if usable, else from xatlas, else from our charting, which never fails.

Our own packer (``pack``) lays out all new charts, also those of xatlas: in a square, at a distance that suits the
texture, and with the same bytes for the same mesh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pipeline.core.errors import SettingError, UnwrapError
from pipeline.core.job import Reporter, no_report
from pipeline.core.process.child import run_child
from pipeline.mesh.mesh import Mesh, UVMesh, face_areas, unique_rows, uv_areas

# The mesh's own coordinates may leave the unit square by this much. Beyond that, the texture is tiled.
TILE_TOLERANCE = 1e-3
# Own coordinates are usable if at most this share of the covered cells of a grid is covered more than once,
LARGEST_OVERLAP = 0.01
OVERLAP_GRID = 1024
# if at most this share of the surface gets (almost) no texels: less than this share of the mean density,
LARGEST_STARVED = 0.01
STARVED_DENSITY = 1e-4
# and if the charts cover at least this share of the square.
LEAST_COVERED = 0.05
# "auto" also requires an even density of texels (per length): this percentile over the surface is at least this share
# of the median.
SPARSE_SHARE = 0.05
LEAST_DENSITY = 0.25
# Distance between charts as a share of the texture's side: one latent of a latent texture an eighth as large, at 1024
# texels.
PADDING = 1 / 128
# With more faces than this, xatlas takes too long: its time grows faster than the number of faces.
XATLAS_FACES = 60_000
# With more charts or less use of the texture than this, "auto" also tries clusters, and takes them if they are fewer
# and use the texture better. Otherwise scans full of crevices would fall into hundreds of slivers.
MANY_CHARTS = 256
POOR_COVERAGE = 0.4
BETTER_COVERAGE = 1.15
# xatlas's charts are not used if they overlap by more than this.
_XATLAS_OVERLAP = 0.002
_CHILD = Path(__file__).with_name("xatlas_child.py")


def unwrap(
    mesh: Mesh,
    *,
    texture_size: int,
    mode: str = "auto",
    time_limit: float = 120,
    report: Reporter = no_report,
) -> UVMesh:
    """Gives ``mesh`` one usable set of texture coordinates for a square texture of ``texture_size`` texels.

    mode    "auto": the mesh's own if usable (``uv_problem``) and even (``uneven_density``); else xatlas, unless the
            mesh is very large; else clusters. "input": the mesh's own if usable, else UnwrapError. "xatlas": xatlas in
            any case, clusters if it fails or does not finish within ``time_limit`` seconds. "box": a box projection.
    report  is called as ("unwrap", seconds so far, time_limit) while xatlas runs.

    Always returns: xatlas runs in a child process that is killed at the time limit.
    """
    if mode not in ("auto", "input", "xatlas", "box"):
        raise SettingError(f"unwrap mode {mode!r} is unknown; allowed: auto, input, xatlas, box")
    report("unwrap", 0, max(1, math.ceil(time_limit)))
    why_not = ""
    if mode in ("auto", "input"):
        why_not = uv_problem(mesh)
        if not why_not and mode == "auto":
            why_not = uneven_density(mesh)
        if not why_not:
            return _with_own_uv(mesh)
        if mode == "input":
            raise UnwrapError(f"the mesh's own texture coordinates cannot be used: {why_not}")
    if mode == "box":
        return _clustered(mesh, texture_size, "box", "a box projection was requested")
    started = "xatlas was requested" if mode == "xatlas" else why_not
    if mode == "auto" and len(mesh.faces) > XATLAS_FACES:
        return _clustered(mesh, texture_size, "clusters", f"{started}; {len(mesh.faces)} faces are too many for xatlas")
    charts, failure = run_xatlas(mesh, time_limit=time_limit, report=report)
    if charts is not None:
        points, uv_faces = charts
        result = _packed(mesh, points, uv_faces, None, texture_size, "xatlas", started)
        overlap = overlap_share(result.uv, result.uv_faces)
        if overlap <= _XATLAS_OVERLAP:
            poor = int(result.charts.max()) + 1 > MANY_CHARTS or result.coverage < POOR_COVERAGE
            return _better_packed(mesh, texture_size, result) if poor and mode == "auto" else result
        failure = f"xatlas made charts that overlap by {overlap:.1%}"
    return _clustered(mesh, texture_size, "clusters", f"{started}; {failure}")


def _better_packed(mesh: Mesh, texture_size: int, unwrapped: UVMesh) -> UVMesh:
    """``unwrapped``, or the layout by clusters if that is clearly better."""
    count = int(unwrapped.charts.max()) + 1
    reason = f"xatlas made {count} charts that use {unwrapped.coverage:.0%} of the texture"
    other = _clustered(mesh, texture_size, "clusters", reason)
    if int(other.charts.max()) < count and other.coverage > BETTER_COVERAGE * unwrapped.coverage:
        return other
    return unwrapped


def uv_problem(mesh: Mesh) -> str:
    """Returns "" if the mesh's own texture coordinates can be painted on, else one line why not.

    They are usable if they are on every face, finite and within one tile, if hardly any surface lacks texels, if the
    charts are not crowded in a corner, and if they overlap on at most LARGEST_OVERLAP of the cells that they cover, of
    OVERLAP_GRID squared.
    """
    if mesh.uv is None or mesh.uv_faces is None:
        return "the mesh has no texture coordinates"
    lacking = int((mesh.uv_faces < 0).any(axis=1).sum())
    if lacking:
        return f"{lacking} of {len(mesh.faces)} faces have no texture coordinates"
    if not np.isfinite(mesh.uv).all():
        return "some texture coordinates are not finite"
    uv = _first_tile(mesh.uv)
    low, high = uv.min(axis=0), uv.max(axis=0)
    if (low < -TILE_TOLERANCE).any() or (high > 1 + TILE_TOLERANCE).any():
        return (
            f"texture coordinates leave the unit square (u {low[0]:.2f} to {high[0]:.2f}, v {low[1]:.2f} to "
            f"{high[1]:.2f}): a tiled texture"
        )
    areas, surface = np.abs(uv_areas(uv, mesh.uv_faces)), face_areas(mesh.vertices, mesh.faces)
    density = areas.sum() / surface.sum()
    starved = float(surface[areas < STARVED_DENSITY * density * surface].sum() / surface.sum())
    if density == 0 or starved > LARGEST_STARVED:
        return f"{1.0 if density == 0 else starved:.1%} of the surface has no area in the texture"
    covered, doubled = _covered(uv, mesh.uv_faces)
    if covered == 0 or doubled > LARGEST_OVERLAP * covered:
        share = doubled / covered if covered else 1.0
        return f"charts overlap on {share:.1%} of the texture they cover (at most {LARGEST_OVERLAP:.0%} is allowed)"
    if covered < LEAST_COVERED * OVERLAP_GRID**2:
        return f"the charts cover only {covered / OVERLAP_GRID**2:.1%} of the texture"
    return ""


def uneven_density(mesh: Mesh) -> str:
    """Returns "" if the mesh's own, usable texture coordinates have an even density, else one line why not.

    Density is texels per length. It is uneven if its 5th percentile over the surface's area is below a quarter of its
    median.
    """
    if mesh.uv is None or mesh.uv_faces is None or (mesh.uv_faces < 0).any():
        return ""
    surface = face_areas(mesh.vertices, mesh.faces)
    density = np.sqrt(np.abs(uv_areas(mesh.uv, mesh.uv_faces)) / np.maximum(surface, 1e-300))
    order = np.argsort(density, kind="stable")
    below = np.cumsum(surface[order])
    sparse_at, usual_at = np.searchsorted(below, np.array([SPARSE_SHARE, 0.5]) * below[-1])
    sparsest, usual = float(density[order[sparse_at]]), float(density[order[usual_at]])
    if not usual > 0 or sparsest >= LEAST_DENSITY * usual:
        return ""
    return (
        f"the mesh's own texture coordinates are uneven: {SPARSE_SHARE:.0%} of the surface has at most "
        f"{sparsest / usual:.0%} of the usual texels per length"
    )


def overlap_share(uv: NDArray[np.floating], uv_faces: NDArray[np.integer], size: int = OVERLAP_GRID) -> float:
    """The share of covered cells, on a grid of ``size`` squared, that are covered more than once."""
    covered, doubled = _covered(uv, uv_faces, size)
    return doubled / covered if covered else 0.0


def _covered(uv: NDArray[np.floating], uv_faces: NDArray[np.integer], size: int = OVERLAP_GRID) -> tuple[int, int]:
    """(cells covered at all, cells covered more than once)."""
    from pipeline.uv.kernels import coverage

    count = coverage(np.asarray(uv, np.float64)[uv_faces] * size, size)
    return int(np.count_nonzero(count)), int(np.count_nonzero(count > 1))


def _first_tile(uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Moves coordinates that all lie in one other tile to the first, where a repeated texture looks the same."""
    tile = np.floor((uv.min(axis=0) + uv.max(axis=0)) / 2)
    if not (np.abs(tile) < 1e6).all() or not tile.any():
        return uv
    shifted = (uv.astype(np.float64) - tile).astype(np.float32)
    inside = (shifted.min() >= -TILE_TOLERANCE) and (shifted.max() <= 1 + TILE_TOLERANCE)
    return shifted if inside else uv


def _with_own_uv(mesh: Mesh) -> UVMesh:
    assert mesh.uv is not None and mesh.uv_faces is not None
    uv = _first_tile(mesh.uv)
    reason = "the mesh's own texture coordinates are usable"
    if uv is not mesh.uv:
        reason += "; moved by whole tiles"
    uv = np.clip(uv, 0.0, 1.0)
    # One entry per pair of position and coordinate: faces whose coordinates are equal by chance are not connected.
    rows = np.concatenate([mesh.faces.reshape(-1, 1), uv[mesh.uv_faces.reshape(-1)]], axis=1)
    first, number = unique_rows(rows)
    uv_faces = number.reshape(-1, 3)
    uv = np.ascontiguousarray(rows[first, 1:].astype(np.float32))
    covered, _ = _covered(uv, uv_faces)
    return UVMesh(mesh, uv, uv_faces, "input", reason, chart_ids(uv_faces), 0.0, covered / OVERLAP_GRID**2)


def chart_ids(uv_faces: NDArray[np.int64]) -> NDArray[np.int32]:
    """(F,) int32 charts: faces connected through shared texture coordinates, numbered by their first face."""
    count = int(uv_faces.max()) + 1
    a, b, c = uv_faces.T
    ones = np.ones(2 * len(a), np.int8)
    graph = sparse.coo_matrix((ones, (np.r_[a, b], np.r_[b, c])), (count, count))
    label = connected_components(graph, directed=False)[1][a]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[inverse.reshape(-1)]


def _clustered(mesh: Mesh, texture_size: int, method: str, reason: str) -> UVMesh:
    from pipeline.uv.charting import flat_charts

    points, uv_faces, charts = flat_charts(mesh, smooth=method == "clusters")
    return _packed(mesh, points, uv_faces, charts, texture_size, method, reason)


def _packed(
    mesh: Mesh,
    points: NDArray[np.float64],
    uv_faces: NDArray[np.int64],
    charts: NDArray[np.integer] | None,
    texture_size: int,
    method: str,
    reason: str,
) -> UVMesh:
    from pipeline.uv.pack import pack

    if charts is None:
        charts = chart_ids(uv_faces)
    # A small texture needs at least two texels between charts, or every filter would mix them.
    padding = max(PADDING, 2 / texture_size)
    packed = pack(points, uv_faces, charts.astype(np.int64), padding=padding)
    if packed.padding < padding:
        reason += f"; {int(charts.max()) + 1} charts left room for {packed.padding * texture_size:.2g} texels between"
    return UVMesh(
        mesh,
        packed.uv,
        uv_faces,
        method,
        reason,
        chart_ids(uv_faces),
        packed.padding * texture_size,
        packed.coverage,
    )


def run_xatlas(
    mesh: Mesh,
    *,
    time_limit: float,
    report: Reporter = no_report,
    command: Sequence[str] = (),
) -> tuple[tuple[NDArray[np.float64], NDArray[np.int64]] | None, str]:
    """Runs xatlas in a child process that ends with this one, and after ``time_limit`` seconds at the latest.

    Returns (((T, 2) float64 in texels, (F, 3) indices), "") or (None, one line why not). ``command`` is the program to
    run, followed by the folder, this process's id and a number of seconds (empty: the program with xatlas).
    """
    # xatlas computes in float32 and treats faces below an absolute area as degenerate, so scale to a mean area of 1.
    centred = mesh.vertices - (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    centred = centred / math.sqrt(max(float(face_areas(mesh.vertices, mesh.faces).mean()), 1e-300))
    arrays, failure = run_child(
        command or _CHILD,
        "xatlas",
        {"vertices": centred.astype(np.float32), "faces": mesh.faces.astype(np.uint32)},
        ("uv", "uv_faces"),
        time_limit=time_limit,
        stage="unwrap",
        report=report,
    )
    if arrays is None:
        return None, failure
    uv, uv_faces = arrays["uv"].astype(np.float64), arrays["uv_faces"].astype(np.int64)
    fits = uv_faces.shape == mesh.faces.shape and uv.ndim == 2 and np.isfinite(uv).all()
    if not fits or uv_faces.max(initial=0) >= len(uv):
        return None, "the result of xatlas does not fit the mesh"
    return (uv, uv_faces), ""
