"""Extracts a closed triangle mesh from a density grid: iso-surface, components, smoothing, decimation.

R is the number of density samples per side. The grid spans [-bound, bound]^3, its outermost samples lie on the cube's
faces, and it is indexed [x, y, z]. Meshes use the cube's frame and units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.ndimage import label as label_pieces
from scipy.sparse.csgraph import connected_components

from pipeline.core.arrays import Float64Array
from pipeline.core.errors import MeshError, SettingError
from pipeline.mesh.mesh import Mesh, assemble, face_areas, face_normals

STAGE = "surface"
# Samples with a smaller absolute value are moved away from the surface: a vertex exactly on a sample yields slivers,
# which later stages drop.
_OFF_SAMPLE = 1e-2
# A density whose most opaque ray has less opacity than this counts as empty.
_LEAST_OPACITY = 0.05
# The smallest effective blur, in samples, and the largest share of the inside that a blur may remove.
_LEAST_BLUR, _MOST_LOST = 0.3, 0.005
# Taubin's shrinking and growing steps: low frequencies pass, volume is kept (Taubin 1995, section 3).
_SHRINK, _GROW = 0.5, -0.53
# Aggressiveness of decimation. The first value that meets the face budget is used.
_EAGERNESS = (5.0, 7.0, 9.0)


@dataclass(frozen=True)
class ComponentRule:
    """Selects connected components of a surface.

    Keeps at most ``most`` components, each with at least ``share`` of the largest one's area. Drops components of
    negative volume: they bound cavities, which are invisible from outside.
    """

    share: float = 0.05
    most: int = 16


def extract(density: NDArray[np.floating], threshold: float, bound: float = 1.0, blur: float = 0.0) -> Mesh:
    """Extracts the surface where ``density`` (R, R, R), >= 0 and per unit of length, crosses ``threshold``.

    Runs Lewiner's marching cubes on (density - threshold) / (density + threshold). It crosses zero at the same
    surface, and its interpolation follows the logarithm of the density, which is smooth. Interpolating a density that
    jumps from 0 to hundreds would put every vertex beside the empty sample, and the grid would show as steps.

    ``blur`` is the sigma of a Gaussian, in the cube's units, that smooths this function first. It removes bumps of up
    to twice its length and keeps flat surfaces in place. It would also remove thinner parts, so sigma is halved until
    they remain, with a message in ``warnings``.

    Faces are counter-clockwise seen from outside. The cube's faces clip and cap the surface, so it is always closed.
    Vertices are float32 values. Raises MeshError if the density is not finite, is below the threshold everywhere, or
    above it everywhere. Raises SettingError for a wrong shape or a threshold that is not positive.
    """
    from skimage.measure import marching_cubes

    side = _check(density)
    if not (np.isfinite(threshold) and threshold > 0):
        raise SettingError(f"density_threshold must be a number above 0, got {threshold}")
    highest, lowest = float(density.max()), float(density.min())
    if highest < threshold:
        raise MeshError(
            f"the density is empty: it reaches {highest:.3g} and the threshold is {threshold:.3g}; "
            "lower density_threshold or train longer (steps)",
            stage=STAGE,
        )
    if lowest >= threshold:
        raise MeshError(
            f"the density fills the whole cube: it is {lowest:.3g} or more and the threshold is {threshold:.3g}; "
            "raise density_threshold or lambda_sparsity",
            stage=STAGE,
        )
    # One empty layer around the cube closes the surface.
    signed = np.full((side + 2,) * 3, -1.0, np.float32)
    positive = np.maximum(np.asarray(density, np.float32), 0)
    inner: NDArray[np.floating] = (positive - np.float32(threshold)) / (positive + np.float32(threshold))
    messages: list[str] = []
    if blur > 0:
        inner, messages = _smoothed(inner, blur * (side - 1) / (2 * bound))
    inner = np.where(np.abs(inner) < _OFF_SAMPLE, np.where(inner < 0, -_OFF_SAMPLE, _OFF_SAMPLE), inner)
    signed[1:-1, 1:-1, 1:-1] = inner
    vertices, faces, _, _ = marching_cubes(signed, 0.0, gradient_direction="ascent", allow_degenerate=True)  # type: ignore[no-untyped-call]  # scikit-image
    index = np.clip(vertices.astype(np.float64) - 1, 0, side - 1)
    positions = (index * (2 * bound / (side - 1)) - bound).astype(np.float32).astype(np.float64)
    return replace(_cleaned(positions, np.asarray(faces, np.int64), "iso-surface"), warnings=messages)


def _smoothed(signed: NDArray[np.floating], sigma: float) -> tuple[NDArray[np.floating], list[str]]:
    """Blurs ``signed`` (R, R, R; positive inside) by ``sigma`` samples, or less if that would remove thin parts.

    Returns the blurred grid and warnings.
    """
    label, count = label_pieces(signed > 0)
    if count == 0:
        return signed, []
    sizes = np.bincount(label.ravel())[1:]
    # Specks do not count as parts.
    is_part = np.append(False, sizes >= ComponentRule().share * sizes.max())
    inside = is_part[label]
    used = sigma
    while used >= _LEAST_BLUR:
        blurred: NDArray[np.floating] = gaussian_filter(signed, used, mode="constant", cval=-1.0, truncate=3.0)
        left = blurred > 0
        if left.any() and (distance_transform_edt(~left)[inside] > 2 * used).mean() <= _MOST_LOST:
            messages = (
                [f"surface_blur was reduced to {used / sigma:.2g} times its value to keep thin parts"]
                if used < sigma
                else []
            )
            return blurred, messages
        used /= 2
    return signed, ["the surface was not blurred, to keep thin parts"]


def optical_depth_field(density: NDArray[np.floating], bound: float = 1.0) -> tuple[NDArray[np.float32], float]:
    """Returns an optical depth field (R, R, R) float32 >= 0 and a threshold. The surface has the density's outline.

    A sample's optical depth is the smallest integral of the density along the axes from the six sides of the cube. The
    threshold is half the optical depth at which a ray loses half the light that the most opaque ray loses. So each part
    that absorbs half the light of a ray keeps a surface, whatever the density's scale. A slightly transparent object
    has a flat, noisy density, which has no smooth iso-surface at any threshold; its integrals have one.

    ``density`` as for ``extract``. Raises MeshError if no ray loses at least a twentieth of its light.
    """
    side = _check(density)
    cell = 2 * bound / (side - 1)
    sigma = np.maximum(np.asarray(density, np.float32), 0) * np.float32(cell)
    depth = np.full(sigma.shape, np.inf, np.float32)
    peak = 0.0
    for axis in range(3):
        below = np.cumsum(sigma, axis=axis, dtype=np.float32)
        total = np.take(below, [-1], axis=axis)
        peak = max(peak, float(1 - np.exp(-total.max())))
        below -= sigma / 2
        np.minimum(depth, below, out=depth)
        np.minimum(depth, total - below, out=depth)
    if peak < _LEAST_OPACITY:
        raise MeshError(
            f"the density is empty: no ray through it loses more than {peak:.1%} of its light; "
            "train longer (steps), or lower lambda_sparsity",
            stage=STAGE,
        )
    return np.maximum(depth, 0), float(-np.log(1 - 0.5 * peak) / 2)


def _check(density: NDArray[np.floating]) -> int:
    """Returns the side R. Raises SettingError if ``density`` is not a cube, MeshError if it is not finite."""
    if density.ndim != 3 or len(set(density.shape)) != 1 or len(density) < 2:
        raise SettingError(f"a density grid is a cube of at least 2 samples a side, not {density.shape}")
    if not np.isfinite(density).all():
        raise MeshError(
            "the density is not finite: the optimisation diverged; lower learning_rate or guidance_scale", stage=STAGE
        )
    return len(density)


def keep_components(mesh: Mesh, rule: ComponentRule | None = None) -> Mesh:
    """Drops the components that ``rule`` does not select, with a message in ``warnings``."""
    rule = rule or ComponentRule()
    label, areas, volumes = components(mesh)
    largest = areas.max()
    order = np.argsort(-areas, kind="stable")
    kept_components = [int(c) for c in order if areas[c] >= rule.share * largest and volumes[c] > 0][: rule.most]
    kept_components = kept_components or [int(order[0])]
    if len(kept_components) == len(areas):
        return mesh
    dropped = len(areas) - len(kept_components)
    away = 1 - areas[kept_components].sum() / areas.sum()
    message = (
        f"{dropped} loose pieces of the surface were dropped ({away:.1%} of its area); {len(kept_components)} kept"
    )
    result = _cleaned(mesh.vertices, mesh.faces[np.isin(label, kept_components)], mesh.source_format)
    return replace(result, warnings=[*mesh.warnings, message])


def components(mesh: Mesh) -> tuple[NDArray[np.int64], Float64Array, Float64Array]:
    """Labels components connected through shared vertices.

    Returns the component of each face (F,) int64, and the components' areas and signed volumes, (K,) float64 each.
    """
    a, b, c = mesh.faces.T
    links = (np.ones(2 * len(a), np.int8), (np.r_[a, b], np.r_[b, c]))
    count, of_vertex = connected_components(sparse.coo_array(links, (len(mesh.vertices),) * 2), directed=False)
    label = of_vertex[a].astype(np.int64)
    volume = np.einsum("fi,fi->f", mesh.vertices[a], face_normals(mesh.vertices, mesh.faces)) / 6
    areas, volumes = (
        np.asarray(np.bincount(label, part, count), np.float64)
        for part in (face_areas(mesh.vertices, mesh.faces), volume)
    )
    return label, areas, volumes


def smooth(mesh: Mesh, iterations: int = 5) -> Mesh:
    """Smooths the steps of the grid with Taubin's filter, which preserves shape and volume.

    Runs ``iterations`` pairs of a shrinking and a growing step; 0 returns ``mesh`` unchanged.
    """
    if iterations <= 0:
        return mesh
    count = len(mesh.vertices)
    start, end = mesh.faces.ravel(), np.roll(mesh.faces, -1, axis=1).ravel()
    once = (np.ones(2 * len(start)), (np.r_[start, end], np.r_[end, start]))
    links = sparse.csr_array(sparse.coo_array(once, (count, count)))
    links.data[:] = 1.0  # each edge occurs in two faces
    mean = sparse.diags_array(1 / np.maximum(links.sum(axis=1), 1)) @ links
    vertices = mesh.vertices.copy()
    for step in (_SHRINK, _GROW) * iterations:
        vertices += step * (mean @ vertices - vertices)
    result = _cleaned(vertices.astype(np.float32).astype(np.float64), mesh.faces, mesh.source_format)
    return replace(result, warnings=list(mesh.warnings))


def decimate(mesh: Mesh, face_budget: int) -> Mesh:
    """Decimates ``mesh`` to at most ``face_budget`` faces by quadric edge collapse.

    (Garland and Heckbert 1997, as fast-simplification implements it.) Tries several levels of aggressiveness and keeps
    the best result: one within the budget, then the one with the fewest open edges. ``warnings`` report a missed budget
    and open edges of a mesh that was closed. Raises SettingError for a budget below 4 faces. Not thread-safe: the
    library keeps its mesh in a global.
    """
    from fast_simplification import simplify

    if face_budget < 4:
        raise SettingError(f"face_budget must be 4 or more, got {face_budget}")
    if len(mesh.faces) <= face_budget:
        return mesh
    was_closed = open_edges(mesh.faces) == 0
    attempts: list[tuple[bool, int, int, Mesh]] = []
    for eagerness in _EAGERNESS:
        points, faces = simplify(
            np.ascontiguousarray(mesh.vertices),
            np.ascontiguousarray(mesh.faces, np.int32),
            target_count=face_budget,
            agg=eagerness,
            preserve_border=not was_closed,
        )
        faces = _repaired(faces.astype(np.int64))
        if len(faces) == 0:
            continue
        decimated = _cleaned(points.astype(np.float32).astype(np.float64), faces, mesh.source_format)
        left_open = open_edges(decimated.faces) if was_closed else 0
        attempts.append((len(decimated.faces) > face_budget, left_open, len(attempts), decimated))
        if len(decimated.faces) <= face_budget and left_open == 0:
            break
    if not attempts:
        return replace(mesh, warnings=[*mesh.warnings, f"the surface could not be reduced to {face_budget} faces"])
    over, left_open, _, best = min(attempts, key=lambda entry: entry[:3])
    messages = list(mesh.warnings)
    if over:
        messages.append(f"the surface could only be reduced to {len(best.faces)} faces; face_budget is {face_budget}")
    if left_open:
        messages.append(f"reducing the surface to {len(best.faces)} faces left {left_open} of its edges open")
    return replace(best, warnings=messages)


def open_edges(faces: NDArray[np.int64]) -> int:
    """Counts the edges of ``faces`` (F, 3) whose two directions occur unequally often; 0 for a closed surface."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    low, high = np.minimum(start, end), np.maximum(start, end)
    _, edge = np.unique(low * (int(faces.max(initial=0)) + 1) + high, return_inverse=True)
    return int(np.count_nonzero(np.bincount(edge.ravel(), np.sign(end - start))))


