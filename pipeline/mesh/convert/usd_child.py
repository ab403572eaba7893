"""Child process that reads a USD by OpenUSD. Run by path; imports nothing of this project (see ``child_scene.py``)."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

_shared = runpy.run_path(str(Path(__file__).with_name("child_scene.py")))
_open = runpy.run_path(str(Path(__file__).with_name("usd_open.py")))
_materials = runpy.run_path(str(Path(__file__).with_name("usd_materials.py")))
_meshes = runpy.run_path(str(Path(__file__).with_name("usd_meshes.py")))

import numpy as np  # noqa: E402
from pxr import Gf, Usd, UsdGeom, UsdLux, UsdSkel  # noqa: E402

Json = dict[str, Any]
# An object of OpenUSD, which has no types.
Native = Any
_MOST_FRAMES = 10_000
# Joints at frames: about half a minute.
_MOST_POSES = 500_000
_SKIPPED = (
    "BasisCurves", "NurbsCurves", "HermiteCurves", "NurbsPatch", "Points", "PointInstancer", "Volume", "TetMesh",
    "Cube", "Sphere", "Cylinder", "Capsule", "Cone", "Plane",
)  # fmt: skip


def transform_parts(matrix: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Translation, rotation (x, y, z, w) and scale of a (4, 4) matrix for column vectors."""
    linear = matrix[:3, :3]
    scale = np.linalg.norm(linear, axis=0)
    if np.linalg.det(linear) < 0:
        scale = scale * [-1.0, 1.0, 1.0]
    rotation = linear / np.where(np.abs(scale) > 1e-12, scale, 1.0)
    quaternion = Gf.Matrix3d(*rotation.T.reshape(-1).tolist()).ExtractRotation().GetQuat()
    return matrix[:3, 3].tolist(), [*quaternion.imaginary, quaternion.real], scale.tolist()


def columns(matrix: Native) -> np.ndarray:
    """(4, 4) of a matrix of OpenUSD, which is for row vectors."""
    return np.array(matrix, np.float64).T


