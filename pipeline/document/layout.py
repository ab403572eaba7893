"""Texture coordinates for painting a document: each part has a square cell of one working atlas.

A part keeps its own coordinates where they can be painted on, scaled into its cell; else it gets new ones. Instances
share the coordinates of the first one. What is not painted lies together in a cell of its own: it is drawn, and hides
what is behind it. F faces of the surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import SettingError, UnwrapError
from pipeline.document.parts import Part
from pipeline.document.surface import DocumentSurface, Key
from pipeline.mesh.mesh import Mesh, UVMesh, face_areas, unique_rows
from pipeline.mesh.readers.gltf_json import GltfJson
from pipeline.mesh.texture_transform import TRANSFORM, transformed
from pipeline.uv.unwrap import unwrap, uv_problem

# The finest level of cells: the atlas's side is a multiple of 64 texels.
_FINEST = 6
# Shares of the atlas per area: what is not painted needs little.
_CONTEXT_WEIGHT = 0.1

# What ``uv.unwrap`` says of a mesh without coordinates, which is all it is given of a part.
_BARE = "the mesh has no texture coordinates"

Unwrap = Callable[[Mesh, int, str], UVMesh]
"""Lays out a mesh for a texture of so many texels a side, in a mode of ``uv.unwrap``."""


@dataclass(frozen=True)
class Cell:
    """A square of the atlas: its upper left corner and its side, in shares of the atlas."""

    left: float
    top: float
    side: float

    def pixels(self, size: int) -> tuple[slice, slice]:
        """Rows and columns of the cell in an image of ``size`` pixels a side."""
        left, top, side = (round(value * size) for value in (self.left, self.top, self.side))
        return slice(top, top + side), slice(left, left + side)


@dataclass(frozen=True)
class PartLayout:
    """How a part lies in the atlas.

    keeps_uv: it has its own coordinates; keeps_transform: under the transform of its base colour. method and reason: as
    of ``UVMesh``. faces: (f,) ids of its faces in the surface, those of first instances.
    """

    part: Part
    cell: Cell
    keeps_uv: bool
    keeps_transform: bool
    method: str
    reason: str
    faces: NDArray[np.int64]


@dataclass(frozen=True)
class DocumentLayout:
    """uvmesh: the whole surface on the atlas; parts: those that are painted; context: (F,) faces of no painted part."""

    uvmesh: UVMesh
    parts: list[PartLayout]
    context: NDArray[np.bool_]
    context_cell: Cell | None


def lay_out(
    surface: DocumentSurface, parts: Sequence[Part], *, texture_size: int, mode: str, new_layout: Unwrap
) -> DocumentLayout:
    """Gives the surface coordinates in an atlas of ``texture_size`` texels.

    mode: "auto" keeps a part's coordinates if ``uv.unwrap.uv_problem`` finds none; "input" refuses others; "xatlas" and
    "box" make new ones in any case. Raises UnwrapError, and SettingError for too many parts.
    """
    first, number_of = _painted_faces(surface, parts)
    context = number_of < 0
    areas = face_areas(surface.mesh.vertices, surface.mesh.faces)
    painted = np.flatnonzero(first & ~context)
    painted = painted[np.argsort(number_of[painted], kind="stable")]
    faces_of = np.split(painted, np.searchsorted(number_of[painted], np.arange(1, len(parts))))
    weights = [float(areas[faces].sum()) for faces in faces_of]
    if context.any():
        weights.append(float(areas[context].sum()) * _CONTEXT_WEIGHT)
    cells = place_cells(weights)
    if cells is None:
        raise SettingError(f"target: {len(parts)} materials are more than one texture holds; name fewer of them")
    charts = np.zeros(len(context), np.int32)
    corner_uv = np.zeros((len(context), 3, 2), np.float64)
    laid: list[PartLayout] = []
    used, count = 0.0, 0
    for number, part in enumerate(parts):
        faces = faces_of[number]
        size = round(cells[number].side * texture_size)
        uvmesh, kept, transform = _part_uv(surface, part, faces, size, mode, new_layout)
        corner_uv[faces] = _in_cell(uvmesh, cells[number])
        charts[faces] = uvmesh.charts + count
        count += int(uvmesh.charts.max(initial=-1)) + 1
        used += uvmesh.coverage * cells[number].side ** 2
        laid.append(PartLayout(part, cells[number], kept, transform, uvmesh.method, uvmesh.reason, faces))
    _follow(surface, first, number_of, corner_uv, charts)
    if context.any():
        faces = np.flatnonzero(context)
        uvmesh = new_layout(_submesh(surface.mesh, faces), round(cells[-1].side * texture_size), "box")
        corner_uv[faces] = _in_cell(uvmesh, cells[-1])
        charts[faces] = uvmesh.charts + count
    uv, uv_faces = _indexed(surface.mesh.faces, corner_uv, surface.placement)
    method, reason = _summary(laid)
    whole = UVMesh(surface.mesh, uv, uv_faces, method, reason, charts, 0.0, used)
    return DocumentLayout(whole, laid, context, cells[-1] if context.any() else None)


def place_cells(weights: Sequence[float]) -> list[Cell] | None:
    """Square cells for parts of these weights, halves of halves of the atlas; None if there are too many.

    A single part has the whole atlas. Several grow while there is room, the one with least area for its weight first.
    """
    count = len(weights)
    if count > 4**_FINEST:
        return None
    levels, free = [_FINEST] * count, 4**_FINEST - count  # free: in cells of the finest level
    growing = set(range(count))
    while growing:
        best = max(growing, key=lambda n: (weights[n] * 4.0 ** levels[n], -n))
        needed = 3 * 4 ** (_FINEST - levels[best])
        if levels[best] == 0 or needed > free:
            growing.remove(best)
        else:
            levels[best] -= 1
            free -= needed
    # Largest first along a Z curve: each cell begins at a multiple of its own size.
    cells: list[Cell | None] = [None] * count
    at = 0
    for number in sorted(range(count), key=lambda n: (levels[n], n)):
        x = sum((at >> 2 * bit & 1) << bit for bit in range(_FINEST))
        y = sum((at >> 2 * bit + 1 & 1) << bit for bit in range(_FINEST))
        cells[number] = Cell(x / 2**_FINEST, y / 2**_FINEST, 0.5 ** levels[number])
        at += 4 ** (_FINEST - levels[number])
    return [cell for cell in cells if cell is not None]


def corner_coordinates(
    surface: DocumentSurface, layout: DocumentLayout, laid: PartLayout, *, whole_atlas: bool
) -> dict[Key, NDArray[np.float32]]:
    """By primitive of a part, (F', 3, 2) float32 coordinates at the corners of its own faces: in the part's texture, or
    in the ``whole_atlas``. NaN where the surface has dropped a face."""
    whole = layout.uvmesh
    result = {
        key: np.full((len(surface.primitive(key).faces), 3, 2), np.nan, np.float32) for key in laid.part.primitives
    }
    for key, values in result.items():
        faces = surface.faces_of(surface.first[key])
        uv = whole.uv[whole.uv_faces[faces]].astype(np.float64)
        if not whole_atlas:
            uv = (uv - (laid.cell.left, laid.cell.top)) / laid.cell.side
        corners = np.where(surface.flipped[faces, None, None], uv[:, ::-1], uv)
        values[surface.own_face[faces]] = np.clip(corners, 0.0, 1.0)
    return result


def _painted_faces(surface: DocumentSurface, parts: Sequence[Part]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(F,) whether a face is of its primitive's first instance, and (F,) the number of its part, -1 for none."""
    part_of = {key: number for number, part in enumerate(parts) for key in part.primitives}
    keys = surface.keys()
    is_first = np.array([surface.first.get(key) == number for number, key in enumerate(keys)])
    numbers = np.array([part_of.get(key, -1) for key in keys], np.int64)
    return is_first[surface.placement], numbers[surface.placement]


def _part_uv(
    surface: DocumentSurface, part: Part, faces: NDArray[np.int64], size: int, mode: str, new_layout: Unwrap
) -> tuple[UVMesh, bool, bool]:
    """(the part's faces with coordinates, whether they are its own, whether under the artist's transform)."""
    bare = _submesh(surface.mesh, faces)
    own = _own_uv(surface, part, faces)
    problem = _BARE
    if own is not None and mode in ("auto", "input"):
        transform = _transform(surface, part)
        problem = ""
        for keeps, values in ((False, own), (True, transformed(own.reshape(-1, 2), transform).reshape(own.shape))):
            if keeps and not transform:
                break
            candidate = _with_uv(bare, values)
            found = uv_problem(candidate)
            if not found:
                return unwrap(candidate, texture_size=size, mode="input"), True, keeps
            problem = problem or found
    if mode == "input":
        raise UnwrapError(f"the texture coordinates of {part.name} cannot be used: {problem}", stage="unwrap")
    made = new_layout(bare, size, mode)
    return replace(made, reason=made.reason.replace(_BARE, problem, 1)), False, False


def _own_uv(surface: DocumentSurface, part: Part, faces: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """(f, 3, 2) the artist's coordinates of a part's faces, without any transform; None if some have none."""
    result = np.empty((len(faces), 3, 2))
    for key in part.primitives:
        own = surface.faces_of(surface.first[key])
        values = surface.uv_set(key, part.uv_set)
        if values is None:
            return None
        rows = surface.table_rows(key)[surface.own_face[own]]
        rows = np.where(surface.flipped[own, None], rows[:, ::-1], rows)
        result[np.searchsorted(faces, own)] = values[rows]
    return result


def _transform(surface: DocumentSurface, part: Part) -> dict[str, object]:
    """The texture transform of a part's base colour; empty if it has none."""
    json: GltfJson = surface.reader.json
    if part.material is None:
        return {}
    material = json.item("materials", part.material, "material")
    texture = json.object(json.object(material, "pbrMetallicRoughness", "a material"), "baseColorTexture", "a material")
    return json.object(json.object(texture, "extensions", "a texture"), TRANSFORM, "a texture")


def _submesh(mesh: Mesh, faces: NDArray[np.int64]) -> Mesh:
    """Some faces of a mesh with the vertices that they use, without coordinates and normals."""
    used, index = np.unique(mesh.faces[faces], return_inverse=True)
    return Mesh(
        np.ascontiguousarray(mesh.vertices[used]),
        np.ascontiguousarray(index.reshape(-1, 3).astype(np.int64)),
        source_format=mesh.source_format,
        source_sha256=mesh.source_sha256,
    )


def _with_uv(mesh: Mesh, corner_uv: NDArray[np.float64]) -> Mesh:
    """``mesh`` with coordinates (f, 3, 2) at its corners; not finite ones are left to ``uv_problem``."""
    flat = corner_uv.reshape(-1, 2).astype(np.float32) + np.float32(0)
    uv_faces = np.arange(len(flat)).reshape(-1, 3)
    if np.isfinite(flat).all():
        first, number = unique_rows(flat)
        flat, uv_faces = flat[first], number.reshape(-1, 3)
    return Mesh(mesh.vertices, mesh.faces, np.ascontiguousarray(flat), uv_faces)


def _in_cell(uvmesh: UVMesh, cell: Cell) -> NDArray[np.float64]:
    """(f, 3, 2) coordinates in the atlas."""
    return uvmesh.uv.astype(np.float64)[uvmesh.uv_faces] * cell.side + (cell.left, cell.top)


def _follow(
    surface: DocumentSurface,
    first: NDArray[np.bool_],
    number_of: NDArray[np.int64],
    corner_uv: NDArray[np.float64],
    charts: NDArray[np.int32],
) -> None:
    """Give the faces of further instances the coordinates of the first one."""
    keys, counts = surface.keys(), {}
    for number, key in enumerate(keys):
        if surface.first.get(key) == number:
            faces = surface.faces_of(number)
            counts[key] = (faces, np.full(len(surface.placed[number].faces), -1, np.int64))
            counts[key][1][surface.own_face[faces]] = faces
    followers = np.unique(surface.placement[~first & (number_of >= 0)])
    for number in followers:
        faces = surface.faces_of(int(number))
        twins = counts[keys[number]][1][surface.own_face[faces]]
        known = twins >= 0
        faces, twins = faces[known], twins[known]
        turned = surface.flipped[faces] != surface.flipped[twins]
        corner_uv[faces] = np.where(turned[:, None, None], corner_uv[twins][:, ::-1], corner_uv[twins])
        charts[faces] = charts[twins]


def _indexed(
    faces: NDArray[np.int64], corner_uv: NDArray[np.float64], placement: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(uv (T, 2) float32, uv_faces (F, 3)): one entry per vertex, coordinate and placement, as ``UVMesh`` wants."""
    flat = corner_uv.reshape(-1, 2).astype(np.float32).astype(np.float64)
    rows = np.column_stack([faces.reshape(-1), flat, np.repeat(placement, 3)])
    first, number = unique_rows(rows)
    return np.ascontiguousarray(flat[first].astype(np.float32)), number.reshape(-1, 3)


def _summary(laid: Sequence[PartLayout]) -> tuple[str, str]:
    """Method and reason for the record."""
    methods = sorted({each.method for each in laid})
    if len(laid) == 1:
        return laid[0].method, laid[0].reason
    kept = sum(each.keeps_uv for each in laid)
    reason = f"{kept} of {len(laid)} materials keep their texture coordinates"
    others = [f"{each.part.name}: {each.reason}" for each in laid if not each.keeps_uv]
    return "+".join(methods), "; ".join([reason, *others])[:600]
