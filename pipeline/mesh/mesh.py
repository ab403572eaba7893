"""Triangle meshes: ``Mesh`` for the input, ``UVMesh`` for painting.

A ``Mesh`` keeps positions, texture coordinates and normals in separate tables with one index table each, as OBJ
does. At a UV seam two faces share positions but not texture coordinates. Meshes of formats that repeat a vertex for
each combination (glTF, STL) are converted to this form, so adjacent faces share vertices.

Every reader calls ``assemble``, which validates untrusted data, repairs unambiguous defects, and reports them in
``Mesh.warnings``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.mesh.convert.references import CONVERTED

# A face is degenerate if its height over its longest edge is below this share of that edge: float32 positions, which
# glTF stores, cannot distinguish it from a line.
DEGENERATE_HEIGHT = 1e-9
# Squares of larger coordinates leave the range of float32, the type in the asset.
LARGEST_COORDINATE = 1e15


@dataclass
class Mesh:
    """The input mesh in the input's own coordinates and units, triangulated.

    vertices      (V, 3) float64, unique and all used.
    faces         (F, 3) int64 into ``vertices``, counter-clockwise seen from outside; none degenerate.
    uv            (T, 2) float32 or None; origin at the top left.
    uv_faces      (F, 3) int64 into ``uv``, all three -1 if a face has none; None together with ``uv``.
    normals       (N, 3) float32 unit vectors or None; normal_faces (F, 3) int64 into them.
    double_sided  (F,) bool, true where the file marks a face as double-sided; None if the file does not specify it.
    source_sha256 hex digest of the file's bytes (and of a .gltf's buffers).
    warnings      one line for each repair or omission.
    source_faces  (F,) int64: which of the faces as they were read each face is; its corners are in the same order.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    uv: NDArray[np.float32] | None = None
    uv_faces: NDArray[np.int64] | None = None
    normals: NDArray[np.float32] | None = None
    normal_faces: NDArray[np.int64] | None = None
    double_sided: NDArray[np.bool_] | None = None
    source_format: str = ""
    source_sha256: str = ""
    warnings: list[str] = field(default_factory=list)
    source_faces: NDArray[np.int64] | None = None


@dataclass
class UVMesh:
    """A mesh with one usable set of texture coordinates, ready to be painted and exported.

    uv        (T, 2) float32 in [0, 1], origin at the top left.
    uv_faces  (F, 3) int64 into ``uv``, all >= 0. Two faces share an entry only where they touch on the mesh.
    method    "input", "xatlas", "clusters" or "box".
    reason    one line, for the record: why this method was used.
    charts    (F,) int32 chart of each face, numbered from 0: faces connected through shared ``uv`` entries.
    padding   requested texels between charts at the texture size (0 for the input's own coordinates).
    coverage  share of the unit square that the charts cover.
    """

    mesh: Mesh
    uv: NDArray[np.float32]
    uv_faces: NDArray[np.int64]
    method: str
    reason: str
    charts: NDArray[np.int32]
    padding: float = 0.0
    coverage: float = 0.0


def face_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """(F, 3) normals whose length is twice the face's area, from (V, 3) positions and (F, 3) indices."""
    corner = np.asarray(vertices, np.float64)
    origin = corner[faces[:, 0]]
    return np.cross(corner[faces[:, 1]] - origin, corner[faces[:, 2]] - origin)


