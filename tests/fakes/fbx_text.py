"""Writes small ASCII FBX 7.4 files, independently of the reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Numbers = Sequence[float]
# An L of two quads and a triangle without any symmetry: nothing that mirrors or turns it looks the same.
POINTS = ((0, 0, 0), (2, 0, 0), (2, 1, 0.1), (1, 1, 0.2), (1, 3, 0), (0, 3, 0.5), (0.3, 0.4, 1))
POLYGONS = ((0, 1, 2, 3), (0, 3, 4, 5), (0, 1, 6))


def corner_uv(corner: int) -> tuple[float, float]:
    """The texture coordinates of a corner, origin bottom left: no two alike."""
    x, y, z = POINTS[[vertex for polygon in POLYGONS for vertex in polygon][corner]]
    return 0.1 + 0.3 * x + 0.05 * z, 0.2 + 0.2 * y + 0.01 * corner


CORNER_UV = tuple(corner_uv(corner) for corner in range(sum(map(len, POLYGONS))))


@dataclass
class FbxText:
    """An ASCII FBX: objects and connections are added, then ``text`` is the file."""

    up: int = 1
    up_sign: int = 1
    front: int = 2
    front_sign: int = 1
    coord: int = 0
    coord_sign: int = 1
    unit: float = 1.0
    objects: list[str] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    _next: int = 1000

    def _id(self) -> int:
        self._next += 1
        return self._next

    def connect(self, child: int, parent: int, prop: str = "") -> None:
        """Hangs ``child`` on ``parent`` (0: the root), or on a property of it."""
        kind = f'"OP",{child},{parent}, "{prop}"' if prop else f'"OO",{child},{parent}'
        self.connections.append(f"\tC: {kind}")

    def model(self, name: str, parent: int = 0, kind: str = "Mesh", **properties: Numbers) -> int:
        """A node. Properties by name with ``_`` for blanks: Lcl_Translation, PreRotation, GeometricScaling, ..."""
        number = self._id()
        rows = "".join(
            f'\t\t\tP: "{key.replace("_", " ")}", "{"enum" if len(values) == 1 else "Vector3D"}", "", "",'
            f"{','.join(f'{value:g}' for value in values)}\n"
            for key, values in properties.items()
        )
        self.objects.append(
            f'\tModel: {number}, "Model::{name}", "{kind}" {{\n\t\tVersion: 232\n\t\tProperties70:  {{\n{rows}\t\t}}\n'
            '\t\tCulling: "CullingOff"\n\t}\n'
        )
        self.connect(number, parent)
        return number

    def geometry(
        self,
        model: int,
        points: Sequence[Numbers] = POINTS,
        polygons: Sequence[Sequence[int]] = POLYGONS,
        uv_sets: dict[str, Sequence[Numbers]] | None = None,
        materials: Sequence[int] | None = None,
        colours: Sequence[Numbers] | None = None,
        normals: Sequence[Numbers] | None = None,
    ) -> int:
        """A mesh of ``model``; ``uv_sets`` and ``colours`` per corner, ``materials`` per polygon."""
        number = self._id()
        index = [
            -vertex - 1 if place == len(polygon) - 1 else vertex
            for polygon in polygons
            for place, vertex in enumerate(polygon)
        ]
        body = _array("Vertices", [x for point in points for x in point]) + _array("PolygonVertexIndex", index)
        if uv_sets is None:
            uv_sets = {"Main": CORNER_UV}
        for place, (name, values) in enumerate(uv_sets.items()):
            body += _layer("UV", place, name, "UV", values)
        if colours is not None:
            body += _layer("Color", 0, "Tint", "Colors", colours)
        if normals is not None:
            body += _layer("Normal", 0, "", "Normals", normals)
        if materials is not None:
            body += (
                '\t\tLayerElementMaterial: 0 {\n\t\t\tVersion: 101\n\t\t\tName: ""\n'
                '\t\t\tMappingInformationType: "ByPolygon"\n\t\t\tReferenceInformationType: "IndexToDirect"\n'
                f"{_array('Materials', materials, 3)}\t\t}}\n"
            )
        self.objects.append(f'\tGeometry: {number}, "Geometry::", "Mesh" {{\n{body}\t}}\n')
        self.connect(number, model)
        return number

    def material(self, model: int, name: str, **properties: Numbers) -> int:
        """A Phong material: DiffuseColor, EmissiveColor, Opacity, ..."""
        number = self._id()
        rows = "".join(
            f'\t\t\tP: "{key}", "{"Number" if len(values) == 1 else "Color"}", "", "A",'
            f"{','.join(f'{value:g}' for value in values)}\n"
            for key, values in properties.items()
        )
        self.objects.append(
            f'\tMaterial: {number}, "Material::{name}", "" {{\n\t\tVersion: 102\n\t\tShadingModel: "phong"\n'
            f"\t\tProperties70:  {{\n{rows}\t\t}}\n\t}}\n"
        )
        self.connect(number, model)
        return number

    def texture(self, material: int, file: str, prop: str = "DiffuseColor", uv_set: str = "", more: str = "") -> int:
        """A texture of a material's property, with its file as the FBX names it."""
        number = self._id()
        rows = f'\t\t\tP: "UVSet", "KString", "", "", "{uv_set}"\n' if uv_set else ""
        self.objects.append(
            f'\tTexture: {number}, "Texture::{prop}", "" {{\n\t\tType: "TextureVideoClip"\n'
            f'\t\tProperties70:  {{\n{rows}{more}\t\t}}\n\t\tFileName: "{file}"\n\t\tRelativeFilename: "{file}"\n\t}}\n'
        )
        self.connect(number, material, prop)
        return number

    def text(self) -> bytes:
        """The file."""
        settings = "".join(
            f'\t\tP: "{key}", "{kind}", "", "",{value:g}\n'
            for key, kind, value in (
                ("UpAxis", "int", self.up), ("UpAxisSign", "int", self.up_sign), ("FrontAxis", "int", self.front),
                ("FrontAxisSign", "int", self.front_sign), ("CoordAxis", "int", self.coord),
                ("CoordAxisSign", "int", self.coord_sign), ("UnitScaleFactor", "double", self.unit),
                ("OriginalUnitScaleFactor", "double", self.unit),
            )
        )  # fmt: skip
        lines = "\n".join(self.connections)
        return (
            "; FBX 7.4.0 project file\nFBXHeaderExtension:  {\n\tFBXHeaderVersion: 1003\n\tFBXVersion: 7400\n}\n"
            f"GlobalSettings:  {{\n\tVersion: 1000\n\tProperties70:  {{\n{settings}\t}}\n}}\n"
            f"Objects:  {{\n{''.join(self.objects)}}}\nConnections:  {{\n{lines}\n}}\n"
        ).encode()


def _array(name: str, values: Sequence[float], depth: int = 2) -> str:
    tabs = "\t" * depth
    return f"{tabs}{name}: *{len(values)} {{\n{tabs}\ta: {','.join(f'{v:.9g}' for v in values)}\n{tabs}}}\n"


def _layer(kind: str, place: int, name: str, key: str, values: Sequence[Numbers]) -> str:
    flat = [x for value in values for x in value]
    return (
        f'\t\tLayerElement{kind}: {place} {{\n\t\t\tVersion: 101\n\t\t\tName: "{name}"\n'
        '\t\t\tMappingInformationType: "ByPolygonVertex"\n\t\t\tReferenceInformationType: "Direct"\n'
        f"{_array(key, flat, 3)}\t\t}}\n"
    )


def flag(fbx: FbxText | None = None, **properties: Numbers) -> FbxText:
    """An FBX of one node "Flag" with the asymmetric mesh."""
    fbx = fbx or FbxText(unit=100.0)
    fbx.geometry(fbx.model("Flag", **properties))
    return fbx
