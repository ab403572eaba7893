"""Child process that writes a USD layer or a USDZ. Run by path; imports nothing of this project.

See ``pipeline/mesh/convert/child_scene.py``. The layer binds new materials over a source that stays as it is.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

_CONVERT = Path(__file__).parents[1] / "mesh" / "convert"
_shared = runpy.run_path(str(_CONVERT / "child_scene.py"))
_open = runpy.run_path(str(_CONVERT / "usd_open.py"))

from pxr import Gf, Sdf, Tf, Usd, UsdGeom, UsdShade, UsdUtils  # noqa: E402

Json = dict[str, Any]
# An object of OpenUSD, which has no types.
Native = Any
# Inputs of UsdPreviewSurface by our slot: (input, output of the texture, kind).
_INPUTS = {
    "base_color": (("diffuseColor", "rgb", Sdf.ValueTypeNames.Color3f),),
    "emissive": (("emissiveColor", "rgb", Sdf.ValueTypeNames.Color3f),),
    "normal": (("normal", "rgb", Sdf.ValueTypeNames.Normal3f),),
    "occlusion": (("occlusion", "r", Sdf.ValueTypeNames.Float),),
    "metallic_roughness": (
        ("roughness", "g", Sdf.ValueTypeNames.Float),
        ("metallic", "b", Sdf.ValueTypeNames.Float),
    ),
}
_NUMBERS = {
    "base_color_factor": ("diffuseColor", Sdf.ValueTypeNames.Color3f),
    "metallic": ("metallic", Sdf.ValueTypeNames.Float),
    "roughness": ("roughness", Sdf.ValueTypeNames.Float),
}
_METADATA = ("defaultPrim", "metersPerUnit", "upAxis", "timeCodesPerSecond", "framesPerSecond", "startTimeCode",
             "endTimeCode", "kilogramsPerUnit")  # fmt: skip


class Painter:
    """A stage of the source under a new layer, which takes the materials."""

    def __init__(self, options: Json):
        self.layers = _open["Layers"](options["path"], options["root"])
        self.layer = Sdf.Layer.CreateAnonymous(".usda")
        self.layer.subLayerPaths.append(self.layers.top.identifier)
        root, source = self.layer.pseudoRoot, self.layers.top.pseudoRoot
        for key in _METADATA:
            if source.HasInfo(key):
                root.SetInfo(key, source.GetInfo(key))
        self.stage = Usd.Stage.Open(self.layer)
        self.stage.SetEditTarget(self.layer)

    def paint(self, materials: list[Json]) -> None:
        """Adds the materials and binds each to its prims. Raises RuntimeError for a prim that does not exist."""
        top = self.stage.GetDefaultPrim()
        scope = (top.GetPath() if top else Sdf.Path.absoluteRootPath).AppendChild("latentkiln_materials")
        UsdGeom.Scope.Define(self.stage, scope)
        for number, entry in enumerate(materials):
            name = Tf.MakeValidIdentifier(entry["name"] or "material")
            path = scope.AppendChild(name)
            if self.stage.GetPrimAtPath(path):
                path = scope.AppendChild(f"{name}_{number}")
            material = self.material(path, entry)
            for target in entry["prims"]:
                prim = self.editable(target)
                UsdShade.MaterialBindingAPI.Apply(prim).Bind(material)

    def editable(self, target: str) -> Native:
        """The prim at ``target``; instances on the way to it become of their own."""
        if not Sdf.Path.IsValidPathString(target):
            raise RuntimeError(f"{target[:80]!r} is not the path of a prim")
        prim = self.stage.GetPrimAtPath(target)
        while prim and prim.IsInstanceProxy():
            holder = prim
            while holder.IsInstanceProxy():
                holder = holder.GetParent()
            holder.SetInstanceable(False)
            prim = self.stage.GetPrimAtPath(target)
        if not prim:
            raise RuntimeError(f"it has no prim {target[:80]!r}")
        return prim

    def material(self, path: Native, entry: Json) -> Native:
        material = UsdShade.Material.Define(self.stage, path)
        shader = UsdShade.Shader.Define(self.stage, path.AppendChild("Surface"))
        shader.CreateIdAttr("UsdPreviewSurface")
        material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
        reader = UsdShade.Shader.Define(self.stage, path.AppendChild("Coordinates"))
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set(entry["uv_set"])
        coordinates = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        for slot, file in entry["textures"].items():
            texture = UsdShade.Shader.Define(self.stage, path.AppendChild(f"{slot}_texture"))
            texture.CreateIdAttr("UsdUVTexture")
            texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(file))
            texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates)
            for wrap in ("wrapS", "wrapT"):
                texture.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("repeat")
            space = "sRGB" if slot in ("base_color", "emissive") else "raw"
            texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
            if slot == "normal":
                texture.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
                texture.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
            for name, output, kind in _INPUTS[slot]:
                channel = Sdf.ValueTypeNames.Float3 if output == "rgb" else Sdf.ValueTypeNames.Float
                shader.CreateInput(name, kind).ConnectToSource(texture.CreateOutput(output, channel))
        for key, (name, kind) in _NUMBERS.items():
            if entry.get(key) is not None and not shader.GetInput(name):
                value = entry[key]
                shader.CreateInput(name, kind).Set(Gf.Vec3f(*value) if isinstance(value, list) else float(value))
        return material

    def layer_to(self, file: Path, reference: str) -> None:
        """Writes the layer, which names the source by ``reference``."""
        self.layer.subLayerPaths.clear()
        self.layer.subLayerPaths.append(reference)
        if not self.layer.Export(str(file)):
            raise RuntimeError("the layer cannot be written")

    def package_to(self, file: Path, folder: Path, textures: str) -> list[str]:
        """Writes a USDZ of everything. Returns what stayed out: files outside the folders, and those that are gone."""
        flat = self.stage.Flatten()
        inside = [self.layers.root, os.path.realpath(textures)]
        packed: dict[str, str] = {}
        out: list[str] = []

        def place(asset: str) -> str:
            path = asset if os.path.isabs(asset) else os.path.join(textures, asset)
            real = os.path.realpath(path)
            if not asset or not os.path.isfile(real) or all(os.path.commonpath([real, top]) != top for top in inside):
                if asset:
                    out.append(os.path.basename(asset))
                return ""
            return packed.setdefault(real, f"textures/{len(packed)}_{os.path.basename(real)}")

        UsdUtils.ModifyAssetPaths(flat, place)
        model = folder / "model.usdc"
        if not flat.Export(str(model)):
            raise RuntimeError("the package cannot be written")
        # Newer releases have it in Sdf.
        writer = (Sdf if hasattr(Sdf, "ZipFileWriter") else Usd).ZipFileWriter.CreateNew(str(file))
        writer.AddFile(str(model), "model.usdc")
        for real, name in packed.items():
            writer.AddFile(real, name)
        writer.Save()
        return out


def main(folder: Path, source: bytes, options: Json) -> None:
    """Writes the layer or the package; the scene says what stayed out."""
    painter = Painter(options)
    painter.paint(options["materials"])
    out: list[str] = []
    if options["package"]:
        out = painter.package_to(Path(options["target"]), folder, options["textures"])
    else:
        painter.layer_to(Path(options["target"]), options["reference"])
    _shared["SceneWriter"]().save(folder, {"left_out": [*painter.layers.losses, *out]})


if __name__ == "__main__":
    _shared["run"](main)