def face_areas(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """(F,) areas of the faces, in squared units of ``vertices``."""
    result: NDArray[np.float64] = 0.5 * np.linalg.norm(face_normals(vertices, faces), axis=1)
    return result


def uv_areas(uv: NDArray[np.floating], uv_faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """(F,) signed areas in the unit square; positive where a face is counter-clockwise with v upwards."""
    corner = np.asarray(uv, np.float64)[uv_faces]
    first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    # v points down here, hence the sign.
    result: NDArray[np.float64] = -0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    return result


def unique_rows(rows: NDArray[np.number]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds equal rows. Returns (index of the first occurrence of each distinct row, new number of each row).

    New numbers follow the order of first occurrence, so a mesh keeps its locality, and a mesh without duplicates does
    not change. Minus zero equals zero. Rows must be finite.
    """
    count = len(rows)
    if count == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    columns = (rows + 0).T  # minus zero becomes zero
    order = np.lexsort(columns[::-1])
    ordered = columns[:, order]
    starts = np.ones(count, bool)
    starts[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    group = np.cumsum(starts) - 1
    first_in_group = np.minimum.reduceat(order, np.flatnonzero(starts))
    rank = np.empty(len(first_in_group), np.int64)
    rank[np.argsort(first_in_group)] = np.arange(len(first_in_group))
    number = np.empty(count, np.int64)
    number[order] = rank[group]
    return np.sort(first_in_group).astype(np.int64), number


def assemble(
    positions: NDArray[np.floating],
    faces: NDArray[np.integer],
    *,
    uv: NDArray[np.floating] | None = None,
    uv_faces: NDArray[np.integer] | None = None,
    normals: NDArray[np.floating] | None = None,
    normal_faces: NDArray[np.integer] | None = None,
    double_sided: NDArray[np.bool_] | None = None,
    name: str = "mesh",
    source_format: str = "",
    source_sha256: str = "",
    warnings: list[str] | None = None,
    max_faces: int = 2_000_000,
) -> Mesh:
    """Validates and cleans a reader's arrays, and makes a ``Mesh`` of them.

    positions (P, 3), faces (F, 3) into them; uv (T, 2) with a top-left origin and uv_faces (F, 3), -1 where a
    corner has none; normals (N, 3) and normal_faces (F, 3) likewise; double_sided (F,) bool if the format has it.
    Merges equal positions; drops degenerate and repeated faces and unused vertices; drops unusable texture coordinates
    and normals with a warning. ``name`` begins every message.

    Raises MeshError if there are no faces or too many, an index is out of range, a position is not finite, or every
    face is degenerate.
    """
    messages = list(warnings or [])
    vertices, corners = _checked_triangles(positions, faces, name, max_faces)
    first, number = unique_rows(vertices)
    if len(first) < len(vertices):
        # Formats that cannot share corners (STL, glTF) always have these: not worth a warning there.
        if source_format not in ("stl", "gltf", "glb") and f".{source_format}" not in CONVERTED:
            messages.append(f"{len(vertices) - len(first)} duplicate vertices were merged")
        vertices, corners = vertices[first], number[corners]
    coordinates, uv_corners = _checked_uv(uv, uv_faces, corners, name, messages)
    units, normal_corners = _checked_normals(normals, normal_faces, corners, name, messages)

    solid, kept = _usable_faces(vertices, corners, name, messages)
    if len(kept) < len(corners):
        uv_corners = None if uv_corners is None else uv_corners[kept]
        normal_corners = None if normal_corners is None else normal_corners[kept]
        double_sided = None if double_sided is None else double_sided[kept]
    # Vertices of degenerate faces alone are not worth a warning of their own.
    told = messages if solid == len(corners) else []
    vertices, corners = _used_vertices(vertices, corners[kept], told)
    if coordinates is not None and uv_corners is not None:
        # All faces with texture coordinates may have been dropped.
        has_uv = bool((uv_corners >= 0).any())
        coordinates, uv_corners = _compact(coordinates, uv_corners) if has_uv else (None, None)
    if units is not None and normal_corners is not None:
        units, normal_corners = _compact(units, normal_corners)
    return Mesh(
        vertices=np.ascontiguousarray(vertices + 0.0),
        faces=np.ascontiguousarray(corners),
        uv=coordinates,
        uv_faces=uv_corners,
        normals=units,
        normal_faces=normal_corners,
        double_sided=double_sided,
        source_format=source_format,
        source_sha256=source_sha256,
        warnings=messages,
        source_faces=kept,
    )


def _checked_triangles(
    positions: NDArray[np.floating], faces: NDArray[np.integer], name: str, max_faces: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns (V, 3) positions and (F, 3) indices into them. Raises MeshError if they are unusable."""
    vertices = np.asarray(positions, np.float64).reshape(-1, 3)
    corners = np.asarray(faces, np.int64).reshape(-1, 3)
    if len(vertices) == 0:
        raise MeshError(f"{name}: it has no vertices")
    if len(corners) == 0:
        raise MeshError(f"{name}: it has no faces ({len(vertices)} points): a point cloud cannot be painted")
    if len(corners) > max_faces:
        raise MeshError(f"{name}: {len(corners)} faces are more than max_faces = {max_faces}")
    if problem := _index_problem(corners, len(vertices), "vertex", lowest=0):
        raise MeshError(f"{name}: {problem}")
    bad = ~np.isfinite(vertices).all(axis=1)
    if bad.any():
        raise MeshError(
            f"{name}: {int(bad.sum())} of {len(vertices)} vertices are NaN or infinite "
            f"(the first is number {int(np.argmax(bad)) + 1})"
        )
    if np.abs(vertices).max() > LARGEST_COORDINATE:
        raise MeshError(f"{name}: a coordinate is beyond {LARGEST_COORDINATE:g}; scale the mesh down")
    return vertices, corners


def _usable_faces(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], name: str, messages: list[str]
) -> tuple[int, NDArray[np.int64]]:
    """Returns the number of faces that are not degenerate, and the ids of those of them that repeat no other.

    Raises MeshError if all are degenerate.
    """
    kept = np.flatnonzero(~degenerate_faces(vertices, faces))
    if not len(kept):
        raise MeshError(f"{name}: all {len(faces)} faces are degenerate (they have no area)")
    solid = len(kept)
    if solid < len(faces):
        messages.append(f"{len(faces) - solid} of {len(faces)} faces were degenerate (no area) and were dropped")
    # Two equal faces with equal winding would cause z-fighting. Compare them with the lowest index first.
    turn = np.argmin(faces[kept], axis=1)
    canonical = faces[kept][np.arange(solid)[:, None], (turn[:, None] + np.arange(3)) % 3]
    once, _ = unique_rows(canonical)
    if len(once) < solid:
        messages.append(f"{solid - len(once)} repeated faces were dropped")
        kept = kept[once]
    return solid, kept


def _used_vertices(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], messages: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Drops vertices that belong to no face."""
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    if used.all():
        return vertices, faces
    messages.append(f"{int(np.count_nonzero(~used))} vertices belong to no face and were dropped")
    renumber = np.cumsum(used) - 1
    return vertices[used], renumber[faces]


def degenerate_faces(positions: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(F,) bool, true where a face has a repeated corner or its corners lie on a line."""
    corner = positions[faces]
    edges = corner[:, [1, 2, 0]] - corner
    longest = np.einsum("fij,fij->fi", edges, edges).max(axis=1)
    doubled = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    result: NDArray[np.bool_] = ~(doubled > DEGENERATE_HEIGHT * longest)
    return result


def _index_problem(index: NDArray[np.int64], count: int, what: str, *, lowest: int) -> str:
    """Describes the first index outside [``lowest``, ``count``); "" if there is none."""
    low, high = int(index.min()), int(index.max())
    if lowest <= low and high < count:
        return ""
    wrong = high if high >= count else low
    return f"a face names {what} {wrong} (counting from 0), but there are only {count}: the index is out of range"


def _checked_uv(
    uv: NDArray[np.floating] | None,
    uv_faces: NDArray[np.integer] | None,
    faces: NDArray[np.int64],
    name: str,
    messages: list[str],
) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
    """Validates texture coordinates. A face that lacks one corner gets -1 for all three."""
    if uv is None or uv_faces is None or len(uv) == 0:
        return None, None
    coordinates = np.asarray(uv, np.float32).reshape(-1, 2)
    corners = np.asarray(uv_faces, np.int64).reshape(-1, 3).copy()
    if corners.shape != faces.shape:
        raise MeshError(f"{name}: {len(corners)} faces have texture coordinates, but there are {len(faces)}")
    if problem := _index_problem(corners, len(coordinates), "texture coordinate", lowest=-1):
        messages.append(f"the file's texture coordinates are not used: {problem}")
        return None, None
    lacking = (corners < 0).any(axis=1)
    corners[lacking] = -1
    if lacking.all():
        return None, None
    if lacking.any():
        messages.append(f"{int(lacking.sum())} of {len(faces)} faces have no texture coordinates")
    return coordinates, corners


def _checked_normals(
    normals: NDArray[np.floating] | None,
    normal_faces: NDArray[np.integer] | None,
    faces: NDArray[np.int64],
    name: str,
    messages: list[str],
) -> tuple[NDArray[np.float32] | None, NDArray[np.int64] | None]:
    """Returns unit normals for every corner, or None; the exporter then computes smooth ones."""
    if normals is None or normal_faces is None or len(normals) == 0:
        return None, None
    vectors = np.asarray(normals, np.float64).reshape(-1, 3)
    corners = np.asarray(normal_faces, np.int64).reshape(-1, 3)
    if corners.shape != faces.shape:
        raise MeshError(f"{name}: {len(corners)} faces have normals, but there are {len(faces)}")
    if problem := _index_problem(corners, len(vectors), "normal", lowest=-1):
        messages.append(f"the file's normals are not used: {problem}")
        return None, None
    if (corners < 0).any():
        if (corners >= 0).any():
            messages.append("some faces have no normals: the file's normals are not used")
        return None, None
    with np.errstate(all="ignore"):
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / length
    good = np.isfinite(unit).all(axis=1) & (length[:, 0] > 1e-12)
    if not good[corners].all():
        messages.append("some normals are zero or not finite: the file's normals are not used")
        return None, None
    unit[~good] = (0.0, 0.0, 1.0)
    return unit.astype(np.float32), corners


def _compact(values: NDArray[np.float32], index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Drops unused entries and merges equal ones, if all are finite."""
    named = index >= 0
    used = np.zeros(len(values), bool)
    used[index[named]] = True
    renumber = np.cumsum(used) - 1
    values = values[used]
    finite = np.isfinite(values).all(axis=1)
    if finite.all():
        first, number = unique_rows(values)
        values, renumber = values[first], number[renumber]
    return np.ascontiguousarray(values), np.where(named, renumber[index], -1)
