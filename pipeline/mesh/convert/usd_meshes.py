"""Reads the meshes of a USD. Loaded by path in children; imports nothing of this project."""

from __future__ import annotations

from typing import Any

import numpy as np
from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdSkel

Json = dict[str, Any]
# An object of OpenUSD, which has no types.
Native = Any
_TIME = Usd.TimeCode.EarliestTime()
_TEXTURE_COORDINATES = (Sdf.ValueTypeNames.TexCoord2fArray, Sdf.ValueTypeNames.TexCoord2dArray,
                        Sdf.ValueTypeNames.TexCoord2hArray)  # fmt: skip
_PAIRS = (Sdf.ValueTypeNames.Float2Array, Sdf.ValueTypeNames.Double2Array, Sdf.ValueTypeNames.Half2Array)


class Meshes:
    """The meshes as JSON, ``found``, and the number of points of each."""

    def __init__(self, out: Native, materials: Native, losses: list[str]):
        self.out, self.materials, self.losses = out, materials, losses
        self.found: list[Json] = []
        self.points: list[int] = []
        self._numbers: dict[str, int | None] = {}
        self._elements = 0

    def number(self, prim: Native) -> int | None:
        """The number of a prim's mesh. Instances share it. None if it has no faces."""
        shared = prim.GetPrimInPrototype() if prim.IsInstanceProxy() else prim
        key = str(shared.GetPath())
        if key not in self._numbers:
            self._numbers[key] = self._read(prim)
        return self._numbers[key]

    def _read(self, prim: Native) -> int | None:
        mesh = UsdGeom.Mesh(prim)
        points = np.array(mesh.GetPointsAttr().Get(_TIME) or [], np.float64).reshape(-1, 3)
        counts = np.array(mesh.GetFaceVertexCountsAttr().Get(_TIME) or [], np.int64)
        index = np.array(mesh.GetFaceVertexIndicesAttr().Get(_TIME) or [], np.int64)
        if not len(points) or not len(counts):
            return None
        if counts.min() < 0 or counts.sum() != len(index) or index.min() < 0 or index.max() >= len(points):
            raise RuntimeError(f"the faces of {prim.GetPath()} name points that it lacks")
        if mesh.GetSubdivisionSchemeAttr().Get(_TIME) != "none":
            self.losses.append(f"the subdivision of {prim.GetPath()} (its cage is kept)")
        if mesh.GetPointsAttr().GetNumTimeSamples() > 1:
            self.losses.append(f"the moving points of {prim.GetPath()}")
        keep, order = self._faces(mesh, counts)
        corners = Corners(index, counts, keep, order, len(points))
        slots, of_face, paths = self._face_materials(prim, len(counts))
        uvs, colours = self._primvars(prim, corners)
        self.found.append({
            "name": prim.GetName(),
            "positions": self.out.array(points, "f8", 3),
            "corners": self.out.array(index[order], "i8"),
            "counts": self.out.array(counts[keep], "i8"),
            "face_material": self.out.array(of_face[keep], "i8"),
            "materials": slots,
            "normals": self._normals(prim, mesh, corners),
            "uvs": uvs,
            "colours": colours,
            "extras": {"usd": str(prim.GetPath()), "subsets": paths},
        })  # fmt: skip
        self.points.append(len(points))
        return len(self.found) - 1

    def _faces(self, mesh: Native, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which faces stay, the corners of these in counter-clockwise order)."""
        keep = np.ones(len(counts), bool)
        holes = np.array(mesh.GetHoleIndicesAttr().Get(_TIME) or [], np.int64)
        keep[holes[(holes >= 0) & (holes < len(counts))]] = False
        starts = (np.cumsum(counts) - counts)[keep]
        sizes = counts[keep]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if mesh.GetOrientationAttr().Get(_TIME) == "leftHanded":
            within = np.repeat(sizes, sizes) - 1 - within
        return keep, np.repeat(starts, sizes) + within

    def _face_materials(self, prim: Native, faces: int) -> tuple[list[int], np.ndarray, list[str]]:
        """(materials of the scene, the place therein of each face, the prim that binds each)."""
        binding = UsdShade.MaterialBindingAPI(prim)
        slots: list[int] = []
        paths: list[str] = []
        of_face = np.full(faces, -1, np.int64)

        def slot(material: Native, path: str) -> int:
            slots.append(self.materials.number(material))
            paths.append(path)
            return len(slots) - 1

        whole = binding.ComputeBoundMaterial()[0]
        if whole:
            of_face[:] = slot(whole, str(prim.GetPath()))
        elif (colour := self._display_colour(prim)) is not None:
            slots.append(self.materials.plain(colour))
            paths.append(str(prim.GetPath()))
            of_face[:] = 0
        for subset in binding.GetMaterialBindSubsets():
            material = UsdShade.MaterialBindingAPI(subset.GetPrim()).ComputeBoundMaterial()[0]
            rows = np.array(subset.GetIndicesAttr().Get(_TIME) or [], np.int64)
            if material:
                of_face[rows[(rows >= 0) & (rows < faces)]] = slot(material, str(subset.GetPath()))
        return slots, of_face, paths

    def _display_colour(self, prim: Native) -> list[float] | None:
        primvar = UsdGeom.Gprim(prim).GetDisplayColorPrimvar()
        value = primvar.Get(_TIME) if primvar and primvar.GetInterpolation() == "constant" else None
        return [float(x) for x in value[0]] if value else None

    def _normals(self, prim: Native, mesh: Native, corners: Corners) -> Json | None:
        primvar = UsdGeom.PrimvarsAPI(prim).GetPrimvar("normals")
        if primvar and primvar.HasAuthoredValue():
            return self._layer(primvar, corners, 3)
        values = np.array(mesh.GetNormalsAttr().Get(_TIME) or [], np.float64).reshape(-1, 3)
        return self._values_layer("", values, None, mesh.GetNormalsInterpolation(), corners)

    def _primvars(self, prim: Native, corners: Corners) -> tuple[list[Json], list[Json]]:
        """(the UV sets, "st" first; the colours)."""
        uvs, colours = [], []
        for primvar in UsdGeom.PrimvarsAPI(prim).FindPrimvarsWithInheritance():
            kind, name = primvar.GetTypeName(), primvar.GetPrimvarName()
            if kind in _TEXTURE_COORDINATES or (kind in _PAIRS and name.lower().startswith(("st", "uv", "map"))):
                if (layer := self._layer(primvar, corners, 2)) is not None:
                    uvs.append(layer)
            elif kind.role == "Color" and primvar.GetInterpolation() != "constant":
                width = 4 if "4" in str(kind) else 3
                if (layer := self._layer(primvar, corners, width)) is not None:
                    colours.append(layer)
        uvs.sort(key=lambda layer: (layer["name"] != "st", layer["name"]))
        colours.sort(key=lambda layer: (layer["name"] != "displayColor", layer["name"]))
        return uvs, colours

    def _layer(self, primvar: Native, corners: Corners, width: int) -> Json | None:
        values = np.array(primvar.Get(_TIME) or [], np.float64)
        if not values.size or values.size % width:
            return None
        index = np.array(primvar.GetIndices(_TIME), np.int64) if primvar.IsIndexed() else None
        name = str(primvar.GetPrimvarName())
        return self._values_layer(name, values.reshape(-1, width), index, primvar.GetInterpolation(), corners)

    def _values_layer(
        self, name: str, values: np.ndarray, index: np.ndarray | None, interpolation: str, corners: Corners
    ) -> Json | None:
        of_corner = corners.place(interpolation, len(values) if index is None else len(index))
        if of_corner is None or not len(values):
            if len(values):
                self.losses.append(f"the values {name or 'normals'!r} of a mesh, which have another length")
            return None
        of_corner = of_corner if index is None else index[of_corner]
        if len(of_corner) and not (of_corner.min() >= 0 and of_corner.max() < len(values)):
            self.losses.append(f"the values {name or 'normals'!r} of a mesh, whose indices are out of range")
            return None
        return {
            "name": name,
            "values": self.out.array(values, "f8", values.shape[1]),
            "corners": self.out.array(of_corner, "i8"),
        }

    def shapes(self, prim: Native, mesh: int, query: Native) -> dict[str, Json]:
        """Adds the blend shapes of a mesh; returns them by name."""
        if self.found[mesh].get("shapes"):
            return {}
        binding = UsdSkel.BindingAPI(prim)
        names = [str(name) for name in binding.GetBlendShapesAttr().Get() or ()]
        targets = UsdSkel.BlendShapeQuery(binding)
        shapes: dict[str, Json] = {}
        for place, name in enumerate(names):
            shape = targets.GetBlendShape(place)
            if not shape:
                continue
            offsets = np.array(shape.GetOffsetsAttr().Get() or [], np.float64).reshape(-1, 3)
            rows = shape.GetPointIndicesAttr().Get()
            vertex = np.array(rows, np.int64) if rows else np.arange(len(offsets))
            if len(vertex) != len(offsets):
                self.losses.append(f"the blend shape {name!r}, whose points and offsets differ in number")
                continue
            if shape.GetInbetweens():
                self.losses.append(f"in-between shapes of {name!r}")
            self._elements += 1
            shapes[name] = {
                "name": name, "weight": 0.0, "element": self._elements, "vertex": self.out.array(vertex, "i8"),
                "offsets": self.out.array(offsets, "f8", 3), "normal_offsets": None,
            }  # fmt: skip
        self.found[mesh]["shapes"] = list(shapes.values())
        return shapes


class Corners:
    """The corners that stay, in their new order, and how values of each interpolation are placed on them."""

    def __init__(self, index: np.ndarray, counts: np.ndarray, keep: np.ndarray, order: np.ndarray, points: int):
        self._order, self._vertex, self._points = order, index[order], points
        self._faces, self._corners = len(counts), len(index)
        self._face = np.repeat(np.flatnonzero(keep), counts[keep])

    def place(self, interpolation: str, length: int) -> np.ndarray | None:
        """The place of each corner's value among ``length`` values; None if there are too few."""
        wanted, places = {
            "faceVarying": (self._corners, self._order),
            "vertex": (self._points, self._vertex),
            "varying": (self._points, self._vertex),
            "uniform": (self._faces, self._face),
            "constant": (1, np.zeros(len(self._order), np.int64)),
        }.get(interpolation, (1, None))
        return places if length >= wanted else None
