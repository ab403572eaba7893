"""What painting sees of a document: the triangles of all primitives in the world, each with its way back to the file.

F faces of the surface, P placed primitives. A primitive is named by (mesh, primitive), its numbers in the document.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import MeshError
from pipeline.document.kept import GltfDocument
from pipeline.mesh.checked_mesh import checked_mesh
from pipeline.mesh.mesh import Mesh
from pipeline.mesh.readers.gltf import GltfReader, Primitive, Source, joined
from pipeline.mesh.readers.gltf_buffers import Buffers, normalised
from pipeline.mesh.readers.gltf_json import GltfJson

Key = tuple[int, int]


@dataclass
class DocumentSurface:
    """The surface of the default scene as its nodes, skins and morph weights pose it.

    mesh        all faces, in the order of ``placed``; vertices that coincide are one, also across primitives.
    placed      the primitives as nodes and their instances show them.
    placement   (F,) int64 into ``placed``, ascending.
    own_face    (F,) int64 number of the face in its primitive.
    flipped     (F,) bool, whether the face's corners are in the opposite order of the primitive's.
    first       by primitive: the placement that is painted, the first that shows any face.
    """

    mesh: Mesh
    placed: list[Primitive]
    placement: NDArray[np.int64]
    own_face: NDArray[np.int64]
    flipped: NDArray[np.bool_]
    reader: GltfReader
    first: dict[Key, int] = field(default_factory=dict)

    def source(self, placement: int) -> Source:
        """Where a placed primitive comes from."""
        source = self.placed[placement].source
        assert source is not None
        return source

    def primitive(self, key: Key) -> Primitive:
        """A primitive that the surface shows, in its mesh's coordinates."""
        primitive = self.reader.primitives[key]
        assert primitive is not None
        return primitive

    def keys(self) -> list[Key]:
        """The primitive of each placement, (P,)."""
        sources = [self.source(number) for number in range(len(self.placed))]
        return [(source.mesh, source.primitive) for source in sources]

    def faces_of(self, placement: int) -> NDArray[np.int64]:
        """The faces of a placed primitive, which follow each other."""
        start, end = np.searchsorted(self.placement, [placement, placement + 1])
        return np.arange(start, end)

    def table_rows(self, key: Key) -> NDArray[np.int64]:
        """(F', 3) rows of the vertex table at the corners of a primitive's own faces."""
        primitive = self.primitive(key)
        rows = primitive.attributes.rows
        return primitive.faces if rows is None else rows[primitive.faces]

    def uv_set(self, key: Key, number: int) -> NDArray[np.float64] | None:
        """(V, 2) texture coordinates of set ``number`` for all rows of the vertex table; None if there are none that
        can be used."""
        primitive = self.primitive(key)
        name = f"TEXCOORD_{number}"
        if primitive.attributes.accessors.get(name) is None:
            return None
        try:
            values = self.stored(key, name)
        except MeshError:
            return None
        accessor = self.reader.json.item("accessors", primitive.attributes.accessors[name], "accessor")
        if accessor.get("normalized") is True:
            values = normalised(values)
        return values.astype(np.float64) if values.shape[1] == 2 else None

    def stored(self, key: Key, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.number]:
        """(V, width) values of an attribute as they are stored, or of ``rows`` alone.

        Raises MeshError unless it has one for each vertex.
        """
        primitive = self.primitive(key)
        accessors, buffers = primitive.attributes.accessors, self.reader.buffers
        count, expected = (buffers.layout(accessors[each])[1] for each in (name, "POSITION"))
        if count != expected:
            raise self.reader.json.error(f"{name} has {count} entries for {expected} positions")
        return self.reader.stored(primitive, name, rows)


def read_surface(
    document: GltfDocument, *, max_faces: int = 2_000_000, max_bytes: int = 1 << 30, source_sha256: str = ""
) -> DocumentSurface:
    """The surface of ``document``. Raises MeshError, in one line."""
    json = GltfJson(document.json, document.name)
    buffers = Buffers(json, bytes(document.data), Path("/nonexistent"), max_faces, max_bytes)
    reader = GltfReader(json, buffers, max_faces, instances=True)
    with np.errstate(all="ignore"):
        placed = reader.placed()
        raw = joined(placed, reader.warnings)
        ending = "gltf" if document.name.lower().endswith(".gltf") else "glb"
        mesh = checked_mesh(raw, document.name, ending, source_sha256, max_faces)
    assert mesh.source_faces is not None
    starts = np.cumsum([0] + [len(primitive.faces) for primitive in placed])
    placement = np.searchsorted(starts, mesh.source_faces, side="right") - 1
    own_face = mesh.source_faces - starts[placement]
    turned = [_turned(primitive, reader) for primitive in placed]
    flipped = np.concatenate(turned)[mesh.source_faces]
    surface = DocumentSurface(mesh, placed, placement.astype(np.int64), own_face, flipped, reader)
    keys, shown = surface.keys(), np.bincount(placement, minlength=len(placed)) > 0
    for number in np.flatnonzero(shown):
        surface.first.setdefault(keys[number], int(number))
    return surface


def _turned(placed: Primitive, reader: GltfReader) -> NDArray[np.bool_]:
    """(F,) whether placing a primitive has reversed the order of its faces' corners."""
    assert placed.source is not None
    own = reader.primitives[placed.source.mesh, placed.source.primitive]
    assert own is not None
    result: NDArray[np.bool_] = (placed.faces != own.faces).any(axis=1)
    return result