def _repaired(faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drops faces with a repeated corner, and pairs of opposite faces on the same corners.

    Collapsed parts leave both behind. A closed surface stays closed without them.
    """
    ordered = np.sort(faces, axis=1)
    faces = faces[(ordered[:, :-1] != ordered[:, 1:]).all(axis=1)]
    if len(faces) == 0:
        return faces
    turn = np.argmin(faces, axis=1)[:, None]
    rotated = np.take_along_axis(faces, (turn + np.arange(3)) % 3, axis=1)
    _, group = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    group = group.ravel()
    side = np.where(rotated[:, 1] < rotated[:, 2], 1, -1)
    surplus = np.bincount(group, side)[group]
    # Of the faces on one set of corners, keep one if its side outnumbers the other, else none.
    first = np.zeros(len(faces), bool)
    matching = np.flatnonzero(side * surplus > 0)
    first[matching[np.unique(group[matching], return_index=True)[1]]] = True
    return faces[first]


def _cleaned(positions: Float64Array, faces: NDArray[np.int64], source_format: str) -> Mesh:
    """Makes a ``Mesh``: merges equal positions and drops degenerate faces, without warnings."""
    mesh = assemble(positions, faces, name=source_format, source_format="glb", max_faces=len(faces))
    return replace(mesh, source_format=source_format, warnings=[])