class Reader:
    """Copies a stage into plain numbers."""

    def __init__(self, layers: Native):
        self.layers = layers
        self.stage = layers.stage()
        self.out = _shared["SceneWriter"]()
        self.losses: list[str] = layers.losses
        self.nodes: list[Json] = []
        self.channels: list[Json] = []
        self.node_of: dict[str, int] = {}
        self.joints_of: dict[str, list[int]] = {}
        self.skels = UsdSkel.Cache()
        self.materials = _materials["Materials"](layers, self.out, self.losses)
        self.meshes = _meshes["Meshes"](self.out, self.materials, self.losses)
        self.rate = float(self.stage.GetTimeCodesPerSecond()) or 24.0
        self.begin = float(self.stage.GetStartTimeCode())
        unit = float(UsdGeom.GetStageMetersPerUnit(self.stage))
        self.unit = unit if math.isfinite(unit) and unit > 0 else 0.01
        self.skinned: list[tuple[int, Native, Native]] = []

    def read(self) -> Json:
        """The scene as JSON."""
        half = math.sqrt(0.5)
        turn = [-half, 0.0, 0.0, half] if UsdGeom.GetStageUpAxis(self.stage) == "Z" else [0.0, 0.0, 0.0, 1.0]
        self.nodes.append({"name": "root", "parent": None, "rotation": turn, "scale": [self.unit] * 3})
        iterator = iter(Usd.PrimRange.Stage(self.stage, Usd.TraverseInstanceProxies(Usd.PrimDefaultPredicate)))
        for prim in iterator:
            if not self.visible(prim):
                iterator.PruneChildren()
                continue
            self.prim(prim)
            if prim.GetTypeName() in ("PointInstancer", "Material"):
                iterator.PruneChildren()
        for number, skeleton, binding in self.skinned:
            self.skin(number, skeleton, binding)
        animations = [{"name": "animation", "channels": self.channels}] if self.channels else []
        return {
            "nodes": self.nodes, "meshes": self.meshes.found, "materials": self.materials.found,
            "images": self.materials.images, "animations": animations,
            "losses": list(dict.fromkeys(self.losses)), "source": "USD",
        }  # fmt: skip

    def visible(self, prim: Native) -> bool:
        image = UsdGeom.Imageable(prim)
        if not image:
            return True
        if image.GetVisibilityAttr().Get() == "invisible":
            self.losses.append(f"the invisible {prim.GetPath()}")
            return False
        purpose = image.GetPurposeAttr().Get()
        if purpose in ("proxy", "guide"):
            self.losses.append(f"the {purpose} {prim.GetPath()}")
            return False
        return True

    def prim(self, prim: Native) -> None:
        if prim.HasVariantSets():
            for name in prim.GetVariantSets().GetNames():
                count = len(prim.GetVariantSet(name).GetVariantNames())
                if count > 1:
                    self.losses.append(f"{count - 1} of {count} variants {name!r} of {prim.GetPath()}")
        kind = prim.GetTypeName()
        if kind in _SKIPPED:
            self.losses.append(f"the {kind} {prim.GetPath()}")
        if not prim.IsA(UsdGeom.Imageable) or prim.IsA(UsdGeom.Subset):
            return
        number = self.node(prim)
        if prim.IsA(UsdSkel.Root):
            self.skels.Populate(UsdSkel.Root(prim), Usd.PrimDefaultPredicate)
        elif prim.IsA(UsdSkel.Skeleton):
            self.skeleton(prim, number)
        elif prim.IsA(UsdGeom.Mesh):
            self.nodes[number]["mesh"] = self.meshes.number(prim)
            self.bind(prim, number)
        elif prim.IsA(UsdGeom.Camera):
            self.nodes[number]["camera"] = self.camera(UsdGeom.Camera(prim).GetCamera(Usd.TimeCode.EarliestTime()))
        elif prim.HasAPI(UsdLux.LightAPI):
            self.nodes[number]["light"] = self.light(prim)

    def node(self, prim: Native) -> int:
        """Adds the node of a prim below its nearest ancestor that has one."""
        number = len(self.nodes)
        parent = prim.GetParent()
        while parent and str(parent.GetPath()) not in self.node_of:
            parent = parent.GetParent()
        above = self.node_of[str(parent.GetPath())] if parent else 0
        node: Json = {"name": prim.GetName(), "extras": {"usd": str(prim.GetPath())}}
        form = UsdGeom.Xformable(prim)
        if form:
            if form.GetResetXformStack():
                above = 0
            local = columns(form.GetLocalTransformation(Usd.TimeCode.EarliestTime()))
            if form.TransformMightBeTimeVarying():
                node |= dict(zip(("translation", "rotation", "scale"), transform_parts(local), strict=True))
                times = form.GetTimeSamples()
                frames = self.frames(times)
                matrices = [columns(form.GetLocalTransformation(Usd.TimeCode(frame))) for frame in frames]
                self.add_channels(number, frames, matrices)
            else:
                node["matrix"] = local.reshape(-1).tolist()
        self.nodes.append(node | {"parent": above})
        self.node_of[str(prim.GetPath())] = number
        return number

    def frames(self, times: list[float]) -> np.ndarray:
        """Every frame between the first and the last of ``times``, both included."""
        first, last = float(min(times)), float(max(times))
        steps = min(max(math.ceil(last - first), 1), _MOST_FRAMES) if last > first else 0
        return np.linspace(first, last, steps + 1)

    def add_channels(self, number: int, frames: np.ndarray, matrices: list[np.ndarray]) -> None:
        """Adds the keys of a node's local matrices."""
        seconds = self.out.array((frames - self.begin) / self.rate, "f8")
        parts = [transform_parts(matrix) for matrix in matrices]
        for path, place, width in (("translation", 0, 3), ("rotation", 1, 4), ("scale", 2, 3)):
            values = np.array([part[place] for part in parts], np.float64)
            if len(values) > 1 and np.ptp(values, axis=0).max() < 1e-9 and path != "rotation":
                continue
            self.channels.append({
                "node": number, "path": path, "times": seconds, "values": self.out.array(values, "f8", width),
            })  # fmt: skip

    def camera(self, camera: Native) -> Json:
        # A camera's node has the scale of the root, but its lens is measured in metres.
        near, far = camera.clippingRange.min * self.unit, camera.clippingRange.max * self.unit
        if camera.projection == Gf.Camera.Orthographic:
            scale = Gf.Camera.APERTURE_UNIT / 2 * self.unit
            half = [camera.horizontalAperture * scale, camera.verticalAperture * scale]
            return {"name": "", "half_size": half, "near": near, "far": far}
        return {"name": "", "fov_y": math.radians(camera.GetFieldOfView(Gf.Camera.FOVVertical)),
                "aspect": camera.aspectRatio, "near": near, "far": far}  # fmt: skip

    def light(self, prim: Native) -> Json | None:
        kind = {"DistantLight": "directional", "SphereLight": "point"}.get(prim.GetTypeName())
        if kind is None:
            self.losses.append(f"the {prim.GetTypeName()} {prim.GetPath()}")
            return None
        light = UsdLux.LightAPI(prim)
        intensity = float(light.GetIntensityAttr().Get() or 0) * 2 ** float(light.GetExposureAttr().Get() or 0)
        return {"name": prim.GetName(), "type": kind, "color": list(light.GetColorAttr().Get() or (1, 1, 1)),
                "intensity": intensity, "inner": 0.0, "outer": 0.7}  # fmt: skip

    # -- skeletons ------------------------------------------------------------------------------------------------

    def skeleton(self, prim: Native, number: int) -> None:
        """Adds a node for each joint below the skeleton's own, in the pose of its animation, and the keys of that."""
        query = self.skels.GetSkelQuery(UsdSkel.Skeleton(prim))
        if not query:
            self.losses.append(f"the skeleton {prim.GetPath()}, which is not valid")
            return
        topology = query.GetTopology()
        names = [str(name) for name in query.GetJointOrder()]
        pose = query.ComputeJointLocalTransforms(Usd.TimeCode.EarliestTime())
        if pose is None or len(pose) != len(names):
            self.losses.append(f"the skeleton {prim.GetPath()}, which has no pose")
            return
        first = len(self.nodes)
        for joint, name in enumerate(names):
            parent = topology.GetParent(joint)
            parts = transform_parts(columns(pose[joint]))
            self.nodes.append({
                "name": name.rsplit("/", 1)[-1], "parent": first + parent if parent >= 0 else number,
                **dict(zip(("translation", "rotation", "scale"), parts, strict=True)),
            })  # fmt: skip
        self.joints_of[str(prim.GetPath())] = list(range(first, first + len(names)))
        animation = query.GetAnimQuery()
        times = animation.GetJointTransformTimeSamples() if animation else []
        frames = self.frames(times) if len(times) > 1 else np.zeros(0)
        if len(frames) * len(names) > _MOST_POSES:
            self.losses.append(f"the animation of {prim.GetPath()}, which is too long")
        elif len(frames):
            poses = [query.ComputeJointLocalTransforms(Usd.TimeCode(frame)) for frame in frames]
            for joint in range(len(names)):
                self.add_channels(first + joint, frames, [columns(pose[joint]) for pose in poses])

    def bind(self, prim: Native, number: int) -> None:
        """Notes a mesh's skeleton, and adds its blend shapes."""
        binding = UsdSkel.BindingAPI(prim)
        skeleton = binding.GetInheritedSkeleton()
        if skeleton and binding.GetJointIndicesPrimvar().HasAuthoredValue():
            self.skinned.append((number, skeleton, prim))
        query = self.skels.GetSkinningQuery(prim)
        if not query or not query.HasBlendShapes() or self.nodes[number]["mesh"] is None:
            return
        elements = self.meshes.shapes(prim, self.nodes[number]["mesh"], query)
        animation = self.skels.GetSkelQuery(skeleton).GetAnimQuery() if skeleton else None
        if not animation or not elements:
            return
        order = [str(name) for name in animation.GetBlendShapeOrder()]
        times = animation.GetBlendShapeWeightTimeSamples()
        frames = self.frames(times) if times else np.array([self.begin])
        rows = [animation.ComputeBlendShapeWeights(Usd.TimeCode(frame)) for frame in frames]
        weights = np.array([row if row is not None else [0.0] * len(order) for row in rows], np.float64)
        seconds = self.out.array((frames - self.begin) / self.rate, "f8")
        for name, shape in elements.items():
            if name not in order:
                continue
            column = weights[:, order.index(name)]
            shape["weight"] = float(column[0])
            if len(frames) > 1:
                self.channels.append({
                    "element": shape["element"], "path": "weights", "times": seconds,
                    "values": self.out.array(column, "f8", 1),
                })  # fmt: skip

    def skin(self, number: int, skeleton: Native, prim: Native) -> None:
        """Adds the skin of a mesh."""
        mesh = self.nodes[number]["mesh"]
        joints = self.joints_of.get(str(skeleton.GetPath()))
        query, binding = self.skels.GetSkinningQuery(prim), UsdSkel.BindingAPI(prim)
        if mesh is None or not joints or not query or not query.HasJointInfluences():
            self.losses.append(f"the skin of {prim.GetPath()}, whose skeleton is not valid")
            return
        count = self.meshes.points[mesh]
        influences = query.ComputeVaryingJointInfluences(count, Usd.TimeCode.EarliestTime())
        own = [str(name) for name in binding.GetJointsAttr().Get() or ()]
        skel_query = self.skels.GetSkelQuery(skeleton)
        order = [str(name) for name in skel_query.GetJointOrder()]
        binds = skel_query.GetJointWorldBindTransforms()
        if influences is None or any(name not in order for name in own) or len(binds) != len(order):
            self.losses.append(f"the skin of {prim.GetPath()}, whose joints do not match its skeleton")
            return
        places = [order.index(name) for name in own] if own else list(range(len(order)))
        index, weight = np.array(influences[0], np.int64), np.array(influences[1], np.float64)
        per_point = len(index) // max(count, 1)
        geometry = columns(query.GetGeomBindTransform(Usd.TimeCode.EarliestTime()))
        inverse = [np.linalg.pinv(columns(binds[place])) @ geometry for place in places]
        # World bind transforms are in the skeleton's space.
        self.meshes.found[mesh]["skin"] = {
            "joints": [joints[place] for place in places],
            "inverse_bind": self.out.array(np.array(inverse), "f8", 16),
            "vertex": self.out.array(np.repeat(np.arange(count), per_point), "i8"),
            "joint": self.out.array(index[: count * per_point], "i8"),
            "weight": self.out.array(weight[: count * per_point], "f8"),
        }


def main(folder: Path, source: bytes, options: Json) -> None:
    """Reads the USD and writes its scene."""
    reader = Reader(_open["Layers"](options["path"], options["root"]))
    result = reader.read()
    reader.out.save(folder, result)


if __name__ == "__main__":
    _shared["run"](main)
